"""How far an attack is: some images after others, and a word to who watches after each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp

from mnist_jax.chunks import chunk_size

CHUNKS = 4  # between two calls: images that are done early leave room in the chunks for others

Watch = Callable[[int, int], None]

_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def progress(watch: Watch) -> Iterator[None]:
    """`with progress(watch):` attacks inside call `watch(done, count)`, each time that some more images are done.

    They are attacked some chunks at a time, see `at_once`, which changes nothing of what is found.

    Raises:
      ValueError: it is no function.
    """
    if not callable(watch):
        raise ValueError(f"watch must be a function of two numbers, done and count, not {watch!r}")
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


def wanted() -> bool:
    """Whether somebody watches."""
    return _watch.get() is not None


def by_blocks(work: Callable[[slice], Any], count: int) -> Any:
    """`work(places)`, a pytree of arrays `[B, ...]`, for all of so many places; in blocks where somebody watches."""
    watch = _watch.get()
    if watch is None or not count:
        return work(slice(None))
    size, parts = CHUNKS * chunk_size(count), []
    for start in range(0, count, size):
        token = _watch.set(None)  # attacks inside are part of this one
        try:
            parts.append(work(slice(start, start + size)))
        finally:
            _watch.reset(token)
        watch(min(start + size, count), count)
    return jax.tree.map(lambda *each: jnp.concatenate(each), *parts)
