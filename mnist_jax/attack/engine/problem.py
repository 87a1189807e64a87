"""What an attack is asked for: images, labels or targets, a loss, radii; checked in one place."""

import warnings
import weakref
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mnist_jax import losses, unstable
from mnist_jax.attack.engine.chunks import fill, in_chunks
from mnist_jax.classifier import Classifier

Loss = Callable[[jax.Array, jax.Array], jax.Array]

LOSSES: dict[str, Loss] = {
    "margin": losses.margin,
    "confidence": losses.confidence,
    "log_odds": losses.log_odds,
    # Attacks use the direction of its gradient and which of two values is lower. Both are those of minus the
    # cross-entropy, but in float32 the gradient of that is zero on a confident network.
    "cross_entropy": losses.log_odds,
    "dlr": losses.dlr,
}

# Logits differ in their last bits with the shape of the batch: a success has to hold by more, of the largest logit.
ROUNDING = 1e-5
CAREFUL = 1.3  # times that, for what an attack keeps, so that it holds when it is checked again

LOOKED_AT = 4  # images on which a classifier is looked at before it is attacked
DIFFERENT = 1e-3  # of the largest logit: more than a matrix product of low precision explains

_known: "weakref.WeakSet[Classifier]" = weakref.WeakSet()  # classifiers that were looked at


class ClassifierWarning(UserWarning):
    """The classifier is one on which attacks can't be trusted to find what there is."""


