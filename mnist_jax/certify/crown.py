"""CROWN: linear bounds of the logits, taken back to the image."""

from functools import partial

import jax
from jax.typing import ArrayLike

from mnist_jax.certify import driver, linear
from mnist_jax.certify.bounds import Bounds
from mnist_jax.certify.driver import CertifyResult
from mnist_jax.classifier import Classifier
from mnist_jax.geometry import INF
from mnist_jax.jaxprs.program import Program

AT_ONCE = 8  # images


def crown(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None,
    radius: ArrayLike,
    *,
    norm: float = INF,
) -> CertifyResult:
    """Certifies by linear bounds that are taken back through the network, for every step of it.

    Zhang et al., "Efficient neural network robustness certification with general activation functions", 2018.
    Every step that may bend is bounded by what comes before it in the same way, unless interval arithmetic bounds it
    better. At the end the lower slopes are adaptive and zero, and the better bound is kept.

    Args:
      classifier: of any shape of images.
      images: `[B, *shape]` in [0, 1].
      labels: `[B]`, or None for the classifier's own predictions.
      radius: a number, or `[B]`, in the norm.
      norm: p, one of 1, 2 and inf.

    Raises:
      ValueError: an argument is not what it should be.
      UnsupportedOperation: the classifier computes something that no bound is known for; the message says what, and
        where.
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
    """The method, inside any transformation: lower bounds of the margin `[B]`, and candidates like the images."""
    bounds = linear.walk(classifier, images, radius, norm, computation)
    bounds.forwards(partial(linear.tighten, Bounds.back))
    return linear.margin(bounds, labels, [Bounds.back, partial(linear.with_slopes, "flat")])
