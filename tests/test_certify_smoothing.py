"""Randomized smoothing against classifiers whose smoothed version is known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binomtest, norm

from mnist_jax import Classifier, certify
from mnist_jax.certify.smoothing import lower_bound


def halfspaces(params, images):
    """Class 1 where `<w, x> + b` is positive, else class 0; the smoothed classifier has the same predictions."""
    score = jnp.einsum("bhw,hw->b", images, params["w"]) + params["b"]
    return jnp.stack([-score, score], 1)


@pytest.fixture(scope="module")
def linear():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(4, 5)).astype(np.float32)
    return Classifier(halfspaces, {"w": jnp.asarray(w), "b": jnp.float32(-w.sum() / 2)})


def images(count):
    return np.random.default_rng(1).random((count, 4, 5), np.float32)


def test_the_bound_is_scipys_exact_confidence_interval():
    for k, n, failure in [
        (0, 100, 0.001),
        (1, 100, 0.001),
        (73, 100, 0.01),
        (100, 100, 0.001),
        (99_000, 100_000, 0.001),
    ]:
        expected = binomtest(k, n, alternative="greater").proportion_ci(1 - failure, method="exact").low
        assert lower_bound(k, n, failure) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_the_radius_of_a_linear_classifier_is_at_most_the_distance_to_the_plane(linear):
    # For a half-space the theorem is an equality: with infinitely many samples the radius is the distance.
    x, sigma = images(24), 0.4
    result = certify.smoothing(linear, x, sigma=sigma, samples=2000, key=jax.random.key(0))
    w = np.asarray(linear.params["w"], float)
    score = (x.astype(float) * w).sum((1, 2)) + float(linear.params["b"])
    distance, right = np.abs(score) / np.linalg.norm(w), (score > 0).astype(int)
    assert (result.radius <= distance).all()  # each is wrong with probability 0.001 at most; the key is fixed
    sure = ~result.abstained
    assert sure.sum() > 15
    np.testing.assert_array_equal(result.classes[sure], right[sure])
    assert (result.classes[~sure] == -1).all()
    assert (result.radius[~sure] == 0).all()
    reachable = distance < sigma * norm.ppf(0.9)
    assert (result.radius[sure & reachable] > distance[sure & reachable] - 0.15 * sigma).all()
    np.testing.assert_array_equal(result.counts.sum(1), 2000)


def test_the_radius_of_unanimous_samples_is_the_largest_possible_one(linear):
    far = Classifier(halfspaces, {"w": linear.params["w"], "b": jnp.float32(1e3)})
    result = certify.smoothing(far, images(2), sigma=0.5, samples=1500, failure=0.001, key=jax.random.key(1))
    np.testing.assert_array_equal(result.counts, [[0, 1500]] * 2)
    np.testing.assert_allclose(result.radius, 0.5 * norm.ppf(0.001 ** (1 / 1500)), rtol=1e-5)
    assert (result.radius < 0.5 * norm.ppf(0.001 ** (1 / 1500))).all()
    assert result.radius.dtype == np.float64


@pytest.mark.parametrize("samples", [1, 499, 500, 501])
def test_exactly_the_samples_asked_for_are_counted(linear, samples):
    result = certify.smoothing(linear, images(2), sigma=0.5, samples=samples, selection=1, key=jax.random.key(0))
    np.testing.assert_array_equal(result.counts.sum(1), samples)


def test_certificates_are_wrong_no_more_often_than_failure_says(linear):
    # On the boundary both classes have probability 1/2, so that every certificate is wrong.
    w, b = np.asarray(linear.params["w"], float), float(linear.params["b"])
    x = images(400).astype(float)
    x = x - (((x * w).sum((1, 2)) + b) / (w**2).sum())[:, None, None] * w
    inside = ((x >= 0) & (x <= 1)).all((1, 2))
    x = x[inside].astype(np.float32)
    assert len(x) > 50
    result = certify.smoothing(linear, x, sigma=0.5, samples=500, failure=0.1, key=jax.random.key(3))
    assert binomtest(int((~result.abstained).sum()), len(x), 0.1, alternative="greater").pvalue > 0.001


def test_noise_depends_on_the_images_place_and_on_the_key(linear):
    x = images(3)
    how = {"sigma": 0.5, "samples": 600}
    all_of_them = certify.smoothing(linear, x, key=jax.random.key(0), **how)
    again = certify.smoothing(linear, x[:2], key=jax.random.key(0), **how)
    np.testing.assert_array_equal(all_of_them.counts[:2], again.counts)
    other = certify.smoothing(linear, x, key=jax.random.key(1), **how)
    assert (other.counts != all_of_them.counts).any()
    same_image = certify.smoothing(linear, x[[0, 0]], key=jax.random.key(0), **how)
    assert (same_image.counts[0] != same_image.counts[1]).any()


def test_samples_with_nan_logits_are_not_counted(linear):
    broken = Classifier(lambda p, x: jnp.where(x[:, 0, :1] > 0.5, jnp.nan, halfspaces(p, x)), linear.params)
    result = certify.smoothing(broken, images(3), sigma=0.5, samples=1000, key=jax.random.key(0))
    assert (result.counts.sum(1) < 1000).all()
    silent = Classifier(lambda p, x: halfspaces(p, x) * jnp.nan, linear.params)
    result = certify.smoothing(silent, images(3), sigma=0.5, samples=1000, key=jax.random.key(0))
    assert result.abstained.all()
    assert (result.counts == 0).all()


def test_no_images(linear):
    result = certify.smoothing(linear, images(1)[:0], sigma=0.5, key=jax.random.key(0))
    assert [len(field) for field in result] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 1e-9}, "sigma must be at least 0.001"),
        ({"sigma": 1e39}, "sigma must be at most 1000"),
        ({"sigma": np.inf}, "sigma must be a finite number"),
        ({"failure": 1.0}, "failure must be below 1"),
        ({"failure": 0.0}, "failure must be above 0"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"selection": 1.5}, "selection must be a whole number"),
        ({"key": 3}, "key must be a jax.random key"),
    ],
)
def test_bad_arguments(linear, change, message):
    how = {"sigma": 0.5, "samples": 10, "key": jax.random.key(0)} | change
    with pytest.raises(ValueError, match=message):
        certify.smoothing(linear, images(2), **how)
