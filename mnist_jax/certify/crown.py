"""The certificate CROWN: linear bounds of the logits as functions of the image."""

from functools import partial

import jax
from jax.typing import ArrayLike

from mnist_jax.certify import driver, linear
from mnist_jax.certify.bounds import Bounds
from mnist_jax.certify.driver import CertifyResult
from mnist_jax.classifier import Classifier
from mnist_jax.geometry import INF
from mnist_jax.jaxprs.program import Program

AT_ONCE = 8  # largest number of images in a chunk; chosen by hand


def crown(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None,
    radius: ArrayLike,
    *,
    norm: float = INF,
) -> CertifyResult:
    """Certifies images by linear bounds of the logits, propagated backwards through the network to the image.

    Zhang et al., "Efficient neural network robustness certification with general activation functions", 2018.
    The argument of every nonlinear operation is bounded in the same way first, and by interval arithmetic; the better
    of the two bounds is kept. The label's lead over every other class is bounded three times, with adaptive slopes of
    the lower lines, with slopes of zero, and by interval arithmetic; the best bound is kept.

    Args:
      classifier: for images of any shape.
      images: `[B, *shape]` in [0, 1], or within the classifier's own bounds.
      labels: `[B]`, or None for the classifier's own predictions.
      radius: a number, or `[B]`, in the norm and in the units of the images.
      norm: p, one of 1, 2 and inf.

    Returns:
      What is proved of each image, and adversarial images that were found on the way.

    Raises:
      ValueError: an argument has the wrong shape, type or range.
      UnsupportedOperation: the classifier computes something that no bounds are known for; the message names the
        operation and the line.
    """
    return driver.run(kernel, classifier, images, labels, radius, norm=norm, at_once=AT_ONCE)


def kernel(
    classifier: Classifier,
    images: jax.Array,
    labels: jax.Array,
    radius: jax.Array,
    *,
    norm: float,
    computation: Program,
) -> tuple[jax.Array, jax.Array]:
    """Lower bounds of the margin `[B]` by CROWN, and candidates `[B, *shape]` for adversarial images.

    A pure function, for use inside any JAX transformation.
    """
    bounds = linear.walk(classifier, images, radius, norm, computation)
    bounds.forwards(partial(linear.tighten, Bounds.back))
    return linear.margin(bounds, labels, [Bounds.back, partial(linear.with_slopes, "flat")])
