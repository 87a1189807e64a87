"""The search for the weight c in attacks that minimize the distance plus c times a loss (Carlini & Wagner 2017).

The loss is zero for adversarial images, so that a large c gives adversarial images, and a small c near ones.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnist_jax.attack.engine.best import Best
from mnist_jax.attack.engine.driver import Found
from mnist_jax.attack.engine.problem import Problem

# Ending a descent early, as in Carlini & Wagner's implementation:
CHECKS = 10  # how often in a descent the sum that it minimizes is compared with its value at the last check
ENOUGH = 1e-4  # the least relative decrease between two checks for which the descent of an image goes on
LARGEST = 1e10  # the largest weight c, so that it stays finite while no descent succeeds. Chosen


class Attempt(NamedTuple):
    """The perturbations that one step of a descent tries: `r [B, *shape]`, all else `[B]`."""

    r: jax.Array
    value: jax.Array  # what makes an adversarial perturbation the best where it is lowest, such as the distance
    adversarial: jax.Array  # whether `r` may be kept as the best
    loss: jax.Array  # the sum that the descent minimizes


class WeightSearch(NamedTuple):
    """The state of the search between two descents, for each image: perturbations `[B, *shape]`, all else `[B]`."""

    c: jax.Array  # weight in the next descent
    low: jax.Array  # the largest weight at which a descent failed, 0 before
    high: jax.Array  # the smallest weight at which one succeeded, inf before
    best: Best  # the adversarial perturbations of the lowest `Attempt.value`
    last: jax.Array  # the perturbations tried last
    gradients: jax.Array  # gradients used so far


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
    """Makes a descent at each of several weights c, separately for each image; returns the state after the last one.

    c is multiplied by ten until a descent succeeds, then bisected between the largest that failed and the smallest that
    succeeded.

    Args:
      given: the images, and labels or targets.
      step: `step(i, state, c)`, step number i of a descent at the weights `c [B]`; it uses one gradient, and gives the
        next state, a pytree of arrays `[B, ...]`, and what it tried.
      start: the state at the start of each descent.
      steps: the most steps of a descent.
      rounds: the number of descents.
      weight: c in the first descent.
      stop_early: whether the descent of an image ends where the sum hardly falls any more, see `ENOUGH`.
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
    """The best perturbations of a search as the `Found` of a kernel; where there are none, the last ones, as a failure.

    These may be misclassified, but by less than the attack's `confidence` asks for.
    """
    r = given.where(found.best.found, found.best.r, found.last)
    return Found(r, found.gradients, forwards, allowed=found.best.found)
