"""Classifier: the one thing that attacks, certificates and evaluation know of a network."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from mnist_jax import losses
from mnist_jax.data import Split, normalize


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Classifier:
    """A function from images to logits, with its weights apart.

    Attributes:
      apply: `apply(params, images) -> logits`, with images float32 `[B, *shape]` in [0, 1] and logits `[B, C]`. What
        it gives for an image must not depend on the others in the batch. It is compared by value: two classifiers
        with equal `apply` share every program that was compiled for one of them.
      params: any pytree of arrays; its leaves are the leaves of the classifier.

    Make one of any JAX function, of any input shape and number of classes:

        Classifier(lambda params, images: images.reshape(len(images), -1) @ params["w"], {"w": w})
    """

    apply: Callable[[Any, Any], jax.Array] = field(metadata={"static": True})
    params: Any

    def __call__(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Logits `[B, C]` of images `[B, *shape]`."""
        return self.apply(self.params, images)


CHUNK = 64  # images: what more of them need is taken from the system anew each time, which takes longer than the work


def predict(classifier: Classifier, images: np.ndarray, chunk: int = CHUNK) -> np.ndarray:
    """Logits `[N, C]` of any number of uint8 images `[N, *shape]`, a chunk at a time.

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
    return classifier(normalize(images))


def accuracy(classifier: Classifier, split: Split) -> float:
    """The share of the images of a split that are classified correctly."""
    return float(np.mean(losses.accuracy(predict(classifier, split.images), split.labels), dtype=float))
