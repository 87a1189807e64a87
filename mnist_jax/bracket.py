"""Brackets: a proved lower bound and an attack's upper bound of the distance of the nearest adversarial image."""

from typing import Any

import numpy as np
from jax.typing import ArrayLike

from mnist_jax import arguments, attack, certify, geometry
from mnist_jax.certify import driver
from mnist_jax.certify.exact import Bracket
from mnist_jax.classifier import Classifier
from mnist_jax.geometry import INF

CLOSE = 0.01  # default relative gap between the two ends at which a bracket counts as done. Chosen


def bracket(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    norm: float = INF,
    seconds: float = 60.0,
    domains: int | None = None,
    close: float = CLOSE,
    device: bool = True,
) -> Bracket:
    """Brackets the distance of the nearest adversarial image, by an attack from above and proofs from below.

    `attack.nearest` finds an adversarial image. From there `certify.exact` proves that there is none closer than
    `1 - close` times its distance, or finds a nearer one meanwhile. Where the time does not suffice, the lower end is
    the largest radius for which a proof was found.

    Args:
      classifier: see `Classifier`; for images of any shape.
      images: `[B, *shape]` between the classifier's bounds.
      labels: `[B]`, or None for the classifier's own predictions.
      norm: p, one of 1, 2 and inf.
      seconds: the most seconds for the proofs of each image, without compilation.
      domains: instead of `seconds`, the most domains in each search of an image (see `certify.branch_and_bound`). Only
        with this limit is the result reproducible.
      close: the relative gap between the ends of the bracket that is aimed at, in (0, 1).
      device: whether the ends hold for the classifier as a device computes it, with rounding, and not only in exact
        arithmetic (see `certify.exact`). Without, the ends get closer where the distance is small.

    Returns:
      A `Bracket`: `lower [B]`, `upper [B]` and `images [B, *shape]`, the adversarial images at the upper end.

    Raises:
      ValueError: an argument is out of its range or has the wrong shape.
      UnsupportedOperation: the classifier uses an operation for which no bound is known.
    """
    arguments.numbers(0, np.inf, above=True, seconds=seconds)
    norm = geometry.check_norm(norm, driver.NORMS)
    x, classes, _ = driver.checked(classifier, images, labels, 0.0)
    found = attack.nearest(classifier, x, classes, norm=norm)
    how: dict[str, Any] = {"norm": norm, "seconds": seconds, "domains": domains, "close": close, "device": device}
    return certify.exact(classifier, x, classes, near=found.images, **how)
