"""What a network does to its images before its first layer: normalization, and the order of the axes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Preprocess:
    """Normalizes the channels of images, and moves them to the front where the network wants them there.

        (images - mean) / std

    It is a function of images `[B, *shape]`, hashable and compared by value, for `Classifier(..., preprocess=...)`.

    Attributes:
      mean, std: a number, or one for each channel.
      channels_first: whether the network wants its channels as the first axis of an image, `[B, C, H, W]`, where the
        images have them as `axis`.
      axis: of the images, that of the channels: the last one, or 1 where they are channels first themselves.

    Raises:
      ValueError: mean or std is not made of finite numbers, or std not of numbers above 0.
    """

    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0
    channels_first: bool = False
    axis: int = field(default=-1, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            given = np.asarray(getattr(self, name), float)
            if given.ndim > 1 or not np.isfinite(given).all() or (name == "std" and not (given > 0).all()):
                above = " above 0" if name == "std" else ""
                raise ValueError(f"{name} must be a finite number{above}, or one for each channel, not {given}")
            object.__setattr__(self, name, tuple(given.tolist()) if given.ndim else float(given))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Raises `ValueError` where the images have another number of channels than there are means or deviations."""
        if self.mean != 0.0:
            images = images - self._like(images, self.mean)
        if self.std != 1.0:
            images = images / self._like(images, self.std)
        return jnp.moveaxis(images, self.axis, 1) if self.channels_first else images

    def _like(self, images: jax.Array, values: Any) -> jax.Array | np.ndarray:
        """The values in a shape that goes with the images."""
        values = np.asarray(values, images.dtype)
        if not values.ndim:
            return values
        shape = [1] * images.ndim
        shape[self.axis] = -1
        if len(values) != images.shape[self.axis]:
            raise ValueError(
                f"there are {len(values)} means or deviations, but images {list(images.shape)} have "
                f"{images.shape[self.axis]} channels on axis {self.axis}"
            )
        return values.reshape(shape)
