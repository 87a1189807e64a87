"""Projections onto a ball in a p-norm, and onto its intersection with the box; the proximal operator of a norm."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnist_jax.geometry.norms import INF, dual, norm
from mnist_jax.geometry.rows import radii_of, rows_of
from mnist_jax.geometry.stationary import solve


def project_ball(v: jax.Array, radius: ArrayLike, p: float) -> jax.Array:
    """Projects `v [B, *shape]` onto a ball: the point of p-norm at most `radius` that is closest in Euclidean distance.

    For p = 0 the ball has the points with at most `radius` entries that are not zero.
    """
    rows = rows_of(v)
    radius = radii_of(radius, rows)
    if p == 2:  # closed form; for other p, and with the box, an equation has to be solved
        size = norm(rows, 2)
        outside = size > radius
        share = jnp.where(outside, radius / jnp.where(outside, size, 1), 1)
        return (share[:, None] * rows).reshape(v.shape)
    a = jnp.abs(rows)
    return (jnp.sign(rows) * _inside(a, a + 1, radius, p)).reshape(v.shape)


def project_ball_in_box(v: jax.Array, images: jax.Array, radius: ArrayLike, p: float) -> jax.Array:
    """Projects `v` onto ball and box at once: the closest perturbation in the box of p-norm at most `radius`.

    `v` and `images` are `[B, *shape]`; closest means in Euclidean distance. For p = 0 the ball has the perturbations
    with at most `radius` entries that are not zero.
    """
    rows, x = rows_of(v), rows_of(images)
    room = jnp.where(rows > 0, 1 - x, x)
    return (jnp.sign(rows) * _inside(jnp.abs(rows), room, radii_of(radius, rows), p)).reshape(v.shape)


def proximal(v: jax.Array, weight: ArrayLike, p: float) -> jax.Array:
    """The proximal operator of the p-norm: the r that minimizes `weight norm_p(r) + norm_2(r - v)^2 / 2`.

    `v` is `[B, *shape]`, `weight` a number or `[B]`. The result is `v` minus its projection onto the ball of radius
    `weight` in the dual norm (Moreau, "Proximité et dualité dans un espace hilbertien", 1965).
    """
    return v - project_ball(v, weight, dual(p))


def _inside(a, room, radius, p):
    """The point s closest to `a [B, D]`, of entries at least 0, with 0 <= s <= room and p-norm at most radius."""
    s = jnp.minimum(a, room)
    if p == INF:
        return jnp.minimum(s, radius[:, None])
    if p == 0:
        # An entry of s instead of 0 lowers the squared distance by a^2 - (a - s)^2. Chosen by rank instead of by a
        # threshold, since several entries may be worth the same.
        best_first = jnp.argsort(-s * (2 * a - s), 1)
        return jnp.where(jnp.argsort(best_first, 1) < radius[:, None], s, 0)
    outside = norm(s, p) > radius
    s = jnp.where(outside[:, None], solve(a, room, radius, p, outside), s)
    return jnp.where(radius[:, None] > 0, s, 0)
