"""Preprocessing of images before a network's first layer: normalization, and the order of the axes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Preprocess:
    """Normalizes images channel by channel, and moves the channels to the front for networks that expect them there.

        (images - mean) / std

    A function of images `[B, *shape]`, hashable and compared by value, for `Classifier(..., preprocess=...)`.

    Attributes:
      mean, std: a number, or one for each channel, in the units of the images.
      channels_first: whether the network expects images `[B, C, H, W]`; then the channels are moved there from `axis`.
      axis: the axis of the channels in the given images: the last one, or 1 for images `[B, C, H, W]`.

    Raises:
      ValueError: `mean` or `std` has a number that is not finite, or `std` one that is not above 0.
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
        """The preprocessed images. Raises `ValueError` where their channels are not as many as means or deviations."""
        if self.mean != 0.0:
            images = images - self._like(images, self.mean)
        if self.std != 1.0:
            images = images / self._like(images, self.std)
        return jnp.moveaxis(images, self.axis, 1) if self.channels_first else images

    def _like(self, images: jax.Array, values: Any) -> jax.Array | np.ndarray:
        """The values of the channels, in a shape that broadcasts against the images."""
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
