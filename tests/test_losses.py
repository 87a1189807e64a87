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


# The margin loss of capsules


def test_capsule_margin_and_its_gradient():
    rng = np.random.default_rng(1)
    lengths, labels = rng.random((20, 7)).astype(np.float32), rng.integers(0, 7, 20)
    expected, slope = np.zeros(20), np.zeros((20, 7))
    for i, (row, label) in enumerate(zip(lengths.astype(np.float64), labels, strict=True)):
        for c, length in enumerate(row):
            if c == label:
                expected[i] += max(0, 0.9 - length) ** 2
                slope[i, c] = -2 * max(0, 0.9 - length)
            else:
                expected[i] += 0.5 * max(0, length - 0.1) ** 2
                slope[i, c] = max(0, length - 0.1)
    got = losses.capsule_margin(lengths, labels)
    assert (got.shape, got.dtype) == ((20,), np.float32)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient(losses.capsule_margin, lengths, labels), slope, atol=1e-6)


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
    np.testing.assert_allclose(gradient(losses.cross_entropy_of_softmax, logits, labels), np.zeros((2, 10)), atol=1e-6)


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
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_with_nan_or_infinite_maximum_are_wrong_for_every_label(run, value):
    for place in range(3):
        logits = np.zeros((4, 3), np.float32)
        logits[:3, place] = value
        logits[3, 2] = 1.0
        np.testing.assert_array_equal(run(logits, np.array([0, 1, 2, 2])), [0, 0, 0, 1])
    np.testing.assert_array_equal(run(np.full((2, 3), -np.inf, np.float32), np.array([0, 1])), [0, 0])


@pytest.mark.parametrize("value", [-np.inf, -1e9])
def test_classes_that_are_not_in_use_change_nothing(batch, value):
    logits, labels = batch[0][:, :4], batch[1] % 4
    more = np.concatenate([logits, np.full((50, 3), value, np.float32)], 1)
    np.testing.assert_array_equal(losses.accuracy(more, labels), losses.accuracy(logits, labels))
    targets = (labels + 1) % 4
    for loss in (losses.margin, losses.dlr, losses.log_odds, losses.confidence, losses.cross_entropy):
        np.testing.assert_allclose(loss(more, labels), loss(logits, labels), rtol=1e-5)
        slope = gradient(loss, more, labels)
        np.testing.assert_allclose(slope[:, :4], gradient(loss, logits, labels), rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(slope[:, 4:], 0)
    np.testing.assert_allclose(
        losses.dlr_targeted(more, labels, targets), losses.dlr_targeted(logits, labels, targets), rtol=1e-5
    )
    two = np.concatenate([logits[:, :2], np.full((50, 3), value, np.float32)], 1)
    np.testing.assert_allclose(losses.dlr(two, labels % 2), losses.dlr(logits[:, :2], labels % 2), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jax.numpy.bfloat16, np.float16])
def test_half_precision_is_widened_before_anything_is_computed(batch, dtype):
    logits, labels = jax.numpy.asarray(batch[0], dtype), batch[1]
    targets = (labels + 1) % 10
    with jax.numpy_dtype_promotion("strict"):
        for loss in (losses.margin, losses.dlr, losses.log_odds, losses.confidence, losses.cross_entropy):
            got = loss(logits, labels)
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, loss(logits.astype(np.float32), labels))
        assert losses.dlr_targeted(logits, labels, targets).dtype == np.float32
        assert losses.accuracy(logits, labels).dtype == np.float32


def test_accuracy_of_a_batch_has_a_mean(batch):
    logits, labels = batch
    assert losses.accuracy(logits, labels).mean() == np.float32((logits.argmax(-1) == labels).mean())


# Differences of logits


def test_lead_is_a_difference_of_two_logits(batch):
    logits, labels = batch
    others = (labels + 3) % 10
    rows = np.arange(50)
    np.testing.assert_allclose(losses.lead(logits, labels, others), logits[rows, labels] - logits[rows, others])
    slope = gradient(lambda z, y: losses.lead(z, y, others), logits, labels)
    np.testing.assert_array_equal(slope, one_hot(labels, 10) - one_hot(others, 10))
    np.testing.assert_array_equal(losses.lead(logits, labels, labels), np.zeros(50))


def test_the_margin_is_the_smallest_lead(batch):
    logits, labels = batch
    leads = np.stack([losses.lead(logits, labels, (labels + i) % 10) for i in range(1, 10)])
    np.testing.assert_allclose(losses.margin(logits, labels), leads.min(0))


# Difference of logits ratio


def test_dlr_is_equation_6_without_its_sign(batch):
    logits, labels = batch
    ordered = np.sort(logits, 1)[:, ::-1]
    own = logits[np.arange(50), labels]
    other = np.where(own == ordered[:, 0], ordered[:, 1], ordered[:, 0])
    wanted = (own - other) / (ordered[:, 0] - ordered[:, 2])
    np.testing.assert_allclose(losses.dlr(logits, labels), wanted, rtol=1e-5)
    np.testing.assert_allclose(losses.dlr(1e5 * logits, labels), wanted, rtol=1e-4)


@pytest.mark.parametrize("classes", [3, 4, 10])
def test_targeted_dlr_is_equation_7_without_its_sign(batch, classes):
    logits, labels, targets = batch[0][:, :classes], batch[1] % classes, (batch[1] + 1) % classes
    ordered = np.sort(logits, 1)[:, ::-1]
    lower = ordered[:, 1:3].mean(1) if classes == 3 else ordered[:, 2:4].mean(1)
    rows = np.arange(50)
    wanted = (logits[rows, labels] - logits[rows, targets]) / (ordered[:, 0] - lower)
    np.testing.assert_allclose(losses.dlr_targeted(logits, labels, targets), wanted, rtol=1e-5)


def test_for_two_classes_dlr_is_the_margin():
    logits, labels = np.array([[3.0, 1.0], [3.0, 1.0]], np.float32), np.array([0, 1])
    np.testing.assert_array_equal(losses.dlr(logits, labels), [2, -2])
    np.testing.assert_array_equal(losses.dlr_targeted(logits, labels, 1 - labels), [2, -2])
    np.testing.assert_array_equal(gradient(losses.dlr, logits, labels), [[1, -1], [-1, 1]])


def test_dlr_of_equal_logits_has_a_finite_gradient():
    logits, labels = np.zeros((2, 5), np.float32), np.array([0, 1])
    assert np.isfinite(gradient(losses.dlr, logits, labels)).all()
    assert np.isfinite(gradient(lambda z, y: losses.dlr_targeted(z, y, y + 1), logits, labels)).all()
