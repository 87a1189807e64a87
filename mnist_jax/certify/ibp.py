"""Interval bound propagation."""

import jax
from jax.typing import ArrayLike

from mnist_jax.certify import driver, linear
from mnist_jax.certify.bounds import Bounds
from mnist_jax.certify.driver import CertifyResult
from mnist_jax.certify.relaxations import Interval
from mnist_jax.classifier import Classifier
from mnist_jax.geometry import INF
from mnist_jax.jaxprs.program import Program

AT_ONCE = 32  # images


def ibp(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None,
    radius: ArrayLike,
    *,
    norm: float = INF,
) -> CertifyResult:
    """Certifies by interval arithmetic: the loosest bounds, and the fastest.

    Gowal et al., "On the effectiveness of interval bound propagation for training verifiably robust models", 2018.
    The last affine steps, and the differences of logits, are one function. For p < inf so are the first ones, which
    take the ball for what it is; what follows knows only intervals.

    Arguments and errors are those of `crown`.
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
    """The method, inside any transformation: lower bounds of the margin `[B]`, and the images."""
    bounds = linear.walk(classifier, images, radius, norm, computation)
    bounds.forwards(as_is if norm == INF else first)
    return linear.margin(bounds, labels, [])


def as_is(bounds: Bounds, place: int, factors: dict[int, float], interval: Interval, wanted: jax.Array) -> Interval:
    """No better bounds."""
    return interval


def first(bounds: Bounds, place: int, factors: dict[int, float], interval: Interval, wanted: jax.Array) -> Interval:
    """Better bounds of what is affine in the image."""
    bent = any(bounds.values[n].bent for n in factors)
    return interval if bent else linear.tighten(Bounds.back, bounds, place, factors, interval, wanted)
