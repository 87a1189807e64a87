"""Any number of images, a chunk of a fixed size at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Images at once. Caches like small batches; an accelerator wants many images.
CHUNK = {"cpu": 64}
CHUNK_OF_ACCELERATOR = 2048


def in_chunks(program: Callable, arrays: Any, *before: Any) -> Any:
    """`program(*before, *arrays)`, with the arrays, pytrees of `[B, ...]`, a chunk at a time.

    The last chunk is filled up with copies of its last entry, to a power of two at least, so that few shapes are ever
    compiled. Under a transformation of the caller's, where there are no values yet, all is done at once.
    """
    leaves = jax.tree.leaves(arrays)
    count = len(leaves[0])
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return program(*before, *arrays)
    if not count:
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), arrays)
        return jax.tree.map(lambda a: jnp.zeros((0, *a.shape[1:]), a.dtype), jax.eval_shape(program, *before, *one))
    size = chunk_size(count)
    parts = []
    for start in range(0, count, size):
        part = jax.tree.map(lambda a, start=start: fill(a[start : start + size], size), arrays)
        parts.append(jax.tree.map(np.asarray, program(*before, *part)))
    return jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)[:count]), *parts)


def chunk_size(count: int) -> int:
    """How many images to work on at once, where there are `count`: a power of two."""
    return min(CHUNK.get(jax.default_backend(), CHUNK_OF_ACCELERATOR), 1 << max(count - 1, 0).bit_length())


def fill(array: jax.Array | np.ndarray, size: int) -> jax.Array | np.ndarray:
    """The array with copies of its last entry up to that length."""
    return array if len(array) == size else array[np.minimum(np.arange(size), len(array) - 1)]  # as keys allow, too
