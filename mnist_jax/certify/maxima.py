"""Planes above maxima of affine functions that see few pixels, as max-pools of a convolution are.

Over the box of a region, let `f_k(x) = f_k + sum(w_kj x_j)` for `|x_j| <= r_j` be K affine functions. For any slopes
s_j, everywhere in the box,

    max_k f_k(x) <= sum(s_j x_j) + max_k (f_k + sum(|w_kj - s_j| r_j)),

since `f_k(x) - sum(s_j x_j) = f_k + sum((w_kj - s_j) x_j)`. The best of these planes make the convex hull of the
maximum over the box (Anderson et al., "Strong mixed-integer programming formulations for trained neural networks",
2020); the chords of a maximum that is computed as maxima of two lose more with each of these. A function that is never
the larger one of two in a domain is left out. The slopes s_j are free, between the least and the largest of the K
functions' w_kj.

A ReLU is the maximum of one function and a constant. Where it sees many pixels, `planes` has planes with fewer free
numbers for it.

**Rounding.** Errors of the functions' values and weights are added to the values `f_k`, as each is an error of the
maximum at most. The slope that is used for the coefficients and that in the sums may be rounded differently; with the
errors of all sums over pixels and maxima, the difference is at most a few `gamma(n)` times
`sum(|w_kj - s_j| r_j) + sum(max_k |w_kj| r_j)`, where n is the number of all terms.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax.certify.rounding import TINY, gamma

# The largest number of slopes, one for every pixel that each maximum sees, for which planes are made; chosen. In 64
# lanes they take 8 MiB.
MOST = 2**15
STEP = 0.3  # Adam's first step length for slopes, as a share of the range of the functions' slopes


class Slopes(NamedTuple):
    """The free parameters of planes above maxima, for N functions.

    Attributes:
      share: `[B, L, Q, N]` in [0, 1], the slope's place between the least and the largest slope of the K functions.
    """

    share: jax.Array

    def moved(self, directions: "Slopes", length: jax.Array) -> "Slopes":
        """The parameters after a step of Adam, of this share of its first length."""
        return Slopes(jnp.clip(self.share - (STEP * length * directions.share).astype(self.share.dtype), 0, 1))


class Maxima(NamedTuple):
    """Maxima of K functions, affine in P pixels, over the boxes of N lanes: B groups of L maxima that see Q pixels.

    Attributes:
      entries, pixels: `[B, L]` and `[B, Q]`, flat indices of maxima and of pixels, P for none.
      weights: `[K, B, L, Q]`, of the pixels in the functions.
      width: `[P, N]`, half-widths of the boxes.
      at: `[K, B, L, N]`, the functions' values at the center of the box, and their errors.
      alive: `[K, B, L, N]`, which functions may be the largest.
      shares: `[K, B, L, N]`, the functions' shares of the chords' slopes.
    """

    entries: np.ndarray
    pixels: np.ndarray
    weights: jax.Array
    width: jax.Array
    at: jax.Array
    alive: jax.Array
    shares: jax.Array

    @property
    def planar(self) -> jax.Array:
        """Where planes are used: where more than one function may be the largest, `[R, N]`."""
        return self._flat(self.alive.sum(0) > 1)

    def chords(self) -> Slopes:
        """Planes with the slopes of the chords."""
        low, high = self.weights.min(0), self.weights.max(0)
        slopes = jnp.einsum("kblq,kbln->blqn", self.weights, self.shares)
        wide = (high - low)[..., None]
        return Slopes(jnp.where(wide > 0, jnp.clip((slopes - low[..., None]) / jnp.where(wide > 0, wide, 1), 0, 1), 0))

    def above(self, planes: Slopes, factors: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Sums of planes, multiplied by factors `[R, N]` of at most 0, 0 where no plane is used.

        Returns:
          coefficients of the pixels in the sum, `[P, N]`; and the planes' values at the center of the box, `[R, N]`,
          with what rounding and errors may add to them.
        """
        seen = self._seen()
        low, high = self.weights.min(0)[..., None], self.weights.max(0)[..., None]
        slopes = low + planes.share * (high - low)
        lost = 2 * gamma(sum(self.weights.shape[1:]) + self.entries.size + 8, slopes.dtype)
        sizes = (jnp.maximum(jnp.abs(low), jnp.abs(high)) * seen[:, None]).sum(2)
        least = TINY * (1 + self.width.sum(0)[None, None])  # for underflow
        tops = []
        for w, at, alive in zip(self.weights, self.at, self.alive, strict=True):
            reach = (jnp.abs(w[..., None] - slopes) * seen[:, None]).sum(2)
            rounded = lost * (4 * (reach + sizes) + jnp.abs(at)) + least
            tops.append(jnp.where(alive, at + reach + rounded, -jnp.inf))
        weighted = (slopes * factors[self.entries][:, :, None]).sum(1)
        coefficients = jnp.zeros_like(self.width).at[self.pixels].add(weighted, mode="drop")
        return coefficients, self._flat(jnp.stack(tops).max(0))

    def _seen(self) -> jax.Array:
        """The half-widths of the pixels that each group sees, `[B, Q, N]`."""
        return self.width.at[self.pixels].get(mode="fill", fill_value=0)

    def _flat(self, x: jax.Array) -> jax.Array:
        """An array `[B, L, N]` of all maxima as `[R, N]`."""
        order = np.argsort(self.entries.reshape(-1))
        return x.reshape(-1, x.shape[-1])[order]
