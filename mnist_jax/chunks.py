"""Runs compiled programs on any number of images, by chunks of a fixed size, on all cores or devices."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mnist_jax import device, unstable

# Images in a chunk, by backend. Chunks of 32 to 64 images of MNIST stay in a CPU's caches; an accelerator needs many
# images to be busy (2,048 is chosen, for each device).
CHUNK = {"cpu": 32}
CHUNK_OF_ACCELERATOR = 2048

_at_once: ContextVar[int | None] = ContextVar("at_once", default=None)  # a chunk size set by the caller, see `at_once`

# JAX's settings that a caller may have made in their own thread only. Threads that work on chunks take them over.
SETTINGS: dict[str, Any] = {
    "jax_enable_x64": jax.enable_x64,
    "jax_default_matmul_precision": jax.default_matmul_precision,
    "jax_default_device": jax.default_device,
    "jax_numpy_rank_promotion": jax.numpy_rank_promotion,
    "jax_numpy_dtype_promotion": jax.numpy_dtype_promotion,
    "jax_disable_jit": jax.disable_jit,
    "jax_debug_nans": jax.debug_nans,
}


@contextmanager
def at_once(images: int) -> Iterator[None]:
    """`with at_once(images):` attacks inside work on chunks of at most that many images.

    The default suits a CPU's caches, and networks for MNIST on an accelerator; larger networks need smaller chunks.

    Raises:
      ValueError: `images` is not a whole number of at least 1.
    """
    if not isinstance(images, int) or isinstance(images, bool) or images < 1:
        raise ValueError(f"images must be a whole number of at least 1, not {images!r}")
    token = _at_once.set(images)
    try:
        yield
    finally:
        _at_once.reset(token)


def in_chunks(program: Callable, arrays: Any, *before: Any, size: int | None = None) -> Any:
    """The results of `program(*before, *arrays)`, computed in chunks of `size` images.

    `arrays` are pytrees of arrays `[B, ...]`, and so are the results; `before` is passed as it is. On a CPU, as many
    chunks run at the same time as there are cores, since one program keeps only one or two of them busy. Where there
    are several devices, every chunk is sharded over all of them. The last chunk is padded to the full size with copies
    of its last entry, so that few shapes are compiled. If any argument is traced by a transformation of the caller's,
    the program is called once, with all images.
    """
    count = len(jax.tree.leaves(arrays)[0])
    if unstable.staged((before, arrays)):
        return program(*before, *arrays)
    if not count:
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), arrays)
        return jax.tree.map(lambda a: jnp.zeros((0, *a.shape[1:]), a.dtype), jax.eval_shape(program, *before, *one))
    size = size or chunk_size(count)
    shards = _sharding(size)
    on_host = _on_host()
    arrays = jax.tree.map(_numpy, arrays) if on_host else arrays

    settings = {name: unstable.setting(name) for name in SETTINGS}

    def work(start: int) -> Any:
        with ExitStack() as stack:
            for name, value in settings.items():
                if unstable.setting(name) != value:
                    stack.enter_context(SETTINGS[name](value))
            part = jax.tree.map(lambda a: fill(a[start : start + size], size), arrays)
            part = part if shards is None else jax.device_put(part, shards)
            return jax.tree.map(np.asarray if on_host else jnp.asarray, program(*before, *part))

    first = work(0)  # before the others, since it compiles the program
    with ThreadPoolExecutor(device.cores() if shards is None and on_host else 1) as pool:
        contexts = [copy_context() for _ in range(size, count, size)]
        parts = [first, *pool.map(lambda c, start: c.run(work, start), contexts, range(size, count, size))]
    join = np.concatenate if on_host else jnp.concatenate
    return jax.tree.map(lambda *leaves: jax.device_put(join(leaves)[:count]), *parts)


def until_done(program: Callable, arrays: Any, state: Any, *before: Any, at_once: int, most: int) -> Any:
    """Repeats `state = program(*before, arrays, state, rounds)`, in chunks, until `state.done` holds for all images.

    Each call makes `at_once` rounds; then images that are done are removed from the batch. Under a transformation of
    the caller's none can be removed: the program is called once, for `most` rounds.
    """
    if unstable.staged((before, arrays, state)):
        return program(*before, arrays, state, most)
    on_host = _on_host()
    arrays, state = jax.tree.map(_numpy if on_host else jnp.asarray, (arrays, state))
    size = chunk_size(len(state.done))

    def some_rounds(*arguments: Any) -> Any:
        return program(*arguments, at_once)

    while len(active := np.flatnonzero(~np.asarray(state.done))):
        # On a device, indexing is compiled for every shape, so the indices are padded to whole chunks.
        places = active if on_host else fill(active, -(-len(active) // size) * size)
        part = jax.tree.map(lambda a, places=places: a[places], (arrays, state))
        state = jax.tree.map(partial(_put, places), state, in_chunks(some_rounds, part, *before, size=size))
    return state


def _on_host() -> bool:
    """Whether arrays are in the host's memory. Those in a device's memory stay there, since copying takes long."""
    return jax.default_backend() == "cpu"


def _numpy(array: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """The array in NumPy, where cutting it into chunks compiles nothing; `jax.random` keys stay as they are."""
    return array if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else np.asarray(array)


def _put(places: Any, ours: Any, new: jax.Array) -> Any:
    """The array `ours` with the entries `new` at these places."""
    if isinstance(ours, jax.Array):
        return ours.at[places].set(new)
    ours = ours if ours.flags.writeable else ours.copy()
    ours[places] = np.asarray(new)
    return ours


def chunk_size(count: int) -> int:
    """The size of a chunk for `count` images: a power of two for each device, or what the caller has set."""
    devices = len(_devices())
    each = 1 << max(-(-count // devices) - 1, 0).bit_length()
    if (most := _at_once.get()) is not None:
        return min(devices * each, most)
    return devices * min(CHUNK.get(jax.default_backend(), CHUNK_OF_ACCELERATOR), each)


def _devices() -> list[jax.Device]:
    """The devices that share the work: all of this process, or one if the caller has chosen a default device."""
    chosen = unstable.setting("jax_default_device") is not None
    return jax.local_devices() if not chosen else jax.local_devices()[:1]


def _sharding(size: int) -> NamedSharding | None:
    """A sharding of the first axis over all devices; None where there is one device, or parts would not be equal."""
    devices = _devices()
    if len(devices) == 1 or size % len(devices):
        return None
    return NamedSharding(Mesh(devices, "images"), PartitionSpec("images"))


def fill(array: jax.Array | np.ndarray, size: int) -> jax.Array | np.ndarray:
    """The array or keys, padded to the length `size` with copies of the last entry."""
    return array if len(array) == size else array[np.minimum(np.arange(size), len(array) - 1)]
