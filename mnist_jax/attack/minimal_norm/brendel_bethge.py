"""Brendel & Bethge's attack: follows the decision boundary by steps that shorten the perturbation the most."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnist_jax import arguments, geometry, losses
from mnist_jax.attack.engine import boundary, driver
from mnist_jax.attack.engine.best import Best
from mnist_jax.attack.engine.driver import Found
from mnist_jax.attack.engine.method import Method
from mnist_jax.attack.engine.problem import CAREFUL, Asked, Problem
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.attack.engine.starts import small_start
from mnist_jax.classifier import Classifier

METHOD = Method(
    (1, 2, geometry.INF),
    "steps along the decision boundary that shorten the perturbation the most",
    "Brendel et al. 2019",
)

# Constants of the authors' implementation in Foolbox, except STARTING:
OVERSHOOT = 1.1  # a step makes the margin fall by this times itself if it is positive, else by 2 - OVERSHOOT times
MOMENTUM = 0.8  # weight of the earlier gradients in the running mean of the boundary's normal
DECAYS = 20  # how many times the radius of the trust region is halved
LINE = 10  # evaluations of the bisection along the line from the image to the starting point
STARTING = 20  # steps, one gradient each, that look for a misclassified starting point where none is given. Chosen


def brendel_bethge(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    norm: float = 2,
    steps: int = 1000,
    region: float = 1e-3,
    start: ArrayLike | None = None,
    targets: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> AttackResult:
    """Brendel & Bethge's attack: follows the decision boundary to a nearest point. At a point y near the boundary, a
    step solves exactly

        minimize norm_p(y + δ - x)  such that  b δ = c,  norm_2(δ) <= radius,  y + δ in [0, 1]

    where b is the gradient of the margin, averaged over the last steps, and c such that the linearized margin gets a
    little below zero. Where no δ satisfies all constraints, it is the one whose b δ comes closest to c. The attack
    starts where the line from the image to the starting point crosses the boundary, and keeps the nearest misclassified
    image of all steps (Brendel, Rauber, Kümmerer, Ustyuzhaninov & Bethge, "Accurate, reliable and fast robustness
    evaluation", 2019, equation 2; the schedules are those of the authors' implementation in Foolbox, whose radius also
    grows with the number of images in the batch).

    Args:
      classifier, images, labels: see `fixed_norm`.
      norm: p, 1, 2 or inf.
      steps: gradients for each image, not counting those that look for a starting point.
      region: the first radius, divided by the number of pixels. The radius is halved 20 times.
      start: misclassified images `[B, *shape]` to start from. None means those that 20 steps to the linearized boundary
        find, each with a larger overshoot than the one before.
      targets: `[B]`, the classes to reach; None means any but the label.
      key: a `jax.random` key, or one for each image; with one, the search for a starting point begins at a small random
        perturbation, without one nothing is random.

    Returns:
      An `AttackResult`.

    Raises:
      ValueError: an argument is out of its range.
    """
    norm = METHOD.check_norm(norm)
    arguments.counts(steps=steps)
    arguments.numbers(0, above=True, region=region)
    asked = Asked(classifier, images, labels, targets, key)
    numbers, arrays = {"region": region}, driver.present(begin=start)
    return driver.run(kernel, asked, norm=norm, numbers=numbers, arrays=arrays, steps=steps)


def kernel(classifier, given: Problem, keys, *, norm, region, steps, begin=None) -> Found:
    x = given.images
    if begin is None:
        r = jax.lax.fori_loop(0, STARTING, partial(_cross, classifier, given), small_start(given, keys))
    else:
        r = begin - x
    r = given.inside(r)
    one = jnp.ones(len(r), r.dtype)
    r = given.per_image(boundary.line(classifier, given, r, 0 * one, one, LINE)) * r
    interval = max(1, steps // DECAYS)

    def advance(i, state):
        r, normal, best = state
        logits, margin, gradient = given.gradient(classifier, x + r, losses.margin)
        best = best.keep(given, r, geometry.norm(r, norm), given.adversarial(logits, CAREFUL))
        normal = jnp.where(i == 0, gradient, MOMENTUM * normal + (1 - MOMENTUM) * gradient)
        margin = margin + given.rounding(logits)
        fall = jnp.where(margin > 0, OVERSHOOT, 2 - OVERSHOOT) * margin
        reach = region * x[0].size * 0.5 ** ((i + 2) // interval)
        r = geometry.shorten_on_plane_in_box(r, normal, fall, reach, x, norm)
        return given.inside(r), normal, best

    r, _, best = jax.lax.fori_loop(0, steps, advance, (r, jnp.zeros_like(x), Best.none(x)))
    best = best.keep(given, r, geometry.norm(r, norm), given.adversarial(classifier(x + r), CAREFUL))
    gradients = steps + (STARTING if begin is None else 0)
    return Found(given.where(best.found, best.r, r), gradients, forwards=LINE + 1)


def _cross(classifier, given: Problem, i, r):
    """Step number `i` of the search for a starting point: across the linearized boundary, unless misclassified."""
    x = given.images
    logits, margin, gradient = given.gradient(classifier, x + r, losses.margin)
    fall = (1 + 0.1 * (i + 1)) * (margin + given.rounding(logits)) - (gradient * r).reshape(len(x), -1).sum(1)
    step = geometry.nearest_on_plane_in_box(gradient, fall, x, 2)
    # Where the linearization says that the image itself is already across, r stays.
    step = given.where(fall > 0, step, r)
    return given.where(given.adversarial(logits, CAREFUL), r, given.inside(step))
