"""The search of `nearest`: runs along the averaged boundary (`boundary.descend`) from many starting points.

Where runs disagree, a random search (`windows.search`) takes turns with them. The state of the search, `Descents`, is
kept outside of the compiled programs, so that images that are done leave the batch.
"""

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

# The order of the runs. Chosen.
FIRST = 4  # runs: from the end of the plain path, and from the boundaries of the three nearest classes
SPARSE = 2  # classes, of the first, that have their turn before the one that is nearest by the 1-norm
TURN = 6  # runs, of which one opens another class and one starts at the best perturbation itself, without noise
ACCEPTED = 1.03  # times the best distance: a run starts where the last one ended if that is no farther
PENALTY = 0.02  # relative increase of a class's distance for each run towards it, when the next class is chosen
AT_ONCE = 2  # runs of one call of the program, after which images that are done leave the batch
SAME = 5e-4  # relative difference below which two distances count as the same

# How the starting point of a run is disturbed. Chosen.
SMOOTH = 1.5  # the least p of the first steps, which follow p = 1 badly
KEPT = 0.65  # the share of the pixels that one kind of disturbance keeps
NOISE = 1.0  # relative size of the noise of the other two kinds

# Blocks of pixels as starting points, see `blocks.best`. Chosen.
BLOCKS = 40  # blocks from which runs start, at most
AT_FIRST = 6  # of these have their turn one after another, the others now and then
NONE = -1  # in place of a class: any class

# The random search, see `windows`.
QUERIES = 3 * boundary.RUN  # evaluations that take as long as the gradients of a run
PART = windows.MOST // QUERIES  # runs' worth of evaluations in a part of the search, if the last part was of use
TRIALS = (4, 16, 48, 64, 256)  # runs after which the search around the best is tried. Chosen
TRIAL = 2  # runs' worth of evaluations in the first part of a search from stripes, else 1. Chosen
USEFUL = 1e-3  # relative: the least reduction of the distance for which the search around the best goes on. Chosen
# Runs after which a search from stripes begins, for p = inf. The first is early enough for the standard effort, whose
# runs and evaluations around the best follow it; after 4 runs it found fewer images that attacks at a radius break.
STRIPES = (5, 48)


class Plan(NamedTuple):
    """The settings that depend on the norm."""

    agreeing: int  # an image is settled when one in so many runs, and at least two, found the same best distance
    before_blocks: int  # runs before blocks are tried


def plan(norm: float) -> Plan:
    """The settings for the p-norm."""
    # For p = 1 about half of the runs find no adversarial image, and those that do change few pixels, by much.
    return Plan(agreeing=8, before_blocks=8) if norm == 1 else Plan(agreeing=4, before_blocks=24)


class Descents(NamedTuple):
    """The state of the search for every image: arrays `[B]`, or `[B, *shape]`, or for its K likeliest classes."""

    best: Best  # the nearest adversarial perturbations
    last: jax.Array  # the perturbation from which the next free run goes on
    runs: jax.Array  # the number of runs so far
    left: jax.Array  # the number of runs, and of runs' worth of evaluations, that the budget allows in all
    agreeing: jax.Array  # the number of runs that found the distance of the best
    done: jax.Array  # whether the image leaves the batch
    gradients: jax.Array  # the number of gradients so far
    forwards: jax.Array  # the number of evaluations without a gradient so far
    classes: jax.Array  # `[B, K]`, the nearest first
    places: jax.Array  # `[B, K, *shape]`, the perturbation from which the next run to each class goes on
    distances: jax.Array  # `[B, K]`, the least distance at which a run reached each class
    visits: jax.Array  # `[B, K]`, the number of runs to each class
    blocks: jax.Array  # `[B, BLOCKS]`, see `blocks.best`, when they have been evaluated
    walk: windows.Walk  # the state of the random search
    walking: jax.Array  # whether the last part of the random search was of use
    walked: jax.Array  # the number of runs' worth of evaluations in the random search that the budget pays for
    due: jax.Array  # whether a part of the random search is next; until then the image counts as done
    paused: jax.Array  # whether the image waits, as done, while others are searched: then all go on in full batches

    @property
    def r(self) -> jax.Array:
        """The nearest adversarial perturbations `[B, *shape]`, or the last ones where there are none."""
        return jnp.where(self.best.found.reshape(-1, *[1] * (self.last.ndim - 1)), self.best.r, self.last)

    @property
    def adversarial_before(self) -> jax.Array:
        """Which images are adversarial without a perturbation, so that no run was made."""
        return self.runs == 0


