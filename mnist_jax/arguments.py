"""Checks of the arguments that attacks and certificates have in common, before any work is done.

All functions raise `ValueError`. Tracers, under a transformation of the caller's, have no values to check, and pass.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mnist_jax.classifier import UNIT, Classifier
from mnist_jax.unstable import traced

MOST = 10**9  # largest number of steps and the like: more gradients than that take years, and counters are int32


def counts(*, least: int = 1, **arguments: Any) -> None:
    """Raises `ValueError` unless all arguments that are not None are whole numbers from `least` to a billion."""
    for name, value in arguments.items():
        if value is None:
            continue
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise ValueError(f"{name} must be a whole number, not {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
        if value > MOST:
            raise ValueError(f"{name} must be at most {MOST:,}, not {value:,}")


def numbers(low: float, high: float = math.inf, *, above: bool = False, below: bool = False, **arguments: Any) -> None:
    """Raises `ValueError` unless all arguments that are not None are finite numbers from `low` to `high`.

    With `above`, `low` itself is excluded, with `below`, `high` is.
    """
    for name, value in arguments.items():
        if value is None or traced(value):
            continue
        number = real(value)
        if not math.isfinite(number):
            raise ValueError(f"{name} must be a finite number, not {value!r}")
        if number < low or (above and number == low):
            raise ValueError(f"{name} must be {'above' if above else 'at least'} {low:g}, not {number:g}")
        if number > high or (below and number == high):
            raise ValueError(f"{name} must be {'below' if below else 'at most'} {high:g}, not {number:g}")


def real(value: Any) -> float:
    """A real number of any array library as a float; NaN for anything else."""
    array = np.asarray(value)
    is_number = array.dtype.kind in "iuf" or str(array.dtype) == "bfloat16"
    return float(array) if is_number and array.ndim == 0 else math.nan


def images_of(classifier: Classifier, images: ArrayLike) -> jax.Array:
    """The images as an array in the type of the classifier's weights: double precision where these are, else single.

    Raises:
      ValueError: they are not numbers `[B, *shape]` between the classifier's bounds.
    """
    images = images if isinstance(images, jax.Array) else np.asarray(images)
    if images.ndim < 2 or not (jnp.issubdtype(images.dtype, jnp.floating) or images.dtype.kind in "iub"):
        raise ValueError(f"images must be an array [B, *shape] of numbers, not {images.dtype} {list(images.shape)}")
    if len(images) and not images.size:
        raise ValueError(f"images must have pixels, not the shape {list(images.shape)}")
    low, high = classifier.bounds
    if not _all(images, lambda x: (x >= low) & (x <= high)):
        what = "divide bytes by 255" if classifier.bounds == UNIT else "these are the classifier's bounds"
        raise ValueError(f"images must be numbers in [{low:g}, {high:g}]; {what}")
    weights = [jnp.result_type(leaf) for leaf in jax.tree.leaves(classifier.params)]
    floating = [kind for kind in weights if jnp.issubdtype(kind, jnp.floating)] or [images.dtype]
    double = jax.dtypes.canonicalize_dtype(float) == np.float64 and np.float64 in floating
    return _array(images, np.float64 if double else np.float32)


def classes_of(name: str, given: ArrayLike, count: int, classes: int | None) -> jax.Array:
    """Labels or targets as int32 `[B]`. Raises `ValueError` unless they are `count` whole numbers below `classes`."""
    given = given if isinstance(given, jax.Array) else np.asarray(given)
    if given.shape != (count,) or (count and given.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be {count} integers, one for each image, not {given.dtype} {list(given.shape)}")
    if classes is not None and not _all(given, lambda c: (c >= 0) & (c < classes)):
        wrong = int(np.flatnonzero((np.asarray(given) < 0) | (np.asarray(given) >= classes))[0])
        raise ValueError(f"{name} must be classes from 0 to {classes - 1}, but number {wrong} is {given[wrong]}")
    return _array(given, np.int32)


def radii(radius: ArrayLike, images: jax.Array, name: str = "radius") -> jax.Array:
    """A radius for each image `[B]`. Raises `ValueError` unless all are finite numbers of at least 0."""
    given, radius = radius, radius if isinstance(radius, jax.Array) else np.asarray(radius)
    if radius.dtype.kind not in "iuf" and not jnp.issubdtype(radius.dtype, jnp.floating):
        raise ValueError(f"{name} must be a number, or one for each image, not {given!r}")
    if radius.shape not in ((), (len(images),)):
        raise ValueError(f"{name} must be a number, or one for each of the {len(images)} images")
    if not _all(radius, lambda x: (x >= 0) & (x <= float(jnp.finfo(images.dtype).max))):
        raise ValueError(f"{name} must be at least 0, and finite")
    if isinstance(radius, jax.Array):
        return jnp.broadcast_to(jnp.asarray(radius, images.dtype), (len(images),))
    return _array(np.broadcast_to(radius, (len(images),)), images.dtype)


def _array(values: jax.Array | np.ndarray, dtype: Any) -> jax.Array:
    """The values as an array of JAX's of that type; converted by NumPy where they are NumPy's, as above."""
    return jnp.asarray(values, dtype) if isinstance(values, jax.Array) else jax.device_put(values.astype(dtype))


def _all(array: jax.Array | np.ndarray, holds: Callable[[np.ndarray], np.ndarray]) -> bool:
    """Whether `holds` is true of all values; true for a tracer. Computed by NumPy, which compiles nothing."""
    return traced(array) or bool(holds(np.asarray(array)).all())


def keys_of(key: jax.Array, count: int) -> jax.Array:
    """A key for each image `[B]`: the given ones, or keys split from the one that is given.

    Raises:
      ValueError: `key` is neither a key nor `count` keys.
    """
    check_key(key, count)
    return key if _several(key) else jax.random.split(key, count)


def check_key(key: jax.Array, count: int) -> None:
    """Raises `ValueError` unless `key` is a key, or an array of `count` keys."""
    if not _is_key(key):
        raise ValueError(f"key must be a jax.random key, such as jax.random.key(0), not {key!r}")
    if _several(key) and len(key) != count:
        raise ValueError(f"key must be one key, or one for each of the {count} images")


def _is_key(key: jax.Array) -> bool:
    """Whether `key` is a key or an array `[B]` of keys, typed ones or raw ones (two uint32 each, by default)."""
    if not isinstance(key, jax.Array):
        return False
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key.ndim <= 1
    width = jax.random.key_data(jax.random.key(0)).shape[-1]
    return key.dtype == jnp.uint32 and key.ndim in (1, 2) and key.shape[-1] == width


def is_one_for_each(key: jax.Array) -> bool:
    """Whether `key` is an array of keys."""
    return _is_key(key) and _several(key)


def _several(key: jax.Array) -> bool:
    """Whether a key, typed or raw, is an array of several."""
    return jnp.ndim(key) > (0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1)
