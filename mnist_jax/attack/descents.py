"""Runs along the averaged boundary (`boundary.descend`), from one start after another."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnist_jax import norms
from mnist_jax.attack import boundary
from mnist_jax.attack.best import Best
from mnist_jax.attack.chunks import in_chunks, until_done
from mnist_jax.attack.problem import Problem
from mnist_jax.attack.starts import disturb, seeds
from mnist_jax.classifier import Classifier

FIRST = 4  # runs: from the end of the plain path, and from the boundaries of the three classes that are nearest
SPARSE = 2  # of these have their turn before the one that is nearest by the 1-norm
TURN = 6  # of so many runs one begins at the boundary of one class more, and the last at the best as it is
ACCEPTED = 1.03  # times the best distance: from an end so near the search goes on, else from the best
PENALTY = 0.02  # for each run that went to a class, of its distance, in the choice of the next
SMOOTH = 1.5  # the least p of the first steps
KEPT = 0.65  # of the pixels, in one kind of disturbance
NOISE = 1.0  # relative, in the others
AT_ONCE = 2  # runs of one program, after which the images that are done leave the batch
SAME = 5e-4  # relative: closer distances than that are the same
AGREEING = 4  # one of so many of all runs, and at least two, that came to the same distance: the image is settled
NONE = -1  # instead of a class: any


class Search(NamedTuple):
    """The search of every image: `[B]`, or like the images; and what it knows of the K likeliest classes."""

    best: Best
    last: jax.Array  # where the search goes on
    runs: jax.Array
    agreeing: jax.Array  # runs that came to the distance of the best
    done: jax.Array
    gradients: jax.Array
    forwards: jax.Array
    classes: jax.Array  # `[B, K]`, the nearest first
    places: jax.Array  # `[B, K, *shape]`, where the search for each of them goes on
    distances: jax.Array  # `[B, K]`, the least at which it was reached
    visits: jax.Array  # `[B, K]`


class Found(NamedTuple):
    """What comes of a search."""

    r: jax.Array  # the nearest adversarial perturbations `[B, *shape]`, or where the search ended
    success: jax.Array  # `[B]`
    gradients: jax.Array
    forwards: jax.Array


def search(classifier: Classifier, given: Problem, key: jax.Array | None, *, norm: float, budget: int) -> Found:
    """One run after another, as long as the budget of gradients allows; at least one.

    The first starts where a plain descent leads to (`boundary.path`), two more near the boundaries of the classes that
    are nearest after a few steps (`boundary.approach`), and a fourth where the nearest by the 1-norm is: that may lead
    to a few pixels which were black in all images of the training, and nothing else does.

    Then they take turns. A run to any class starts at the end of the last, or at the best if that was far off,
    disturbed at random. The next is kept on its way to one class, the nearest but for those that had their share; a
    free run would slide to a neighbour that is nearer at first. Of six runs one goes, free, from the boundary of the
    nearest class that none started from yet, as long as there are any, and one starts at the best itself, and comes
    closer to where that one was going.

    Runs do not depend on how many will follow. So a larger budget never gives a farther image.
    """
    state = in_chunks(partial(_begin, norm=norm), (given,), classifier)
    # The first steps are the same for all; they say how many there were for each image, as all else is for each.
    left = jnp.maximum((budget - state.gradients) // boundary.RUN, 1)
    arrays = (given, seeds(key, len(given.images)), left)
    runs = partial(_runs, classifier, norm=norm)
    if isinstance(given.images, jax.core.Tracer):  # there are no values yet to leave by
        state = runs(arrays, state, count=max(budget // boundary.RUN, 1))
    else:
        state = until_done(partial(runs, count=AT_ONCE), arrays, state)
    success = state.best.found
    return Found(given.where(success, state.best.r, state.last), success, state.gradients, state.forwards)


@partial(jax.jit, static_argnames="norm")
def _begin(classifier, given: Problem, *, norm) -> Search:
    """Where all ways begin."""
    # For p = 1 a single linearization makes much of a few pixels that are soon of no use, while for p = 2 the nearest
    # class may be another one.
    smooth = max(norm, SMOOTH)
    logits, classes, tries, gradients, forwards = boundary.approach(classifier, given, smooth)
    distances = jax.vmap(partial(norms.norm, p=norm))(tries)
    order = distances[:-1].argsort(0)
    order = jnp.insert(order, min(SPARSE, len(order)), len(order), axis=0)
    classes, tries, distances = (boundary.pick(array, order) for array in (classes, tries, distances))
    end = boundary.path(classifier, given, norms.norm(tries[0], smooth), smooth)
    zero = jnp.zeros(len(logits), jnp.int32)
    return Search(
        best=Best.none(given.images),
        last=end,
        runs=zero,
        agreeing=zero,
        done=given.solved(logits),
        gradients=zero + gradients + boundary.PATH,
        forwards=zero + forwards,
        classes=classes.T,
        places=jnp.moveaxis(tries, 0, 1),
        distances=distances.T,
        visits=jnp.zeros_like(classes.T),
    )


@partial(jax.jit, static_argnames=("norm", "count"))
def _runs(classifier, arrays, state: Search, *, norm, count) -> Search:
    given, seed, left = arrays
    state = jax.tree.map(jnp.asarray, state)  # NumPy's, where jit is disabled
    return jax.lax.fori_loop(0, count, lambda _, s: _one_more(classifier, given, seed, left, s, norm), state)


def _one_more(classifier, given: Problem, seed, left, state: Search, norm) -> Search:
    """The search after another run."""
    best, image = state.best, jnp.arange(len(state.runs))
    start, guided, way = _start(given, seed, state, norm)
    others = jnp.where(guided, state.classes[image, way], NONE) if given.targets is None else None
    found, end = boundary.descend(classifier, given, start, norm, others)
    runs, improved = state.runs + 1, best.keep(given, found.r, found.value)

    again = state.agreeing + (found.value <= (1 + SAME) * best.value)
    agreeing = jnp.where(found.value < (1 - SAME) * best.value, 0, again)
    settled = (agreeing >= jnp.maximum(left // AGREEING, 2)) & (runs >= FIRST) & improved.found

    place, distance = state.places[image, way], state.distances[image, way]
    reached = jnp.where(found.found, found.value, norms.norm(end, norm))
    # The distance of a place where no run ended is not one to be compared.
    least = jnp.where(state.visits[image, way] > 0, jnp.minimum(distance, reached), reached)
    moves = guided & (norms.norm(end, norm) <= ACCEPTED * least)
    new = Search(
        best=improved,
        last=given.where(guided & (found.value > improved.value), state.last, end),
        runs=runs,
        agreeing=agreeing,
        done=settled | (runs >= left),
        gradients=state.gradients + boundary.RUN,
        forwards=state.forwards + boundary.EVALUATIONS,
        classes=state.classes,
        places=state.places.at[image, way].set(given.where(moves, end, place)),
        distances=state.distances.at[image, way].set(jnp.where(guided, least, distance)),
        visits=state.visits.at[image, way].add(guided),
    )
    return jax.tree.map(lambda a, b: jnp.where(state.done.reshape(-1, *[1] * (a.ndim - 1)), a, b), state, new)


def _start(given: Problem, seed, state: Search, norm: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where the next run of each image begins, whether it is kept on its way to a class, and to which of the K."""
    number, best, classes = state.runs, state.best, state.classes.shape[1]
    more = FIRST - 2 + number // TURN  # the class that is next when the first ones were opened
    opening = (number < FIRST) | ((number % TURN == TURN // 2) & (more < classes))
    polishing = (number % TURN == TURN - 1) & best.found
    guided = (number % 2 == 1) & ~opening & ~polishing
    promise = (state.distances * (1 + PENALTY * state.visits)).argmin(1)
    opened = jnp.clip(jnp.where(number < FIRST, number - 1, more), 0, classes - 1)
    way = jnp.where(opening, opened, promise)
    place = state.places[jnp.arange(len(way)), way]
    near = ~best.found | (norms.norm(state.last, norm) <= ACCEPTED * best.value)
    free = given.where(near, state.last, best.r)
    start = _disturbed(given, seed, given.where(guided, place, free), number, norm)
    for when, instead in ((opening, place), (number == 0, state.last), (polishing, best.r)):
        start = given.where(when, instead, start)
    return start, guided, way


def _disturbed(given: Problem, seed, r: jax.Array, number: jax.Array, norm: float) -> jax.Array:
    """The perturbations, disturbed in one of three ways."""
    keys = jax.vmap(lambda seed, n: jax.random.split(jax.random.fold_in(jax.random.key(seed), n)))(seed, number)
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, KEPT, r.shape[1:]))(keys[:, 0])
    shifted = disturb(given, r, keys[:, 1], NOISE * norms.norm(r, 2), 2)
    scale = (shifted - r) * given.per_image(jnp.sqrt(r[0].size) / jnp.maximum(norms.norm(r, 2), 1e-12))
    ways = (given.where(number % 3 == 0, r * kept, shifted), r * (1 + scale))
    return given.where(number % 3 == 1, ways[1], ways[0])
