"""Losses against their closed forms, in float64 NumPy, and at logits where a naive formula overflows."""

import math

import jax
import numpy as np
import pytest

from mnist_jax import losses

FLOOR = math.log(1 + 9 / math.e)  # what the double softmax leaves of a loss of 0


def softmax(z):
    z = np.asarray(z, np.float64)
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def one_hot(labels, classes):
    return np.eye(classes)[np.asarray(labels)]


def gradient(loss, logits, labels):
    return jax.jit(jax.grad(lambda z: loss(z, labels).sum()))(logits)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return rng.normal(scale=4, size=(50, 10)).astype(np.float32), rng.integers(0, 10, 50).astype(np.int32)


# Cross-entropy


def test_cross_entropy_of_two_classes():
    z = np.array([[2.0, -1.0], [0.5, 0.5], [-3.0, 4.0]], np.float32)
    expected = np.log1p(np.exp([-3.0, 0.0, 7.0]))
    np.testing.assert_allclose(losses.cross_entropy(z, np.zeros(3, np.int32)), expected, rtol=1e-6)


def test_cross_entropy_and_its_gradient(batch):
    logits, labels = batch
    p = softmax(logits)
    got = losses.cross_entropy(logits, labels)
    assert (got.shape, got.dtype) == ((50,), np.float32)
    np.testing.assert_allclose(got, -np.log(p[np.arange(50), labels]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient(losses.cross_entropy, *batch), p - one_hot(labels, 10), atol=1e-6)


def test_cross_entropy_of_huge_logits():
    logits = np.array([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0], [1e4, 1e4, -1e4]], np.float32)
    labels = np.array([0, 1, 0])
    rounding = np.spacing(np.float32(2e4))
    np.testing.assert_allclose(losses.cross_entropy(logits, labels), [0.0, 2e4, math.log(2)], rtol=0, atol=rounding)
    expected = [[0, 0, 0], [1, -1, 0], [-0.5, 0.5, 0]]
    np.testing.assert_allclose(gradient(losses.cross_entropy, logits, labels), expected, atol=1e-6)


# Cross-entropy of the softmax


def test_cross_entropy_of_softmax_and_its_gradient(batch):
    logits, labels = batch
    p = softmax(logits)
    q = softmax(p)
    got = losses.cross_entropy_of_softmax(logits, labels)
    assert (got.shape, got.dtype) == ((50,), np.float32)
    np.testing.assert_allclose(got, -np.log(q[np.arange(50), labels]), rtol=1e-5)
    # The Jacobian of the inner softmax is diag(p) - p p^T.
    outer = q - one_hot(labels, 10)
    expected = p * (outer - (p * outer).sum(-1, keepdims=True))
    np.testing.assert_allclose(gradient(losses.cross_entropy_of_softmax, *batch), expected, atol=1e-6)


def test_bounds_of_cross_entropy_of_softmax(batch):
    got = losses.cross_entropy_of_softmax(*batch)
    assert (got > FLOOR).all()
    assert (got < FLOOR + 1).all()
    # A confident answer is at the bounds: the right one below, a wrong one only 1 above it.
    logits = np.full((2, 10), -1e4, np.float32)
    logits[:, 3] = 1e4
    labels = np.array([3, 4])
    np.testing.assert_allclose(losses.cross_entropy_of_softmax(logits, labels), [FLOOR, FLOOR + 1], rtol=1e-6)
    np.testing.assert_array_equal(gradient(losses.cross_entropy_of_softmax, logits, labels), np.zeros((2, 10)))


def test_no_logits_too_large_for_the_gradient_of_cross_entropy_of_softmax():
    logits = np.array([[1e4, 1e4, -1e4]], np.float32)
    got = gradient(losses.cross_entropy_of_softmax, logits, np.array([0]))
    slope = softmax([0.5, 0.5, 0.0])
    expected = 0.5 * (slope[0] - 1 - 0.5 * (slope[0] - 1 + slope[1]))
    np.testing.assert_allclose(got, [[expected, -expected, 0]], rtol=1e-5, atol=1e-7)


# Accuracy


def test_accuracy():
    logits = np.array([[0.1, 0.3, 0.2], [5.0, -1.0, 4.9], [-3.0, -2.0, -1.0]], np.float32)
    got = losses.accuracy(logits, np.array([1, 2, 2]))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, [1, 0, 1])


@pytest.mark.parametrize("run", [losses.accuracy, jax.jit(losses.accuracy)], ids=["eager", "jit"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_wrong_for_every_label(run, value):
    for place in range(3):
        logits = np.zeros((4, 3), np.float32)
        logits[:3, place] = value
        logits[3, 2] = 1.0
        np.testing.assert_array_equal(run(logits, np.array([0, 1, 2, 2])), [0, 0, 0, 1])


def test_accuracy_of_a_batch_has_a_mean(batch):
    logits, labels = batch
    assert losses.accuracy(logits, labels).mean() == np.float32((logits.argmax(-1) == labels).mean())


# Difference of logits ratio


def test_dlr_is_the_margin_over_the_spread_of_the_three_largest(batch):
    logits, labels = batch
    z, rows = logits.astype(float), np.arange(50)
    others = np.where(np.arange(10) == labels[:, None], -np.inf, z).max(1)
    top = np.sort(z, 1)
    wanted = (z[rows, labels] - others) / (top[:, -1] - top[:, -3])
    np.testing.assert_allclose(losses.dlr(logits, labels), wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(losses.dlr(1e6 * logits, labels), wanted, rtol=1e-4, atol=1e-6)


def test_dlr_of_two_classes_and_of_equal_logits():
    two = np.array([[3.0, 1.0], [0.5, 2.0]], np.float32)
    np.testing.assert_allclose(losses.dlr(two, np.array([0, 0])), [2, -1.5])
    equal, labels = np.ones((2, 5), np.float32), np.array([0, 4])
    np.testing.assert_array_equal(losses.dlr(equal, labels), [0, 0])
    assert np.isfinite(gradient(losses.dlr, equal, labels)).all()
