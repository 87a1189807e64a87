"""Blocks of pixels: their places, and which of them are the best for a linear classifier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import classifier, random_problem

from mnist_jax.attack.engine import blocks
from mnist_jax.attack.engine.problem import Problem


@pytest.mark.parametrize(
    ("shape", "count", "largest"),
    [
        ((28, 28, 1), 196, (2, 2)),
        ((28, 28), 196, (2, 2)),
        ((14, 10, 1), 140, (1, 1)),
        ((32, 15, 3), 88, (3, 2)),
        ((784,), 196, (4,)),
        ((5,), 5, (1,)),
        ((1, 1, 3), 1, (1, 1)),
    ],
)
def test_every_pixel_is_in_one_block_of_its_neighbours(shape, count, largest):
    numbers = blocks.number_of(shape)
    assert numbers.shape == shape
    assert blocks.choices(shape) == 2 * count
    np.testing.assert_array_equal(np.unique(numbers), np.arange(count))
    sizes = set()
    for number in range(count):
        places = np.argwhere(numbers == number)
        extents = tuple(places.max(0) - places.min(0) + 1)
        assert len(places) == np.prod(extents)  # the pixels of a box, with all their channels
        assert extents[2:] == shape[2:]
        sizes.add(extents[: len(largest)])
    assert max(sizes) == largest


def test_a_perturbation_makes_a_block_black_or_white():
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 6, 40, 2)), jnp.float32)
    given = Problem(images, jnp.zeros(4, jnp.int32), None)
    numbers = blocks.number_of(images.shape[1:])
    choice = np.array([0, 1, 2 * numbers.max(), 2 * numbers.max() + 1])
    there = np.asarray(images + blocks.perturbation(given, jnp.asarray(choice)))
    for image, got, one in zip(np.asarray(images), there, choice, strict=True):
        np.testing.assert_allclose(got, np.where(numbers == one // 2, one % 2, image), atol=1e-6)


@pytest.mark.parametrize("p", [1, 2, np.inf])
@pytest.mark.parametrize("targeted", [False, True])
def test_the_best_are_those_that_change_a_linear_classifier_most(p, targeted):
    w, b, images, labels = random_problem(np.random.default_rng(1), batch=16, classes=2)
    targets = jnp.asarray(1 - labels, jnp.int32) if targeted else None
    given = Problem(jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32), targets)
    got = np.asarray(jax.jit(lambda c, g: blocks.best(c, g, p, 5))(classifier(w, b), given))
    shape = images.shape[1:]
    whole = (2 * images[0].size / blocks.choices(shape)) ** (1 / p)
    for image, label, chosen in zip(images, labels, got, strict=True):
        slope = (w[:, label] - w[:, 1 - label]).reshape(shape)
        worth = []
        for choice in range(blocks.choices(shape)):
            r = np.where(blocks.number_of(shape) == choice // 2, choice % 2 - image, 0)
            length = np.linalg.norm(r.ravel(), p)
            worth.append(-(slope * r).sum() / max(length, blocks.SHORT * whole))
        wanted = np.sort(worth)[::-1][:5]
        np.testing.assert_allclose(np.array(worth)[chosen], wanted, rtol=1e-3, atol=1e-3)


def test_choices_repeat_where_there_are_fewer_than_asked_for():
    w, b, images, labels = random_problem(np.random.default_rng(2), batch=3, shape=(1, 1, 1))
    given = Problem(jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32), None)
    got = np.asarray(blocks.best(classifier(w, b), given, 1, 5))
    np.testing.assert_array_equal(got[:, 2:4], got[:, :2])
    np.testing.assert_array_equal(np.sort(got[:, :2], 1), [[0, 1]] * 3)
