"""Steps to the decision boundary, where a linearization of the classifier puts it, and along a line to where it is.

A step is the perturbation of least p-norm inside the box that crosses the linearized boundary: that of DeepFool
(Moosavi-Dezfooli et al. 2016), but counted from the original image whatever the point of linearization, which makes it
a step of sequential quadratic programming, as in FAB (Croce & Hein 2020). Exactly so by
`geometry.nearest_on_plane_in_box`.
"""

from functools import partial

import jax
import jax.numpy as jnp

from mnist_jax import geometry, losses
from mnist_jax.attack.engine.best import Best
from mnist_jax.attack.engine.problem import CAREFUL, Loss, Problem

LIKELIEST = 9  # other classes that are approached
STEPS = 2  # so many are taken towards each
BEYOND = (1.3, 4.0)  # times the last step is where the boundary is looked for first, and where it is not farther
LINE = 7  # evaluations along the line through it
PATH = 10  # steps
PAST = 2.0  # times the distance is their length
RUN = 20  # steps along the averaged boundary
MEMORY = 0.9  # weight of the earlier linearizations in the average
FIRST, FINAL = 0.9, 0.1  # of the way to the averaged boundary is a step, at the beginning and at the end of a run
EVALUATIONS = 6  # along the line at its end
BEHIND = 1e-3  # of an interval farther than to its crossing: rounding would leave a linear function just before it
NEAR, MIDDLE, FAR = 0.93, 1.01, 1.2  # times a perturbation that should be at the boundary is where it is looked for


def plane(classifier, given: Problem, r: jax.Array, loss: Loss) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The logits at the perturbations `r`, and the loss linearized there: by how much it has to fall from what it would
    be at the images `[B]`, and its gradient `[B, *shape]`."""
    logits, objective, gradient = given.gradient(classifier, given.at(r), loss)
    along = (gradient * r).reshape(len(objective), -1).sum(1)
    return logits, objective + given.rounding(logits) - along, gradient


def step(classifier, given: Problem, r: jax.Array, norm: float, loss: Loss = losses.margin):
    """The logits at the perturbations `r`, and the step to the boundary of the loss linearized there."""
    logits, fall, gradient = plane(classifier, given, r, loss)
    return logits, geometry.nearest_on_plane_in_box(gradient, fall, given.images, norm)


def line(classifier, given: Problem, r: jax.Array, low: jax.Array, high: jax.Array, evaluations: int, first=None):
    """The smallest share of `r`, between `low` and `high`, that is found to be adversarial; `high` if none is.

    It is looked for by bisection, at `first`, if given, to begin with.
    """

    def halve(k, ends):
        fails, fools = ends
        middle = (fails + fools) / 2
        middle = middle if first is None else jnp.where(k == 0, first, middle)
        images = given.at(given.per_image(middle) * r)
        adversarial = given.adversarial(classifier(images), CAREFUL)
        return jnp.where(adversarial, fails, middle), jnp.where(adversarial, middle, fools)

    return jax.lax.fori_loop(0, evaluations, halve, (low, high))[1]


def crossing(classifier, given: Problem, r: jax.Array, evaluations: int) -> tuple[jax.Array, jax.Array]:
    """The share `[B]` of `r` at which the boundary is crossed, on its far side, and whether it was found at all.

    It is looked for close to 1, by two evaluations, and between them by the Illinois method (Dowell & Jarratt 1971).
    """

    def narrow(k, ends):
        low, above, high, below = ends
        beyond = below < 0
        part = above / jnp.where(above > below, above - below, 1)
        between = low + (high - low) * jnp.clip(part + BEHIND, 0, 1)
        share = jnp.where(k == 0, MIDDLE, jnp.where(k == 1, jnp.where(beyond, NEAR, FAR), between))
        logits = classifier(given.at(given.per_image(share) * r))
        new = given.objective(logits) + given.rounding(logits)
        # The second evaluation gives the other end.
        outer = jnp.where(k == 1, ~beyond, new < 0)
        # Then the end that stays counts half, so that it moves next.
        half = jnp.where(k < 2, 1, 2)
        return (
            jnp.where(outer, low, share),
            jnp.where(outer, above / half, new),
            jnp.where(outer, share, high),
            jnp.where(outer, new, below / half),
        )

    one = jnp.ones(len(r), r.dtype)
    _, _, share, below = jax.lax.fori_loop(0, evaluations, narrow, (one, one, one, one))
    return share, below < 0


def margins(classifier, given: Problem, classes: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Logits `[B, C]`, other classes `[K, B]`, margins to them `[K, B]` and gradients `[K, B, *shape]`, at the images.

    The classes are the likeliest ones, as many as asked for, the likeliest first; where there are targets, just these.
    A margin below zero is a success. This takes K gradients.
    """

    def each_margin(images):
        logits = classifier(images)
        if given.targets is not None:
            return given.objective(logits)[:, None], (logits, given.targets[:, None])
        own, others = losses.label_and_others(logits, given.labels)
        values, indices = jax.lax.top_k(others, min(classes, logits.shape[1] - 1))
        return (own[:, None] - values).astype(images.dtype), (logits, indices)

    values, pull_back, (logits, indices) = jax.vjp(each_margin, given.images, has_aux=True)
    each = jnp.eye(values.shape[1], dtype=values.dtype)[:, None].repeat(len(values), 1)
    # One after another: layers are made for a batch, and slow where there is another axis beside it.
    return logits, indices.T, values.T, jax.lax.map(lambda one: pull_back(one)[0], each)


