"""What a classifier says of the images of a dataset, any number of them, and how often it is right."""

import jax
import numpy as np
from jax.typing import ArrayLike

from mnist_jax import losses
from mnist_jax.classifier import Classifier
from mnist_jax.data import Split, normalize

CHUNK = 64  # images: what more of them need is taken from the system anew each time, which takes longer than the work


def predict(classifier: Classifier, images: np.ndarray, chunk: int = CHUNK) -> np.ndarray:
    """Logits `[N, C]` of images `[N, *shape]`, one or more, a chunk at a time.

    Bytes stand for what lies between the classifier's bounds, [0, 1] as a rule.

    The last chunk is filled up, so that one compiled program serves them all.
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
    """In double precision. (NumPy leaves the mean of JAX's arrays to JAX, and that of float32 has other digits.)"""
    return float(np.asarray(values, np.float64).mean())
