"""Method A of the original project, outer part: the smallest radius at which a fixed-radius attack succeeds."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mnist_jax import losses, norms
from mnist_jax.attack.boundaries import margins
from mnist_jax.attack.chunks import chunk_size, fill, in_chunks
from mnist_jax.attack.fixed_norm import fixed_norm
from mnist_jax.attack.problem import CAREFUL, Problem, disturb, problem, radii
from mnist_jax.attack.result import AttackResult, finish
from mnist_jax.classifier import Classifier

ROUNDS = 24  # at most; most images take about 8
AT_ONCE = 2  # rounds of one program, after which the images that are done leave the batch
DECAY = 0.8  # of the learning rate, from round to round
LINE = 5  # evaluations along a line
CLASSES = 9  # how many of the likeliest other classes are looked at to begin with
ABOVE = 1e-4  # of the estimate is added to it
EDGE = 0.02  # of the interval is left below its upper end
AGAIN = 0.998  # of the estimate is where an interval is opened again


class State(NamedTuple):
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


def dichotomy(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    norm: float = 2,
    low: ArrayLike = 0.0,
    high: ArrayLike | None = None,
    tolerance: float = 5e-4,
    attack: Callable[..., AttackResult] = fixed_norm,
    targets: ArrayLike | None = None,
    key: jax.Array | None = None,
    **options: Any,
) -> AttackResult:
    """Bisects the radius of a fixed-radius attack, separately for every image.

    An interval [low, high], with failure at its lower end and success at its upper end, is divided until it is shorter
    than `tolerance * high`: where the boundary would be if the margin were linear, and after a failure there in the
    middle. After a success `high` falls at once to where the line from the image to what was found crosses the
    boundary. The first radius is that of the class whose linearized boundary is nearest (Moosavi-Dezfooli et al.,
    "DeepFool", 2016, here inside the box). An attack that takes a `start`, as `fixed_norm` does, gets the nearest point
    of the linearized boundary, so that none begins anew.

    Args:
      classifier, images, labels, norm, targets: see `fixed_norm`.
      low: a radius, number or `[B]`, below which not to look.
      high: a radius, number or `[B]`, above which not to look; at most, and if None, the largest that the box allows
        the image.
      tolerance: relative length of the last interval.
      attack: any fixed-radius attack, `attack(classifier, images, labels, radius, *, norm, targets) -> AttackResult`.
      key: a `jax.random` key; with one, the first start is disturbed at random. Without, nothing is random.
      options: passed to the attack. For `fixed_norm` and unless they are given, `steps` is 10, and `learning_rate` is
        the radius over D^(1/p), for images of D pixels, and less in every round.

    Returns:
      An `AttackResult` with the nearest adversarial image found.

    Raises:
      ValueError: an argument is out of its range.
    """
    norm = norms.check(norm)
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be between 0 and 1, not {tolerance:g}")
    given = problem(classifier, images, labels, targets)
    reach = norms.largest(given.images, norm)
    low = radii(low, given.images, "low")
    high = reach if high is None else jnp.minimum(radii(high, given.images, "high"), reach)
    takes = tuple(inspect.signature(attack).parameters)
    how: dict[str, Any] = {"norm": norm, "tolerance": tolerance, "attack": attack, "takes_start": "start" in takes}
    rounds = partial(_rounds, classifier, **how, options=tuple(sorted(options.items())))
    state = in_chunks(partial(_first, norm=norm), (given, low, high), classifier)
    if key is not None:
        state = state._replace(last=disturb(given, state.last, key, 0.5 * state.radius, norm))
    if isinstance(given.images, jax.core.Tracer):  # there are no values yet to leave by
        state = rounds(given, state, count=ROUNDS)
    else:
        state = _leaving(rounds, given, state)
    return in_chunks(partial(_finish, norm=norm), (given, state), classifier)


def _leaving(rounds, given: Problem, state: State) -> State:
    """Some rounds at a time for the first images that aren't done, as many as go into a batch."""
    given, state = jax.tree.map(np.asarray, given), jax.tree.map(np.array, state)
    size = chunk_size(len(given.labels))
    while len(active := np.flatnonzero(~state.done)[:size]):
        part = jax.tree.map(lambda a, active=active: fill(a[active], size), (given, state))
        for ours, new in zip(state, rounds(*part, count=AT_ONCE), strict=True):
            ours[active] = np.asarray(new)[: len(active)]
    return state


@partial(jax.jit, static_argnames="norm")
def _first(classifier, given: Problem, low, high, *, norm) -> State:
    logits, steps = _planes(classifier, given, norm)
    lengths = jax.vmap(partial(norms.norm, p=norm))(steps)
    nearest = lengths.argmin(0)
    start, estimate = jnp.take_along_axis(steps, given.per_image(nearest)[None], 0)[0], lengths.min(0)
    nothing, zero = jnp.zeros_like(given.images), jnp.zeros(len(low), jnp.int32)
    done = given.solved(logits) | (high <= 0)
    radius = _next(low, high, estimate, zero > 0, zero)
    return State(low, high, radius, nothing, start, zero > 0, done, zero, zero, zero + len(steps), zero)


