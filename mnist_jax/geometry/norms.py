"""p-norms of images for every p in [1, inf], dual norms, directions of steepest ascent, and samples of balls."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from mnist_jax.geometry.rows import radii_of, rows_of, sum_of_rows

INF = float("inf")
# Exponents p from here on count as inf. For vectors of a million entries, the two norms then differ by a factor of at
# most 1e6^(1/p) = 1 + 1.4e-6.
AS_INF = 1e7


def check_norm(p: float, allowed: tuple[float, ...] | None = None) -> float:
    """The exponent `p` of a norm as a float, checked; it may be given as text, such as "inf".

    A p that is so large that p-norm and inf-norm are about the same in single precision (1e7) counts as inf.

    Raises:
      ValueError: p is not one of `allowed`, or, where these are None, not in [1, inf].
    """
    try:
        exponent = math.nan if isinstance(p, bool | np.bool_ | bytes) else float(p)
    except (TypeError, ValueError, OverflowError):
        exponent = math.nan
    if allowed is None and not exponent >= 1:
        raise ValueError(f"norm must be a number in [1, inf], not {_text(p)}")
    if allowed is not None and exponent not in allowed:
        raise ValueError(f"norm must be {' or '.join(f'{q:g}' for q in allowed)}, not {_text(p)}")
    return INF if exponent >= AS_INF else exponent


def _text(p: object) -> str:
    """`p` as it is shown in an error message."""
    return f"{p:g}" if isinstance(p, float) else repr(p)


def dual(p: float) -> float:
    """The exponent q of the norm that is dual to the p-norm: `1 / p + 1 / q = 1`."""
    return INF if p == 1 else 1.0 if p == INF else p / (p - 1)


def norm(x: jax.Array, p: float) -> jax.Array:
    """The p-norm of every image, `[B, *shape]` to `[B]`; its gradient at zero is zero.

    For p = 0, which is not a norm, it is the number of entries that are not zero.
    """
    rows = rows_of(x)
    if p == 0:
        return sum_of_rows((rows != 0).astype(x.dtype))
    a = rows * jnp.sign(rows)  # jnp.abs has the derivative 1 at zero
    if p == INF:
        return a.max(1, initial=0)
    if p == 1:
        return a.sum(1)
    # Scaled by the largest entry, no power overflows, and none that matters underflows.
    largest = lax.stop_gradient(a.max(1, initial=0))
    scale = jnp.where(largest > 0, largest, 1)
    total = sum_of_rows((a / scale[:, None]) ** (2 if p == 2 else p))
    return scale * jnp.where(total > 0, jnp.where(total > 0, total, 1) ** (1 / p), 0)


def exact_norm(x: np.ndarray, p: float) -> np.ndarray:
    """The p-norm of every image in double precision, by NumPy, `[B, *shape]` to `[B]`: for checks of distances.

    For p = 0 it is the number of entries that are not zero.
    """
    a = np.abs(np.asarray(x, np.float64).reshape(len(x), math.prod(x.shape[1:])))
    if p == 0:
        return (a != 0).sum(1).astype(np.float64)
    largest = a.max(1, initial=0)
    if p == INF:
        return largest
    # Scaled by the largest entry: high powers of the entries themselves could all be 0 or inf.
    scale = np.where(largest > 0, largest, 1)
    return largest * ((a / scale[:, None]) ** p).sum(1) ** (1 / p)


def dual_direction(g: jax.Array, p: float) -> jax.Array:
    """The direction of p-norm 1 in which a function of gradient `g [B, *shape]` grows fastest; zero where `g` is zero.

    It attains the dual norm: `<g, dual_direction(g, p)> = norm(g, dual(p))`. For p = 1 only one pixel differs from
    zero, that of the largest absolute gradient, and the first of these.
    """
    rows = rows_of(g)
    if p == INF:
        return jnp.sign(g)
    if p == 1:
        a = jnp.abs(rows)
        first = jax.nn.one_hot(a.argmax(1), a.shape[1], dtype=g.dtype)
        return (first * jnp.sign(rows)).reshape(g.shape)
    largest = jnp.abs(rows).max(1, keepdims=True, initial=0)
    scaled = rows / jnp.where(largest > 0, largest, 1)
    power = scaled if p == 2 else jnp.sign(scaled) * jnp.abs(scaled) ** (dual(p) - 1)
    length = norm(power, p)[:, None]
    return (power / jnp.where(length > 0, length, 1)).reshape(g.shape)


def sparse_direction(g: jax.Array, count: ArrayLike) -> jax.Array:
    """The direction of 1-norm 1 that changes the `count` absolutely largest entries of `g [B, *shape]` equally.

    Each of these has the sign of its entry in `g`. `count` is a number or `[B]`, rounded up, and at least 1. Entries as
    large as the last of them are included, too; entries that are zero are not.
    """
    rows = rows_of(g)
    a = jnp.abs(rows)
    rank = jnp.clip(jnp.ceil(radii_of(count, rows)), 1, a.shape[1]).astype(int)
    least = jnp.take_along_axis(jnp.sort(a, 1), a.shape[1] - rank[:, None], 1)
    signs = jnp.where(a >= least, jnp.sign(rows), 0)
    return (signs / jnp.maximum(sum_of_rows(jnp.abs(signs)), 1)[:, None]).reshape(g.shape)


def random_in_ball(keys: jax.Array, images: jax.Array, radius: ArrayLike, p: float) -> jax.Array:
    """Random perturbations `[B, *shape]`, uniform in the ball of p-norm `radius`, from a key for each image.

    `images` give shape and type; the box is not respected. For p < inf the method is that of Barthe et al., "A
    probabilistic approach to the geometry of the l_p^n-ball", 2005.
    """
    shape, dtype = images.shape[1:], images.dtype

    def one(key):
        if p == INF:
            return jax.random.uniform(key, shape, dtype, -1, 1)
        directions, depth = jax.random.split(key)
        if p == 1:
            v = jax.random.laplace(directions, shape, dtype)
        elif p == 2:
            v = jax.random.normal(directions, shape, dtype) / math.sqrt(2)
        else:
            v = jax.random.generalized_normal(directions, p, shape, dtype)
        return v / ((jnp.abs(v) ** p).sum() + jax.random.exponential(depth, (), dtype)) ** (1 / p)

    unit = jax.vmap(one)(keys)
    return radii_of(radius, rows_of(images)).reshape(-1, *[1] * len(shape)) * unit


def largest(images: jax.Array, p: float) -> jax.Array:
    """The largest p-norm `[B]` that a perturbation of `images [B, *shape]` can have inside the box."""
    return norm(jnp.maximum(images, 1 - images), p)