class Problem(NamedTuple):
    """What an attack is given: a pytree with an entry for each image.

    Attributes:
      images: `[B, *shape]`.
      labels: `[B]`, what the classifier should say.
      targets: `[B]`, the classes that are asked for, or None where any but the label will do.
    """

    images: jax.Array
    labels: jax.Array
    targets: jax.Array | None

    def objective(self, logits: jax.Array, loss: Loss = losses.margin) -> jax.Array:
        """What the attack minimizes `[B]`: the loss of the labels, or minus that of the targets."""
        return loss(logits, self.labels) if self.targets is None else -loss(logits, self.targets)

    def solved(self, logits: jax.Array, care: float = 1.0) -> jax.Array:
        """Whether these logits `[B, C]` are a success, by `care` times what rounding can undo."""
        return self.objective(logits) < -care * ROUNDING * jnp.abs(logits).max(1)

    def rounding(self, logits: jax.Array) -> jax.Array:
        """How far below zero the objective has to be, with some room to spare."""
        return 1.05 * CAREFUL * ROUNDING * jnp.abs(logits).max(1)

    def per_image(self, values: jax.Array) -> jax.Array:
        """Values `[B]` in a shape that multiplies images."""
        return values.reshape(-1, *[1] * (self.images.ndim - 1))

    def where(self, condition: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        """For each image, `a` or `b`, arrays like the images, by the condition `[B]`."""
        return jnp.where(self.per_image(condition), a, b)

    def gradient(self, classifier: Classifier, images: jax.Array, loss: Loss) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Logits `[B, C]`, objective `[B]`, and its gradient `[B, *shape]` at these images."""

        def total(images):
            logits = classifier(images)
            objective = self.objective(logits, loss)
            return objective.sum(), (logits, objective)

        # Barriers: XLA would fuse what makes the images into all that reads them, the slices of a convolution for
        # instance, and so repeat it.
        gradient, (logits, objective) = jax.grad(total, has_aux=True)(jax.lax.optimization_barrier(images))
        # Convolutions leave the batch as the innermost axis, and what goes along the pixels, as norms and projections
        # do, would take as long as the gradient.
        gradient = unstable.row_major(gradient)
        return jax.lax.optimization_barrier((logits, objective, gradient))


def problem(classifier: Classifier, images: ArrayLike, labels: ArrayLike | None, targets: ArrayLike | None) -> Problem:
    """Checks what the caller gave; labels that are not given are the classifier's own predictions.

    Raises:
      ValueError: an array is not of the right shape, or an image is not in [0, 1].

    Warns:
      ClassifierWarning: see `_look_at`.
    """
    images = jnp.asarray(images, jnp.result_type(float))
    if images.ndim < 2:
        raise ValueError(f"images must be an array [B, *shape], not {list(images.shape)}")
    count = len(images)
    if not _all(images, lambda x: (x >= 0) & (x <= 1)):
        raise ValueError("images must be numbers in [0, 1]; divide bytes by 255")
    _look_at(classifier, images)
    if labels is None:
        labels = in_chunks(_predictions, (images,), classifier)
    given = {"labels": labels} | ({} if targets is None else {"targets": targets})
    for name, classes in given.items():
        if jnp.shape(classes) != (count,) or not jnp.issubdtype(jnp.asarray(classes).dtype, jnp.integer):
            raise ValueError(f"{name} must be {count} integers, one for each image")
    return Problem(images, jnp.asarray(labels, jnp.int32), None if targets is None else jnp.asarray(targets, jnp.int32))


def _all(array: jax.Array | np.ndarray, holds: Callable[[np.ndarray], np.ndarray]) -> bool:
    """Whether it holds for all values, if there are any yet. By NumPy, which has nothing to compile."""
    return unstable.traced(array) or bool(holds(np.asarray(array)).all())


@jax.jit
def _predictions(classifier: Classifier, images: jax.Array) -> jax.Array:
    return classifier(images).argmax(1)


def _look_at(classifier: Classifier, images: jax.Array) -> None:
    """Warns where the classifier's gradients vanish, its outputs are probabilities, or its answer for an image depends
    on the others in the batch. It looks once at every `Classifier`, on a few images, and not under a transformation.
    """
    if unstable.traced((classifier, images)) or not len(images) or classifier in _known:
        return
    _known.add(classifier)
    vanish, probabilities, different = map(bool, _looks(classifier, fill(np.asarray(images[:LOOKED_AT]), LOOKED_AT)))
    for wrong, text in (
        (vanish, "the classifier's gradients vanish, so an attack that follows them finds nothing"),
        (probabilities, "the classifier's outputs look like probabilities; attacks want logits, which don't saturate"),
        (different, "the classifier answers differently for the same image in another batch; use its evaluation mode"),
    ):
        if wrong:
            warnings.warn(text, ClassifierWarning, stacklevel=4)


@jax.jit
def _looks(classifier: Classifier, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What is wrong: vanishing gradients, probabilities, another answer in another place among other images."""

    def look(images):
        def total(images):
            logits = classifier(images)
            return losses.margin(logits, logits.argmax(1)).sum(), logits

        return jax.grad(total, has_aux=True)(images)

    # The second batch has the first image as its last, among others. One after another, by the same code.
    others = jnp.concatenate([1 - images[:0:-1], images[:1]])
    (gradient, _), (logits, again) = jax.lax.map(look, jnp.stack([images, others]))
    scale = jnp.abs(logits).max()
    # By at most that much could the margin change over the whole box, if it were linear: not more than by rounding.
    reach = jnp.abs(gradient).reshape(len(images), -1).sum(1).max()
    sums, between = logits.sum(1), (logits >= 0) & (logits <= 1)
    return (
        reach <= jnp.finfo(logits.dtype).eps * scale,
        between.all() & (jnp.abs(sums - 1) < 1e-4).all(),
        (jnp.abs(logits[0] - again[-1]) > DIFFERENT * scale).any(),
    )


def loss_function(loss: str | Loss) -> Loss:
    """The function of logits `[B, C]` and labels `[B]` of that name, which attacks minimize, or the function itself.

    Raises:
      ValueError: there is none of that name.
    """
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise ValueError(f"loss must be a function or one of {', '.join(LOSSES)}, not {loss!r}")
    return LOSSES[loss]


def radii(radius: ArrayLike, images: jax.Array, name: str = "radius") -> jax.Array:
    """The radius as `[B]`. Raises `ValueError` unless it is a number of at least 0, or `[B]` of them."""
    radius = radius.astype(images.dtype) if isinstance(radius, jax.Array) else np.asarray(radius, images.dtype)
    if radius.shape not in ((), (len(images),)):
        raise ValueError(f"{name} must be a number, or one for each of the {len(images)} images")
    if not _all(radius, lambda x: x >= 0):
        raise ValueError(f"{name} must be at least 0")
    return jnp.broadcast_to(radius, (len(images),))
