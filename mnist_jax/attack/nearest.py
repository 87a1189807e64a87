"""The nearest adversarial image: along averaged linearizations of the boundary, from one start after another."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnist_jax import norms
from mnist_jax.attack import boundary
from mnist_jax.attack.arguments import at_least
from mnist_jax.attack.best import Best
from mnist_jax.attack.chunks import in_chunks, until_done
from mnist_jax.attack.problem import Problem, problem
from mnist_jax.attack.result import AttackResult, finish
from mnist_jax.attack.starts import disturb, seeds
from mnist_jax.classifier import Classifier

EFFORTS = {"fast": 100, "standard": 400, "thorough": 2000}  # gradients for each image
ACCEPTED = 1.03  # times the best distance: from an end so near the search goes on, else from the best
KEPT = 0.65  # of the pixels, in one kind of disturbance
NOISE = 1.0  # relative, in the others
AT_ONCE = 2  # runs of one program, after which the images that are done leave the batch
SAME = 5e-4  # relative: closer distances than that are the same
AGREEING = 6  # one of so many of all runs, and at least two, that came to the same distance: the image is settled


class Search(NamedTuple):
    """The search of every image: `[B]`, or like the images."""

    best: Best
    last: jax.Array  # where the last run ended
    runs: jax.Array
    agreeing: jax.Array  # runs that came to the distance of the best
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

    A step linearizes the margin m at r, averages with the linearizations of the steps before, and goes a part α of the
    way to the perturbation of least norm that crosses the averaged boundary inside the box:

        c <- β c + (1 - β) (m(r) - <grad m(r), r>),   g <- β g + (1 - β) grad m(r)
        r <- r + α (s - r),   s = argmin norm_p(s)  such that  c + <g, s> <= 0  and  x + s in [0, 1]

    The average is what makes it converge: margins of networks have kinks at their nearest points, where the last
    linearization alone points now here, now there (as in dual averaging, Nesterov 2009, which averages the gradients of
    a convex objective). α falls from 0.9 to 0.1. A run of 20 steps ends by a search along the line through its last
    perturbation. The first runs start near the boundaries of the classes that are nearest after a few steps
    (`boundary.approach`), all others from the best image so far, disturbed at random in one of three ways.

    Runs do not depend on how many will follow. So more effort never gives a farther image.

    Args:
      classifier, images, labels: see `fixed_norm`.
      norm: p, in [1, inf].
      effort: `"fast"`, `"standard"`, `"thorough"`, or how many gradients to use for each image at most; the first
        steps and one run, 41 gradients for ten classes, are always taken.
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
    tries, search, gradients, forwards = in_chunks(partial(_begin, norm=norm), (given,), classifier)
    # The first steps are the same for all; they say how many there were for each image, as all else is for each.
    left = jnp.maximum((budget - gradients) // boundary.steps_of(norm), 1)
    arrays = (given, tries, seeds(key, len(given.images)), left)
    runs = partial(_runs, classifier, norm=norm)
    if isinstance(given.images, jax.core.Tracer):  # there are no values yet to leave by
        search = runs(arrays, search, count=max(budget // boundary.steps_of(norm), 1))
    else:
        search = until_done(partial(runs, count=AT_ONCE), arrays, search)
    return in_chunks(partial(_finish, norm=norm), (given, search, gradients, forwards), classifier)


@partial(jax.jit, static_argnames="norm")
def _begin(classifier, given: Problem, *, norm) -> tuple[jax.Array, Search, jax.Array, jax.Array]:
    """Starts `[B, K, *shape]`, the nearest first; the search that begins there; and what this took."""
    # For p = 1 a single linearization makes much of a few pixels that are soon of no use.
    logits, tries, gradients, forwards = boundary.approach(classifier, given, max(norm, 2))
    order = jax.vmap(partial(norms.norm, p=norm))(tries).argsort(0)
    zero = jnp.zeros(len(logits), jnp.int32)
    search = Search(Best.none(given.images), jnp.zeros_like(given.images), zero, zero, given.solved(logits))
    return jnp.moveaxis(boundary.pick(tries, order), 0, 1), search, zero + gradients, zero + forwards


@partial(jax.jit, static_argnames=("norm", "count"))
def _runs(classifier, arrays, search: Search, *, norm, count) -> Search:
    given, tries, seed, left = arrays
    return jax.lax.fori_loop(0, count, lambda _, s: _one_more(classifier, given, tries, seed, left, s, norm), search)


def _one_more(classifier, given: Problem, tries, seed, left, search: Search, norm) -> Search:
    """The search after another run."""
    number, several = search.runs, tries.shape[1]
    first = boundary.pick(jnp.moveaxis(tries, 1, 0), jnp.minimum(number, several - 1)[None])[0]
    start = given.where(number < several, first, _disturbed(given, seed, search, norm))
    found, last = boundary.descend(classifier, given, start, norm)
    best = search.best.keep(given, found.r, found.value)
    again = search.agreeing + (found.value <= (1 + SAME) * search.best.value)
    agreeing = jnp.where(found.value < (1 - SAME) * search.best.value, 0, again)
    settled = (agreeing >= jnp.maximum(left // AGREEING, 2)) & (number >= several) & best.found
    new = Search(best, last, number + 1, agreeing, settled | (number + 1 >= left))

    def where(a, b):
        return (given.where if a.ndim > 1 else jnp.where)(search.done, a, b)

    return jax.tree.map(where, search, new)


def _disturbed(given: Problem, seed, search: Search, norm):
    """Where the last run ended, if that is near, or else the best, disturbed in one of three ways."""
    best, last, number = search.best, search.last, search.runs
    near = ~best.found | (norms.norm(last, norm) <= ACCEPTED * best.value)
    r = given.where(near, last, best.r)
    keys = jax.vmap(lambda seed, n: jax.random.split(jax.random.fold_in(jax.random.key(seed), n)))(seed, number)
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, KEPT, r.shape[1:]))(keys[:, 0])
    shifted = disturb(given, r, keys[:, 1], NOISE * norms.norm(r, 2), 2)
    scale = (shifted - r) * given.per_image(jnp.sqrt(r[0].size) / jnp.maximum(norms.norm(r, 2), 1e-12))
    ways = (given.where(number % 3 == 0, r * kept, shifted), r * (1 + scale))
    return given.where(number % 3 == 1, ways[1], ways[0])


@partial(jax.jit, static_argnames="norm")
def _finish(classifier, given: Problem, search: Search, gradients, forwards, *, norm) -> AttackResult:
    best, runs = search.best, search.runs
    found = given.images + given.where(best.found, best.r, search.last)
    used = (gradients + runs * boundary.steps_of(norm), forwards + runs * boundary.EVALUATIONS)
    return finish(classifier, given, found, norm, *used).only(best.found)
