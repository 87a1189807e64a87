"""The problem that an attack is to solve: images, and labels or targets, checked; when an image is adversarial."""

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
    # Attacks use only the direction of a loss's gradient, and which of two values is lower. Both are the same for the
    # log-odds and for minus the cross-entropy, whose gradient is zero in float32 where the network is confident.
    "cross_entropy": losses.log_odds,
    "dlr": losses.dlr,
}

# The last bits of logits depend on the shape of the batch and on the device. An image counts as adversarial only if the
# two logits that decide it (the label's or target's, and the largest other) differ by more than a share of their size.
ROUNDING = 1e-5  # the share in single precision, 84 of its epsilons; in double precision, it is as many epsilons
UNITS_OF_HALF = 4  # the share in half precision, in its epsilons: logits are rounded once, from sums of a wider type
# Two logits can be small because large terms cancelled, and are no less rounded for that. So the share is taken of the
# largest logit of a class in use, counted as at most this many times the larger of the two. Chosen.
CANCELLED = 100
CAREFUL = 1.3  # factor on that share for images that an attack keeps, so that they still count in another batch. Chosen

TRIED = 16  # random rows of logits on which the sign of a caller's loss is checked
CHECKED = 4  # images on which a classifier is checked before it is first attacked
# Relative difference of an image's logits between two batches above which a classifier depends on the batch: larger
# than what matrix products of low precision explain.
DIFFERENT = 1e-3

_checked: "weakref.WeakSet[Classifier]" = weakref.WeakSet()  # classifiers that were already checked


class ClassifierWarning(UserWarning):
    """Attacks on this classifier may miss adversarial images, so that their failure says little."""


class Asked(NamedTuple):
    """The arguments that all attacks have, as the caller gave them, not yet checked."""

    classifier: Classifier
    images: ArrayLike
    labels: ArrayLike | None
    targets: ArrayLike | None
    key: jax.Array | None


