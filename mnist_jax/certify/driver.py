"""The driver of the certificates: checks arguments, works off images in chunks, compiles, and makes the result.

A method's kernel is a pure function of a classifier, images `[B, *shape]`, labels `[B]` and radii `[B]`. It gives lower
bounds of the margin `[B]` and candidates for adversarial images `[B, *shape]`, and runs inside any JAX transformation.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from mnist_jax import arguments, losses, unstable
from mnist_jax.chunks import chunk_size, in_chunks
from mnist_jax.classifier import UNIT, Classifier
from mnist_jax.device import precisely
from mnist_jax.geometry import INF, check_norm
from mnist_jax.jaxprs import program
from mnist_jax.units import Units

NORMS = (1.0, 2.0, INF)
# An image counts as adversarial where the label's logit is below another one by this many machine epsilons times the
# largest logit: 1e-5 of it in single precision, as in attacks; more than logits differ from one batch to the next.
CLEARLY = 84


OTHERS = "others"  # stands for every platform for which the classifier has no branch of its own


class CertifyResult(NamedTuple):
    """What a certificate proves of each image: a pytree of arrays with an entry for each.

    Attributes:
      certified: `[B]`, whether no image in [0, 1] within the radius gets another class than the label: neither in exact
        arithmetic nor by a device that rounds, whatever the order in which it sums. Nothing is certified where a number
        is NaN or infinite, or a weight so small (below 2^-126 in single precision) that a device may drop it.
      fooled: `[B]`, whether `images` has an adversarial image within the radius: the original itself, or one that was
        found on the way. An image that is neither certified nor fooled is open.
      margin: `[B]`, a lower bound of the margin, the label's logit minus the largest other logit, over all images in
        [0, 1] within the radius; -inf where no finite bound was found.
      images: `[B, *shape]`, adversarial where `fooled`, else the originals.
    """

    certified: jax.Array
    fooled: jax.Array
    margin: jax.Array
    images: jax.Array


Kernel = Callable[..., tuple[jax.Array, jax.Array]]


def run(
    kernel: Kernel,
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None,
    radius: ArrayLike,
    *,
    norm: float,
    at_once: int,
    **how: Any,
) -> CertifyResult:
    """Runs a certificate's kernel on any number of images, chunk by chunk.

    Args:
      kernel: see the module's docstring; it is also given `norm`, the settings in `how`, and the classifier's
        `computation`, by name.
      classifier, images, labels, radius: as in `crown`.
      norm: p, one of 1, 2 and inf.
      at_once: largest number of images in a chunk. It is halved while the device's memory does not suffice.
      how: settings that the compiled program depends on; hashable.

    Raises:
      ValueError: an argument has the wrong shape, type or range.
      UnsupportedOperation: the classifier computes something that no bounds are known for.
    """
    norm = check_norm(norm, NORMS)
    if classifier.bounds != UNIT:
        return in_units(partial(run, kernel, at_once=at_once, **how), classifier, images, labels, radius, norm=norm)
    with precisely():
        x, classes, radii = checked(classifier, images, labels, radius)
        program_ = partial(_run, kernel, tuple(sorted({**how, "norm": norm}.items())))
        # At most two programs are compiled: one for a single image, as at a prompt, and one for a full chunk.
        size = min(at_once, chunk_size(at_once)) if len(x) > 1 else 1
        while True:
            try:
                return in_chunks(program_, (x, classes, radii), classifier, size=size)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or size == 1:
                    raise
                size //= 2


def in_units(
    method: Callable[..., CertifyResult],
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None,
    radius: ArrayLike,
    *,
    norm: float,
    **how: Any,
) -> CertifyResult:
    """Runs a method for images in [0, 1] on images, and radii, in the units of the classifier's bounds.

    The radius in [0, 1] is enlarged by what rounding changes when images and radius are converted. Adversarial images
    are judged again after they were converted back.
    """
    with precisely():
        x, classes, radii = checked(classifier, images, labels, radius)
        units = Units.of(classifier.bounds, x.dtype)
        u = units.inside(x)
        ball = units.ball(radii, u, norm) if len(x) else radii
        result = method(classifier.in_unit_box, u, classes, ball, norm=norm, **how)
        fooled, shown = in_chunks(_outside, (x, u, classes, result), classifier)
        return result._replace(fooled=fooled, images=shown)


@jax.jit
def _outside(classifier, images, inner, labels, result: CertifyResult) -> tuple[jax.Array, jax.Array]:
    """Which images are adversarial once they are converted back, `[B]`, and the images in the caller's units.

    `inner` are the originals in [0, 1], and `result` is what the method found for these.
    """
    units = Units.of(classifier.bounds, images.dtype)
    found = units.outside(images, result.images - inner)
    fooled = result.fooled & misclassified(classifier, found, labels)
    return fooled, jnp.where(fooled.reshape(-1, *[1] * (images.ndim - 1)), found, images)


@precisely()
def checked(
    classifier: Classifier, images: ArrayLike, labels: ArrayLike | None, radius: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The arguments of a certificate as arrays: images `[B, *shape]`, labels `[B]`, and radii `[B]`, rounded up.

    Raises `ValueError` where an argument has the wrong shape, type or range.
    """
    x = arguments.images_of(classifier, images)
    logits = jax.eval_shape(classifier, x[:1]) if len(x) else None
    if labels is None:
        labels = in_chunks(_predictions, (x,), classifier)
    classes = arguments.classes_of("labels", labels, len(x), None if logits is None else logits.shape[1])
    return x, classes, _not_below(radius, arguments.radii(radius, x))


