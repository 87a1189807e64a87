"""Steps to the linearized decision boundary, the descents made of them, and searches for the boundary along a line.

A step leads from a perturbation r to the perturbation of least p-norm, inside the box, at which the loss as linearized
at r says that the image is adversarial. DeepFool (Moosavi-Dezfooli et al. 2016) minimizes the distance from r in each
step; here it is the distance from the original image, as in FAB (Croce & Hein 2020), which makes it a step of
sequential quadratic programming. `geometry.nearest_on_plane_in_box` computes it exactly.
"""

from functools import partial

import jax
import jax.numpy as jnp

from mnist_jax import geometry, losses
from mnist_jax.attack.engine.best import Best
from mnist_jax.attack.engine.problem import CAREFUL, Loss, Problem

# All constants are chosen; no paper gives them.
# Of `approach`:
LIKELIEST = 9  # the most other classes that are approached: those of the largest logits
STEPS = 2  # steps towards each class after the first one, which uses the gradient at the image
BEYOND = (1.3, 4.0)  # multiples of the last step: the first that is evaluated, and the largest that may be returned
LINE = 7  # evaluations in the bisection along the line through the last step
# Of `path`:
PATH = 10  # steps, one gradient each
PAST = 2.0  # sum of the steps' p-norms, as a multiple of the distance that is given
# Of `descend`:
RUN = 20  # steps, one gradient each
MEMORY = 0.9  # largest weight of the earlier linearizations in their running average
FIRST, FINAL = 0.9, 0.1  # the share of the way to the averaged boundary that a step goes, at the start and at the end
EVALUATIONS = 6  # evaluations of `crossing` after the last step
# Of `crossing`:
# Each evaluation is beyond the point at which the loss would be zero if it were linear, by this share of the interval:
# exactly at this point, rounding could leave a linear loss positive every time, and no crossing would be found.
BEHIND = 1e-3
NEAR, MIDDLE, FAR = 0.93, 1.01, 1.2  # multiples of the perturbation: MIDDLE is evaluated first, then NEAR or FAR


