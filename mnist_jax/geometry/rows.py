"""Arrays `[B, *shape]` as rows `[B, D]`, and sums and powers of rows."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def rows_of(x: jax.Array) -> jax.Array:
    """`x [B, *shape]` reshaped to `[B, D]`."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


def radii_of(radius: ArrayLike, rows: jax.Array) -> jax.Array:
    """A number, or one for each row, as an array `[B]` of the rows' type."""
    return jnp.broadcast_to(jnp.asarray(radius, rows.dtype), rows.shape[:1])


def sum_of_rows(x: jax.Array) -> jax.Array:
    """The sum of every row, `[B, D]` to `[B]`, in two stages: XLA's CPU backend adds up a long row one by one."""
    width = 16 if x.shape[1] % 16 == 0 else 1
    return x.reshape(len(x), x.shape[1] // width, width).sum(1).sum(1)


def power(s: jax.Array, exponent: float) -> jax.Array:
    """`s ** exponent` for s >= 0, with value and derivative zero at s = 0."""
    return jnp.where(s > 0, jnp.where(s > 0, s, 1) ** exponent, 0)