def _planes(classifier, given: Problem, norm):
    """The logits, and for each of the likeliest classes, or just the target, the step `[K, B, *shape]` to where the
    image would be taken for that class if the margin were linear."""
    logits, values, gradients = margins(classifier, given, CLASSES)
    falls = values + given.rounding(logits)[None]
    return logits, jax.vmap(lambda g, fall: norms.nearest_on_plane(g, fall, given.images, norm))(gradients, falls)


def _next(low, high, estimate, found, failures):
    """The radius to try: a little above the estimate; after a failure, at least the middle of the interval, or, as long
    as its upper end is no success, the farther above the more attempts failed."""
    above = estimate * (1 + jnp.where(found, ABOVE, ABOVE * 8.0**failures))
    middle = jnp.where(found & (failures > 0), (low + high) / 2, 0)
    edge = EDGE * (high - low)
    return jnp.clip(jnp.maximum(above, middle), low, high - edge)


@partial(jax.jit, static_argnames=("norm", "tolerance", "attack", "takes_start", "options", "count"))
def _rounds(classifier, given, state, *, norm, tolerance, attack, takes_start, options, count) -> State:
    pixels = state.best[0].size

    def attempt(state):
        more = dict(options)
        if attack is fixed_norm:
            more = {"steps": 10, "learning_rate": state.radius * pixels ** (-1 / norm) * DECAY**state.rounds} | more
        if takes_start:
            more["start"] = state.last
        return attack(classifier, given.images, given.labels, state.radius, norm=norm, targets=given.targets, **more)

    def body(_, state):
        new = _divide(classifier, given, state, attempt(state), norm, tolerance)
        keep = [given.where if a.ndim > 1 else jnp.where for a in state]
        return State(*[where(state.done, a, b) for where, a, b in zip(keep, state, new, strict=True)])

    return jax.lax.fori_loop(0, count, body, state)


def _divide(classifier, given: Problem, state: State, result: AttackResult, norm, tolerance) -> State:
    """The state after the attack at `state.radius` had that result."""
    r = result.images - given.images
    logits, margin, gradient = given.gradient(classifier, result.images, losses.margin)
    fooled = given.solved(logits, CAREFUL)
    along = (gradient * r).reshape(len(margin), -1).sum(1)
    step = norms.nearest_on_plane(gradient, margin + given.rounding(logits) - along, given.images, norm)
    estimate = norms.norm(step, norm)
    share = _line(classifier, given, r, estimate / state.radius)
    distance = share * norms.norm(r, norm)
    better = fooled & (distance < state.high)
    high = jnp.where(better, distance, state.high)
    # An attack may fail by chance where it succeeds at a smaller radius. The interval is opened again for that.
    low = jnp.where(fooled, jnp.minimum(state.low, AGAIN * jnp.minimum(estimate, high)), state.radius)
    failures = jnp.where(fooled, 0, state.failures + 1)
    # The step can be trusted where it isn't long.
    near = (estimate > state.radius / 2) & (estimate < 2 * state.radius)
    return State(
        low=low,
        high=high,
        radius=_next(low, high, estimate, state.found | better, failures),
        best=given.where(better, given.per_image(share) * r, state.best),
        last=given.where(near, step, r),
        found=state.found | better,
        done=(high - low <= tolerance * high) | (state.rounds + 1 >= ROUNDS),
        rounds=state.rounds + 1,
        failures=failures,
        gradients=state.gradients + result.gradients + 1,
        forwards=state.forwards + result.forwards + LINE,
    )


def _line(classifier, given: Problem, r, guess):
    """The smallest share of `r` that was found to be adversarial, between `2 guess - 1` and 1."""

    def halve(_, ends):
        fails, fools = ends
        middle = (fails + fools) / 2
        images = jnp.clip(given.images + given.per_image(middle) * r, 0, 1)
        solved = given.solved(classifier(images), CAREFUL)
        return jnp.where(solved, fails, middle), jnp.where(solved, middle, fools)

    one = jnp.ones_like(guess)
    return jax.lax.fori_loop(0, LINE, halve, (jnp.clip(2 * guess - 1, 0, 1), one))[1]


@partial(jax.jit, static_argnames="norm")
def _finish(classifier, given: Problem, state: State, *, norm) -> AttackResult:
    r = given.where(state.found, state.best, state.last)
    result = finish(classifier, given, given.images + r, norm, state.gradients, state.forwards)
    success = result.success & (state.found | (result.distance == 0))
    return result._replace(success=success, distance=jnp.where(success, result.distance, jnp.inf))
