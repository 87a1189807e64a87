"""Robust accuracy at several radii in one call."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from mnist_jax import arguments
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.attack.fixed_radius.auto_attack import auto_attack
from mnist_jax.classifier import Classifier
from mnist_jax.geometry import INF

CLOSE = 1e-5  # relative tolerance for a distance at the radius: distances are rounded to single precision


def robust_accuracy(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike,
    radii: Sequence[float] | np.ndarray,
    *,
    norm: float = INF,
    attack: Callable[..., AttackResult] = auto_attack,
    **options: Any,
) -> np.ndarray:
    """The robust accuracy at each of several radii: the share of images for which the attack finds nothing.

    A fixed-radius attack runs at the smallest radius first; an image that is fooled there counts as fooled at all
    larger radii, and is not attacked again. A minimal-norm attack, such as `nearest`, runs once.

    Args:
      classifier: see `Classifier`.
      images: `[B, *shape]` between the classifier's bounds.
      labels: `[B]`.
      radii: `[R]`, in any order, in the units of the classifier's bounds. Radius 0 gives the clean accuracy.
      norm: p.
      attack: any attack. The accuracy it leaves is an upper bound of the accuracy under the strongest attack.
      options: passed to the attack. From a `key`, one key for each image is made, which it keeps at every radius.

    Returns:
      The accuracies `[R]`, from 0 to 1; NaN where there are no images.

    Raises:
      ValueError: an argument is out of its range or has the wrong shape.
    """
    each = np.asarray(radii, float)
    if each.ndim != 1 or not (np.isfinite(each) & (each >= 0)).all():
        raise ValueError(f"radii must be a list of finite numbers of at least 0, not {radii!r}")
    x = arguments.images_of(classifier, images)
    classes = np.asarray(arguments.classes_of("labels", labels, len(x), None))
    key = options.pop("key", None)
    keys = None if key is None else arguments.keys_of(key, len(x))
    broken_at = np.full(len(x), np.inf)  # the least radius at which the image is fooled, or the distance found

    def attacked(rows: np.ndarray, *radius: float) -> np.ndarray:
        own = options if keys is None else options | {"key": keys[rows]}
        return np.asarray(attack(classifier, x[rows], classes[rows], *radius, norm=norm, **own).distance)

    if "radius" not in inspect.signature(attack).parameters:
        broken_at = attacked(np.arange(len(x)))
    else:
        for radius in np.sort(each):
            rows = np.flatnonzero(np.isinf(broken_at))
            if len(rows):
                distances = attacked(rows, float(radius))
                # An image that is misclassified without any change has distance 0, and so counts at radius 0, too.
                broken_at[rows] = np.where(distances <= radius * (1 + CLOSE), np.minimum(distances, radius), np.inf)
    within = broken_at[None] <= each[:, None] * (1 + CLOSE)
    return 1 - within.mean(1) if len(x) else np.full(len(each), np.nan)
