"""What an attack is asked for: images, labels or targets, a loss, radii; checked in one place."""

import contextlib
import functools
import inspect
import warnings
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mnist_jax import arguments, losses, unstable
from mnist_jax.chunks import fill, in_chunks
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

# Logits differ in their last bits with the shape of the batch. A success has to hold by more, of the logits that are
# compared: by 1e-5 in single precision, as many units in the last place in double, and a few of them in half precision,
# where logits are rounded from sums of a wider type.
ROUNDING = 1e-5
UNITS_OF_HALF = 4
# Two logits may be small by cancellation, and no less rounded for that: then the largest logit counts, of the classes
# in use, but as no more than so many times the two.
CANCELLED = 100
CAREFUL = 1.3  # times that, for what an attack keeps, so that it holds when it is checked again

TRIED = 16  # rows of logits on which a loss of the caller's is tried
LOOKED_AT = 4  # images on which a classifier is looked at before it is attacked
DIFFERENT = 1e-3  # of a logit: more than a matrix product of low precision explains

_known: "weakref.WeakSet[Classifier]" = weakref.WeakSet()  # classifiers that were looked at


class ClassifierWarning(UserWarning):
    """The classifier is one on which attacks can't be trusted to find what there is."""


class Asked(NamedTuple):
    """What every attack is asked: arguments as they were given, before anybody looked at them."""

    classifier: Classifier
    images: ArrayLike
    labels: ArrayLike | None
    targets: ArrayLike | None
    key: jax.Array | None


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
        logits = losses.wide(logits)
        value = loss(logits, self.labels) if self.targets is None else -loss(logits, self.targets)
        return value.astype(self.images.dtype)

    def solved(self, logits: jax.Array, care: float = 1.0) -> jax.Array:
        """Whether these logits `[B, C]` are a success, by `care` times what rounding can undo.

        Logits that say nothing are wrong, so that they are a success unless a target is asked for.
        """
        broken = losses.broken(logits)
        reached = self.objective(logits) < -care * self._rounding(logits)
        return reached | broken if self.targets is None else reached & ~broken

    def rounding(self, logits: jax.Array) -> jax.Array:
        """How far below zero the objective has to be, with some room to spare."""
        return 1.05 * CAREFUL * self._rounding(logits)

    def _rounding(self, logits: jax.Array) -> jax.Array:
        """What rounding can undo `[B]`, by the two logits that are compared and the precision of their type."""
        precision, logits = jnp.finfo(logits.dtype), losses.wide(logits)
        one, others = losses.label_and_others(logits, self.labels if self.targets is None else self.targets)
        compared = jnp.stack([one, others.max(1)])
        compared = jnp.where(jnp.isfinite(compared), jnp.abs(compared), 0).max(0)
        in_use = logits > -losses.UNUSED * compared[:, None]
        largest = jnp.where(in_use, jnp.abs(logits), 0).max(1)
        share = ROUNDING * float(precision.eps / jnp.finfo(jnp.float32).eps)
        share = UNITS_OF_HALF * float(precision.eps) if precision.bits < 32 else share
        return (share * jnp.minimum(largest, CANCELLED * compared)).astype(self.images.dtype)

    def at(self, r: jax.Array) -> jax.Array:
        """The images at the perturbations `r`, inside the box."""
        return jnp.clip(self.images + r, 0, 1)

    def inside(self, r: jax.Array) -> jax.Array:
        """The perturbations, clipped to the box."""
        return self.at(r) - self.images

    def per_image(self, values: jax.Array) -> jax.Array:
        """Values `[B]` in a shape that multiplies images."""
        return values.reshape(-1, *[1] * (self.images.ndim - 1))

    def where(self, condition: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        """For each image, `a` or `b`, arrays like the images, by the condition `[B]`."""
        return jnp.where(self.per_image(condition), a, b)

    def choose(self, condition: jax.Array, a: Any, b: Any) -> Any:
        """For each image, one of two pytrees of arrays `[B, ...]`, by the condition `[B]`."""
        return jax.tree.map(lambda x, y: jnp.where(condition.reshape(-1, *[1] * (jnp.ndim(y) - 1)), x, y), a, b)

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


def problem(asked: Asked) -> Problem:
    """Checks what the caller gave; labels that are not given are the classifier's own predictions.

    Raises:
      ValueError: an array is not of the right shape, an image is not in [0, 1], a label or target is not a class, or
        what the classifier gives is not logits.

    Warns:
      ClassifierWarning: see `_look_at`.
    """
    classifier, images, labels, targets, _ = asked
    images = arguments.images_of(classifier, images)
    classes = _predictions.eval_shape(classifier, images[:1])[0].shape[1] if len(images) else None
    _look_at(classifier, images)
    if labels is None:
        labels = in_chunks(_predictions, (images,), classifier)[1]
    return Problem(
        images,
        arguments.classes_of("labels", labels, len(images), classes),
        None if targets is None else arguments.classes_of("targets", targets, len(images), classes),
    )


@jax.jit
def _predictions(classifier: Classifier, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits, and the classes that they predict."""
    logits = classifier(images)
    return logits, logits.argmax(1).astype(jnp.int32)


def _look_at(classifier: Classifier, images: jax.Array) -> None:
    """Warns where the classifier's gradients vanish, its outputs are probabilities, or its answer for an image depends
    on the others in the batch. It looks once at every `Classifier`, on a few images, and not under a transformation.
    """
    if unstable.staged((classifier, images)) or not len(images) or classifier in _known:
        return
    _known.add(classifier)
    vanish, probabilities, different = map(bool, _looks(classifier, fill(np.asarray(images[:LOOKED_AT]), LOOKED_AT)))
    for wrong, text in (
        (vanish, "the classifier's gradients vanish or are no numbers; an attack that follows them finds nothing"),
        (probabilities, "the classifier's outputs look like probabilities; attacks want logits, which don't saturate"),
        (different, "the classifier answers differently for the same image in another batch; use its evaluation mode"),
    ):
        if wrong:
            warnings.warn(text, ClassifierWarning, stacklevel=_outside())


def _outside() -> int:
    """How many calls up the line is that called this package, which is the one to show beside a warning."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").startswith("mnist_jax."):
        frame, level = frame.f_back, level + 1
    return level


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
    logits, again = losses.wide(logits), losses.wide(again)
    scale = jnp.abs(jax.lax.top_k(logits, 2)[0]).max()  # not of classes that are not in use
    # By at most that much could the margin change over the whole box, if it were linear: not more than by rounding.
    reach = jnp.abs(gradient).reshape(len(images), -1).sum(1).max()
    sums, between = logits.sum(1), (logits >= 0) & (logits <= 1)
    differences = jnp.abs(logits[0] - again[-1]) > DIFFERENT * jnp.maximum(scale, jnp.abs(logits[0]))
    return (
        ~(reach > jnp.finfo(logits.dtype).eps * scale),  # also where it is no number
        between.all() & (jnp.abs(sums - 1) < 1e-4).all(),
        differences.any(),
    )


def loss_function(loss: str | Loss) -> Loss:
    """The function of logits `[B, C]` and labels `[B]` of that name, which attacks minimize, or the function itself.

    Raises:
      ValueError: there is none of that name.
    """
    if callable(loss):
        return loss
    if not isinstance(loss, str) or loss not in LOSSES:
        raise ValueError(f"loss must be a function or one of {', '.join(LOSSES)}, not {loss!r}")
    return LOSSES[loss]


def check_direction(loss: Loss, classifier: Classifier, images: jax.Array) -> None:
    """Raises `ValueError` where a loss of the caller's falls as the label's logit grows: minimized, it would make the
    image stronger, without a word."""
    try:
        hash(loss)
    except TypeError as error:
        raise ValueError("loss must be hashable, as functions are: programs are compiled for it") from error
    if loss not in LOSSES.values():
        # One that is made of values which a transformation of the caller's has not got yet can't be tried.
        with contextlib.suppress(jax.errors.JAXTypeError):
            _check_direction(loss, _predictions.eval_shape(classifier, images[:1])[0].shape[1])


@functools.lru_cache
def _check_direction(loss: Loss, classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(TRIED) % classes
    with jax.ensure_compile_time_eval():
        logits = jnp.asarray(rng.normal(scale=3, size=(TRIED, classes)), jnp.float32)
        values, pull_back = jax.vjp(lambda logits: loss(logits, jnp.asarray(labels)), logits)
        if values.shape != (TRIED,):
            raise ValueError(f"loss must give a number for each image, [{TRIED}], not {list(values.shape)}")
        slopes = np.asarray(pull_back(jnp.ones_like(values))[0])[np.arange(TRIED), labels]
    if slopes.min() < -1e-6 * np.abs(slopes).max():
        raise ValueError(
            "loss must not fall where the label's logit grows: attacks minimize it, so give minus that of training"
        )
