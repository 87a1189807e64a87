"""The search for the weight of misclassification beside the distance, of attacks that minimize a sum of the two."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnist_jax.attack.engine.best import Best
from mnist_jax.attack.engine.driver import Found
from mnist_jax.attack.engine.problem import Problem

CHECKS = 10  # in a descent: where the loss fell by less than this share since the last one, the image is done
ENOUGH = 1e-4
LARGEST = 1e10  # weight


class Attempt(NamedTuple):
    """What one step of a descent tried: `r`, like the images, and for each image `[B]` the rest."""

    r: jax.Array
    value: jax.Array  # of which the best is the lowest
    adversarial: jax.Array
    loss: jax.Array


class WeightSearch(NamedTuple):
    """The weights `c` of the images, the largest that failed, the smallest that succeeded, and what was found."""

    c: jax.Array
    low: jax.Array
    high: jax.Array
    best: Best
    last: jax.Array  # the last attempt
    gradients: jax.Array


def search_weight(
    given: Problem,
    step: Callable[[jax.Array, Any, jax.Array], tuple[Any, Attempt]],
    start: Any,
    *,
    steps: int,
    rounds: int,
    weight: ArrayLike,
    stop_early: bool,
) -> WeightSearch:
    """Descends in `rounds`, at weights that are ten times larger until one succeeds, and then bisected.

    `step(i, state, c)` is step number i of the descent at the weights `c [B]`, and gives the next state, a pytree of
    arrays `[B, ...]`, and what was tried. It uses one gradient. Each image is done for itself.
    """
    count, dtype = len(given.images), given.images.dtype
    every = -(-steps // CHECKS)

    def descend(_, search):
        def goes_on(carry):
            i, active = carry[:2]
            return (i < steps) & active.any()

        def advance(carry):
            i, active, before, adversarial, state, best, last, gradients = carry
            new, attempt = step(i, state, search.c)
            best = best.keep(given, attempt.r, attempt.value, attempt.adversarial & active)
            adversarial |= attempt.adversarial & active
            last = given.where(active, attempt.r, last)
            gradients += active
            if stop_early:
                check = i % every == 0
                active &= ~check | (attempt.loss < (1 - ENOUGH) * before)
                before = jnp.where(check, attempt.loss, before)
            return i + 1, active, before, adversarial, new, best, last, gradients

        none = jnp.zeros(count, bool)
        carry = (0, ~none, jnp.full(count, jnp.inf, dtype), none, start, search.best, search.last, search.gradients)
        _, _, _, adversarial, _, best, last, gradients = jax.lax.while_loop(goes_on, advance, carry)
        low, high = jnp.where(adversarial, search.low, search.c), jnp.where(adversarial, search.c, search.high)
        c = jnp.where(jnp.isfinite(high), (low + high) / 2, jnp.minimum(10 * search.c, LARGEST))
        return WeightSearch(c, low, high, best, last, gradients)

    c, nothing = jnp.full(count, weight, dtype), jnp.zeros(count, jnp.int32)
    none = WeightSearch(c, 0 * c, 0 * c + jnp.inf, Best.none(given.images), jnp.zeros_like(given.images), nothing)
    return jax.lax.fori_loop(0, rounds, descend, none)


def found_by(given: Problem, found: WeightSearch, forwards: ArrayLike) -> Found:
    """The best of a search; a failure where there is none, even if the last attempt is misclassified by too little."""
    r = given.where(found.best.found, found.best.r, found.last)
    return Found(r, found.gradients, forwards, allowed=found.best.found)
