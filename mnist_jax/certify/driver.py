"""What is around every method: it checks, cuts into chunks, compiles, and looks at what the bounds say.

A method's kernel is a pure function of a classifier, images `[B, *shape]`, labels `[B]` and radii `[B]` that gives
lower bounds of the margin and candidates for adversarial images; it runs inside any transformation.
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
from mnist_jax.geometry import INF, check_norm
from mnist_jax.jaxprs import program
from mnist_jax.units import Units

NORMS = (1.0, 2.0, INF)
# An adversarial image has to be so by more than logits differ from one batch to the next: so many units of rounding,
# which is 1e-5 of the largest logit in single precision, as in attacks.
CLEARLY = 84


OTHERS = "others"  # of the platforms: those that the classifier does not name


class CertifyResult(NamedTuple):
    """What is proved of every image, a pytree with an entry for each.

    Attributes:
      certified: `[B]`, whether no image in [0, 1] within the radius gets another class than the label: neither in exact
        arithmetic nor by a device that rounds, whatever the order in which it sums. Nothing is certified where a number
        is NaN or infinite, or a weight so small (below 2^-126 in single precision) that a device may drop it.
      fooled: `[B]`, whether `images` has an adversarial image within the radius; it was there, or met on the way. What
        is neither certified nor fooled is open.
      margin: `[B]`, a lower bound of the least margin, the label's logit less the largest of the others, over all of
        these images; -inf where there is none.
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
    """Runs a kernel on any number of images.

    Args:
      kernel: see above; it is given `norm`, what is in `how`, and the classifier's `computation`, by name.
      labels: None for the classifier's own predictions.
      norm: 1, 2 or inf.
      at_once: images in a chunk, at most. It is halved while the device's memory does not suffice.
      how: settings that the compiled program depends on; hashable.

    Raises:
      ValueError: an argument is not what it should be.
      UnsupportedOperation: the classifier computes something that no bound is known for.
    """
    norm = check_norm(norm, NORMS)
    if classifier.bounds != UNIT:
        return in_units(partial(run, kernel, at_once=at_once, **how), classifier, images, labels, radius, norm=norm)
    with jax.numpy_dtype_promotion("standard"), jax.default_matmul_precision("highest"):
        x, classes, radii = checked(classifier, images, labels, radius)
        program_ = partial(_run, kernel, tuple(sorted({**how, "norm": norm}.items())))
        # Two programs at most: of one image, as at a prompt, and of many.
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
    """What a method for images in [0, 1] gives, in the units of the classifier's bounds.

    The radius inside is larger by what rounding makes of images and radius. Adversarial images are judged anew.
    """
    with jax.numpy_dtype_promotion("standard"):
        x, classes, radii = checked(classifier, images, labels, radius)
        units = Units.of(classifier.bounds, x.dtype)
        u = units.inside(x)
        ball = units.ball(radii, u, norm) if len(x) else radii
        result = method(classifier.in_unit_box, u, classes, ball, norm=norm, **how)
        fooled, shown = in_chunks(_outside, (x, u, classes, result), classifier)
        return result._replace(fooled=fooled, images=shown)


@jax.jit
def _outside(classifier, images, inner, labels, result: CertifyResult) -> tuple[jax.Array, jax.Array]:
    """Which images are adversarial, and these, in the caller's units."""
    units = Units.of(classifier.bounds, images.dtype)
    found = units.outside(images, result.images - inner)
    with jax.default_matmul_precision("highest"):
        fooled = result.fooled & misclassified(classifier, found, labels)
    return fooled, jnp.where(fooled.reshape(-1, *[1] * (images.ndim - 1)), found, images)


def checked(
    classifier: Classifier, images: ArrayLike, labels: ArrayLike | None, radius: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Images, labels `[B]`, and radii `[B]` of at least what was asked for."""
    x = arguments.images_of(classifier, images)
    logits = jax.eval_shape(classifier, x[:1]) if len(x) else None
    if labels is None:
        labels = in_chunks(_predictions, (x,), classifier)
    classes = arguments.classes_of("labels", labels, len(x), None if logits is None else logits.shape[1])
    return x, classes, _not_below(radius, arguments.radii(radius, x))


def _not_below(asked: ArrayLike, radii: jax.Array) -> jax.Array:
    """The radii, the next larger numbers of their type where they were rounded down."""
    if unstable.traced(asked):
        return radii
    exact = np.asarray(asked, np.float64)
    given = exact.astype(radii.dtype)
    above = np.where(given < exact, np.nextafter(given, given.dtype.type(np.inf)), given)
    return jnp.broadcast_to(jnp.asarray(above, radii.dtype), radii.shape)


@jax.jit
def _predictions(classifier: Classifier, images: jax.Array) -> jax.Array:
    return classifier(images).argmax(1).astype(jnp.int32)


@partial(jax.jit, static_argnums=(0, 1))
def _run(kernel, how, classifier, images, labels, radius) -> CertifyResult:
    read = partial(program.read, classifier, images.shape[1:], images.dtype)

    def bound(computation: program.Program, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        return kernel(classifier, *arrays, computation=computation, **dict(how))

    # Where the classifier does something else on some platforms, so do its bounds.
    usual = read(OTHERS)
    each = {name: partial(bound, read(name)) for name in sorted(usual.platforms)}
    otherwise, arrays = partial(bound, usual), (images, labels, radius)
    margin, candidates = lax.platform_dependent(*arrays, default=otherwise, **each) if each else otherwise(*arrays)
    margin = jnp.where(jnp.isfinite(margin), margin, -jnp.inf)
    at_once, found = (misclassified(classifier, x, labels) for x in (images, candidates))
    fooled = at_once | found
    shown = jnp.where((found & ~at_once).reshape(-1, *[1] * (images.ndim - 1)), candidates, images)
    return CertifyResult(margin > 0, fooled, margin, shown)


def misclassified(classifier: Classifier, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether the classifier gives another class, by more than rounding can undo, or logits that say nothing."""
    logits = losses.wide(classifier.as_written()(images))
    finite = jnp.where(jnp.isfinite(logits), jnp.abs(logits), 0)
    return (losses.margin(logits, labels) < -clearly(logits.dtype) * finite.max(1)) | losses.broken(logits)


def clearly(dtype: Any) -> float:
    """The share of the largest logit by which another logit has to exceed that of the label."""
    return CLEARLY * float(jnp.finfo(dtype).eps)
