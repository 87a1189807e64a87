"""Arrays `[B, *shape]` as rows, and what is computed of every row."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def rows_of(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), math.prod(x.shape[1:]))


def radii_of(radius: ArrayLike, rows: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(radius, rows.dtype), rows.shape[:1])


def sum_of_rows(x: jax.Array) -> jax.Array:
    """The sum of every row. In two stages: XLA's CPU backend would add up a long row a number at a time."""
    width = 16 if x.shape[1] % 16 == 0 else 1
    return x.reshape(len(x), x.shape[1] // width, width).sum(1).sum(1)


def power(s: jax.Array, exponent: float) -> jax.Array:
    """`s ** exponent` of s >= 0, with a derivative that is zero at s = 0."""
    return jnp.where(s > 0, jnp.where(s > 0, s, 1) ** exponent, 0)
