"""Method A of the original project: bisects the radius of a fixed-radius attack to the smallest one that succeeds."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mnist_jax import arguments, geometry, losses, unstable
from mnist_jax.attack.engine import bisection, descents, driver
from mnist_jax.attack.engine.bisection import ROUNDS, STEPS, Bisection, attempt, begin, divide, rate
from mnist_jax.attack.engine.driver import Found
from mnist_jax.attack.engine.method import Method
from mnist_jax.attack.engine.problem import Asked, Problem, check_direction, loss_function
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.attack.engine.starts import seeds
from mnist_jax.attack.fixed_radius.fixed_norm import adam_on_sphere, fixed_norm
from mnist_jax.chunks import in_chunks, until_done
from mnist_jax.classifier import Classifier

METHOD = Method(
    None,
    "bisects the radius of `fixed_norm`, or of any other fixed-radius attack, for each image",
)

# With `search_first`:
AT_ONCE = 2  # rounds of the bisection in one compiled program; between programs, finished images leave the batch
BEFORE = 320  # budget of gradients for the descents before the bisection, for each image
ALONE = 15  # steps of the attack on the original project's loss, from the image itself, before the bisection
# Last length of an interval as a share of the tolerance. An attack may fail by chance at a radius at which another run
# succeeds, so the bisection goes on below the tolerance.
FINER = 0.5


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
    search_first: bool | None = None,
    targets: ArrayLike | None = None,
    key: jax.Array | None = None,
    **options: Any,
) -> AttackResult:
    """Bisects the radius of a fixed-radius attack, separately for every image.

    An interval [low, high] of radii, where the attack fails at the lower end and succeeds at the upper end, is halved
    by an attack at its middle until it is shorter than `tolerance * high`. If the attack fails at every radius that is
    tried, the result is a failure.

    With `search_first`, the default for the original project's own attack `fixed_norm`, the nearest image that the
    descents of `nearest` find (`descents.run_all`) comes first. The bisection then tries radii just below the smallest
    distance so far, and after a failure there the middle of the interval. After a success, `high` falls at once to the
    distance at which the line from the image to the adversarial one crosses the boundary. An attack that takes a
    `start` gets the nearest point of the boundary as linearized at its last perturbation. The result is then that of
    the descents as improved by the attack, rather than of the attack alone.

    Args:
      classifier, images, labels, norm, targets: see `fixed_norm`.
      low: the smallest radius that is tried, a number or `[B]`. With `search_first`, a nearer adversarial image that
        the descents find is kept nevertheless.
      high: the largest radius that is tried, a number or `[B]`. It is lowered to the largest norm that a perturbation
        of the image can have in the box, which None stands for.
      tolerance: relative length of the last interval, in (0, 1).
      attack: any fixed-radius attack, `attack(classifier, images, labels, radius, *, norm, targets) -> AttackResult`.
      search_first: see above; None means True for `fixed_norm`, and False for others.
      key: a `jax.random` key, or one for each image. With `search_first` it is for the random disturbances in the
        descents, and None means a fixed key; without, an attack that takes a key gets a new one in every round.
      options: passed to the attack. For `fixed_norm` with `search_first`, `steps` defaults to 10, and `learning_rate`
        to radius / D^(1/p) for images of D pixels (for p = 1, to radius / 8), which falls from round to round.

    Returns:
      An `AttackResult` with the nearest adversarial image found.

    Raises:
      ValueError: an argument is out of its range.
    """
    norm = METHOD.check_norm(norm)
    arguments.numbers(0, 1, above=True, below=True, tolerance=tolerance)
    if search_first is None:
        search_first = attack is fixed_norm
    asked = Asked(classifier, images, labels, targets, key)
    _check_attack(attack)
    each = driver.present(low=0.0 if low is None else low, high=None if high is None or _no_limit(high) else high)
    if attack is fixed_norm and search_first:
        if unknown := options.keys() - {"steps", "learning_rate", "loss"}:
            raise ValueError(f"options must be steps, learning_rate or loss, not {', '.join(sorted(unknown))}")
        arguments.counts(steps=options.get("steps"))
        each |= driver.present(learning_rate=options.pop("learning_rate", None))
    how: dict[str, Any] = {"norm": norm, "tolerance": tolerance, "attack": attack, "options": options}
    return driver.in_stages(partial(_searched if search_first else _plain, **how), asked, norm=norm, each=each)


def _check_attack(attack: Callable[..., AttackResult]) -> None:
    """Raises `ValueError` unless `attack` can be called as a fixed-radius attack."""
    try:
        inspect.signature(attack).bind(None, None, None, None, norm=None, targets=None)
    except TypeError as error:
        raise ValueError(
            f"attack must be a function (classifier, images, labels, radius, *, norm, targets), not {attack!r}"
        ) from error


def _no_limit(high: ArrayLike) -> bool:
    """Whether `high` is the number inf, which stands for no limit, as None does."""
    return not unstable.traced(high) and np.ndim(high) == 0 and bool(np.isposinf(arguments.real(high)))


def _limits(given: Problem, norm: float, low: jax.Array, high: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """The least and the largest radius `[B]`, in the box. Raises `ValueError` where `low` is above `high`."""
    if high is not None and not unstable.traced((low, high)) and bool((np.asarray(low) > np.asarray(high)).any()):
        raise ValueError("low must be at most high")
    largest = geometry.largest(given.images, norm)
    return low, largest if high is None else jnp.minimum(high, largest)


def _plain(classifier, given: Problem, key, *, norm, tolerance, attack, options, **limits) -> Found:
    """The bisection alone, without descents before it."""
    known = inspect.signature(attack).parameters
    takes_key = key is not None and ("key" in known or any(p.kind is p.VAR_KEYWORD for p in known.values()))
    seed = seeds(key, len(given.images)) if takes_key else None
    # Options with a value for each image are split into chunks as the images are.
    own = {name: value for name, value in options.items() if np.shape(value)[:1] == (len(given.images),)}
    state = bisection.halve_from(given, *_limits(given, norm, **limits))

    def halvings(classifier, arrays, state, rounds):
        given, seed, own = arrays

        def halve(number, state):
            more = options | own
            if seed is not None:
                more["key"] = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), number))(seed)
            images, labels, targets = given
            result = attack(classifier, images, labels, bisection.middle(state), norm=norm, targets=targets, **more)
            return bisection.halved(classifier, given, state, result, norm, tolerance)

        if unstable.staged((classifier, arrays, state)):
            return jax.lax.fori_loop(0, rounds, halve, state)
        for _ in range(rounds):
            state = halve(state.rounds.max(), state)
        return state

    state = until_done(halvings, (given, seed, own), state, classifier, at_once=1, most=ROUNDS)
    return Found(state.best, state.gradients, state.forwards, allowed=state.found)


def _searched(
    classifier, given: Problem, key, *, norm, tolerance, attack, options, learning_rate=None, **limits
) -> Found:
    """The bisection from the nearest perturbations that descents along the boundary find (`search_first`)."""
    low, high = _limits(given, norm, **limits)
    if attack is fixed_norm:
        check_direction(loss_function(options.get("loss", "margin")), classifier, given.images)
    takes_start = "start" in inspect.signature(attack).parameters
    how = {"norm": norm, "shortest": FINER * tolerance, "attack": attack, "takes_start": takes_start}
    begun = descents.run_all(classifier, given, key, norm=norm, budget=BEFORE)
    alone = in_chunks(partial(_alone, norm=norm), (given, begun), classifier)
    begun = descents.one_more(classifier, given, begun, alone, norm=norm, budget=BEFORE)
    state = in_chunks(partial(_first, norm=norm), (given, low, high, begun))
    rounds = partial(_rounds, **how, options=tuple(sorted(options.items())))
    state = until_done(rounds, (given, learning_rate), state, classifier, at_once=AT_ONCE, most=ROUNDS)
    r = given.where(jnp.asarray(state.found), state.best, state.last)
    return Found(r, state.gradients, state.forwards, allowed=state.found)


@partial(jax.jit, static_argnames="norm")
def _alone(classifier, given: Problem, begun: descents.Descents, *, norm) -> jax.Array:
    """Perturbations `[B, *shape]` at the best distance so far that `fixed_norm` finds by the loss "confidence", which
    the original project uses, from the image itself: a starting point for one more descent.

    Gradients of the confidence grow as it falls, so that Adam soon forgets the first ones. The descent can thereby
    reach another part of the boundary than those on the margin.
    """
    radius = geometry.norm(begun.r, norm)
    how: dict[str, Any] = {"norm": norm, "steps": ALONE, "loss": losses.confidence}
    return adam_on_sphere(classifier, given, radius, rate(given, radius, norm), jnp.zeros_like(begun.r), **how).r


@partial(jax.jit, static_argnames="norm")
def _first(given: Problem, low, high, begun: descents.Descents, *, norm) -> Bisection:
    """The state of the bisection before its first round: the limits, and the perturbations of the descents."""
    state = begin(given, low, high, begun.r, begun.adversarial_before | (high <= 0), norm)
    return state._replace(gradients=begun.gradients + ALONE, forwards=begun.forwards + 1)


@partial(jax.jit, static_argnums=3, static_argnames=("norm", "shortest", "attack", "takes_start", "options"))
def _rounds(classifier, arrays, state, count, *, norm, shortest, attack, takes_start, options) -> Bisection:
    """The state after `count` rounds, each an attack at the state's radii and a division of the interval."""
    given, learning_rate = arrays

    def tried(state) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The perturbations of the attack, and all gradients and evaluations used so far, with the attack's."""
        more = dict(options)
        if attack is fixed_norm:
            loss = loss_function(more.pop("loss", "margin"))
            r = attempt(classifier, given, state, norm, loss=loss, learning_rate=learning_rate, **more)
            return r, state.gradients + more.get("steps", STEPS), state.forwards + 1
        start = {"start": state.last} if takes_start else {}
        images, labels, targets = given
        result = attack(classifier, images, labels, state.radius, norm=norm, targets=targets, **start, **more)
        return result.images - images, state.gradients + result.gradients, state.forwards + result.forwards

    def body(_, state):
        # In the first round no attack runs: the interval is divided at what the descents found. All images of a batch
        # are in their first round together.
        nothing = state.last, state.gradients, state.forwards
        r, gradients, forwards = jax.lax.cond(state.rounds.max() > 0, tried, lambda _: nothing, state)
        new = divide(classifier, given, state._replace(gradients=gradients, forwards=forwards), r, norm, shortest)
        return given.choose(state.done, state, new)

    return jax.lax.fori_loop(0, count, body, state)
