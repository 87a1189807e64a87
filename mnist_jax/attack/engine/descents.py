"""Runs along the averaged boundary (`boundary.descend`), from one start after another."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from mnist_jax import geometry, unstable
from mnist_jax.attack.engine import blocks, boundary, windows
from mnist_jax.attack.engine.best import Best
from mnist_jax.attack.engine.problem import Problem
from mnist_jax.attack.engine.starts import normal, seeds
from mnist_jax.chunks import in_chunks, until_done
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
BLOCKS = 40  # that runs start from, at most
AT_FIRST = 6  # of these have their turn one after another
NONE = -1  # instead of a class: any
QUERIES = 3 * boundary.RUN  # evaluations that take as long as the gradients of a run
PART = windows.MOST // QUERIES  # runs' worth of evaluations in a part of the random search, if the last was of use
TRIAL = 2  # runs' worth of evaluations in the first part of the search from stripes, else 1; chosen
USEFUL = 1e-3  # relative: the least reduction of the distance for which the search around the best goes on
NEW_STRIPES = (16, 64, 256)  # runs after which the search from stripes begins once more. Chosen


class Plan(NamedTuple):
    """What depends on the norm."""

    agreeing: int  # one of so many of all runs, at least two, that came to the same distance: the image is settled
    before_blocks: int  # runs


def plan(norm: float) -> Plan:
    # For p = 1 about half of the runs come to nothing, and few pixels are changed, by much.
    return Plan(agreeing=8, before_blocks=8) if norm == 1 else Plan(agreeing=4, before_blocks=24)


class Descents(NamedTuple):
    """The search of every image: `[B]`, or like the images; and what it knows of the K likeliest classes."""

    best: Best
    last: jax.Array  # where the search goes on
    runs: jax.Array
    left: jax.Array  # so many runs at most
    agreeing: jax.Array  # runs that came to the distance of the best
    done: jax.Array
    gradients: jax.Array
    forwards: jax.Array
    classes: jax.Array  # `[B, K]`, the nearest first
    places: jax.Array  # `[B, K, *shape]`, where the search for each of them goes on
    distances: jax.Array  # `[B, K]`, the least at which it was reached
    visits: jax.Array  # `[B, K]`
    blocks: jax.Array  # `[B, BLOCKS]`, see `blocks.best`, once they were looked for
    walk: windows.Walk  # the state of the random search
    walking: jax.Array  # whether the last part of the random search was of use
    walked: jax.Array  # how many runs' worth of evaluations went into it
    due: jax.Array  # whether a part of it is next; until then the image counts as done

    @property
    def r(self) -> jax.Array:
        """The nearest adversarial perturbations `[B, *shape]`, or where the search ended."""
        return jnp.where(self.best.found.reshape(-1, *[1] * (self.last.ndim - 1)), self.best.r, self.last)

    @property
    def adversarial_before(self) -> jax.Array:
        """Which images are adversarial as they are, so that there was nothing to search."""
        return self.runs == 0


def run_all(
    classifier: Classifier, given: Problem, key: jax.Array | None, *, norm: float, budget: int, walks: bool = False
) -> Descents:
    """One run after another, as long as the budget of gradients allows; at least one.

    The first starts where a plain descent leads to (`boundary.path`), two more near the boundaries of the classes that
    are nearest after a few steps (`boundary.approach`), and a fourth where the nearest by the 1-norm is: that may lead
    to a few pixels which were black in all images of the training, and nothing else does.

    Then they take turns. A run to any class starts at the end of the last, or at the best if that was far off,
    disturbed at random. The next is kept on its way to one class, the nearest but for those that had their share; a
    free run would slide to a neighbour that is nearer at first. Of six runs one goes, free, from the boundary of the
    nearest class that none started from yet, as long as there are any, and one starts at the best itself, and comes
    closer to where that one was going.

    On images that are not settled after some runs (for p = 1 soon, else long after any usual effort), all blocks of
    pixels are tried (`blocks.best`), and six runs start from those that change the objective most; more of them when
    the classes are used up.

    With `walks`, images on which fewer than a quarter of the runs come to the same distance are also searched at random
    (`windows.search`) after 4, 8, 16, ... runs: with masked gradients runs end at other distances again and again. As
    long as this is of use, a longer part of it follows every run. Its evaluations count in the budget, three as one
    gradient.

    Runs do not depend on how many will follow. So a larger budget never gives a farther image.
    """
    budgets = np.full(len(given.images), budget, np.int32)
    state = in_chunks(partial(_begin, norm=norm), (given, budgets), classifier)
    return _until_done(classifier, (given, seeds(key, len(given.images))), state, norm=norm, budget=budget, walks=walks)


def one_more(
    classifier: Classifier, given: Problem, state: Descents, start: jax.Array, *, norm: float, budget: int
) -> Descents:
    """The search of that budget after another run, which begins at `start`."""
    zero, one = jnp.zeros(len(start), jnp.int32), jnp.ones(len(start), jnp.int32)
    again = state._replace(last=start, runs=zero, left=one, agreeing=zero, done=state.adversarial_before, walked=zero)
    nothing = np.zeros(len(start), np.uint32)  # the first run is not disturbed at random
    again = _until_done(classifier, (given, nothing), again, norm=norm, budget=budget)
    return again._replace(runs=state.runs + again.runs)


def _until_done(classifier, arrays, state: Descents, *, norm: float, budget: int, walks: bool = False) -> Descents:
    most = max(budget // boundary.RUN, 1)
    # Without enough runs the random search is not even compiled.
    walks = walks and (budget - boundary.PATH) // boundary.RUN > FIRST
    program = partial(_runs, norm=norm, tries_blocks=most > plan(norm).before_blocks, walks=walks)

    def runs(state: Descents) -> Descents:
        return until_done(program, arrays, state, classifier, at_once=AT_ONCE, most=most)

    def runs_and_walks(state: Descents) -> Descents:
        # Images that are due leave the batch of the runs, and are searched together: no other waits for them.
        state = runs(state._replace(done=state.done | state.due))
        finished = jnp.logical_not(state.due)
        state = state._replace(done=finished)
        state = until_done(partial(_walks, norm=norm), arrays, state, classifier, at_once=1, most=1)
        return state._replace(done=finished | (state.runs + state.walked >= state.left))

    if not walks:
        return runs(state)
    if unstable.staged((classifier, arrays, state)):
        return jax.lax.while_loop(lambda state: ~state.done.all(), runs_and_walks, state)
    while not np.asarray(state.done).all():
        state = runs_and_walks(state)
    return state


@partial(jax.jit, static_argnames="norm")
def _begin(classifier, given: Problem, budget, *, norm) -> Descents:
    """Where all ways begin."""
    # For p = 1 a single linearization makes much of a few pixels that are soon of no use, while for p = 2 the nearest
    # class may be another one.
    smooth = max(norm, SMOOTH)
    logits, classes, tries, gradients, forwards = boundary.approach(classifier, given, smooth)
    distances = jax.vmap(partial(geometry.norm, p=norm))(tries)
    # No step leads to a class that is not in use: it comes last.
    distances = jnp.where(distances > 0, distances, jnp.inf)
    order = distances[:-1].argsort(0)
    order = jnp.insert(order, min(SPARSE, len(order)), len(order), axis=0)
    classes, tries, distances = (boundary.pick(array, order) for array in (classes, tries, distances))
    end = boundary.path(classifier, given, geometry.norm(tries[0], smooth), smooth)
    zero = jnp.zeros(len(logits), jnp.int32)
    # The first steps are the same for all; they say how many there were for each image, as all else is for each.
    spent = zero + gradients + boundary.PATH
    return Descents(
        best=Best.none(given.images),
        last=end,
        runs=zero,
        left=jnp.maximum((budget - spent) // boundary.RUN, 1),
        agreeing=zero,
        done=given.adversarial(logits),
        gradients=spent,
        forwards=zero + forwards,
        classes=classes.T,
        places=jnp.moveaxis(tries, 0, 1),
        distances=distances.T,
        visits=jnp.zeros_like(classes.T),
        blocks=jnp.zeros((len(logits), BLOCKS), jnp.int32),
        walk=windows.Walk.none(given.images, norm),
        walking=zero > 0,
        walked=zero,
        due=zero > 0,
    )


@partial(jax.jit, static_argnums=3, static_argnames=("norm", "tries_blocks", "walks"))
def _runs(classifier, arrays, state: Descents, count, *, norm, tries_blocks, walks) -> Descents:
    given, seed = arrays
    state = jax.tree.map(jnp.asarray, state)  # NumPy's, where jit is disabled

    def more(state):
        return (state[0] < count) & ~state[1].done.all()

    def run(counted):
        number, state = counted
        if tries_blocks:
            now = ~state.done & (state.runs == plan(norm).before_blocks)
            state = jax.lax.cond(now.any(), lambda s: _with_blocks(classifier, given, s, now, norm), lambda s: s, state)
        state = _after_another(classifier, given, seed, state, norm)
        if walks:
            due = ~state.done & state.best.found & (state.walking | _is_to_try(state))
            state = state._replace(due=state.due | due, done=state.done | due)
        return number + 1, state

    return jax.lax.while_loop(more, run, (0, state))[1]


def _with_blocks(classifier, given: Problem, state: Descents, now, norm) -> Descents:
    """The search when the blocks were looked for, where it is time to do so."""
    best = blocks.best(classifier, given, norm, BLOCKS)
    tried = jnp.where(now, blocks.choices(given.images.shape[1:]), 0)
    return state._replace(
        blocks=jnp.where(now[:, None], best, state.blocks),
        forwards=state.forwards + tried,
    )


def _is_to_try(state: Descents) -> jax.Array:
    """Whether the random search is tried `[B]`: after 4, 8, 16, ... runs, if fewer than a quarter of them agree."""
    power_of_two = state.runs & (state.runs - 1) == 0
    return (state.runs >= FIRST) & power_of_two & (4 * state.agreeing < state.runs)


@partial(jax.jit, static_argnums=3, static_argnames="norm")
def _walks(classifier, arrays, state: Descents, count, *, norm) -> Descents:
    """The search after a part of the random search, where it is due."""
    given, seed = arrays
    state = jax.tree.map(jnp.asarray, state)
    new = _is_to_try(state) & ~state.walking & jnp.isin(state.runs, jnp.array(NEW_STRIPES)) & ~state.walk.striped
    walk = state.walk.again(new)
    usual = jnp.where(state.walking, PART, 1)
    usual = jnp.where(walk.striped, jnp.where(walk.asked > 0, PART, TRIAL), usual)
    left = state.left - state.runs - state.walked
    parts = jnp.where(state.due, jnp.minimum(usual, left), 0)
    # Keys that no other part has.
    keys = jax.vmap(lambda seed, n: jax.random.fold_in(jax.random.key(~seed), n))(seed, state.runs)
    keys = jax.vmap(jax.random.fold_in)(keys, state.walked)
    best, walk = windows.search(classifier, given, keys, state.best, walk, QUERIES * parts, norm)
    return state._replace(
        best=best,
        last=given.where(best.value < state.best.value, best.r, state.last),
        agreeing=jnp.where(best.value < (1 - SAME) * state.best.value, 0, state.agreeing),
        done=state.done | state.due,
        forwards=state.forwards + QUERIES * parts,
        walk=walk,
        walking=jnp.where(state.due, best.value < (1 - USEFUL) * state.best.value, state.walking),
        walked=state.walked + parts,
        # From stripes, part follows part: runs between them would not help.
        due=state.due & walk.striped & (parts < left),
    )


def _after_another(classifier, given: Problem, seed, state: Descents, norm) -> Descents:
    """The search after another run."""
    best, image = state.best, jnp.arange(len(state.runs))
    start, guided, way = _start(given, seed, state, norm)
    others = jnp.where(guided, state.classes[image, way], NONE) if given.targets is None else None
    found, end = boundary.descend(classifier, given, start, norm, others)
    runs, improved = state.runs + 1, best.keep(given, found.r, found.value)

    again = state.agreeing + (found.value <= (1 + SAME) * best.value)
    agreeing = jnp.where(found.value < (1 - SAME) * best.value, 0, again)
    enough = jnp.maximum(state.left // plan(norm).agreeing, 2)
    settled = (agreeing >= enough) & (runs >= FIRST) & improved.found

    place, distance = state.places[image, way], state.distances[image, way]
    reached = jnp.where(found.found, found.value, geometry.norm(end, norm))
    # The distance of a place where no run ended is not one to be compared.
    least = jnp.where(state.visits[image, way] > 0, jnp.minimum(distance, reached), reached)
    moves = guided & (geometry.norm(end, norm) <= ACCEPTED * least)
    new = Descents(
        best=improved,
        last=given.where(guided & (found.value > improved.value), state.last, end),
        runs=runs,
        left=state.left,
        agreeing=agreeing,
        done=settled | (runs + state.walked >= state.left),
        gradients=state.gradients + boundary.RUN,
        forwards=state.forwards + boundary.EVALUATIONS,
        classes=state.classes,
        places=state.places.at[image, way].set(given.where(moves, end, place)),
        distances=state.distances.at[image, way].set(jnp.where(guided, least, distance)),
        visits=state.visits.at[image, way].add(guided),
        blocks=state.blocks,
        walk=state.walk,
        walking=state.walking,
        walked=state.walked,
        due=state.due,
    )
    return given.choose(state.done, state, new)


def _start(given: Problem, seed, state: Descents, norm: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where the next run of each image begins, whether it is kept on its way to a class, and to which of the K."""
    number, best, classes = state.runs, state.best, state.classes.shape[1]
    more = FIRST - 2 + number // TURN  # the class that is next when the first ones were opened
    turn = number % TURN
    block = _block(number, more - classes, norm)
    trying = block >= 0
    opening = ((number < FIRST) | ((turn == TURN // 2) & (more < classes))) & ~trying
    polishing = (turn == TURN - 1) & best.found & ~trying
    guided = (number % 2 == 1) & ~opening & ~polishing & ~trying
    promise = (state.distances * (1 + PENALTY * state.visits)).argmin(1)
    opened = jnp.clip(jnp.where(number < FIRST, number - 1, more), 0, classes - 1)
    way = jnp.where(opening, opened, promise)
    place = state.places[jnp.arange(len(way)), way]
    near = ~best.found | (geometry.norm(state.last, norm) <= ACCEPTED * best.value)
    free = given.where(near, state.last, best.r)
    start = _disturbed(given, seed, given.where(guided, place, free), number, norm)
    tried = blocks.perturbation(given, jnp.take_along_axis(state.blocks, jnp.maximum(block, 0)[:, None], 1)[:, 0])
    for when, instead in ((opening, place), (number == 0, state.last), (polishing, best.r), (trying, tried)):
        start = given.where(when, instead, start)
    return start, guided, way


def _block(number: jax.Array, over: jax.Array, norm: float) -> jax.Array:
    """From which of the best blocks the next run of each image starts, or -1: from none; `over` counts the turns to
    open a class for which there is no class left."""
    since = number - plan(norm).before_blocks
    late = jnp.where((number % TURN == TURN // 2) & (over >= 0), AT_FIRST + over, -1)
    block = jnp.where(since < AT_FIRST, since, late)
    return jnp.where((since >= 0) & (block < BLOCKS), block, -1)


def _disturbed(given: Problem, seed, r: jax.Array, number: jax.Array, norm: float) -> jax.Array:
    """The perturbations, disturbed in one of three ways."""
    noise = normal(given, jax.vmap(lambda seed, n: jax.random.fold_in(jax.random.key(seed), n))(seed, number))
    kept = r * (noise < ndtri(KEPT))
    scaled = r * (1 + NOISE * noise)
    shifted = r + noise * given.per_image(NOISE * geometry.norm(r, 2) / jnp.sqrt(r[0].size))
    return given.where(number % 3 == 0, kept, given.where(number % 3 == 1, scaled, shifted))
