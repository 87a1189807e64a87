"""Runs of an attack one after another, each from a start of its own, until an image is broken."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mnist_jax import norms
from mnist_jax.attack.problem import Problem


def keys_of(key: jax.Array | None, count: int) -> jax.Array:
    """A key for each image `[B]`: those given, or of the one that is given, or where there is none of a fixed one."""
    key = jax.random.key(0) if key is None else key
    given = jnp.ndim(key) - (0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1)
    if given and len(key) != count:
        raise ValueError(f"key must be one key, or one for each of the {count} images")
    return key if given else jax.random.split(key, count)


def random_start(given: Problem, keys: jax.Array, radius: jax.Array, norm: float) -> jax.Array:
    """Perturbations `[B, *shape]` inside the box, uniform in the ball but for what the box cuts off."""
    return norms.project(norms.random_in_ball(keys, given.images, radius, norm), given.images, radius, norm)


def restarted(
    given: Problem, keys: jax.Array, count: int, run: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
) -> tuple[jax.Array, jax.Array]:
    """Perturbations `[B, *shape]`, and after how many runs each image was broken or given up `[B]`.

    `run(i, keys)` gives perturbations and whether they break their images `[B]`. An image that is broken keeps what
    broke it. When all are, the rest of the runs is left out.
    """

    def more(state):
        i, _, broken, _ = state
        return (i < count) & ~broken.all()

    def body(state):
        i, r, broken, runs = state
        new, breaks = run(i, jax.vmap(jax.random.fold_in, (0, None))(keys, i))
        return i + 1, given.where(broken, r, new), broken | breaks, jnp.where(broken, runs, i + 1)

    nothing = jnp.zeros(len(given.labels), jnp.int32)
    start = (jnp.int32(0), jnp.zeros_like(given.images), nothing > 0, nothing)
    _, r, _, runs = jax.lax.while_loop(more, body, start)
    return r, runs
