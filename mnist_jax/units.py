"""Conversion between the units of a classifier's bounds and [0, 1], in which attacks and certificates compute.

Norms are homogeneous, so that distances and radii are converted by one factor.
"""

from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ROUNDED = 4  # bound of the error of a pixel in [0, 1] after a difference and a quotient, in epsilons of its type


class Units(NamedTuple):
    """The linear map from u in [0, 1] to images between the bounds: `low + scale * u`.

    `low` and `scale` are rounded outwards, so that the map reaches every image between the bounds.
    """

    low: np.ndarray
    high: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, bounds: tuple[float, float], dtype: Any) -> "Units":
        """The map for these bounds, computed in the floating-point type `dtype`."""
        least, high = (np.asarray(bound, dtype) for bound in bounds)
        low = least if least <= bounds[0] else np.nextafter(least, -np.inf, dtype=dtype)
        scale = np.asarray(float(high) - float(low), dtype)
        room = Fraction(max(bounds[1], float(high))) - Fraction(float(low))
        while Fraction(float(scale)) < room:
            scale = np.nextafter(scale, np.inf, dtype=dtype)
        return cls(low, high, scale)

    def inside(self, images: jax.Array) -> jax.Array:
        """Images between the bounds, converted to [0, 1]."""
        return jnp.clip((images - self.low) / self.scale, 0, 1)

    def outside(self, images: jax.Array, r: jax.Array) -> jax.Array:
        """Images between the bounds plus perturbations `r` in units of [0, 1]. Pixels where r is 0 keep their value."""
        return jnp.clip(images + self.scale * r, self.low, self.high)

    def length(self, value: jax.Array, norm: float) -> jax.Array:
        """A p-norm in units of the bounds, converted for images in [0, 1]. For p = 0, a number of pixels, it stays."""
        return value if norm == 0 else value / self.scale

    def ball(self, radius: jax.Array, images: jax.Array, norm: float) -> jax.Array:
        """The radius in [0, 1] of a ball that contains all images within `radius` of an image between the bounds,
        in spite of rounding; for certificates."""
        return radius / self.scale * self._more(images) + self._off(images, norm)

    def within(self, radius: jax.Array | np.ndarray, images: jax.Array, norm: float) -> jax.Array:
        """The inverse of `ball`: a radius between the bounds for which `ball` is at most `radius`; 0 where none is."""
        return jnp.maximum((radius - self._off(images, norm)) * self.scale / self._more(images, 2 * ROUNDED), 0)

    def _more(self, images: jax.Array, units: int = ROUNDED) -> float:
        """A factor above 1 that covers the rounding of a radius."""
        return 1 + units * float(jnp.finfo(images.dtype).eps)

    def _off(self, images: jax.Array, norm: float) -> float:
        """A bound of the p-norm of the rounding errors of an image in [0, 1]."""
        return ROUNDED * float(jnp.finfo(images.dtype).eps) * images[0].size ** (1 / norm)
