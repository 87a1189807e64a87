"""The nearest adversarial image: several bisections for each image, and its effort where it pays."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnist_jax import norms
from mnist_jax.attack import boundary
from mnist_jax.attack.arguments import at_least
from mnist_jax.attack.best import Best
from mnist_jax.attack.bisection import LINE, STEPS, State, attempt, begin, divide, keep
from mnist_jax.attack.chunks import in_chunks, until_done
from mnist_jax.attack.problem import Problem, problem
from mnist_jax.attack.result import AttackResult, finish
from mnist_jax.attack.starts import disturb, seeds
from mnist_jax.classifier import Classifier

EFFORTS = {"fast": 66, "standard": 250, "thorough": 1500}  # gradients for each image
AT_ONCE = 2  # rounds of one program, after which the images that are done leave the batch
SHORTEST = 1e-4  # relative length of the interval at which a bisection ends
PROMISE = 0.05  # of its distance is what a bisection may still gain at its beginning
FADING = 0.75  # of that is left after every round
HOPELESS = 4  # attempts in a row without any success end a bisection
AFRESH = 0.5  # of the distance of the best is the size of the noise that a new one starts with
NEARER = 2e-3  # nearer than the best, relatively, is what it tries first
ROUND = STEPS + 1  # gradients of a round


class Portfolio(NamedTuple):
    """The searches of every image.

    Attributes:
      states: of the bisections, `[B, K, ...]`.
      best: the nearest adversarial perturbation that any of them found, also one that is over.
      used: `[B]`, gradients; `forwards`, evaluations.
      restarts: `[B]`, how many bisections began after the first K were over.
    """

    states: State
    best: Best
    used: jax.Array
    forwards: jax.Array
    restarts: jax.Array
    done: jax.Array


def nearest(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    norm: float = 2,
    effort: str | int = "standard",
    key: jax.Array | None = None,
    targets: ArrayLike | None = None,
) -> AttackResult:
    """Looks for the adversarial image of least p-norm, as near to the nearest there is as the effort allows:

        minimize norm_p(r)  such that  classifier(x + r) is not the label  and  x + r in [0, 1]

    For each image there are several bisections (see `dichotomy`), one from each of the classes whose boundaries are
    nearest after a few steps (`boundary.approach`). A round is an attack of ten steps at one's radius and a step to the
    linearized boundary. It goes to the bisection that promises the smallest distance in the end, by what rounds gain on
    average; when all have ended, new ones start from the best image found, disturbed at random.

    Rounds do not depend on how many will follow. So more effort never gives a farther image.

    Args:
      classifier, images, labels: see `fixed_norm`.
      norm: p, in [1, inf].
      effort: `"fast"`, `"standard"`, `"thorough"`, or how many gradients to use for each image at most; the first
        steps, 25 gradients for ten classes, are always taken.
      key: a `jax.random` key for the disturbances, or one for each image; None means a fixed one.
      targets: `[B]`, the classes to reach; None means any but the label.

    Returns:
      An `AttackResult`; its `gradients` are what each image used.

    Raises:
      ValueError: an argument is out of its range.
    """
    norm = norms.check(norm)
    if isinstance(effort, str) and effort not in EFFORTS:
        raise ValueError(f"effort must be one of {', '.join(EFFORTS)}, or a number of gradients, not {effort!r}")
    budget = EFFORTS[effort] if isinstance(effort, str) else effort
    at_least(1, effort=budget)
    given = problem(classifier, images, labels, targets)
    portfolio = in_chunks(partial(_start, norm=norm), (given,), classifier, jnp.asarray(budget))
    rounds = partial(_rounds, classifier, jnp.asarray(budget), norm=norm)
    arrays = (given, seeds(key, len(given.images)))
    if isinstance(given.images, jax.core.Tracer):  # there are no values yet to leave by
        portfolio = rounds(arrays, portfolio, count=budget // ROUND)
    else:
        portfolio = until_done(partial(rounds, count=AT_ONCE), arrays, portfolio)
    return in_chunks(partial(_finish, norm=norm), (given, portfolio), classifier)


@partial(jax.jit, static_argnames="norm")
def _start(classifier, budget, given: Problem, *, norm) -> Portfolio:
    logits, tries, gradients, forwards = boundary.approach(classifier, given, norm)
    zero, reach = jnp.zeros(len(logits), jnp.int32), norms.largest(given.images, norm)

    def bisection(r):
        return begin(classifier, given, 0 * reach, reach, r, norm, SHORTEST)

    states = jax.lax.map(bisection, tries)
    distances = jnp.where(states.found, states.high, jnp.inf)
    first = distances.argmin(0)[None]
    used = zero + gradients + states.gradients.sum(0)
    return Portfolio(
        states=jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), states),
        best=Best(boundary.pick(states.best, first)[0], distances.min(0)),
        used=used,
        forwards=zero + forwards + states.forwards.sum(0),
        restarts=zero,
        done=given.solved(logits) | (used + ROUND > budget),
    )


@partial(jax.jit, static_argnames=("norm", "count"))
def _rounds(classifier, budget, arrays, portfolio: Portfolio, *, norm, count) -> Portfolio:
    given, seed = arrays
    return jax.lax.fori_loop(0, count, lambda _, p: _round(classifier, budget, given, seed, p, norm), portfolio)


def _round(classifier, budget, given: Problem, seed, portfolio: Portfolio, norm) -> Portfolio:
    """A round of the most promising bisection, or the first of a new one where all have ended."""
    states, best = portfolio.states, portfolio.best
    everything = states.done.all(1)
    promised = jnp.where(states.found, states.high, states.radius) * (1 - PROMISE * FADING**states.rounds)
    chosen = jnp.where(states.done, jnp.inf, promised).argmin(1)
    places = jnp.arange(len(chosen)), chosen
    state = keep(given, everything, _afresh(given, seed, portfolio, norm), State(*[a[places] for a in states]))

    state = divide(classifier, given, state, attempt(classifier, given, state, norm), norm, SHORTEST)
    state = state._replace(done=state.done | (~state.found & (state.failures >= HOPELESS)))

    used = portfolio.used + ROUND
    new = Portfolio(
        states=State(*[jnp.asarray(a).at[places].set(b) for a, b in zip(states, state, strict=True)]),
        best=best.keep(given, state.best, state.high, state.found),
        used=used,
        forwards=portfolio.forwards + LINE,
        restarts=portfolio.restarts + everything,
        done=used + ROUND > budget,
    )
    done = portfolio.done
    return jax.tree.map(lambda a, b: jnp.where(done.reshape(-1, *[1] * (a.ndim - 1)), a, b), portfolio, new)


def _afresh(given: Problem, seed, portfolio: Portfolio, norm) -> State:
    """The state of a bisection that begins at the best image, disturbed, and looks for nothing farther."""
    best = portfolio.best
    zero = jnp.zeros(len(best.value), jnp.int32)
    keys = jax.vmap(lambda seed, n: jax.random.fold_in(jax.random.key(seed), n))(seed, portfolio.restarts)
    size = jnp.where(best.found, AFRESH * best.value, 1)
    high = jnp.where(best.found, best.value, norms.largest(given.images, norm))
    return State(
        low=jnp.zeros_like(high),
        high=high,
        radius=(1 - NEARER) * high,
        best=jnp.zeros_like(best.r),
        last=disturb(given, best.r, keys, size, norm),
        found=zero > 0,
        done=zero > 0,
        rounds=zero,
        failures=zero,
        gradients=zero,
        forwards=zero,
    )


@partial(jax.jit, static_argnames="norm")
def _finish(classifier, given: Problem, portfolio: Portfolio, *, norm) -> AttackResult:
    found = portfolio.best.found
    r = given.where(found, portfolio.best.r, portfolio.states.last[:, 0])
    return finish(classifier, given, given.images + r, norm, portfolio.used, portfolio.forwards).only(found)
