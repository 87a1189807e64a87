"""Square: its windows, its bumps, and the queries it counts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import classifier, random_problem

from mnist_jax import Classifier, attack
from mnist_jax.attack.engine import windows


def test_the_papers_sizes_of_windows():
    sides = np.maximum(np.round(np.sqrt(0.8 * 784 / 2.0 ** np.arange(10))), 1)
    np.testing.assert_array_equal(windows.shrinking((28, 28, 1), 0.8), np.stack([sides, sides], 1))
    every = np.arange(10_000)
    for schedule in (5000, 7, 10_000, 12_345):
        wanted = np.searchsorted([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000], every * 10_000 // schedule)
        np.testing.assert_array_equal(jax.vmap(partial(windows.index_of, schedule=schedule))(every), wanted)


def test_a_billion_queries_take_no_more_memory_than_ten():
    w, b, images, labels = random_problem(np.random.default_rng(1), batch=4)
    result = attack.square(classifier(w, b), images, labels, 1.0, queries=10**9)  # broken soon
    assert result.success.all()


def test_bumps_are_added_squares():
    from mnist_jax.attack.fixed_radius.square import _bump, _bumps

    bump = np.zeros((5, 3))
    bump[1:4] += 1 / 4
    bump[2, 1] += 1
    bump += 1 / 9
    np.testing.assert_allclose(_bump(5, 3, 2), bump / np.linalg.norm(bump), rtol=1e-12)
    for p in (1, 2):
        both = _bumps(7, 7, p)
        assert np.linalg.norm(both.ravel(), p) == pytest.approx(1)
        assert (both[:3] > 0).all()
        assert (both[3:] < 0).all()


@pytest.mark.parametrize(
    ("shape", "p"), [((9, 7, 2), 1), ((9, 7, 2), 2), ((9, 7, 2), np.inf), ((12,), 2), ((12,), np.inf), ((8, 3), 1)]
)
def test_finds_what_is_easy_within_the_radius(shape, p):
    w, b, images, labels = random_problem(np.random.default_rng(1), batch=16, shape=shape, classes=3)
    radius = {1: 4.0, 2: 1.2, np.inf: 0.4}[p]
    result = attack.square(classifier(w, b), images, labels, radius, norm=p, queries=1000)
    assert result.success.mean() > 0.75  # weights at random: a window of pixels does no better than any other pixels
    r = np.asarray(result.images, float) - images.astype(np.float32)
    assert (np.linalg.norm(r.reshape(16, -1), p, axis=1) <= radius * (1 + 1e-5)).all()
    assert (result.gradients == 0).all()
    assert (result.forwards <= 1002).all()
    assert result.forwards.min() < 100


def test_every_query_changes_a_window_and_any_pixel_may_be_in_one():
    seen = jnp.full((1, 6, 6, 1), 0.5)

    def apply(params, images):  # the more pixels are moved up, the better, so that all that helps is kept
        total = images.reshape(len(images), -1).sum(1)
        return jnp.stack([100 - total, 0 * total], 1)

    result = attack.square(Classifier(apply, ()), seen, jnp.zeros(1, int), 0.25, queries=400)
    np.testing.assert_allclose(result.images, 0.75)  # the last row and column too
    assert result.forwards.tolist() == [402]


def test_a_key_for_each_image():
    w, b, images, labels = random_problem(np.random.default_rng(1), batch=5)
    run = partial(attack.square, classifier(w, b), radius=0.05, queries=20)
    together, keys = run(images, labels), jax.random.split(jax.random.key(0), 5)
    alone = run(images[3:4], labels[3:4], key=keys[3:4])
    np.testing.assert_allclose(together.images[3:4], alone.images, atol=1e-6)


def test_bad_arguments_are_named():
    w, b, images, labels = random_problem(np.random.default_rng(8), batch=4)
    for wrong in ({"queries": 0}, {"share": 0.0}, {"norm": 3}, {"schedule": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            attack.square(classifier(w, b), images, labels, 0.1, **wrong)
