"""`Classifier`: a function from images to logits with its weights, as attacks and certificates take a network."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax import unstable
from mnist_jax.jaxprs import fast
from mnist_jax.units import Units

UNIT = (0.0, 1.0)  # default bounds of pixel values


@dataclass(frozen=True)
class Scaled:
    """The preprocessing of a classifier with bounds, for images in [0, 1]: scales these to the bounds first."""

    bounds: tuple[float, float]
    preprocess: Callable[[Any], Any] | None

    def __call__(self, images: Any) -> Any:
        units = Units.of(self.bounds, images.dtype)
        images = units.low + units.scale * images
        return images if self.preprocess is None else self.preprocess(images)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Classifier:
    """A function from images to logits, with its weights separate: a pytree.

    Attributes:
      apply: `apply(params, images) -> logits`, with images float32 `[B, *shape]` (between the bounds, or what
        `preprocess` makes of them) and logits `[B, C]`. The logits of an image must not depend on the other images in
        the batch. `apply` is compared by value: two classifiers with equal `apply` share all compiled programs.
      params: any pytree of arrays; its leaves are the leaves of the classifier.
      preprocess: a function that is applied to the images before `apply`, hashable and compared by value, such as
        `Preprocess(mean, std, channels_first=True)`; None for none.
      bounds: the least and the largest value of a pixel. Attacks and certificates take and return images, radii and
        distances in these units.
      fast: whether convolutions and pooling and their gradients, which XLA computes slowly on a CPU, are there replaced
        by faster formulations that are equal up to rounding, wherever the classifier is compiled (`jaxprs.fast`).
        Results of attacks are checked, and certificates are computed, with the function as it is written in any case.

    Any JAX function makes a classifier, for any shape of images and any number of classes:

        Classifier(lambda params, images: images.reshape(len(images), -1) @ params["w"], {"w": w})
    """

    apply: Callable[[Any, Any], jax.Array] = field(metadata={"static": True})
    params: Any
    preprocess: Callable[[Any], Any] | None = field(default=None, metadata={"static": True})
    bounds: tuple[float, float] = field(default=UNIT, metadata={"static": True})
    fast: bool = field(default=True, metadata={"static": True})

    def __post_init__(self) -> None:
        """Raises `ValueError` unless bounds are two finite numbers, the lower one first."""
        try:
            low, high = map(float, self.bounds)
        except (TypeError, ValueError):
            low = high = np.nan
        if not -np.inf < low < high < np.inf:
            raise ValueError(f"bounds must be two finite numbers, the lower one first, not {self.bounds!r}")
        object.__setattr__(self, "bounds", (low, high))

    def as_written(self) -> "Classifier":
        """The same classifier, with its function computed as it is written on every device (`fast` is False)."""
        return replace(self, fast=False)

    @property
    def in_unit_box(self) -> "Classifier":
        """The same classifier for images that are scaled from its bounds to [0, 1]."""
        return self if self.bounds == UNIT else self._scaled

    @cached_property  # always the same object, since attacks check every `Classifier` object once
    def _scaled(self) -> "Classifier":
        return replace(self, preprocess=Scaled(self.bounds, self.preprocess), bounds=UNIT)

    def __call__(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Logits `[B, C]` of images `[B, *shape]`.

        Raises:
          ValueError: the function's result is not floating-point logits `[B, C]` of at least two classes.
        """
        seen = images if self.preprocess is None else self.preprocess(jnp.asarray(images))
        compiled = self.fast and unstable.traced((self.params, images))
        logits = fast.logits(self.apply, self.params, seen) if compiled else self.apply(self.params, seen)
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
