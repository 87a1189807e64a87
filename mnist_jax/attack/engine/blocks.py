"""Perturbations of one block of pixels, all of them made 0 or all made 1.

What changes few pixels by much is beyond any gradient at the image: it may switch on units that were off for every
image of the training. So blocks are simply tried, all of them.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax import geometry
from mnist_jax.attack.engine.problem import Problem

GRID = 14  # blocks at most along each of two axes: of 2 by 2 pixels in an image of 28 by 28
SHORT = 0.075  # of the norm of a whole block: shorter ones, of pixels that were nearly there, count as so long


def number_of(shape: tuple[int, ...]) -> np.ndarray:
    """For each pixel of an image `[*shape]` the number of its block. Channels, after two axes, are not divided."""
    axes, most = (shape[:2], GRID) if len(shape) > 1 else (shape[:1], GRID**2)
    numbers = np.zeros(axes, np.int32)
    for size, places in zip(axes, np.indices(axes), strict=True):
        side = math.ceil(size / most)
        numbers = numbers * math.ceil(size / side) + places // side
    return np.broadcast_to(numbers.reshape(*axes, *[1] * (len(shape) - len(axes))), shape)


def perturbation(given: Problem, choice: jax.Array) -> jax.Array:
    """The perturbations `[B, *shape]` for the choices `[B]`: block `choice // 2` is made `choice % 2`."""
    block = given.per_image(choice // 2) == number_of(given.images.shape[1:])[None]
    return jnp.where(block, given.per_image(choice % 2) - given.images, 0)


def choices(shape: tuple[int, ...]) -> int:
    """How many there are."""
    return 2 * (int(number_of(shape).max()) + 1)


def best(classifier, given: Problem, norm: float, count: int) -> jax.Array:
    """The choices `[B, count]` that lower the objective most for their p-norm. It takes an evaluation for each."""
    shape = given.images.shape[1:]
    whole = (2 * math.prod(shape) / choices(shape)) ** (1 / norm)
    before = given.objective(classifier(given.images))

    def worth(choice):
        r = perturbation(given, jnp.full(len(before), choice))
        fall = before - given.objective(classifier(given.images + r))
        return fall / jnp.maximum(geometry.norm(r, norm), SHORT * whole)

    every = jax.lax.map(worth, jnp.arange(choices(shape)))
    chosen = jax.lax.top_k(every.T, min(count, len(every)))[1]
    return chosen[:, jnp.arange(count) % chosen.shape[1]]  # over again, where there are not so many
