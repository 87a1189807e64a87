"""The exact minimum of experiments/exact_minimum.py, and how near to it `nearest` comes."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import nearest

from mnist_jax import Classifier, attack

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

import exact_minimum as exact


@pytest.fixture(scope="module")
def weights(mnist):
    return exact.train(mnist.train, jax.random.key(0))


@pytest.mark.parametrize("norm", [1, np.inf])
def test_units_that_are_always_on_make_a_linear_classifier(weights, norm):
    shifted = {name: np.asarray(array, float) for name, array in weights.items()} | {"b": np.full(exact.HIDDEN, 100.0)}
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(3, 14, 14, 1)) * rng.integers(2, size=(3, 14, 14, 1))
    w = shifted["w"] @ shifted["v"]
    logits = images.reshape(3, -1) @ w
    b = -logits.mean(0) + 0.1 * rng.normal(size=10)  # or one class would be the likeliest everywhere
    shifted["c"] = b - shifted["b"] @ shifted["v"]
    labels = (logits + b).argmax(1)
    distances = nearest(w, b, images, labels, norm)
    assert np.isinf(np.array(exact.minima(shifted, images, labels, norm, 0.99 * distances))[:, 0]).all()
    for found in (distances, 1.5 * distances):
        least = np.array(exact.minima(shifted, images, labels, norm, found))
        np.testing.assert_allclose(least[:, 0], distances, rtol=1e-4)
        np.testing.assert_allclose(least[:, 1], distances, rtol=1e-4)


@pytest.mark.parametrize("norm", [1, np.inf])
def test_thorough_effort_finds_the_exact_minimum(weights, mnist, norm):
    images, labels = exact.smaller(mnist.val.images[:12]), mnist.val.labels[:12]
    classifier = Classifier(exact.apply, weights)
    right = np.flatnonzero(np.asarray(classifier(jnp.asarray(images))).argmax(1) == labels)[:10]
    assert len(right) == 10
    images, labels = images[right], labels[right]
    found = np.asarray(attack.nearest(classifier, images, labels, norm=norm, effort="thorough").distance, float)
    least = np.array(exact.minima(weights, images, labels, norm, found))
    assert (least[:, 0] > 0).all()
    assert np.isfinite(least).all()  # else there is nothing as near as what is said to be found
    assert (found >= least[:, 1] * (1 - 1e-4)).all()
    assert (
        found <= least[:, 0] * (1 + exact.WITHIN)
    ).mean() >= 0.9  # the weights differ in their last bits between processors
