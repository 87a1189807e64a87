"""Bounds other than [0, 1]: attacks and certificates in the caller's units; and preprocessing."""

from fractions import Fraction

import jax
import numpy as np
import pytest
from linear import apply, classifier, nearest, random_problem

from mnist_jax import Classifier, Preprocess, attack, bracket, certify
from mnist_jax.evaluation import predict
from mnist_jax.geometry import exact_norm
from mnist_jax.robustness import breaks
from mnist_jax.units import Units

LOW, HIGH = -1.0, 2.0
SCALE = HIGH - LOW
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def problem():
    """A linear classifier of images between the bounds, the same of images in [0, 1], the two's images, and labels."""
    w, b, images, labels = random_problem(RANDOM, batch=8, classes=3)
    unit = classifier(w, b)
    own = Classifier(apply, unit.params, Preprocess(LOW, SCALE), (LOW, HIGH))
    return unit, own, images.astype(np.float32), (LOW + SCALE * images).astype(np.float32), labels, (w, b)


def distances(w, b, images, labels, norm):
    return SCALE * nearest(w, b, images.astype(float), labels, norm)


def test_distances_images_and_radii_are_in_the_callers_units(problem):
    _, own, images, given, labels, (w, b) = problem
    norm, exact = 2, distances(w, b, images, labels, 2)
    found = attack.nearest(own, given, labels, norm=norm, effort=1)
    np.testing.assert_allclose(found.distance, exact, rtol=1e-3)
    r = np.asarray(found.images, float) - given
    np.testing.assert_allclose(found.distance, np.linalg.norm(r.reshape(len(r), -1), norm, axis=1), rtol=1e-5)
    assert (np.asarray(own(found.images)).argmax(1) != labels).all()
    assert (found.images.min(), found.images.max()) >= (LOW, 0)
    assert found.images.max() <= HIGH
    within = attack.fgsm(own, given, labels, 0.9 * exact, norm=norm)
    assert not within.success.any()


def test_a_pixel_that_does_not_change_is_as_it_was(problem):
    _, own, _, given, labels, _ = problem
    found = attack.sigma_zero(own, given, labels, steps=20)
    changed = (np.asarray(found.images) != given).reshape(len(given), -1).sum(1)
    np.testing.assert_array_equal(found.distance[found.success], changed[np.asarray(found.success)])
    assert found.success.any()
    assert changed[np.asarray(found.success)].max() < given[0].size / 2


def test_misclassified_images_come_back_as_they_are(problem):
    _, own, _, given, labels, _ = problem
    found = attack.fgsm(own, given, (labels + 1) % 3, 0.5)
    np.testing.assert_array_equal(found.images, given)
    np.testing.assert_array_equal(found.distance, 0)


def test_certificates_hold_in_the_callers_units(problem):
    _, own, images, given, labels, (w, b) = problem
    norm, exact = np.inf, distances(w, b, images, labels, np.inf)
    radius = certify.largest_radius(own, given, labels, norm=norm)
    assert (radius <= exact).all()
    np.testing.assert_allclose(radius, exact, rtol=2e-3, atol=3e-4)
    at = certify.crown(own, given, labels, radius, norm=norm)
    assert at.certified.all()
    np.testing.assert_array_equal(at.images, given)
    beyond = certify.crown(own, given, labels, 1.5 * exact, norm=norm)
    assert not beyond.certified.any()
    fooled = np.asarray(beyond.fooled)
    assert fooled.any()
    assert (np.asarray(own(beyond.images)).argmax(1) != labels)[fooled].all()
    divided = certify.branch_and_bound(own, given, labels, 0.9 * exact, norm=norm, domains=1)
    assert divided.certified.all()


def test_brackets_are_in_the_callers_units(problem):
    _, own, images, given, labels, (w, b) = problem
    images, given, labels = images[:8], given[:8], labels[:8]
    exact = distances(w, b, images, labels, 2)
    lower, upper, shown = (np.asarray(part, float) for part in bracket(own, given, labels, norm=2, domains=1))
    assert (lower <= exact * (1 + 1e-5)).all()
    np.testing.assert_allclose(upper, exact, rtol=1e-3)
    distance = exact_norm(shown - np.asarray(given, float), 2)
    assert (distance <= upper).all()
    np.testing.assert_allclose(distance, upper, rtol=1e-6)


