"""Random starting points of attacks, drawn for each image by its own key, and restarts from one after another."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from mnist_jax import arguments, geometry
from mnist_jax.attack.engine.problem import Problem


def fixed(key: jax.Array | None) -> jax.Array:
    """The key, or key 0 where it is None: for attacks that are random even if the caller gives no key."""
    return jax.random.key(0) if key is None else key


def seeds(key: jax.Array | None, count: int) -> jax.Array:
    """A seed for each image, unsigned integers `[B]`, from its own key.

    One key, or None, gives the same seed for all images, so that the result of an image does not depend on its place
    among the others.
    """
    one = key is None or not arguments.is_one_for_each(key)
    return _numbers(arguments.keys_of(fixed(key), 1 if one else count), count)


@partial(jax.jit, static_argnums=1)
def _numbers(keys: jax.Array, count: int) -> jax.Array:
    return jnp.broadcast_to(jax.vmap(jax.random.bits)(keys), (count,))


def normal(given: Problem, keys: jax.Array) -> jax.Array:
    """Standard normal numbers `[B, *shape]`, from a key for each image."""
    shape, dtype = given.images.shape[1:], given.images.dtype
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)


def small_start(given: Problem, keys: jax.Array | None, size: float = 0.01) -> jax.Array:
    """Perturbations `[B, *shape]`, normal of standard deviation `size`, clipped to the box; zero if keys are None."""
    if keys is None:
        return jnp.zeros_like(given.images)
    noise = normal(given, keys)
    return given.inside(size * noise)


def disturb(given: Problem, start: jax.Array, keys: jax.Array, size: jax.Array, norm: float) -> jax.Array:
    """The perturbations `start [B, *shape]` plus normal noise, scaled to the p-norm `size [B]`."""
    noise = normal(given, keys)
    return start + noise * given.per_image(size / jnp.maximum(geometry.norm(noise, norm), 1e-12))


def random_start(given: Problem, keys: jax.Array, radius: jax.Array, norm: float) -> jax.Array:
    """Random perturbations `[B, *shape]`, uniform in the ball of p-norm `radius [B]`, projected onto ball and box."""
    return geometry.project_ball_in_box(
        geometry.random_in_ball(keys, given.images, radius, norm), given.images, radius, norm
    )


def restarted(
    given: Problem, keys: jax.Array, count: int, run: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
) -> tuple[jax.Array, jax.Array]:
    """Repeats an attack with new keys until it succeeds, `count` times at most for each image.

    `run(i, keys)` is run number i, with a key for each image; it gives perturbations `[B, *shape]` and whether they are
    adversarial `[B]`. No more runs are made once all images have an adversarial perturbation.

    Returns:
      For each image the perturbation of its first run that succeeded, or else of its last run `[B, *shape]`, and the
      number of its runs up to that one `[B]`.
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
