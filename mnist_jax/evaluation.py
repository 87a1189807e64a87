"""Logits of any number of images, computed in chunks, and accuracy on a split of a dataset."""

import jax
import numpy as np
from jax.typing import ArrayLike

from mnist_jax import losses
from mnist_jax.classifier import Classifier
from mnist_jax.data import Split, normalize

# Images in a chunk. Measured on a CPU: chunks of 250 took three times as long, as the memory of their intermediate
# arrays is returned to the system after every chunk and has to be cleared again for the next.
CHUNK = 64


def predict(classifier: Classifier, images: np.ndarray, chunk: int = CHUNK) -> np.ndarray:
    """Logits `[N, C]` of N images, at least one, computed `chunk` images at a time.

    The last chunk is filled up with zeros, so that all chunks run the same compiled program.

    Args:
      classifier: the network.
      images: `[N, *shape]`, either float, within the classifier's bounds, or uint8, where 0 and 255 stand for the
        bounds.
      chunk: number of images.
    """
    parts = []
    for start in range(0, len(images), chunk):
        part = images[start : start + chunk]
        missing = [(0, chunk - len(part))] + [(0, 0)] * (part.ndim - 1)
        parts.append(_logits(classifier, np.pad(part, missing))[: len(part)])
    return np.concatenate(parts)


@jax.jit
def _logits(classifier: Classifier, images: jax.Array) -> jax.Array:
    return classifier.in_unit_box(normalize(images)) if images.dtype == np.uint8 else classifier(images)


def accuracy(classifier: Classifier, split: Split) -> float:
    """The share of the images of a split that are classified correctly."""
    return mean(losses.accuracy(predict(classifier, split.images), split.labels))


def mean(values: ArrayLike) -> float:
    """The mean of an array in double precision. (NumPy's `mean` of a JAX array would be computed in float32.)"""
    return float(np.asarray(values, np.float64).mean())
