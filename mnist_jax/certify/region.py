"""Where an adversarial image may be: a ball around each image, and the box of all images, together."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnist_jax.certify.rounding import TINY, gamma, unit
from mnist_jax.geometry import INF

NEWTON = 8  # steps to the multiplier for p = 2; any multiplier gives a bound, and more of them change the sixth digit
HALVINGS = 18  # of the range of the multiplier for p = 1, likewise
SMALL = 1e-6  # a radius below it is so for the multiplier to begin with, which stays finite
INSIDE = 1 - 1e-6  # share of the radius that a candidate keeps within
ROUNDED = 2.0**-23  # and every pixel of it comes so much nearer, which is more than rounding takes it away


class Region(NamedTuple):
    """Images within a p-norm of some images, and in [0, 1]. The batch is the last axis, as in `jaxprs.affine`.

    Attributes:
      images: `[1, *shape, B]`.
      low, high: the least and largest difference to them in every pixel, by ball and box.
      center: middle of the box that low and high are, as rounded.
      width: half the width of that box around the center, rounded up.
      radius: `[1, ..., 1, B]`.
    """

    images: jax.Array
    low: jax.Array
    high: jax.Array
    center: jax.Array
    width: jax.Array
    radius: jax.Array

    @classmethod
    def around(cls, images: jax.Array, radius: jax.Array) -> "Region":
        """The region around images `[B, *shape]`."""
        x = jnp.moveaxis(images, 0, -1)[None]
        radius = radius.reshape(*[1] * (x.ndim - 1), -1)
        u = unit(x.dtype)
        low, high = -jnp.minimum(radius, x), jnp.minimum(radius, (1 - x) * (1 + 2 * u))
        center = x + (low + high) / 2
        width = (high - low) / 2 * (1 + 8 * u) + 4 * u * (jnp.abs(center) + jnp.abs(low) + jnp.abs(high))
        return cls(x, low, high, center, width, radius)

    def at(self, d: jax.Array) -> jax.Array:
        """Images `[B, *shape]` at such differences as `least` gives `[1, *shape, B]`, in the region for certain."""
        d = jnp.where(jnp.isfinite(d), d, 0)  # where nothing is bounded, nothing is attained
        d = jnp.sign(d) * jnp.maximum(jnp.abs(d) * INSIDE - ROUNDED, 0)
        return jnp.moveaxis(jnp.clip(self.images + d, 0, 1)[0], -1, 0)

    def of_all(self) -> "Region":
        """The region with all images before the lanes: `[B, 1, *shape, 1]`."""
        return Region(*(jnp.moveaxis(x, -1, 0)[..., None] for x in self))

    def least_of_all(self, a: jax.Array, p: float) -> jax.Array:
        """As `least`, of the same functions `[1, *shape, S]` for all images: `[S, B]`."""
        if p == INF:
            total = jnp.abs(a).reshape(-1, a.shape[-1]).T @ self.width.reshape(-1, self.width.shape[-1])
            return -total * (1 + 2 * gamma(a[..., 0].size + 8, a.dtype))
        return jax.lax.map(lambda one: Region(*one).least(a, p)[0], self.of_all()).T

    def least(self, a: jax.Array, p: float) -> tuple[jax.Array, jax.Array]:
        """A lower bound of `<a, x - center>` over the region, and nearly where it is attained.

        Args:
          a: `[1, *shape, N]`, functions of as many images, or of one.
          p: 1, 2 or inf. For p < inf it is the value of the dual problem at some multiplier, which bounds it from
            below whatever the multiplier.

        Returns:
          bounds `[N]`, and differences to the images `[1, *shape, N]`.
        """
        u = unit(a.dtype)
        lost = 2 * gamma(a[..., 0].size + 8, a.dtype)
        box = _sum(jnp.abs(a) * self.width) * (1 + lost)
        if p == INF:
            return -box.reshape(-1), jnp.where(a > 0, self.low, self.high)
        scale = _largest(a)  # so that squares neither overflow nor vanish
        scale = jnp.where(scale > 0, scale, 1)
        radius = jnp.broadcast_to(self.radius, scale.shape)
        value, size, d = (_least_1 if p == 1 else _least_2)(a / scale, self.low, self.high, radius)
        value, size = value * scale, (size + TINY) * scale
        # To the center, and for its rounding.
        shift = self.center - self.images
        value = value - _sum(a * shift)
        size = size + _sum(jnp.abs(a) * (jnp.abs(shift) + jnp.abs(d)))
        rounded = 4 * u * _sum(jnp.abs(a) * (jnp.abs(self.center) + self.width)) * (1 + lost)
        return jnp.maximum(value - lost * size - rounded, -box).reshape(-1), d


def _sum(x: jax.Array) -> jax.Array:
    """Over all but the lanes: `[1, ..., 1, N]`."""
    return x.sum(tuple(range(x.ndim - 1)), keepdims=True)


def _largest(x: jax.Array) -> jax.Array:
    return jnp.abs(x).max(tuple(range(x.ndim - 1)), keepdims=True)


def _least_2(a, low, high, radius):
    """For multipliers m, `sum(a d + m d^2 / 2) - m r^2 / 2` at the d that minimize it in the box."""
    tiny = jnp.finfo(a.dtype).tiny
    squared = radius**2
    multiplier = jnp.sqrt(_sum(a**2)) / jnp.maximum(radius, SMALL)

    def inside(multiplier):
        return jnp.clip(-a / jnp.maximum(multiplier, tiny), low, high)

    def closer(_, multiplier):
        # Where these are stopped by the box, the others have the rest of the radius.
        d = inside(multiplier)
        free = (d > low) & (d < high)
        rest = squared - _sum(jnp.where(free, 0, d**2))
        weight = _sum(jnp.where(free, a**2, 0))
        better = jnp.sqrt(weight / jnp.maximum(rest, tiny))
        return jnp.where((rest > 0) & (weight > 0), jnp.minimum(better, multiplier), multiplier)

    # The value's derivative by the multiplier is 0 at the best one, so that none is taken.
    multiplier = jax.lax.stop_gradient(jax.lax.fori_loop(0, NEWTON, closer, multiplier))
    d = inside(multiplier)
    value = _sum(a * d + multiplier * d**2 / 2) - multiplier * squared / 2
    size = _sum(jnp.abs(a * d) + multiplier * d**2) + multiplier * squared
    length = jnp.sqrt(_sum(d**2))
    return value, size, d * jnp.minimum(1, radius / jnp.maximum(length, tiny))


def _least_1(a, low, high, radius):
    """For multipliers m, `-m r - sum(room max(|a| - m, 0))`: a knapsack, filled by the largest coefficients first."""
    size_of = jnp.abs(a)
    room = jnp.where(a > 0, -low, high)

    def halve(_, ends):
        least, most = ends
        middle = (least + most) / 2
        over_full = _sum(jnp.where(size_of > middle, room, 0)) > radius
        return jnp.where(over_full, middle, least), jnp.where(over_full, most, middle)

    ends = (jnp.zeros_like(radius), jnp.broadcast_to(_largest(a), radius.shape))
    multiplier = jax.lax.stop_gradient(jax.lax.fori_loop(0, HALVINGS, halve, ends)[1])
    taken = jnp.where(size_of > multiplier, room, 0)
    value = -multiplier * radius - _sum(taken * (size_of - multiplier))
    size = multiplier * radius + _sum(taken * size_of)
    length = jnp.maximum(_sum(taken), jnp.finfo(a.dtype).tiny)
    return value, size, jnp.where(a > 0, -taken, taken) * jnp.minimum(1, radius / length)