def run_all(
    classifier: Classifier, given: Problem, key: jax.Array | None, *, norm: float, budget: int, walks: bool = False
) -> Descents:
    """Makes one run after another until an image is settled, or its budget of gradients is used; at least one run.

    The first run starts at the end of a plain descent (`boundary.path`), two more near the boundaries of the classes
    that are nearest after a few steps (`boundary.approach`), and a fourth near the boundary of the class that is
    nearest by the 1-norm: it may change a few pixels that were black in all images of the training, which no other run
    does.

    From then on, free and guided runs take turns. A free run may end at the boundary of any class. It starts where the
    last one ended, or at the best perturbation if that end was far off, with noise. A guided run is kept on its way to
    one class, the nearest but for the classes that had more runs; a free run would slide to another class that is
    nearer at first. Of six runs, one is free and starts near the boundary of the nearest class that no run started from
    yet, as long as there are any, and one starts at the best perturbation itself, without noise, and ends closer to the
    same minimum.

    On images that are not settled after some runs (for p = 1 soon, else long after the usual efforts), all blocks of
    pixels are evaluated (`blocks.best`), and six runs start from those that change the objective most; more of them
    when there are no more classes to start from.

    With `walks`, images on which fewer than a quarter of the runs found the same distance are also searched at random
    (`windows.search`) after `TRIALS` runs: with masked gradients, each run ends at another distance. As long as
    the random search is of use, a longer part of it follows every run. For p = inf it starts from stripes after
    `STRIPES` runs, and if this is promising, goes on for up to `windows.LENGTH` evaluations beyond the budget. Of the
    others, three count as one gradient of the budget.

    Which run is made does not depend on the budget. So a larger budget never gives a farther image.
    """
    budgets = np.full(len(given.images), budget, np.int32)
    state = in_chunks(partial(_begin, norm=norm), (given, budgets), classifier)
    return _until_done(classifier, (given, seeds(key, len(given.images))), state, norm=norm, budget=budget, walks=walks)


def one_more(
    classifier: Classifier, given: Problem, state: Descents, start: jax.Array, *, norm: float, budget: int
) -> Descents:
    """The state after one more run of that budget, which starts at the perturbations `start`, without noise."""
    zero, one = jnp.zeros(len(start), jnp.int32), jnp.ones(len(start), jnp.int32)
    again = state._replace(last=start, runs=zero, left=one, agreeing=zero, done=state.adversarial_before, walked=zero)
    nothing = np.zeros(len(start), np.uint32)  # seeds are of no use: the first run has no noise
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
        finished = ~(state.due | state.paused)
        state = state._replace(done=~state.due)
        state = until_done(partial(_walks, norm=norm), arrays, state, classifier, at_once=1, most=1)
        over = finished | ~state.due & (state.runs + state.walked >= state.left)
        return state._replace(done=over, paused=state.paused & False)

    if not walks:
        return runs(state)
    if unstable.staged((classifier, arrays, state)):
        return jax.lax.while_loop(lambda state: ~state.done.all(), runs_and_walks, state)
    while not np.asarray(state.done).all():
        state = runs_and_walks(state)
    return state


@partial(jax.jit, static_argnames="norm")
def _begin(classifier, given: Problem, budget, *, norm) -> Descents:
    """The state before the first run."""
    # By p = 1, a step changes a few pixels whose gradients vanish soon; by p = 2, another class may seem the nearest.
    smooth = max(norm, SMOOTH)
    logits, classes, tries, gradients, forwards = boundary.approach(classifier, given, smooth)
    distances = jax.vmap(partial(geometry.norm, p=norm))(tries)
    # A class that no image is ever given (its logit is -inf, say) is never reached: it comes last.
    distances = jnp.where(distances > 0, distances, jnp.inf)
    order = distances[:-1].argsort(0)
    order = jnp.insert(order, min(SPARSE, len(order)), len(order), axis=0)
    classes, tries, distances = (boundary.pick(array, order) for array in (classes, tries, distances))
    end = boundary.path(classifier, given, geometry.norm(tries[0], smooth), smooth)
    zero = jnp.zeros(len(logits), jnp.int32)
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
        walk=windows.Walk.none(given.images),
        walking=zero > 0,
        walked=zero,
        due=zero > 0,
        paused=zero > 0,
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
            trial = _at_a_trial(state, norm)
            # With fewer than a quarter of the runs agreeing, gradients may be masked.
            due = ~state.done & state.best.found & (state.walking | (trial & (4 * state.agreeing < state.runs)))
            paused = ~state.done & trial
            state = state._replace(due=state.due | due, paused=state.paused | paused, done=state.done | due | paused)
        return number + 1, state

    return jax.lax.while_loop(more, run, (0, state))[1]