class Problem(NamedTuple):
    """The problem of an attack, after all checks: a pytree with an entry for each image.

    Attributes:
      images: `[B, *shape]`, the originals.
      labels: `[B]`, the correct classes.
      targets: `[B]`, the classes that the attack has to reach, or None where any class but the label counts.
    """

    images: jax.Array
    labels: jax.Array
    targets: jax.Array | None

    def objective(self, logits: jax.Array, loss: Loss = losses.margin) -> jax.Array:
        """The objective that an attack minimizes `[B]`: the loss of the labels, or minus the loss of the targets."""
        logits = losses.wide(logits)
        value = loss(logits, self.labels) if self.targets is None else -loss(logits, self.targets)
        return value.astype(self.images.dtype)

    def adversarial(self, logits: jax.Array, care: float = 1.0) -> jax.Array:
        """Whether images with logits `[B, C]` are adversarial `[B]`, by more than `care` times what rounding can undo.

        Logits with a NaN, or whose largest is infinite, count as misclassified: without targets they are adversarial.
        """
        broken = losses.broken(logits)
        reached = self.objective(logits) < -care * self._rounding(logits)
        return reached | broken if self.targets is None else reached & ~broken

    def rounding(self, logits: jax.Array) -> jax.Array:
        """How far below zero the margin has to be for an attack to keep the image `[B]`, and 5 % more."""
        return 1.05 * CAREFUL * self._rounding(logits)

    def _rounding(self, logits: jax.Array) -> jax.Array:
        """By how much rounding may change the difference of the two logits that decide on an image `[B]`."""
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
        """The images with the perturbations `r` added, clipped to [0, 1]."""
        return jnp.clip(self.images + r, 0, 1)

    def inside(self, r: jax.Array) -> jax.Array:
        """The perturbations that are left of `r` when the perturbed images are clipped to [0, 1]."""
        return self.at(r) - self.images

    def per_image(self, values: jax.Array) -> jax.Array:
        """Values `[B]` in the shape `[B, 1, ...]`, which broadcasts against the images."""
        return values.reshape(-1, *[1] * (self.images.ndim - 1))

    def where(self, condition: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        """For each image, `a` where the condition `[B]` holds, else `b`; both are arrays like the images."""
        return jnp.where(self.per_image(condition), a, b)

    def choose(self, condition: jax.Array, a: Any, b: Any) -> Any:
        """For each image, `a` where the condition `[B]` holds, else `b`; both are pytrees of arrays `[B, ...]`."""
        return jax.tree.map(lambda x, y: jnp.where(condition.reshape(-1, *[1] * (jnp.ndim(y) - 1)), x, y), a, b)

    def gradient(self, classifier: Classifier, images: jax.Array, loss: Loss) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The logits `[B, C]` of images, the objective `[B]`, and its gradient `[B, *shape]` with respect to them."""

        def total(images):
            logits = classifier(images)
            objective = self.objective(logits, loss)
            return objective.sum(), (logits, objective)

        # The barriers keep XLA from fusing the computation of the images into every operation that reads them, such as
        # the slices of a convolution, where it would be repeated.
        gradient, (logits, objective) = jax.grad(total, has_aux=True)(jax.lax.optimization_barrier(images))
        # Convolutions leave the batch as the innermost axis in memory; then norms and projections, which reduce over
        # the pixels, would take as long as the gradient.
        gradient = unstable.row_major(gradient)
        return jax.lax.optimization_barrier((logits, objective, gradient))


def problem(asked: Asked) -> Problem:
    """Checks the caller's arguments, and makes a `Problem` of them; without labels, they are the predictions.

    Raises:
      ValueError: an array has the wrong shape, an image is outside of the classifier's bounds, a label or target is not
        a class, or the classifier's function does not give logits.

    Warns:
      ClassifierWarning: attacks on this classifier can't be trusted, see `_warn_of_faults`.
    """
    classifier, images, labels, targets, _ = asked
    images = arguments.images_of(classifier, images)
    classes = _predictions.eval_shape(classifier, images[:1])[0].shape[1] if len(images) else None
    _warn_of_faults(classifier, images)
    if labels is None:
        labels = in_chunks(_predictions, (images,), classifier)[1]
    return Problem(
        images,
        arguments.classes_of("labels", labels, len(images), classes),
        None if targets is None else arguments.classes_of("targets", targets, len(images), classes),
    )


@jax.jit
def _predictions(classifier: Classifier, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The logits `[B, C]` of images, and the predicted classes `[B]`."""
    logits = classifier(images)
    return logits, logits.argmax(1).astype(jnp.int32)


def _warn_of_faults(classifier: Classifier, images: jax.Array) -> None:
    """Warns where the classifier's gradients vanish, its outputs look like probabilities, or its logits for an image
    depend on the other images in the batch. Checks each `Classifier` once, on a few images, and not under a
    transformation of the caller's, where images have no values.
    """
    if unstable.staged((classifier, images)) or not len(images) or classifier in _checked:
        return
    _checked.add(classifier)
    vanish, probabilities, different = map(bool, _faults(classifier, fill(np.asarray(images[:CHECKED]), CHECKED)))
    for wrong, text in (
        (vanish, "the classifier's gradients vanish or are no numbers; an attack that follows them finds nothing"),
        (probabilities, "the classifier's outputs look like probabilities; attacks want logits, which don't saturate"),
        (different, "the classifier answers differently for the same image in another batch; use its evaluation mode"),
    ):
        if wrong:
            warnings.warn(text, ClassifierWarning, stacklevel=_outside())


def _outside() -> int:
    """The `stacklevel` of a warning: how many calls up the first line outside of this package is."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").startswith("mnist_jax."):
        frame, level = frame.f_back, level + 1
    return level


@jax.jit
def _faults(classifier: Classifier, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Three booleans: gradients vanish; outputs are probabilities; an image's logits depend on its batch."""

    def evaluate(images):
        def total(images):
            logits = classifier(images)
            return losses.margin(logits, logits.argmax(1)).sum(), logits

        return jax.grad(total, has_aux=True)(images)

    # The second batch has the first image in the last place, after other images. `lax.map` runs both by the same code.
    others = jnp.concatenate([1 - images[:0:-1], images[:1]])
    (gradient, _), (logits, again) = jax.lax.map(evaluate, jnp.stack([images, others]))
    logits, again = losses.wide(logits), losses.wide(again)
    scale = jnp.abs(jax.lax.top_k(logits, 2)[0]).max()  # of the top two only: classes not in use have huge logits
    # The most that a linear margin of this gradient could change over the box. Less than rounding: gradients vanish.
    reach = jnp.abs(gradient).reshape(len(images), -1).sum(1).max()
    sums, between = logits.sum(1), (logits >= 0) & (logits <= 1)
    differences = jnp.abs(logits[0] - again[-1]) > DIFFERENT * jnp.maximum(scale, jnp.abs(logits[0]))
    return (
        ~(reach > jnp.finfo(logits.dtype).eps * scale),  # true for NaN, too
        between.all() & (jnp.abs(sums - 1) < 1e-4).all(),
        differences.any(),
    )


def loss_function(loss: str | Loss) -> Loss:
    """The loss of this name, a function of logits `[B, C]` and labels `[B]`; a function is returned as it is.

    Raises:
      ValueError: there is no loss of this name.
    """
    if callable(loss):
        return loss
    if not isinstance(loss, str) or loss not in LOSSES:
        raise ValueError(f"loss must be a function or one of {', '.join(LOSSES)}, not {loss!r}")
    return LOSSES[loss]


def check_direction(loss: Loss, classifier: Classifier, images: jax.Array) -> None:
    """Raises `ValueError` where a caller's loss decreases as the label's logit grows: an attack that minimizes it would
    only make the classifier more confident. It also refuses losses that are not hashable or not one number an image."""
    try:
        hash(loss)
    except TypeError as error:
        raise ValueError("loss must be hashable, as functions are: programs are compiled for it") from error
    if loss not in LOSSES.values():
        # A loss that contains tracers of a transformation of the caller's can't be evaluated here.
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
            "loss must not fall where the label's logit grows: attacks minimize it, so give minus the training loss"
        )
