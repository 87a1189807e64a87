"""The units of a classifier's images, those of its bounds, and what they are in [0, 1], where all is computed.

Norms are homogeneous, so that lengths are multiplied by one number.
"""

from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Units in the last place of 1 by which a pixel in [0, 1] may be off after a difference and a quotient.
ROUNDED = 4


class Units(NamedTuple):
    """Images between `low` and `high` are `low + scale * u`, with u in [0, 1]: all of them, with rounding."""

    low: np.ndarray
    high: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, bounds: tuple[float, float], dtype: Any) -> "Units":
        """Those of the bounds, as numbers of that type."""
        least, high = (np.asarray(bound, dtype) for bound in bounds)
        low = least if least <= bounds[0] else np.nextafter(least, -np.inf, dtype=dtype)
        scale = np.asarray(float(high) - float(low), dtype)
        room = Fraction(max(bounds[1], float(high))) - Fraction(float(low))
        while Fraction(float(scale)) < room:
            scale = np.nextafter(scale, np.inf, dtype=dtype)
        return cls(low, high, scale)

    def inside(self, images: jax.Array) -> jax.Array:
        """Images in [0, 1]."""
        return jnp.clip((images - self.low) / self.scale, 0, 1)

    def outside(self, images: jax.Array, r: jax.Array) -> jax.Array:
        """Images, and on them perturbations of what they are in [0, 1]. Pixels that don't change are as they were."""
        return jnp.clip(images + self.scale * r, self.low, self.high)

    def length(self, value: jax.Array, norm: float) -> jax.Array:
        """A p-norm for images in [0, 1]; the number of pixels, for p = 0, is the same."""
        return value if norm == 0 else value / self.scale

    def ball(self, radius: jax.Array, images: jax.Array, norm: float) -> jax.Array:
        """The radius of a ball around images in [0, 1] that has all images within the radius, whatever was rounded."""
        return radius / self.scale * self._more(images) + self._off(images, norm)

    def within(self, radius: jax.Array | np.ndarray, images: jax.Array, norm: float) -> jax.Array:
        """A radius for which `ball` is at most the given one; 0 where there is none."""
        return jnp.maximum((radius - self._off(images, norm)) * self.scale / self._more(images, 2 * ROUNDED), 0)

    def _more(self, images: jax.Array, units: int = ROUNDED) -> float:
        return 1 + units * float(jnp.finfo(images.dtype).eps)

    def _off(self, images: jax.Array, norm: float) -> float:
        """The p-norm of what rounding makes of images in [0, 1]."""
        return ROUNDED * float(jnp.finfo(images.dtype).eps) * images[0].size ** (1 / norm)
