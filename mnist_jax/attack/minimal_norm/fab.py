"""FAB: steps to the nearest linearized boundary, biased towards the image, and back towards it after each success."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnist_jax import arguments, geometry, losses
from mnist_jax.attack.engine import driver
from mnist_jax.attack.engine.best import Best
from mnist_jax.attack.engine.driver import Found
from mnist_jax.attack.engine.method import Method
from mnist_jax.attack.engine.problem import CAREFUL, Asked, Problem
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.attack.engine.starts import fixed
from mnist_jax.classifier import Classifier

METHOD = Method(
    (1, 2, geometry.INF),
    "steps to the nearest linearized boundary, biased towards the image",
    "Croce & Hein 2020",
)

# Constants of the paper and the authors' implementation:
α_MAX = 0.1  # largest weight of the step from the image itself
β = 0.9  # factor on a perturbation that is misclassified; the next step begins there
η = 1.05  # a step goes this many times the way to the linearized boundary
FARTHEST = {1: 5.0, 2: 1.0, geometry.INF: 0.3}  # twice the largest p-norm of a random start, by p
FINAL = 3  # evaluations of the final search along the line to the image


def fab(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    norm: float = 2,
    steps: int = 100,
    restarts: int = 1,
    classes: int | None = None,
    targets: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> AttackResult:
    """FAB: follows the nearest class boundary, as if the margins were linear, by steps biased towards the image x:

        y <- (1 - α) (y + η d(y)) + α (x + η d(x)),  clipped to [0, 1]

    where d(z) is the step of least p-norm inside the box from z to the boundary of one class as linearized at y, of the
    class whose linearized boundary is nearest to y, and α = norm(d(y)) / (norm(d(y)) + norm(d(x))), at most 0.1. Where
    y is misclassified, the next step begins at x + 0.9 (y - x). The nearest misclassified y is kept, and moved along
    the line towards x by three steps of the secant method (Croce & Hein, "Minimally distorted adversarial examples with
    a fast adaptive boundary attack", 2020, algorithm 1).

    Args:
      classifier, images, labels: see `fixed_norm`.
      norm: p, 1, 2 or inf.
      steps: steps of every run. Each takes an evaluation and a gradient for every class whose boundary is considered.
      restarts: runs, or, with `classes`, runs towards each class; all but the first start at random.
      classes: None considers the boundaries of all other classes in every step. A number makes runs towards each of
        that many of the likeliest other classes in turn, with one gradient a step: the paper's version for many
        classes.
      targets: `[B]`, the classes to reach; None means any but the label.
      key: a `jax.random` key, or one for each image, for the random starts; None means a fixed key.

    Returns:
      An `AttackResult`.

    Raises:
      ValueError: an argument is out of its range.
    """
    norm = METHOD.check_norm(norm)
    arguments.counts(steps=steps, restarts=restarts, classes=classes)
    asked = Asked(classifier, images, labels, targets, fixed(key))
    return driver.run(kernel, asked, norm=norm, steps=steps, restarts=restarts, classes=classes)


def kernel(classifier, given: Problem, keys, *, norm, steps, restarts, classes) -> Found:
    x = given.images
    logits = classifier(x)
    ranked = jax.lax.top_k(losses.label_and_others(logits, given.labels)[1], logits.shape[1] - 1)[1]
    if given.targets is not None:
        ranked = given.targets[:, None]
    among = ranked.shape[1]  # the number of classes considered in one run
    goals = 1
    if classes is not None:
        among, goals = 1, min(classes, among)

    def run(i, state):
        best, _ = state
        others = jax.lax.dynamic_slice_in_dim(ranked, (i % goals) * among, among, 1)
        start = jnp.where(i < goals, 0, _random(given, jax.vmap(jax.random.fold_in, (0, None))(keys, i), best, norm))

        def step(_, state):
            best, y = state
            y = _step(classifier, given, y, others, norm)
            r = y - x
            adversarial = given.adversarial(classifier(y), CAREFUL)
            return best.keep(given, r, geometry.norm(r, norm), adversarial), given.where(adversarial, x + β * r, y)

        return jax.lax.fori_loop(0, steps, step, (best, x + start))

    best, last = jax.lax.fori_loop(0, restarts * goals, run, (Best.none(x), x))
    r = given.where(best.found, given.per_image(_shorten(classifier, given, best.r, logits)) * best.r, last - x)
    runs = restarts * goals * steps
    return Found(r, gradients=runs * among, forwards=runs + FINAL + 2)


def _random(given: Problem, keys, best: Best, norm):
    """Random perturbations in the box, of half the p-norm of the best so far, or of half FARTHEST if that is less."""
    shape, dtype = given.images.shape[1:], given.images.dtype
    draw = partial(jax.random.uniform, minval=-1, maxval=1) if norm == geometry.INF else jax.random.normal
    noise = jax.vmap(lambda key: draw(key, shape, dtype))(keys)
    length = jnp.minimum(best.value, FARTHEST[norm]) / 2
    return given.inside(given.per_image(length / geometry.norm(noise, norm)) * noise)


def _step(classifier, given: Problem, y, others, norm):
    """The next point `[B, *shape]`: the weighted mean of the steps from y and from the image to the boundary."""
    x = given.images
    value, gradient = _nearest_boundary(classifier, given, y, others, norm)
    there = value + (gradient * (x - y)).reshape(len(x), -1).sum(1)  # the linearized margin at the image
    falls = jnp.concatenate([value, there])
    # From a point beyond the boundary, where the margin is negative, the step leads back: the margin has to grow.
    towards = jnp.concatenate(
        [given.where(value < 0, -gradient, gradient), given.where(there < 0, -gradient, gradient)]
    )
    steps = geometry.nearest_on_plane_in_box(towards, jnp.abs(falls), jnp.concatenate([y, x]), norm)
    lengths = geometry.norm(steps, norm)
    from_y, from_x = jnp.split(steps, 2)
    ours, original = jnp.split(lengths, 2)
    α = given.per_image(jnp.minimum(ours / jnp.maximum(ours + original, jnp.finfo(x.dtype).tiny), α_MAX))
    return jnp.clip((1 - α) * (y + η * from_y) + α * (x + η * from_x), 0, 1)


def _nearest_boundary(classifier, given: Problem, y, others, norm):
    """The margin `[B]` to the class, of `others [B, K]`, whose linearized boundary is nearest to y; its gradient."""

    def margins(y):
        logits = classifier(y)
        if given.targets is not None:
            margin = given.objective(logits)[:, None]
        else:
            own = losses.label_and_others(logits, given.labels)[0]
            margin = (own[:, None] - jnp.take_along_axis(losses.wide(logits), others, 1)).astype(y.dtype)
        return margin + jax.lax.stop_gradient(given.rounding(logits))[:, None]

    values, pull_back = jax.vjp(margins, y)

    def look(best, inputs):
        nearest, value, gradient = best
        one, new = inputs
        new_gradient = pull_back(jnp.broadcast_to(one, values.shape))[0]
        slope = geometry.norm(new_gradient, geometry.dual(norm))
        distance = jnp.abs(new) / jnp.maximum(slope, jnp.finfo(y.dtype).tiny)
        nearer = distance < nearest
        better = jnp.where(nearer, distance, nearest), jnp.where(nearer, new, value)
        return (*better, given.where(nearer, new_gradient, gradient)), None

    none = jnp.full(len(y), jnp.inf, y.dtype)
    each = jnp.eye(values.shape[1], dtype=values.dtype), values.T
    return jax.lax.scan(look, (none, values[:, 0], jnp.zeros_like(y)), each)[0][1:]


def _shorten(classifier, given: Problem, r, logits):
    """The smallest share `[B]` of `r` that is found to be misclassified, by the secant method along the line to x."""

    def height(logits):
        return given.objective(logits) + given.rounding(logits)

    def narrow(_, ends):
        (low, above), (high, below) = ends
        share = low + (high - low) * jnp.clip(above / jnp.where(above > below, above - below, 1), 0, 1)
        logits = classifier(given.images + given.per_image(share) * r)
        fooled, new = given.adversarial(logits, CAREFUL), (share, height(logits))
        keep = partial(jax.tree.map, partial(jnp.where, fooled))
        return keep((low, above), new), keep(new, (high, below))

    one = jnp.ones(len(r), r.dtype)
    ends = (0 * one, height(logits)), (one, height(classifier(given.images + r)))
    return jax.lax.fori_loop(0, FINAL, narrow, ends)[1][0]
