"""How near the nearest adversarial image is: no nearer than what is proved, no farther than what was found."""

from typing import Any

import numpy as np
from jax.typing import ArrayLike

from mnist_jax import arguments, attack, certify, geometry
from mnist_jax.certify import driver
from mnist_jax.certify.exact import Bracket
from mnist_jax.classifier import Classifier
from mnist_jax.geometry import INF

CLOSE = 0.01  # relative: how far below the upper end the lower one is aimed at


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

    `attack.nearest` finds one, and `certify.exact` begins with it: it proves that there is none closer than `1 - close`
    of its distance, or finds a nearer one on the way; where the time does not suffice, the lower end is the largest
    radius that it can prove anything for.

    Args:
      classifier: of any shape of images.
      images: `[B, *shape]` in [0, 1].
      labels: `[B]`, or None for the classifier's own predictions.
      norm: p, one of 1, 2 and inf.
      seconds: for the proofs of each image, at most, without compiling.
      domains: instead, at most, in each search of an image (see `certify.branch_and_bound`); only then is the result
        always the same.
      close: relative, in (0, 1).
      device: whether the ends hold for the classifier as a device computes it, which rounds, and not only in exact
        arithmetic (see `certify.exact`). Brackets for exact arithmetic get closer where the distance is small.

    Raises:
      ValueError: an argument is not what it should be.
      UnsupportedOperation: the classifier computes something that no bound is known for.
    """
    arguments.numbers(0, np.inf, above=True, seconds=seconds)
    norm = geometry.check_norm(norm, driver.NORMS)
    x, classes, _ = driver.checked(classifier, images, labels, 0.0)
    found = attack.nearest(classifier, x, classes, norm=norm)
    how: dict[str, Any] = {"norm": norm, "seconds": seconds, "domains": domains, "close": close, "device": device}
    return certify.exact(classifier, x, classes, near=found.images, **how)