def _with_blocks(classifier, given: Problem, state: Descents, now, norm) -> Descents:
    """The state after all blocks were evaluated, for the images `now [B]`."""
    best = blocks.best(classifier, given, norm, BLOCKS)
    tried = jnp.where(now, blocks.choices(given.images.shape[1:]), 0)
    return state._replace(
        blocks=jnp.where(now[:, None], best, state.blocks),
        forwards=state.forwards + tried,
    )


def _at_a_trial(state: Descents, norm: float) -> jax.Array:
    """Whether the number of runs so far is one after which the random search may be tried `[B]`."""
    return jnp.isin(state.runs, jnp.array(TRIALS + (STRIPES if norm == geometry.INF else ())))


@partial(jax.jit, static_argnums=3, static_argnames="norm")
def _walks(classifier, arrays, state: Descents, count, *, norm) -> Descents:
    """The state after a part of the random search, where one is due."""
    given, seed = arrays
    state = jax.tree.map(jnp.asarray, state)
    walk = state.walk
    if norm == geometry.INF:
        walk = walk.again(state.due & ~walk.striped & jnp.isin(state.runs, jnp.array(STRIPES)))
    usual = jnp.where(state.walking, PART, 1)
    usual = jnp.where(walk.striped, jnp.where(walk.asked > 0, PART, TRIAL), usual)
    left = state.left - state.runs - state.walked
    parts = jnp.where(state.due, jnp.where(walk.striped, usual, jnp.minimum(usual, left)), 0)
    # The budget pays for the beginning of a search from stripes only: where it is promising, it goes on in any case.
    unpaid = walk.striped & (walk.asked > 0)
    # Keys that no other part has.
    keys = jax.vmap(lambda seed, n: jax.random.fold_in(jax.random.key(~seed), n))(seed, state.runs)
    keys = jax.vmap(jax.random.fold_in)(keys, state.walked + walk.asked % windows.LENGTH)
    best, walk = windows.search(classifier, given, keys, state.best, walk, QUERIES * parts, norm)
    return state._replace(
        best=best,
        last=given.where(best.value < state.best.value, best.r, state.last),
        agreeing=jnp.where(best.value < (1 - SAME) * state.best.value, 0, state.agreeing),
        done=state.done | state.due,
        forwards=state.forwards + QUERIES * parts,
        walk=walk,
        walking=jnp.where(state.due, best.value < (1 - USEFUL) * state.best.value, state.walking),
        walked=state.walked + jnp.where(unpaid, 0, parts),
        # From stripes, one part follows another: their windows shrink by a schedule, which runs would interrupt.
        due=state.due & walk.striped,
    )


def _after_another(classifier, given: Problem, seed, state: Descents, norm) -> Descents:
    """The state after one more run of the images that are not done."""
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
    # Before the first run to a class, its distance is that of a step towards it, which is not to be compared.
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
        paused=state.paused,
    )
    return given.choose(state.done, state, new)


def _start(given: Problem, seed, state: Descents, norm: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The perturbation at which the next run of each image starts, whether it is guided, and the index of its class."""
    number, best, classes = state.runs, state.best, state.classes.shape[1]
    more = FIRST - 2 + number // TURN  # the index of the next class to start from, after the first ones
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
    """The index, among the best blocks, of that at which the next run of an image starts; -1 for none.

    `over` is the number of turns to start from another class for which no class was left.
    """
    since = number - plan(norm).before_blocks
    late = jnp.where((number % TURN == TURN // 2) & (over >= 0), AT_FIRST + over, -1)
    block = jnp.where(since < AT_FIRST, since, late)
    return jnp.where((since >= 0) & (block < BLOCKS), block, -1)


def _disturbed(given: Problem, seed, r: jax.Array, number: jax.Array, norm: float) -> jax.Array:
    """The perturbations with noise of one of three kinds: some pixels set to zero, all scaled, or all shifted."""
    noise = normal(given, jax.vmap(lambda seed, n: jax.random.fold_in(jax.random.key(seed), n))(seed, number))
    kept = r * (noise < ndtri(KEPT))
    scaled = r * (1 + NOISE * noise)
    shifted = r + noise * given.per_image(NOISE * geometry.norm(r, 2) / jnp.sqrt(r[0].size))
    return given.where(number % 3 == 0, kept, given.where(number % 3 == 1, scaled, shifted))
