"""The search for the smallest radius at which a fixed-radius attack succeeds: its state, and one division of it."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnist_jax import geometry, losses
from mnist_jax.attack.engine import boundary
from mnist_jax.attack.engine.problem import CAREFUL, Loss, Problem
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.attack.fixed_radius.fixed_norm import adam_on_sphere

ROUNDS = 24  # at most; most images take about 12
STEPS = 10  # of the attack in a round
DECAY = 0.7  # of its learning rate, from round to round
FEW = 8  # pixels that share the 1-norm of a perturbation, in the choice of the learning rate
LINE = 3  # evaluations along a line after an attack
ABOVE = 1e-4  # of the estimate is added to it, before the first success
FROM_ESTIMATE = 0.99  # of the way to the best is the next radius
EDGE = 0.01  # of the interval is left below its upper end
AGAIN = 0.998  # of the estimate is where an interval is opened again


class Bisection(NamedTuple):
    """The search of every image: `[B]`, or like the images."""

    low: jax.Array  # the largest radius that failed
    high: jax.Array  # the distance of the best, or the limit
    radius: jax.Array  # to try next
    best: jax.Array  # the nearest adversarial perturbation
    last: jax.Array  # the last attempt
    found: jax.Array
    done: jax.Array
    rounds: jax.Array
    failures: jax.Array  # in a row
    gradients: jax.Array
    forwards: jax.Array


def begin(given: Problem, low: jax.Array, high: jax.Array, r: jax.Array, done: jax.Array, norm: float) -> Bisection:
    """The state when all that is known are the limits `[B]` and a perturbation to start with."""
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
    """`fixed_norm` at the radius of the state, from where it is; the learning rate falls from round to round."""
    if learning_rate is None:
        learning_rate = rate(given, state.radius, norm) * DECAY ** state.rounds.astype(state.radius.dtype)
    rates = jnp.broadcast_to(learning_rate, state.radius.shape)
    return adam_on_sphere(classifier, given, state.radius, rates, state.last, norm=norm, steps=steps, loss=loss).r


def rate(given: Problem, radius: jax.Array, norm: float) -> jax.Array:
    """The learning rate of the first round: a perturbation that is spread evenly changes a pixel by that much."""
    return radius * (FEW if norm == 1 else given.images[0].size) ** (-1 / norm)


def divide(classifier, given: Problem, state: Bisection, r: jax.Array, norm: float, shortest: float) -> Bisection:
    """The state after the attack at `state.radius` gave the perturbation `r`, which is `state.last` in the first round.

    It is done when the interval is shorter than `shortest * high`.
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
    # An attack may fail by chance where it succeeds at a smaller radius. The interval is opened again for that.
    low = jnp.where(fooled, jnp.minimum(state.low, AGAIN * jnp.minimum(estimate, high)), state.radius)
    low = jnp.where(first, state.low, low)  # no attack was made at the first radius
    failures = jnp.where(fooled | first, 0, state.failures + 1)
    # The step can be trusted where it isn't long.
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
    """The radius to try: most of the way from the estimate, which promises too much, to the best; after a failure, at
    least the middle of the interval. As long as there is no success, the farther above the estimate the more failed."""
    between = estimate + FROM_ESTIMATE * jnp.maximum(high - estimate, 0)
    above = jnp.where(found, between, estimate * (1 + ABOVE * 8.0 ** failures.astype(estimate.dtype)))
    middle = jnp.where(found & (failures > 0), (low + high) / 2, 0)
    edge = EDGE * (high - low)
    return jnp.clip(jnp.maximum(above, middle), low, high - edge)


class Halving(NamedTuple):
    """Bisection and nothing else, of every image: `[B]`, or like the images."""

    low: jax.Array  # the last radius that failed, or the limit
    high: jax.Array  # the last that succeeded, or the limit
    best: jax.Array  # the nearest adversarial perturbation, or the last attempt
    found: jax.Array
    done: jax.Array
    rounds: jax.Array
    gradients: jax.Array
    forwards: jax.Array


def halve_from(given: Problem, low: jax.Array, high: jax.Array) -> Halving:
    """The state when all that is known are the limits `[B]`."""
    zero = jnp.zeros(len(low), jnp.int32)
    return Halving(low, high, jnp.zeros_like(given.images), zero > 0, high <= 0, zero, zero, zero)


@jax.jit
def middle(state: Halving) -> jax.Array:
    """The radii `[B]` to try."""
    return (state.low + state.high) / 2


@partial(jax.jit, static_argnums=(4, 5))
def halved(classifier, given: Problem, state: Halving, result: AttackResult, norm: float, tolerance: float) -> Halving:
    """The state after the attack at the middle had that result, whose images are judged anew."""
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
