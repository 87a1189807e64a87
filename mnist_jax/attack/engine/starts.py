"""Where attacks start, by keys that every image has for itself; and runs from one start after another."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from mnist_jax import arguments, geometry
from mnist_jax.attack.engine.problem import Problem


def fixed(key: jax.Array | None) -> jax.Array:
    """The key, or where there is none a fixed one, for what is random in any case."""
    return jax.random.key(0) if key is None else key


def seeds(key: jax.Array | None, count: int) -> jax.Array:
    """A number for each image `[B]`, of its key; the same for all where there is one key or none.

    So what is random for an image does not even depend on where it stands.
    """
    one = key is None or not arguments.is_one_for_each(key)
    return _numbers(arguments.keys_of(fixed(key), 1 if one else count), count)


@partial(jax.jit, static_argnums=1)
def _numbers(keys: jax.Array, count: int) -> jax.Array:
    return jnp.broadcast_to(jax.vmap(jax.random.bits)(keys), (count,))


def normal(given: Problem, keys: jax.Array) -> jax.Array:
    """Standard normal numbers `[B, *shape]`."""
    shape, dtype = given.images.shape[1:], given.images.dtype
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)


def small_start(given: Problem, keys: jax.Array | None, size: float = 0.01) -> jax.Array:
    """Perturbations `[B, *shape]` inside the box: normal with that deviation, or zero without keys."""
    if keys is None:
        return jnp.zeros_like(given.images)
    noise = normal(given, keys)
    return given.inside(size * noise)


def disturb(given: Problem, start: jax.Array, keys: jax.Array, size: jax.Array, norm: float) -> jax.Array:
    """The perturbations `start` with normal ones added, of p-norm `size [B]`."""
    noise = normal(given, keys)
    return start + noise * given.per_image(size / jnp.maximum(geometry.norm(noise, norm), 1e-12))


def random_start(given: Problem, keys: jax.Array, radius: jax.Array, norm: float) -> jax.Array:
    """Perturbations `[B, *shape]` inside the box, uniform in the ball but for what the box cuts off."""
    return geometry.project_ball_in_box(
        geometry.random_in_ball(keys, given.images, radius, norm), given.images, radius, norm
    )


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
