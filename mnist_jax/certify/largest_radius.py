"""A search for the largest radius that a method certifies, for each image separately."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mnist_jax import arguments, geometry
from mnist_jax.certify import driver
from mnist_jax.certify.crown import crown
from mnist_jax.certify.driver import CertifyResult
from mnist_jax.classifier import UNIT, Classifier
from mnist_jax.geometry import INF
from mnist_jax.units import Units

# First radius tried, by norm: the order of magnitude of certified radii of the shipped MLPs on MNIST.
FIRST = {INF: 0.01, 2.0: 0.2, 1.0: 1.0}
TOLERANCE = 3e-4  # the search of an image ends where low and high differ by this share of low; chosen by hand
BEYOND = 0.1  # how far a guess lies beyond the estimate, as a share of its distance to the nearer end; chosen by hand


def largest_radius(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None,
    *,
    norm: float = INF,
    method: Callable[..., CertifyResult] = crown,
    rounds: int = 20,
) -> np.ndarray:
    """The largest radius that a method certifies for each image, by a search over the radii of all images at once.

    Each round gives the method one radius for each image: near where a straight line through the margin's bounds at
    both ends of the image's range is zero, or halfway. The range shrinks to a relative width of 3e-4, or until `rounds`
    are over. Every radius returned was certified by the method itself.

    Args:
      classifier: for images of any shape.
      images: `[B, *shape]` in [0, 1], or within the classifier's own bounds.
      labels: `[B]`, or None for the classifier's own predictions.
      norm: p, one of 1, 2 and inf.
      method: `crown`, or another function with its arguments.
      rounds: largest number of radii tried for an image.

    Returns:
      Radii `[B]`, in the norm and in the units of the images; 0 where no positive radius is certified, for instance for
      a misclassified image.

    Raises:
      ValueError: an argument has the wrong shape, type or range.
      UnsupportedOperation: the classifier computes something that no bounds are known for.
    """
    arguments.counts(rounds=rounds)
    norm = geometry.check_norm(norm, driver.NORMS)
    x, classes, _ = driver.checked(classifier, images, labels, 0.0)
    if classifier.bounds != UNIT and len(x):
        units = Units.of(classifier.bounds, x.dtype)
        u = units.inside(x)
        inside = largest_radius(classifier.in_unit_box, u, classes, norm=norm, method=method, rounds=rounds)
        return np.asarray(units.within(inside, u, norm))
    limit = np.asarray(geometry.largest(x, norm)) if len(x) else np.zeros(0, x.dtype)
    low, high = np.zeros_like(limit), np.full_like(limit, np.inf)
    at_low, at_high = np.full_like(limit, np.nan), np.full_like(limit, -np.inf)
    for _ in range(rounds):
        left = np.flatnonzero((high - low > TOLERANCE * low) & (low < limit))
        if not len(left):
            break
        if len(left) == 1 < len(x):  # one image alone would compile a program of its own
            left = np.repeat(left, 2)
        guess = _guess(low, high, at_low, at_high, norm)[left]
        guess = np.minimum(guess, limit[left]).astype(limit.dtype)
        result = method(classifier, x[left], classes[left], jnp.asarray(guess), norm=norm)
        certified, margin = np.asarray(result.certified), np.asarray(result.margin)
        low[left], at_low[left] = np.where(certified, (guess, margin), (low[left], at_low[left]))
        high[left], at_high[left] = np.where(certified, (high[left], at_high[left]), (guess, margin))
    return low


def _guess(low: np.ndarray, high: np.ndarray, at_low: np.ndarray, at_high: np.ndarray, norm: float) -> np.ndarray:
    """The next radius to try for each image, `[B]`.

    While `high` is inf, it is the first radius or twice `low`. If the first one is not certified, 0 is next: the margin
    there is not known yet. Else it is where a straight line through the margins `at_low` and `at_high` is zero, or
    halfway where one of these is not finite. It is moved a little away from the nearer end, so that the zero is likely
    to lie between the two, and the range becomes small at once.
    """
    with np.errstate(all="ignore"):
        width = high - low
        share = at_low / (at_low - at_high)
        share = np.where(np.isfinite(share), share, 0.5)
        beyond = np.maximum(BEYOND * np.minimum(share, 1 - share), TOLERANCE / 3 * low / width)
        share = np.where(share < 0.5, np.minimum(share + beyond, 0.5), np.maximum(share - beyond, 0.5))
        between = np.where(np.isnan(at_low), 0, low + width * share)
    return np.where(np.isfinite(high), between, np.where(low > 0, 2 * low, FIRST[norm]))
