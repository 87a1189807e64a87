"""Compares an imported classifier with the original network on random images."""

from collections.abc import Callable

import numpy as np

from mnist_jax.classifier import Classifier
from mnist_jax.device import precisely
from mnist_jax.errors import InputError

# Largest difference of logits, as a share of the largest logit: it allows for sums in another order.
TOLERANCE = 1e-5
IMAGES = 4  # number of random images that are compared; chosen by hand


def check(
    classifier: Classifier,
    original: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, ...],
    *,
    one: bool,
    what: str,
) -> None:
    """Compares the logits of a classifier and of the original network on random images between the classifier's bounds.

    Args:
      classifier: the imported network.
      original: takes images `[B, *shape]` of NumPy and gives logits `[B, C]`.
      shape: shape of an image.
      one: whether `original` takes a single image only, `[1, *shape]`.
      what: name of the network for messages.

    Raises:
      InputError: the logits have another shape, or the largest difference is more than 1e-5 of the largest logit.
    """
    images = np.random.default_rng(0).uniform(*classifier.bounds, (IMAGES, *shape)).astype(np.float32)
    with precisely():
        ours = np.asarray(classifier(images), float)
    theirs = np.concatenate([np.asarray(original(some), float) for some in (images[:, None] if one else images[None])])
    if theirs.shape != ours.shape:
        raise InputError(f"{what} gives logits {list(theirs.shape)}, but imported it gives {list(ours.shape)}")
    difference, largest = np.abs(ours - theirs).max(), np.abs(theirs).max()
    if not difference <= TOLERANCE * largest:  # also where the difference is NaN
        raise InputError(
            f"{what} gives other logits once it is imported: the largest difference is {difference:.3g}, where the "
            f"largest logit is {largest:.3g} and rounding explains {TOLERANCE:g} of that"
        )
