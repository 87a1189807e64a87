"""Classifier: the one thing that attacks and certificates know of a network."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax import unstable
from mnist_jax.jaxprs import fast


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Classifier:
    """A function from images to logits, with its weights apart.

    Attributes:
      apply: `apply(params, images) -> logits`, with images float32 `[B, *shape]` in [0, 1] and logits `[B, C]`. What
        it gives for an image must not depend on the others in the batch. It is compared by value: two classifiers
        with equal `apply` share every program that was compiled for one of them.
      params: any pytree of arrays; its leaves are the leaves of the classifier.
      fast: whether what XLA does slowly on a CPU, convolutions and pooling and their gradients, is computed there in
        another way, the same up to rounding, wherever the classifier is compiled (`jaxprs.fast`). Else it is computed
        as it is written. What an attack found is judged, and certificates are made, of the function as it is written.

    Make one of any JAX function, of any input shape and number of classes:

        Classifier(lambda params, images: images.reshape(len(images), -1) @ params["w"], {"w": w})
    """

    apply: Callable[[Any, Any], jax.Array] = field(metadata={"static": True})
    params: Any
    fast: bool = field(default=True, metadata={"static": True})

    def as_written(self) -> "Classifier":
        """The classifier, computed as its function is written on every device."""
        return replace(self, fast=False)

    def __call__(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Logits `[B, C]` of images `[B, *shape]`.

        Raises:
          ValueError: what the function gives is not that: floating, a row for each image, two classes or more.
        """
        compiled = self.fast and unstable.traced((self.params, images))
        logits = fast.logits(self.apply, self.params, images) if compiled else self.apply(self.params, images)
        shape, dtype = getattr(logits, "shape", None), getattr(logits, "dtype", None)
        if (
            shape is None
            or dtype is None
            or len(shape) != 2
            or shape[0] != len(images)
            or shape[1] < 2
            or not jnp.issubdtype(dtype, jnp.floating)
        ):
            given = type(logits).__name__ if shape is None or dtype is None else f"{dtype} {list(shape)}"
            raise ValueError(
                f"the classifier's function must give floating logits [{len(images)}, C], with C of at least 2 (two "
                f"classes are two logits), for {len(images)} images, not {given}"
            )
        return logits
