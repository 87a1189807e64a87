"""Perturbations that set one block of pixels to 0 or to 1: starting points for descents, for the 1-norm above all.

A large change of few pixels can switch on units that were off for every training image, and no gradient at the image
shows that. So all blocks are tried, with both values.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax import geometry
from mnist_jax.attack.engine.problem import Problem

GRID = 14  # most blocks along each of the two axes: blocks of 2 by 2 pixels in images of 28 by 28
# Smallest p-norm that is counted for a change of a block, as a share of that of a block whose pixels all change by 1.
# It keeps a change of almost nothing, where the pixels have nearly that value already, from a large ratio by rounding.
SHORT = 0.075


def number_of(shape: tuple[int, ...]) -> np.ndarray:
    """The number of the block that each pixel of an image `[*shape]` belongs to. All channels are in one block."""
    axes, most = (shape[:2], GRID) if len(shape) > 1 else (shape[:1], GRID**2)
    numbers = np.zeros(axes, np.int32)
    for size, places in zip(axes, np.indices(axes), strict=True):
        side = math.ceil(size / most)
        numbers = numbers * math.ceil(size / side) + places // side
    return np.broadcast_to(numbers.reshape(*axes, *[1] * (len(shape) - len(axes))), shape)


def perturbation(given: Problem, choice: jax.Array) -> jax.Array:
    """The perturbations `[B, *shape]` for choices `[B]`: the pixels of block `choice // 2` become `choice % 2`."""
    block = given.per_image(choice // 2) == number_of(given.images.shape[1:])[None]
    return jnp.where(block, given.per_image(choice % 2) - given.images, 0)


def choices(shape: tuple[int, ...]) -> int:
    """How many choices there are for images `[*shape]`: two values for each block."""
    return 2 * (int(number_of(shape).max()) + 1)


def best(classifier, given: Problem, norm: float, count: int) -> jax.Array:
    """The choices `[B, count]` that lower the objective most relative to their p-norm, the best first.

    Takes one evaluation of the classifier for each choice, and one for the images.
    """
    shape = given.images.shape[1:]
    whole = (2 * math.prod(shape) / choices(shape)) ** (1 / norm)
    before = given.objective(classifier(given.images))

    def worth(choice):
        r = perturbation(given, jnp.full(len(before), choice))
        fall = before - given.objective(classifier(given.images + r))
        return fall / jnp.maximum(geometry.norm(r, norm), SHORT * whole)

    every = jax.lax.map(worth, jnp.arange(choices(shape)))
    chosen = jax.lax.top_k(every.T, min(count, len(every)))[1]
    return chosen[:, jnp.arange(count) % chosen.shape[1]]  # repeated where there are fewer than `count`
