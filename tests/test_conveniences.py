"""Robust accuracy at several radii, progress of an attack, and the mean of a random classifier."""

import jax
import numpy as np
import pytest
from linear import classifier, nearest, random_problem

from mnist_jax import attack, expectation

RANDOM = np.random.default_rng(1)


@pytest.fixture(scope="module")
def problem():
    w, b, images, labels = random_problem(RANDOM, batch=11, classes=2)
    return classifier(w, b), images.astype(np.float32), labels, (w, b)


# Robust accuracy


def test_accuracies_at_radii_are_the_exact_ones(problem):
    network, images, labels, (w, b) = problem
    wrong = labels.copy()
    wrong[:2] = 1 - wrong[:2]
    exact = np.where(labels == wrong, nearest(w, b, images.astype(float), labels, 2), 0)
    found = np.asarray(attack.ddn(network, images, wrong, steps=20).distance)
    assert (found >= exact * (1 - 1e-5)).all()
    radii = [*(found[3:6] * 1.001), *(found[6:8] * 0.999), 0.0]
    seen = []

    def watched(classifier, images, labels, radius, **how):
        seen.append(len(images))
        return attack.fgsm(classifier, images, labels, radius, **how)

    got = attack.robust_accuracy(network, images, wrong, radii, norm=2, attack=attack.ddn, steps=20)
    np.testing.assert_allclose(got, [(found > radius).mean() for radius in radii])
    got = attack.robust_accuracy(network, images, wrong, radii, norm=2, attack=watched)
    # A step of fgsm that meets the box is not the nearest.
    assert (got >= np.array([(exact > radius).mean() for radius in radii]) - 1e-9).all()
    assert got[-1] == pytest.approx(9 / 11)
    assert seen == sorted(seen, reverse=True)
    assert seen[:2] == [11, 9]


def test_anything_but_a_list_of_radii_is_refused(problem):
    network, images, labels, _ = problem
    for radii in (0.1, [-1.0], [np.nan]):
        with pytest.raises(ValueError, match="radii must be a list"):
            attack.robust_accuracy(network, images, labels, radii)
    assert np.isnan(attack.robust_accuracy(network, images[:0], labels[:0], [0.1])).all()


# Progress


def test_progress_is_told_at_the_start_and_after_each_block_and_changes_nothing(problem):
    network, images, labels, _ = problem
    calls = []
    with attack.at_once(2):
        for function, more in (
            (attack.pgd, {"radius": 0.1, "steps": 2}),
            (attack.nearest, {"effort": 1}),
        ):
            key = jax.random.key(0)
            expected = function(network, images, labels, **more, key=key)
            with attack.progress(lambda done, count: calls.append((done, count))):
                found = function(network, images, labels, **more, key=key)
            jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert calls == [(0, 11), (8, 11), (11, 11)] * 2


def test_progress_is_told_before_anything_is_attacked(problem):
    network, images, labels, _ = problem

    def stop(done, count):
        raise InterruptedError(f"{done} of {count}")

    def never(*_):
        raise AssertionError("the loss was traced")

    with pytest.raises(InterruptedError, match="0 of 11"), attack.progress(stop):
        attack.pgd(network, images, labels, 0.1, loss=never)


def test_a_watch_that_is_no_function_is_refused():
    with pytest.raises(ValueError, match="watch must be a function"), attack.progress(3):
        pass


# Expectation


def noisy(params, images, key):
    noise = jax.random.normal(key, images.shape, images.dtype)
    return (images + 0.3 * noise).reshape(len(images), -1) @ params


def test_the_mean_over_keys_is_the_same_wherever_an_image_stands(problem):
    _, images, _, (w, _) = problem
    params = w.astype(np.float32)
    for key in (jax.random.key(3), jax.random.PRNGKey(3)):
        mean = expectation(noisy, params, key, samples=5)
        keys = jax.random.split(jax.random.key(3), 5)
        expected = np.mean([noisy(params, images[:1], k) for k in keys], axis=0)
        np.testing.assert_allclose(mean(images[:1]), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mean(images)[3:4], mean(images[3:4]), rtol=1e-4, atol=1e-5)
        other = expectation(noisy, params, jax.random.key(4), samples=5)
        assert other.apply == mean.apply
        assert (np.asarray(other(images)) != np.asarray(mean(images))).any()
    found = attack.fgsm(mean, images, None, 1.0)
    again = attack.fgsm(mean, images, None, 1.0)
    np.testing.assert_array_equal(found.images, again.images)
    assert found.success.any()


def test_anything_but_a_key_is_refused():
    for key, samples in ((0, 3), (jax.random.split(jax.random.key(0), 2), 3), (jax.random.key(0), 0)):
        with pytest.raises(ValueError, match=r"(key|samples) must be"):
            expectation(noisy, None, key, samples)
