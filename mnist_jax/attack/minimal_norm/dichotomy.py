"""Method A of the original project, outer part: the smallest radius at which a fixed-radius attack succeeds."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnist_jax import geometry, losses, unstable
from mnist_jax.attack.engine import descents
from mnist_jax.attack.engine.arguments import between
from mnist_jax.attack.engine.bisection import ROUNDS, STEPS, State, attempt, begin, divide, keep, rate
from mnist_jax.attack.engine.chunks import in_chunks, until_done
from mnist_jax.attack.engine.problem import Problem, loss_function, problem, radii
from mnist_jax.attack.engine.result import AttackResult, finish
from mnist_jax.attack.fixed_radius.fixed_norm import fixed_norm
from mnist_jax.attack.fixed_radius.fixed_norm import search as on_sphere
from mnist_jax.classifier import Classifier

AT_ONCE = 2  # rounds of one program, after which the images that are done leave the batch
BEFORE = 320  # gradients at most go into the runs before
ALONE = 15  # steps of the original's loss
FINER = 0.5  # of the tolerance is the length of the last interval: the attack may miss by the rest


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
    deal shorter than `tolerance * high`: just below the best, and after a failure there in the middle. After a success
    `high` falls at once to where the line from the image to what was found crosses the boundary. The search begins at
    what some runs along the averaged boundary find (`descents.search`; see `nearest`). An attack that takes a `start`,
    as `fixed_norm` does, gets the nearest point of the linearized boundary, so that none begins anew.

    Args:
      classifier, images, labels, norm, targets: see `fixed_norm`.
      low: a radius, number or `[B]`, below which not to look.
      high: a radius, number or `[B]`, above which not to look; at most, and if None, the largest that the box allows
        the image.
      tolerance: relative length of the last interval.
      attack: any fixed-radius attack, `attack(classifier, images, labels, radius, *, norm, targets) -> AttackResult`.
      key: a `jax.random` key for the disturbances of those runs, or one for each image; None means a fixed one.
      options: passed to the attack. For `fixed_norm` and unless they are given, `steps` is 10, and `learning_rate` is
        the radius over D^(1/p), for images of D pixels (for p = 1, an eighth of it), and less in every round.

    Returns:
      An `AttackResult` with the nearest adversarial image found.

    Raises:
      ValueError: an argument is out of its range.
    """
    norm = geometry.check_norm(norm)
    between(tolerance=tolerance)
    given = problem(classifier, images, labels, targets)
    low, high = radii(low, given.images, "low"), radii(jnp.inf if high is None else high, given.images, "high")
    takes = tuple(inspect.signature(attack).parameters)
    how: dict[str, Any] = {
        "norm": norm,
        "shortest": FINER * tolerance,
        "attack": attack,
        "takes_start": "start" in takes,
    }
    rounds = partial(_rounds, classifier, **how, options=tuple(sorted(options.items())))
    begun = descents.search(classifier, given, key, norm=norm, budget=BEFORE)
    alone = in_chunks(partial(_alone, norm=norm), (given, begun), classifier)
    begun = descents.one_more(classifier, given, begun, alone, norm=norm, budget=BEFORE)
    state = in_chunks(partial(_first, norm=norm), (given, low, high, begun))
    if unstable.traced(given.images):  # there are no values yet to leave by
        state = rounds(given, state, count=ROUNDS)
    else:
        state = until_done(partial(rounds, count=AT_ONCE), given, state)
    return in_chunks(partial(_finish, norm=norm), (given, state), classifier)


@partial(jax.jit, static_argnames="norm")
def _alone(classifier, given: Problem, begun: descents.Search, *, norm) -> jax.Array:
    """Where the original's loss leads from the image itself, on the sphere through the best `[B, *shape]`.

    Its gradients grow as the confidence falls, so Adam soon forgets the first ones, and may find another boundary.
    """
    radius = geometry.norm(begun.r, norm)
    how: dict[str, Any] = {"norm": norm, "steps": ALONE, "loss": losses.confidence}
    return on_sphere(classifier, given, radius, rate(given, radius, norm), jnp.zeros_like(begun.r), **how).r


@partial(jax.jit, static_argnames="norm")
def _first(given: Problem, low, high, begun: descents.Search, *, norm) -> State:
    high = jnp.minimum(high, geometry.largest(given.images, norm))
    state = begin(given, low, high, begun.r, begun.solved | (high <= 0), norm)
    return state._replace(gradients=begun.gradients + ALONE, forwards=begun.forwards + 1)


@partial(jax.jit, static_argnames=("norm", "shortest", "attack", "takes_start", "options", "count"))
def _rounds(classifier, given, state, *, norm, shortest, attack, takes_start, options, count) -> State:
    def tried(state) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Perturbations, and the gradients and evaluations that were made with these."""
        more = dict(options)
        if attack is fixed_norm:
            loss = loss_function(more.pop("loss", "margin"))
            r = attempt(classifier, given, state, norm, loss=loss, **more)
            return r, state.gradients + more.get("steps", STEPS), state.forwards + 1
        start = {"start": state.last} if takes_start else {}
        images, labels, targets = given
        result = attack(classifier, images, labels, state.radius, norm=norm, targets=targets, **start, **more)
        return result.images - images, state.gradients + result.gradients, state.forwards + result.forwards

    def body(_, state):
        # In the first round, which is the same for all images, nothing is tried: it divides by what the runs found.
        nothing = state.last, state.gradients, state.forwards
        r, gradients, forwards = jax.lax.cond(state.rounds.max() > 0, tried, lambda _: nothing, state)
        new = divide(classifier, given, state._replace(gradients=gradients, forwards=forwards), r, norm, shortest)
        return keep(given, state.done, state, new)

    return jax.lax.fori_loop(0, count, body, state)


@partial(jax.jit, static_argnames="norm")
def _finish(classifier, given: Problem, state: State, *, norm) -> AttackResult:
    r = given.where(state.found, state.best, state.last)
    return finish(classifier, given, given.images + r, norm, state.gradients, state.forwards).only(state.found)