def approach(classifier, given: Problem, norm: float) -> tuple[jax.Array, jax.Array, jax.Array, int, int]:
    """Some steps towards each of the K likeliest classes (see `margins`): which is the nearest shows only then.

    One more, the last, goes by the 1-norm to the class that is nearest by it. Gives the logits `[B, C]` of the images,
    those classes `[K + 1, B]`, for each a perturbation to where a boundary is crossed in its direction
    `[K + 1, B, *shape]`, and how many gradients and how many evaluations that took.
    """
    logits, classes, values, slopes = margins(classifier, given, LIKELIEST)
    falls = values + given.rounding(logits)[None]
    reach = falls / jnp.maximum(jax.vmap(partial(geometry.norm, p=geometry.INF))(slopes), jnp.finfo(falls.dtype).tiny)
    last = reach.argmin(0)[None]
    linear = [jnp.concatenate([array, pick(array, last)]) for array in (classes, falls, slopes)]
    sparse = jnp.arange(len(classes) + 1) == len(classes)

    def towards(inputs):
        other, first_fall, first_slope, by_one = inputs
        loss = losses.margin if given.targets is not None else partial(losses.lead, others=other)

        def advance(k, r):
            at_first = k == 0
            fall, slope = jax.lax.cond(
                at_first, lambda: (first_fall, first_slope), lambda: plane(classifier, given, r, loss)[1:]
            )
            ends = (partial(geometry.nearest_on_plane_in_box, slope, fall, given.images, p) for p in (1, norm))
            end = jax.lax.cond(by_one, *ends)
            # Linearizations at the boundary itself are of use, and whole steps overshoot or zigzag.
            return jnp.where(at_first, end, (r + end) / 2)

        r = jax.lax.fori_loop(0, 1 + STEPS, advance, jnp.zeros_like(first_slope))
        nothing = jnp.zeros_like(first_fall)
        share = line(classifier, given, r, nothing, nothing + BEYOND[1], LINE, first=BEYOND[0])
        return given.inside(given.per_image(share) * r)

    tries = jax.lax.map(towards, (*linear, sparse))
    return logits, linear[0], tries, len(values) + STEPS * len(tries), LINE * len(tries)


def path(classifier, given: Problem, distance: jax.Array, norm: float) -> jax.Array:
    """Down the log-odds from the image, in `PATH` steps of equal p-norm, to beyond `distance [B]`.

    It leads where all classes together pull, which may be another part of the boundary than linearizations point to.
    """

    def advance(_, r):
        _, _, gradient = given.gradient(classifier, given.at(r), losses.log_odds)
        along = geometry.dual_direction(gradient, norm)
        return given.inside(r - given.per_image(PAST * distance / PATH) * along)

    return jax.lax.fori_loop(0, PATH, advance, jnp.zeros_like(given.images))


def descend(
    classifier, given: Problem, r: jax.Array, norm: float, others: jax.Array | None = None
) -> tuple[Best, jax.Array]:
    """The nearest adversarial perturbation of a run along the averaged boundary (see `nearest`) from `r`, and where it
    ends. It takes `RUN` gradients and `EVALUATIONS`.

    The boundary is that of the class `others [B]`, or where this is negative, or None, of whichever is nearest.
    """

    def loss(logits, labels):
        margin = losses.margin(logits, labels)
        return margin if others is None else jnp.where(others < 0, margin, losses.lead(logits, labels, others))

    def advance(k, state):
        r, level, slope, best = state
        logits, new, gradient = plane(classifier, given, r, loss)
        best = best.keep(given, r, geometry.norm(r, norm), given.adversarial(logits, CAREFUL))
        β = jnp.minimum(MEMORY, k / (k + 1))
        level, slope = β * level + (1 - β) * new, β * slope + (1 - β) * gradient
        α = FIRST * (FINAL / FIRST) ** (k / RUN)
        return r + α * (geometry.nearest_on_plane_in_box(slope, level, given.images, norm) - r), level, slope, best

    none = Best.none(given.images)
    start = (r, jnp.zeros_like(none.value), jnp.zeros_like(r), none)
    r, _, _, best = jax.lax.fori_loop(0, RUN, advance, start)
    share, found = crossing(classifier, given, r, EVALUATIONS)
    there = given.inside(given.per_image(share) * r)
    return best.keep(given, there, geometry.norm(there, norm), found), r


def pick(arrays: jax.Array, places: jax.Array) -> jax.Array:
    """From arrays `[K, B, ...]`, for each image those at the places `[N, B]`: `[N, B, ...]`."""
    return jnp.take_along_axis(arrays, places.reshape(*places.shape, *[1] * (arrays.ndim - 2)), 0)
