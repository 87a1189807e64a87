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

CLOSE = 1e-5  # relative: distances are single precision


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
    """The share of the images that stay classified correctly, at each of some radii.

    An attack at a radius begins at the smallest one; an image that it breaks there is broken at the larger ones, where
    it is not attacked any more. An attack of minimal norm, such as `nearest`, runs once.

    Args:
      classifier: see `Classifier`.
      images: `[B, *shape]` between the classifier's bounds.
      labels: `[B]`.
      radii: `[R]`, in any order. 0 gives the accuracy on the images as they are.
      norm: p.
      attack: any attack; what it leaves is an upper bound of what the strongest would.
      options: passed to the attack; a key is one for each image.

    Returns:
      `[R]`, from 0 to 1; NaN where there are no images.

    Raises:
      ValueError: an argument is not what it should be.
    """
    each = np.asarray(radii, float)
    if each.ndim != 1 or not (np.isfinite(each) & (each >= 0)).all():
        raise ValueError(f"radii must be a list of finite numbers of at least 0, not {radii!r}")
    x = arguments.images_of(classifier, images)
    classes = np.asarray(arguments.classes_of("labels", labels, len(x), None))
    key = options.pop("key", None)
    keys = None if key is None else arguments.keys_of(key, len(x))
    broken_at = np.full(len(x), np.inf)  # the least of the radii at which the image is broken

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
                # One that is wrong as it is comes back at distance 0; others are broken at this radius.
                broken_at[rows] = np.where(distances <= radius * (1 + CLOSE), np.minimum(distances, radius), np.inf)
    within = broken_at[None] <= each[:, None] * (1 + CLOSE)
    return 1 - within.mean(1) if len(x) else np.full(len(each), np.nan)
