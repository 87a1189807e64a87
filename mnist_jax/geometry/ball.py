"""Projections onto the ball of a p-norm, with the box and without it."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnist_jax.geometry.norms import INF, dual, norm
from mnist_jax.geometry.rows import radii_of, rows_of
from mnist_jax.geometry.stationary import solve


def project_ball(v: jax.Array, radius: ArrayLike, p: float) -> jax.Array:
    """The point closest to `v [B, *shape]`, in Euclidean distance, of p-norm at most `radius`.

    For p = 0, of at most `radius` entries that are not zero.
    """
    rows = rows_of(v)
    radius = radii_of(radius, rows)
    if p == 2:  # without the box there is nothing to search for
        size = norm(rows, 2)
        outside = size > radius
        share = jnp.where(outside, radius / jnp.where(outside, size, 1), 1)
        return (share[:, None] * rows).reshape(v.shape)
    a = jnp.abs(rows)
    return (jnp.sign(rows) * _inside(a, a + 1, radius, p)).reshape(v.shape)


def project_ball_in_box(v: jax.Array, images: jax.Array, radius: ArrayLike, p: float) -> jax.Array:
    """The perturbation closest to `v`, of p-norm at most `radius`, inside the box. All arrays are `[B, *shape]`.

    For p = 0, of at most `radius` entries that are not zero: those that bring it closest.
    """
    rows, x = rows_of(v), rows_of(images)
    room = jnp.where(rows > 0, 1 - x, x)
    return (jnp.sign(rows) * _inside(jnp.abs(rows), room, radii_of(radius, rows), p)).reshape(v.shape)


def proximal(v: jax.Array, weight: ArrayLike, p: float) -> jax.Array:
    """The minimum over r of `weight norm_p(r) + norm_2(r - v)^2 / 2`. `weight` is a number or `[B]`.

    It is what is left of `v` after its projection onto the ball of the dual norm (Moreau, "Proximité et dualité dans un
    espace hilbertien", 1965).
    """
    return v - project_ball(v, weight, dual(p))


def _inside(a, room, radius, p):
    """The point closest to a with 0 <= s <= room and of norm at most radius."""
    s = jnp.minimum(a, room)
    if p == INF:
        return jnp.minimum(s, radius[:, None])
    if p == 0:
        # An entry at s instead of at 0 is closer by a^2 - (a - s)^2. Ranks, no threshold: two may be worth the same.
        best_first = jnp.argsort(-s * (2 * a - s), 1)
        return jnp.where(jnp.argsort(best_first, 1) < radius[:, None], s, 0)
    outside = norm(s, p) > radius
    s = jnp.where(outside[:, None], solve(a, room, radius, p, outside), s)
    return jnp.where(radius[:, None] > 0, s, 0)
