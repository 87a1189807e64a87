"""Bisection of the radius of a fixed-radius attack, for each image: the states and the rounds that `dichotomy` uses.

`Bisection` chooses the next radius by the distance of the boundary as linearized at the attack's last perturbation.
`Halving` always takes the middle of the interval.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnist_jax import geometry, losses
from mnist_jax.attack.engine import boundary
from mnist_jax.attack.engine.problem import CAREFUL, Loss, Problem
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.attack.fixed_radius.fixed_norm import adam_on_sphere

# All constants are chosen; no paper gives them.
ROUNDS = 24  # the most rounds of a bisection; most images take about 12
# Of `Bisection`; the estimate is the distance of the boundary as linearized at the attack's perturbation:
STEPS = 10  # gradients of the attack `fixed_norm` in a round, unless the caller chooses
DECAY = 0.7  # factor of that attack's learning rate from one round to the next
FEW = 8  # for p = 1, the number of pixels over which `rate` spreads a perturbation
LINE = 3  # evaluations in the bisection along the line to an attack's perturbation
ABOVE = 1e-4  # before the first success, the next radius exceeds the estimate by this share of it, or more
# After the first success, the next radius is at this share of the way from the estimate to the least distance found.
FROM_ESTIMATE = 0.99
EDGE = 0.01  # the next radius is below the upper end of the interval by at least this share of its length
AGAIN = 0.998  # after a success, the lower end of the interval is at most this share of the estimate


class Bisection(NamedTuple):
    """The state of a bisection, for each image: perturbations `[B, *shape]`, all else `[B]`."""

    low: jax.Array  # lower end of the interval: the last radius that failed, or less after a success (see AGAIN)
    high: jax.Array  # upper end: the distance of `best`, or the largest radius allowed where there is none
    radius: jax.Array  # radius of the next attack
    best: jax.Array  # the nearest adversarial perturbation, zero where none is found
    last: jax.Array  # starting point of the next attack
    found: jax.Array  # whether an adversarial perturbation is found
    done: jax.Array  # whether the bisection has ended
    rounds: jax.Array  # rounds so far
    failures: jax.Array  # attacks that failed since the last success
    gradients: jax.Array  # gradients used so far
    forwards: jax.Array  # evaluations without a gradient used so far


def begin(given: Problem, low: jax.Array, high: jax.Array, r: jax.Array, done: jax.Array, norm: float) -> Bisection:
    """The state before the first round, from the least and largest radius `[B]` and perturbations `r` to begin with."""
    zero = jnp.zeros(len(low), jnp.int32)
    nothing = jnp.zeros_like(given.images)
    return Bisection(low, high, geometry.norm(r, norm), nothing, r, zero > 0, done, zero, zero, zero, zero)


def attempt(
    classifier,
    given: Problem,
    state: Bisection,
    norm: float,
    *,
    loss: Loss = losses.margin,
    steps=STEPS,
    learning_rate=None,
) -> jax.Array:
    """The perturbations `[B, *shape]` of `fixed_norm` at `state.radius`, from `state.last`.

    `learning_rate` is a number or `[B]`; None means one that falls from round to round, see `rate`.
    """
    if learning_rate is None:
        learning_rate = rate(given, state.radius, norm) * DECAY ** state.rounds.astype(state.radius.dtype)
    rates = jnp.broadcast_to(learning_rate, state.radius.shape)
    return adam_on_sphere(classifier, given, state.radius, rates, state.last, norm=norm, steps=steps, loss=loss).r


def rate(given: Problem, radius: jax.Array, norm: float) -> jax.Array:
    """The learning rate `[B]` of the first round: the change of a pixel in a perturbation that is spread evenly.

    It is spread over all pixels of the image, but for p = 1, where few pixels should change, over `FEW` pixels.
    """
    return radius * (FEW if norm == 1 else given.images[0].size) ** (-1 / norm)


def divide(classifier, given: Problem, state: Bisection, r: jax.Array, norm: float, shortest: float) -> Bisection:
    """The state after a round, in which the attack at `state.radius` gave the perturbations `r`.

    In the first round there is no attack, and `r` is `state.last`. The bisection ends when the interval is shorter than
    `shortest * high`, or after `ROUNDS`.
    """
    first = state.rounds == 0
    logits, step = boundary.step(classifier, given, r, norm)
    fooled = given.adversarial(logits, CAREFUL)
    estimate = geometry.norm(step, norm)
    one = jnp.ones_like(estimate)
    share = boundary.line(classifier, given, r, jnp.clip(2 * estimate / state.radius - 1, 0, 1), one, LINE)
    distance = share * geometry.norm(r, norm)
    better = fooled & (distance < state.high)
    high = jnp.where(better, distance, state.high)
    # An attack may fail by chance at a radius at which another run would succeed, so a success may lower the lower end.
    low = jnp.where(fooled, jnp.minimum(state.low, AGAIN * jnp.minimum(estimate, high)), state.radius)
    low = jnp.where(first, state.low, low)  # no attack was made at the first radius
    failures = jnp.where(fooled | first, 0, state.failures + 1)
    # The next attack starts at the step if its norm is about the radius: elsewhere the linearization can't be trusted.
    near = (estimate > state.radius / 2) & (estimate < 2 * state.radius)
    return Bisection(
        low=low,
        high=high,
        radius=_next(low, high, estimate, state.found | better, failures),
        best=given.where(better, given.per_image(share) * r, state.best),
        last=given.where(near, step, r),
        found=state.found | better,
        done=(high - low <= shortest * high) | (state.rounds + 1 >= ROUNDS),
        rounds=state.rounds + 1,
        failures=failures,
        gradients=state.gradients + 1,
        forwards=state.forwards + LINE,
    )


def _next(low, high, estimate, found, failures):
    """The radius `[B]` of the next attack.

    It is close below the best distance, since the estimate tends to be too short; after a failure, it is at least the
    middle of the interval. As long as nothing is found, it exceeds the estimate the more, the more attacks failed.
    """
    between = estimate + FROM_ESTIMATE * jnp.maximum(high - estimate, 0)
    above = jnp.where(found, between, estimate * (1 + ABOVE * 8.0 ** failures.astype(estimate.dtype)))
    middle = jnp.where(found & (failures > 0), (low + high) / 2, 0)
    edge = EDGE * (high - low)
    return jnp.clip(jnp.maximum(above, middle), low, high - edge)


class Halving(NamedTuple):
    """The state of a bisection by halves, for each image: perturbations `[B, *shape]`, all else `[B]`."""

    low: jax.Array  # the last radius at which the attack failed, or the least allowed
    high: jax.Array  # the last radius at which it succeeded, or the largest allowed
    best: jax.Array  # the nearest adversarial perturbation, or where none is found, the attack's last
    found: jax.Array  # whether an adversarial perturbation is found
    done: jax.Array  # whether the bisection has ended
    rounds: jax.Array  # rounds so far
    gradients: jax.Array  # gradients used so far
    forwards: jax.Array  # evaluations without a gradient used so far


def halve_from(given: Problem, low: jax.Array, high: jax.Array) -> Halving:
    """The state before the first round, from the least and the largest radius `[B]`."""
    zero = jnp.zeros(len(low), jnp.int32)
    return Halving(low, high, jnp.zeros_like(given.images), zero > 0, high <= 0, zero, zero, zero)


@jax.jit
def middle(state: Halving) -> jax.Array:
    """The radius `[B]` of the next attack: the middle of the interval."""
    return (state.low + state.high) / 2


@partial(jax.jit, static_argnums=(4, 5))
def halved(classifier, given: Problem, state: Halving, result: AttackResult, norm: float, tolerance: float) -> Halving:
    """The state after the attack at `middle(state)` gave `result`.

    Its images are evaluated again, since they must be misclassified by the larger margin of `CAREFUL`. The bisection
    ends when the interval is shorter than `tolerance * high`, or after `ROUNDS`.
    """
    r, radius = result.images - given.images, middle(state)
    success = result.success & given.adversarial(classifier(result.images), CAREFUL)
    distance = geometry.norm(r, norm)
    better = success & (~state.found | (distance < geometry.norm(state.best, norm)))
    low = jnp.where(success, state.low, radius)
    high = jnp.where(success, jnp.where(distance > 0, radius, 0), state.high)
    new = Halving(
        low=low,
        high=high,
        best=given.where(better | ~state.found, r, state.best),
        found=state.found | success,
        done=(high - low <= tolerance * high) | (state.rounds + 1 >= ROUNDS),
        rounds=state.rounds + 1,
        gradients=state.gradients + result.gradients,
        forwards=state.forwards + result.forwards + 1,
    )
    return given.choose(state.done, state, new)
