"""The region of a certificate, a p-norm ball around each image and the box [0, 1] together, and minima over it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnist_jax.certify.rounding import TINY, gamma, unit
from mnist_jax.geometry import INF

# Fixed-point steps for the dual multiplier, p = 2. Any multiplier gives a bound; more steps change its sixth digit.
NEWTON = 8
HALVINGS = 18  # bisection steps for the dual multiplier, p = 1; more of them change the bound's sixth digit
SMALL = 1e-6  # least radius by which the first multiplier is divided, so that it stays finite at radius 0
# Candidates are moved towards the original, so that rounding does not take them out of the ball: differences are
# multiplied by the share INSIDE, and their absolute values are reduced by ROUNDED, an epsilon of single precision.
INSIDE = 1 - 1e-6
ROUNDED = 2.0**-23


class Region(NamedTuple):
    """The images in [0, 1] within a p-norm of each of B images. The batch is the last axis, as in `jaxprs.affine`.

    Attributes:
      images: the originals, `[1, *shape, B]`.
      low, high: the least and largest difference to the original that ball and box allow in each pixel.
      center: the middle between them, as an image, as rounded.
      width: half of `high - low`, rounded up so that center and width cover the region.
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
        """The region around images `[B, *shape]` with radii `[B]`."""
        x = jnp.moveaxis(images, 0, -1)[None]
        radius = radius.reshape(*[1] * (x.ndim - 1), -1)
        u = unit(x.dtype)
        low, high = -jnp.minimum(radius, x), jnp.minimum(radius, (1 - x) * (1 + 2 * u))
        center = x + (low + high) / 2
        width = (high - low) / 2 * (1 + 8 * u) + 4 * u * (jnp.abs(center) + jnp.abs(low) + jnp.abs(high))
        return cls(x, low, high, center, width, radius)

    def at(self, d: jax.Array) -> jax.Array:
        """The images `[B, *shape]` at differences `[1, *shape, B]`, as from `least`, moved safely into the region."""
        d = jnp.where(jnp.isfinite(d), d, 0)  # a bound of NaN is attained nowhere: the original is given
        d = jnp.sign(d) * jnp.maximum(jnp.abs(d) * INSIDE - ROUNDED, 0)
        return jnp.moveaxis(jnp.clip(self.images + d, 0, 1)[0], -1, 0)

    def of_all(self) -> "Region":
        """The region with the batch as the first axis and a last axis of length 1: `[B, 1, *shape, 1]`."""
        return Region(*(jnp.moveaxis(x, -1, 0)[..., None] for x in self))

    def least_of_all(self, a: jax.Array, p: float) -> jax.Array:
        """Lower bounds `[S, B]` as by `least`, of the same S functions `[1, *shape, S]` for all images."""
        if p == INF:
            total = jnp.abs(a).reshape(-1, a.shape[-1]).T @ self.width.reshape(-1, self.width.shape[-1])
            return -total * (1 + 2 * gamma(a[..., 0].size + 8, a.dtype))
        return jax.lax.map(lambda one: Region(*one).least(a, p)[0], self.of_all()).T

    def least(self, a: jax.Array, p: float) -> tuple[jax.Array, jax.Array]:
        """Lower bounds of linear functions `<a, x - center>` over the region, and where they are nearly attained.

        For p = inf the minimum has a closed form. For p = 1 and 2 the bound is the value of the dual problem, which
        lies below the minimum whatever the multiplier.

        Args:
          a: coefficients `[1, *shape, N]`, of one function for each of N images or of N functions for one image.
          p: exponent of the norm: 1, 2 or inf.

        Returns:
          Bounds `[N]`, and differences to the images `[1, *shape, N]`.
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
        # From differences to the images to differences to the center, charged for rounding.
        shift = self.center - self.images
        value = value - _sum(a * shift)
        size = size + _sum(jnp.abs(a) * (jnp.abs(shift) + jnp.abs(d)))
        rounded = 4 * u * _sum(jnp.abs(a) * (jnp.abs(self.center) + self.width)) * (1 + lost)
        return jnp.maximum(value - lost * size - rounded, -box).reshape(-1), d


def _sum(x: jax.Array) -> jax.Array:
    """The sum over all axes but the last: `[1, ..., 1, N]`."""
    return x.sum(tuple(range(x.ndim - 1)), keepdims=True)


def _largest(x: jax.Array) -> jax.Array:
    return jnp.abs(x).max(tuple(range(x.ndim - 1)), keepdims=True)


def _least_2(a, low, high, radius):
    """The dual value for p = 2: the minimum over d in the box of `sum(a d + m d^2 / 2) - m r^2 / 2`, m the multiplier.

    Gives the value, the sum of its terms' absolute values, and d scaled into the ball.
    """
    tiny = jnp.finfo(a.dtype).tiny
    squared = jnp.minimum(radius, a[..., 0].size) ** 2  # a ball of that radius has all of the box; no overflow
    multiplier = jnp.sqrt(_sum(a**2)) / jnp.maximum(radius, SMALL)

    def inside(multiplier):
        return jnp.clip(-a / jnp.maximum(multiplier, tiny), low, high)

    def closer(_, multiplier):
        # Pixels at a face of the box stay there; the others share the rest of the squared radius.
        d = inside(multiplier)
        free = (d > low) & (d < high)
        rest = squared - _sum(jnp.where(free, 0, d**2))
        weight = _sum(jnp.where(free, a**2, 0))
        better = jnp.sqrt(weight / jnp.maximum(rest, tiny))
        return jnp.where((rest > 0) & (weight > 0), jnp.minimum(better, multiplier), multiplier)

    # The value's derivative by the multiplier is 0 at the best one, so it need not be differentiated.
    multiplier = jax.lax.stop_gradient(jax.lax.fori_loop(0, NEWTON, closer, multiplier))
    d = inside(multiplier)
    value = _sum(a * d + multiplier * d**2 / 2) - multiplier * squared / 2
    size = _sum(jnp.abs(a * d) + multiplier * d**2) + multiplier * squared
    length = jnp.sqrt(_sum(d**2))
    return value, size, d * jnp.minimum(1, radius / jnp.maximum(length, tiny))


def _least_1(a, low, high, radius):
    """The dual value for p = 1, `-m r - sum(room max(|a| - m, 0))`, m the multiplier: a fractional knapsack.

    `room` is how far each pixel can move; those with the largest coefficients move first. Gives what `_least_2` gives.
    """
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
