"""The best perturbation found so far for every image."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnist_jax.attack.engine.problem import Problem


class Best(NamedTuple):
    """The perturbations `r [B, *shape]` of the lowest `value [B]` so far, which is a loss or a distance."""

    r: jax.Array
    value: jax.Array

    @classmethod
    def none(cls, images: jax.Array) -> "Best":
        """The start, before anything was found: perturbations of zero, with the value inf."""
        return cls(jnp.zeros_like(images), jnp.full(len(images), jnp.inf, images.dtype))

    def keep(self, given: Problem, r: jax.Array, value: jax.Array, allowed: ArrayLike = True) -> "Best":
        """For each image, the perturbation of the lower value: the one kept so far, or `r` where `allowed [B]`."""
        better = (value < self.value) & allowed
        return Best(given.where(better, r, self.r), jnp.where(better, value, self.value))

    @property
    def found(self) -> jax.Array:
        """Whether any perturbation was kept for the image `[B]`."""
        return jnp.isfinite(self.value)