def test_other_functions_of_images_respect_the_bounds(problem):
    unit, own, images, given, labels, _ = problem
    bytes_ = RANDOM.integers(0, 256, images.shape).astype(np.uint8)
    np.testing.assert_allclose(predict(own, bytes_), predict(unit, bytes_), rtol=1e-4, atol=1e-4)
    assert breaks(own, given, labels, 9.0, lambda x, y: LOW + 0 * x, norm=np.inf).any()
    assert not breaks(own, given, labels, 9.0, lambda x, y: LOW - 1 + 0 * x, norm=np.inf).any()
    how = {"samples": 50, "selection": 10, "key": jax.random.key(0)}
    one, other = certify.smoothing(unit, images, sigma=0.1, **how), certify.smoothing(own, given, sigma=0.3, **how)
    np.testing.assert_array_equal(one.classes, other.classes)
    for function in (attack.fgsm, certify.ibp):
        with pytest.raises(ValueError, match=r"numbers in \[-1, 2\]; these are the classifier's bounds"):
            function(own, given + 1, labels, 0.1)


def test_all_images_between_the_bounds_are_images_of_the_unit_box():
    for dtype in (np.float32, np.float64):
        for low, width in RANDOM.normal(size=(200, 2)):
            bounds = (low, low + abs(width) + 1e-3)
            units = Units.of(bounds, dtype)
            least, most = (Fraction(float(n)) for n in (units.low, units.scale))
            ends = [float(dtype(bound)) for bound in bounds]
            assert least <= min(bounds[0], ends[0])
            assert least + most >= max(bounds[1], ends[1])
    assert Units.of((0.0, 255.0), np.float32) == (0, 255, 255)


# Preprocessing


def test_preprocessing_normalizes_channels_and_moves_them():
    images = RANDOM.random((2, 4, 5, 3), np.float32)
    mean, std = [0.1, 0.2, 0.3], np.array([1, 2, 4])
    expected = (images - np.array(mean, np.float32)[None, None, None]) / std.astype(np.float32)[None, None, None]
    np.testing.assert_allclose(Preprocess(mean, std)(images), expected, rtol=1e-6)
    first = Preprocess(mean, std, channels_first=True)(images)
    np.testing.assert_allclose(first, np.moveaxis(expected, -1, 1), rtol=1e-6)
    moved = np.moveaxis(images, -1, 1)
    np.testing.assert_allclose(Preprocess(mean, std, axis=1)(moved), first, rtol=1e-6)
    np.testing.assert_array_equal(Preprocess()(images), images)
    assert Preprocess(mean, std) == Preprocess(tuple(mean), [1.0, 2.0, 4.0])
    assert hash(Preprocess(mean, std)) == hash(Preprocess(mean, list(std)))


@pytest.mark.parametrize(("arguments", "says"), [(([0.1, np.nan],), "mean"), ((0, 0), "std"), ((0, [1, -1]), "std")])
def test_mean_and_std_have_to_be_numbers(arguments, says):
    with pytest.raises(ValueError, match=f"{says} must be a finite number"):
        Preprocess(*arguments)


def test_channels_have_to_be_as_many_as_means():
    with pytest.raises(ValueError, match=r"2 means or deviations, but images \[1, 4, 4, 3\] have 3 channels"):
        Preprocess([0, 1])(np.zeros((1, 4, 4, 3), np.float32))


@pytest.mark.parametrize("bounds", [(1, 0), (0, 0), (0, np.inf), (0,), None, ("a", "b")])
def test_bounds_are_two_numbers(bounds):
    with pytest.raises(ValueError, match="bounds must be two finite numbers"):
        Classifier(apply, {}, bounds=bounds)


def test_a_classifier_is_looked_at_once_in_its_units_and_stays_a_pytree(problem):
    unit, own, *_ = problem
    assert unit.in_unit_box is unit
    assert own.in_unit_box is own.in_unit_box
    again = jax.tree.unflatten(*jax.tree.flatten(own)[::-1])
    assert (again.bounds, again.preprocess, again.apply) == (own.bounds, own.preprocess, own.apply)
    assert len(jax.tree.leaves(own)) == 2