def _not_below(asked: ArrayLike, radii: jax.Array) -> jax.Array:
    """The radii, or the next larger number of their type where a radius that was asked for was rounded down."""
    if unstable.traced(asked):
        return radii
    return jnp.broadcast_to(jnp.asarray(rounded_up(np.asarray(asked, np.float64), radii.dtype)), radii.shape)


def rounded_up(numbers: np.ndarray, dtype: Any) -> np.ndarray:
    """Numbers in double precision as the least numbers of a type that are not below them."""
    given = numbers.astype(dtype)
    return np.where(given < numbers, np.nextafter(given, given.dtype.type(np.inf)), given)


@jax.jit
def _predictions(classifier: Classifier, images: jax.Array) -> jax.Array:
    return classifier(images).argmax(1).astype(jnp.int32)


@partial(jax.jit, static_argnums=(0, 1))
def _run(kernel, how, classifier, images, labels, radius) -> CertifyResult:
    read = partial(program.read, classifier, images.shape[1:], images.dtype)

    def bound(computation: program.Program, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        return kernel(classifier, *arrays, computation=computation, **dict(how))

    # A classifier with branches for some platforms has bounds for each of these, and for all others.
    usual = read(OTHERS)
    each = {name: partial(bound, read(name)) for name in sorted(usual.platforms)}
    otherwise, arrays = partial(bound, usual), (images, labels, radius)
    margin, candidates = lax.platform_dependent(*arrays, default=otherwise, **each) if each else otherwise(*arrays)
    return judged(classifier, images, labels, margin, candidates)


def judged(classifier, images, labels, margin, candidates) -> CertifyResult:
    """The result of lower bounds of the margin `[B]`, and of candidates `[B, *shape]` for adversarial images."""
    margin = jnp.where(jnp.isfinite(margin), margin, -jnp.inf)
    at_once, found = (misclassified(classifier, x, labels) for x in (images, candidates))
    fooled = at_once | found
    shown = jnp.where((found & ~at_once).reshape(-1, *[1] * (images.ndim - 1)), candidates, images)
    return CertifyResult(margin > 0, fooled, margin, shown)


def misclassified(classifier: Classifier, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether images are misclassified `[B]`: by more than rounding can undo, or with NaN or infinite logits."""
    logits = losses.wide(classifier.as_written()(images))
    finite = jnp.where(jnp.isfinite(logits), jnp.abs(logits), 0)
    return (losses.margin(logits, labels) < -clearly(logits.dtype) * finite.max(1)) | losses.broken(logits)


def clearly(dtype: Any) -> float:
    """By how much another logit has to exceed the label's, as a share of the largest logit in absolute value."""
    return CLEARLY * float(jnp.finfo(dtype).eps)
