"""Progress of attacks: with a callback set, images are attacked in blocks, and it is called at first and after each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp

from mnist_jax.chunks import chunk_size

# Chunks of images in a block. In a block of several chunks, images that are finished early are removed, and the rest
# needs fewer chunks. Chosen.
CHUNKS = 4

Watch = Callable[[int, int], None]

_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def progress(watch: Watch) -> Iterator[None]:
    """`with progress(watch):` attacks inside call `watch(done, count)` when they start and after each block of images.

    The first call, `watch(0, count)`, is made when the arguments are checked, and before the programs of the attack are
    compiled, which may take longer than the attack itself. Then the `count` images are attacked in blocks of at most
    four chunks (see `at_once`), which does not change the results.

    Raises:
      ValueError: `watch` is not callable.
    """
    if not callable(watch):
        raise ValueError(f"watch must be a function of two numbers, done and count, not {watch!r}")
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


def wanted() -> bool:
    """Whether a callback is set."""
    return _watch.get() is not None


def by_blocks(work: Callable[[slice], Any], count: int) -> Any:
    """`work(places)`, a pytree of arrays `[B, ...]`, for all `count` images; in blocks where a callback is set."""
    watch = _watch.get()
    if watch is None or not count:
        return work(slice(None))
    watch(0, count)
    size, parts = CHUNKS * chunk_size(count), []
    for start in range(0, count, size):
        token = _watch.set(None)  # attacks that this attack runs don't report
        try:
            parts.append(work(slice(start, start + size)))
        finally:
            _watch.reset(token)
        watch(min(start + size, count), count)
    return jax.tree.map(lambda *each: jnp.concatenate(each), *parts)
