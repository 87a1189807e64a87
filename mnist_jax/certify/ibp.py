"""The certificate IBP: interval bound propagation."""

import jax
from jax.typing import ArrayLike

from mnist_jax.certify import driver, linear
from mnist_jax.certify.bounds import Bounds
from mnist_jax.certify.driver import CertifyResult
from mnist_jax.certify.relaxations import Interval
from mnist_jax.classifier import Classifier
from mnist_jax.geometry import INF
from mnist_jax.jaxprs.program import Program

AT_ONCE = 32  # largest number of images in a chunk; chosen by hand


def ibp(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None,
    radius: ArrayLike,
    *,
    norm: float = INF,
) -> CertifyResult:
    """Certifies images by interval arithmetic, which is the fastest method and gives the loosest bounds.

    Gowal et al., "On the effectiveness of interval bound propagation for training verifiably robust models", 2018.
    The affine layers after the last nonlinear operation and the difference of two logits are bounded as one linear
    function. For p = 1 and 2, so are the layers before the first nonlinear operation, over the ball itself; everything
    in between knows intervals only.

    Arguments, result and errors are those of `crown`.
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
    """Lower bounds of the margin `[B]` by interval arithmetic, and images `[B, *shape]` as candidates.

    A pure function, for use inside any JAX transformation.
    """
    bounds = linear.walk(classifier, images, radius, norm, computation)
    bounds.forwards(as_is if norm == INF else first)
    return linear.margin(bounds, labels, [])


def as_is(bounds: Bounds, place: int, factors: dict[int, float], interval: Interval, wanted: jax.Array) -> Interval:
    """The interval as it is: interval arithmetic alone, in place of `linear.tighten`."""
    return interval


def first(bounds: Bounds, place: int, factors: dict[int, float], interval: Interval, wanted: jax.Array) -> Interval:
    """Better bounds, as by `linear.tighten`, of values that are affine in the image; the intervals of all others."""
    nonlinear = any(bounds.values[n].nonlinear for n in factors)
    return interval if nonlinear else linear.tighten(Bounds.back, bounds, place, factors, interval, wanted)
