"""Planes above the first ramps of a network, with a slope of its own for every pixel.

The chord of a ramp bounds it over the interval of its difference d. Where d is an affine function of the image, and the
region is a box, there are tighter bounds over the box itself. Let `d(x) = d0 + sum(w_j x_j)` for `|x_j| <= r_j`, let
`D_j = |w_j| r_j`, and let m_j be any numbers in [0, 1]. Then, everywhere in the box,

    max(d(x), 0) <= sum(m_j (w_j x_j + D_j)) + max(0, d0 + sum((1 - 2 m_j) D_j)).

Proof: the terms `w_j x_j + D_j` are at least 0, so the right side is. It exceeds d(x) by at least
`sum(m_j (w_j x_j + D_j)) + d0 + sum((1 - 2 m_j) D_j) - d(x) = sum((1 - m_j) (D_j - w_j x_j))`, which is at least 0.

With all m_j equal to the chord's slope this is the chord; with m_j of 0 and 1 these planes contain the facets of the
convex hull of the ramp over the box (Anderson et al., "Strong mixed-integer programming formulations for trained neural
networks", 2020), of which there are exponentially many. De Palma et al. ("Scaling the convex barrier with active sets",
2021) choose some of them for every ramp. Here the m_j of ramp i are `clip(level_i + sign(w_ij) tilt_j, 0, 1)` with free
levels and tilts, far fewer numbers than one for every pair of ramp and pixel: the best facets leave out the pixels on
one side of a threshold, by where in the box they are at the minimum of the function that is bounded.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mnist_jax.certify.relaxations import Interval

# The largest number of weights from pixels to ramps for which planes are made; chosen. With 784 x 256 a bound takes two
# to three times as long as without.
MOST = 2**18
# Adam's first step lengths. On 64 bounds of the second layer of experiments/questions.py's network `dense2`, of tilts
# of 0.1, 0.3 and 1, and levels of 0.03, 0.1 and 0.3, these were best after 12 and after 25 steps.
LEVEL, TILT = 0.1, 0.3
# A plane is used where the interval of d is at least this share of that over the box; where it is shorter, the chord
# may be lower. Chosen: of 0.9 and 0, 0 was far better.
WIDE = 0.5


class Ramps(NamedTuple):
    """The R ramps of an operation whose differences are affine in P pixels, over the boxes of N lanes.

    Attributes:
      weights: `[R, P]`, of the pixels in the differences.
      width: `[P, N]`, half-widths of the boxes.
      reach: `[R, N]`, how far a difference may be from its value at the center of the box.
      planar: `[R, N]`, where planes are used.
      order, used: `[R]` and a number: the ramps for which they are used in some lane are the first `used` of `order`.
    """

    weights: jax.Array
    width: jax.Array
    reach: jax.Array
    planar: jax.Array
    order: jax.Array
    used: jax.Array

    @classmethod
    def of(cls, weights: jax.Array, width: jax.Array, d: Interval) -> "Ramps":
        """The ramps with these weights and half-widths, whose differences have the intervals `d`, `[*shape, N]`."""
        low, high = (z.reshape(-1, z.shape[-1]) for z in d)
        reach = jnp.abs(weights) @ width
        planar = (low < 0) & (high > 0) & (high - low >= WIDE * 2 * reach)
        some = planar.any(1)
        return cls(weights, width, reach, planar, jnp.argsort(~some), some.sum())

    def chords(self, d: Interval) -> "Planes":
        """The planes with the slopes of the chords: the chords themselves where the box bounds d as well as they do."""
        low, high = (z.reshape(-1, z.shape[-1]) for z in d)
        level = jnp.where(self.planar, high / jnp.where(self.planar, high - low, 1), 0.5)
        return Planes(level, jnp.zeros_like(self.width))


class Planes(NamedTuple):
    """The free parameters of planes above R ramps of P pixels, for N functions.

    Attributes:
      level: `[R, N]`, the part of the slopes that is the same for all pixels.
      tilt: `[P, N]`, what is added to the slopes for a pixel, with the sign of its weight.
    """

    level: jax.Array
    tilt: jax.Array

    def moved(self, directions: "Planes", length: jax.Array) -> "Planes":
        """The parameters after a step of Adam, of this share of its first length."""
        pairs = zip((LEVEL, TILT), self, directions, strict=True)
        return Planes(*(x - (first * length * d).astype(x.dtype) for first, x, d in pairs))


@jax.custom_vjp
def summed(ramps: Ramps, planes: Planes, shares: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums over planes and over pixels; differentiable by the planes and the shares.

    Memory stays small, as the slopes of one ramp after another are computed, and computed again for derivatives.

    Args:
      ramps, planes: the ramps, and the planes above them.
      shares: `[R, N]`, by what the planes are multiplied; 0 where they are not used.

    Returns:
      coefficients of the pixels in the sum over the ramps of `shares * plane`, `[P, N]`; and for each ramp the sum of
      `slope * |weight| * width` over the pixels, `[R, N]`, 0 where planes are used in no lane.
    """
    weights, width, *_, order, used = ramps
    size = jnp.abs(weights)

    def add(k, sums):
        coefficients, reaches = sums
        i = order[k]
        slopes = jnp.clip(_raw(weights[i], planes, i), 0, 1)
        reach = (size[i][:, None] * width * slopes).sum(0)
        return coefficients + weights[i][:, None] * slopes * shares[i][None], reaches.at[i].set(reach)

    return lax.fori_loop(0, used, add, (jnp.zeros_like(planes.tilt), jnp.zeros_like(planes.level)))


def _raw(weights, planes: Planes, i) -> jax.Array:
    """The slopes `[P, N]` of the ramp i before they are clipped."""
    return planes.level[i][None] + jnp.where((weights >= 0)[:, None], planes.tilt, -planes.tilt)


def _summed(*given):
    return summed(*given), given


def _derivatives(given, cotangents):
    ramps, planes, shares = given
    weights, width, *_, order, used = ramps
    of_coefficients, of_reaches = cotangents

    def add(k, sums):
        level, tilt, share = sums
        i = order[k]
        w, raw = weights[i][:, None], _raw(weights[i], planes, i)
        part = w * of_coefficients
        of_slopes = part * shares[i][None] + jnp.abs(w) * width * of_reaches[i][None]
        of_slopes = jnp.where((raw > 0) & (raw < 1), of_slopes, 0)
        return (
            level.at[i].set(of_slopes.sum(0)),
            tilt + jnp.where(w >= 0, of_slopes, -of_slopes),
            share.at[i].set((part * jnp.clip(raw, 0, 1)).sum(0)),
        )

    begin = jnp.zeros_like(planes.level), jnp.zeros_like(planes.tilt), jnp.zeros_like(shares)
    level, tilt, share = lax.fori_loop(0, used, add, begin)
    return None, Planes(level, tilt), share


summed.defvjp(_summed, _derivatives)
