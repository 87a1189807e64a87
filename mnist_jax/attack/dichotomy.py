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
from mnist_jax.attack import boundary
from mnist_jax.attack.chunks import chunk_size, in_chunks
from mnist_jax.attack.fixed_norm import fixed_norm, search
from mnist_jax.attack.problem import CAREFUL, Problem, disturb, loss_function, problem, radii
from mnist_jax.attack.result import AttackResult, finish
from mnist_jax.classifier import Classifier

ROUNDS = 24  # at most; most images take about 8
AT_ONCE = 2  # rounds of one program, after which the images that are done leave the batch
DECAY = 0.7  # of the learning rate, from round to round
LINE = 3  # evaluations along a line after an attack
ABOVE = 1e-4  # of the estimate is added to it, before the first success
FROM_ESTIMATE = 0.75  # of the way to the best is the next radius
FINER = 0.2  # of the tolerance is the length of the last interval: the attack may miss by the rest
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

    An interval [low, high], with failure at its lower end and success at its upper end, is divided until it is a good
    deal shorter than `tolerance * high`: near where the boundary would be if the margin were linear, and after a
    failure there in the middle. After a success `high` falls at once to where the line from the image to what was found
    crosses the boundary. The search begins where a few steps towards each of the nearest classes first cross one
    (`boundary.approach`). An attack that takes a `start`, as `fixed_norm` does, gets the nearest point of the
    linearized boundary, so that none begins anew.

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
    state = in_chunks(partial(_first, norm=norm, tolerance=tolerance), (given, low, high), classifier)
    if key is not None:
        state = state._replace(last=disturb(given, state.last, key, 0.5 * state.radius, norm))
    if isinstance(given.images, jax.core.Tracer):  # there are no values yet to leave by
        state = rounds(given, state, count=ROUNDS)
    else:
        state = _leaving(partial(rounds, count=AT_ONCE), given, state)
    return in_chunks(partial(_finish, norm=norm), (given, state), classifier)


def _leaving(rounds, given: Problem, state: State) -> State:
    """Some rounds at a time for the images that aren't done."""
    given, state = jax.tree.map(np.asarray, given), jax.tree.map(np.array, state)
    size = chunk_size(len(given.labels))
    while len(active := np.flatnonzero(~state.done)):
        part = jax.tree.map(lambda a, active=active: a[active], (given, state))
        for ours, new in zip(state, in_chunks(rounds, part, size=size), strict=True):
            ours[active] = np.asarray(new)
    return state


@partial(jax.jit, static_argnames=("norm", "tolerance"))
def _first(classifier, given: Problem, low, high, *, norm, tolerance) -> State:
    logits, r, gradients, forwards = boundary.approach(classifier, given, norm)
    zero = jnp.zeros(len(low), jnp.int32)
    nothing = jnp.zeros_like(given.images)
    start = State(
        low, high, norms.norm(r, norm), nothing, r, zero > 0, zero > 0, zero, zero, zero + gradients, zero + forwards
    )
    state = _divide(classifier, given, start, r, norm, tolerance)
    # What is no success so far tells nothing about the radius.
    state = state._replace(low=jnp.where(state.found, state.low, low), failures=zero)
    return state._replace(done=given.solved(logits) | (high <= 0) | state.done)


def _next(low, high, estimate, found, failures):
    """The radius to try: most of the way from the estimate, which promises too much, to the best; after a failure, at
    least the middle of the interval. As long as there is no success, the farther above the estimate the more failed."""
    between = estimate + FROM_ESTIMATE * jnp.maximum(high - estimate, 0)
    above = jnp.where(found, between, estimate * (1 + ABOVE * 8.0**failures))
    middle = jnp.where(found & (failures > 0), (low + high) / 2, 0)
    edge = EDGE * (high - low)
    return jnp.clip(jnp.maximum(above, middle), low, high - edge)


@partial(jax.jit, static_argnames=("norm", "tolerance", "attack", "takes_start", "options", "count"))
def _rounds(classifier, given, state, *, norm, tolerance, attack, takes_start, options, count) -> State:
    more = dict(options)

    def attempt(state) -> tuple[jax.Array, ArrayLike, ArrayLike]:
        """Perturbations, and the gradients and evaluations that they took."""
        if attack is fixed_norm:
            rate = state.radius * state.best[0].size ** (-1 / norm) * DECAY**state.rounds
            how = {"learning_rate": rate, "steps": 10, "loss": losses.margin} | more
            how["learning_rate"] = jnp.broadcast_to(how["learning_rate"], state.radius.shape)
            how["loss"] = loss_function(how["loss"])
            best, _ = search(classifier, given, state.radius, start=state.last, norm=norm, **how)
            return best.r, how["steps"], 0
        start = {"start": state.last} if takes_start else {}
        images, labels, targets = given
        result = attack(classifier, images, labels, state.radius, norm=norm, targets=targets, **start, **more)
        return result.images - images, result.gradients, result.forwards

    def body(_, state):
        r, gradients, forwards = attempt(state)
        new = _divide(classifier, given, state, r, norm, tolerance)
        new = new._replace(gradients=new.gradients + gradients, forwards=new.forwards + forwards)
        keep = [given.where if a.ndim > 1 else jnp.where for a in state]
        return State(*[where(state.done, a, b) for where, a, b in zip(keep, state, new, strict=True)])

    return jax.lax.fori_loop(0, count, body, state)


def _divide(classifier, given: Problem, state: State, r, norm, tolerance) -> State:
    """The state after the attack at `state.radius` gave the perturbation `r`."""
    logits, step = boundary.step(classifier, given, r, norm)
    fooled = given.solved(logits, CAREFUL)
    estimate = norms.norm(step, norm)
    one = jnp.ones_like(estimate)
    share = boundary.line(classifier, given, r, jnp.clip(2 * estimate / state.radius - 1, 0, 1), one, LINE)
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
        done=(high - low <= FINER * tolerance * high) | (state.rounds + 1 >= ROUNDS),
        rounds=state.rounds + 1,
        failures=failures,
        gradients=state.gradients + 1,
        forwards=state.forwards + LINE,
    )


@partial(jax.jit, static_argnames="norm")
def _finish(classifier, given: Problem, state: State, *, norm) -> AttackResult:
    r = given.where(state.found, state.best, state.last)
    result = finish(classifier, given, given.images + r, norm, state.gradients, state.forwards)
    success = result.success & (state.found | (result.distance == 0))
    return result._replace(success=success, distance=jnp.where(success, result.distance, jnp.inf))
