"""The best perturbation so far, of every image."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnist_jax.attack.engine.problem import Problem


class Best(NamedTuple):
    """The perturbations `r [B, *shape]` of the lowest `value [B]`: of the loss, or of the distance."""

    r: jax.Array
    value: jax.Array

    @classmethod
    def none(cls, images: jax.Array) -> "Best":
        """None yet: zero, of value inf."""
        return cls(jnp.zeros_like(images), jnp.full(len(images), jnp.inf, images.dtype))

    def keep(self, given: Problem, r: jax.Array, value: jax.Array, allowed: ArrayLike = True) -> "Best":
        """The better ones of these and of `r`, which counts only where `allowed [B]`."""
        better = (value < self.value) & allowed
        return Best(given.where(better, r, self.r), jnp.where(better, value, self.value))

    @property
    def found(self) -> jax.Array:
        """Whether there is one `[B]`."""
        return jnp.isfinite(self.value)