def plane(classifier, given: Problem, r: jax.Array, loss: Loss) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The logits `[B, C]` at the perturbations `r`, and the loss linearized there: by how much it has to fall from its
    value at the images for an image to be adversarial `[B]`, and its gradient `[B, *shape]`."""
    logits, objective, gradient = given.gradient(classifier, given.at(r), loss)
    along = (gradient * r).reshape(len(objective), -1).sum(1)
    return logits, objective + given.rounding(logits) - along, gradient


def step(classifier, given: Problem, r: jax.Array, norm: float, loss: Loss = losses.margin):
    """The logits `[B, C]` at the perturbations `r`, and the step to the boundary as linearized there `[B, *shape]`."""
    logits, fall, gradient = plane(classifier, given, r, loss)
    return logits, geometry.nearest_on_plane_in_box(gradient, fall, given.images, norm)


def line(classifier, given: Problem, r: jax.Array, low: jax.Array, high: jax.Array, evaluations: int, first=None):
    """The smallest multiple `[B]` of `r`, from `low [B]` to `high [B]`, that bisection finds to be adversarial.

    It is `high` where no evaluation finds any. `first` is the multiple to evaluate first; None means the middle.
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
    """A multiple `[B]` of `r`, near 1, that is adversarial and close to the boundary, and whether one was found.

    Two evaluations, at `MIDDLE` and at `NEAR` or `FAR`, should have the boundary between them; the others narrow this
    interval by the Illinois method, a kind of regula falsi (Dowell & Jarratt 1971).
    """

    def narrow(k, ends):
        low, above, high, below = ends
        beyond = below < 0
        part = above / jnp.where(above > below, above - below, 1)
        between = low + (high - low) * jnp.clip(part + BEHIND, 0, 1)
        share = jnp.where(k == 0, MIDDLE, jnp.where(k == 1, jnp.where(beyond, NEAR, FAR), between))
        logits = classifier(given.at(given.per_image(share) * r))
        new = given.objective(logits) + given.rounding(logits)
        # The second evaluation is the other end of the interval, even if the boundary is not between the two.
        outer = jnp.where(k == 1, ~beyond, new < 0)
        # From the third on, the value at the end that stays is halved, so that this end does not stay forever.
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
    """At the images: logits `[B, C]`, other classes `[K, B]`, and the label's margins to these, with their gradients.

    A margin `[K, B]` is the label's logit minus that of the other class; below zero the image is adversarial. The
    gradients are `[K, B, *shape]`. The K classes are those of the largest logits, at most `classes`, the largest first.
    With targets there is one class, the target, and one margin: the largest other logit minus the target's. This takes
    K gradients.
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
    # One gradient after another: under `vmap`, which adds an axis to the batch, the layers would be slow.
    return logits, indices.T, values.T, jax.lax.map(lambda one: pull_back(one)[0], each)


def approach(classifier, given: Problem, norm: float) -> tuple[jax.Array, jax.Array, jax.Array, int, int]:
    """Perturbations to the boundaries of the K likeliest classes (see `margins`), each by a few steps from the image.

    The gradients at the image alone do not tell which class is the nearest. One more perturbation, the last, is made by
    steps of least 1-norm towards the class that is nearest in the 1-norm, as linearized at the image.

    Returns:
      The logits `[B, C]` of the images; the classes `[K + 1, B]`; the perturbations `[K + 1, B, *shape]`, where the
      line through the last step towards a class becomes adversarial, for this class or another one; and the numbers of
      gradients and of evaluations that each image took.
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
            # Half of the way only: a whole step overshoots the boundary or zigzags along it, and the linearizations
            # near the boundary are those that help.
            return jnp.where(at_first, end, (r + end) / 2)

        r = jax.lax.fori_loop(0, 1 + STEPS, advance, jnp.zeros_like(first_slope))
        nothing = jnp.zeros_like(first_fall)
        share = line(classifier, given, r, nothing, nothing + BEYOND[1], LINE, first=BEYOND[0])
        return given.inside(given.per_image(share) * r)

    tries = jax.lax.map(towards, (*linear, sparse))
    return logits, linear[0], tries, len(values) + STEPS * len(tries), LINE * len(tries)


def path(classifier, given: Problem, distance: jax.Array, norm: float) -> jax.Array:
    """The perturbations `[B, *shape]` after `PATH` steps of steepest descent on the log-odds, from the images.

    All steps have the same p-norm; together it is `PAST` times the `distance [B]`, so that the last one should be
    beyond the boundary. The log-odds depend on all other classes together, so that the descent may reach another part
    of the boundary than steps towards single classes.
    """

    def advance(_, r):
        _, _, gradient = given.gradient(classifier, given.at(r), losses.log_odds)
        along = geometry.dual_direction(gradient, norm)
        return given.inside(r - given.per_image(PAST * distance / PATH) * along)

    return jax.lax.fori_loop(0, PATH, advance, jnp.zeros_like(given.images))


def descend(
    classifier, given: Problem, r: jax.Array, norm: float, others: jax.Array | None = None
) -> tuple[Best, jax.Array]:
    """One run from the perturbations `r`: steps towards the averaged linearized boundary, as described in `nearest`.

    It ends with a search for the boundary along the line through the last perturbation (`crossing`), and takes `RUN`
    gradients and `EVALUATIONS` evaluations. The boundary is that between the label and the class `others [B]`; where
    this is negative, or None, between the label and the class of the largest other logit.

    Returns:
      The nearest adversarial perturbations of the run, and the perturbations `[B, *shape]` after its last step.
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
    """For each image, the entries of `arrays [K, B, ...]` at the indices `places [N, B]`, as `[N, B, ...]`."""
    return jnp.take_along_axis(arrays, places.reshape(*places.shape, *[1] * (arrays.ndim - 2)), 0)
