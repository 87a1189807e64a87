"""Whether a classifier that was imported says what the original says."""

from collections.abc import Callable

import jax
import numpy as np

from mnist_jax.classifier import Classifier
from mnist_jax.errors import InputError

TOLERANCE = 1e-5  # of the largest logit: single precision, summed in another order
IMAGES = 4  # that are compared


def check(
    classifier: Classifier,
    original: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, ...],
    *,
    one: bool,
    what: str,
) -> None:
    """Compares the logits of random images `[B, *shape]` between the classifier's bounds, or of `one` after another.

    Raises:
      InputError: the largest difference is more than 1e-5 of the largest logit.
    """
    images = np.random.default_rng(0).uniform(*classifier.bounds, (IMAGES, *shape)).astype(np.float32)
    with jax.default_matmul_precision("highest"), jax.numpy_dtype_promotion("standard"):
        ours = np.asarray(classifier(images), float)
    theirs = np.concatenate([np.asarray(original(some), float) for some in (images[:, None] if one else images[None])])
    if theirs.shape != ours.shape:
        raise InputError(f"{what} gives {list(theirs.shape)}, but what was made of it {list(ours.shape)}")
    difference, largest = np.abs(ours - theirs).max(), np.abs(theirs).max()
    if not difference <= TOLERANCE * largest:  # nor where it is no number
        raise InputError(
            f"what was made of {what} gives other logits: the largest difference is {difference:.3g}, where the "
            f"largest logit is {largest:.3g} and rounding explains {TOLERANCE:g} of that"
        )
