"""FMN: its radius, and that it reaches the nearest point where many pixels are at the limits of the box."""

import numpy as np
import pytest
from linear import classifier, nearest, random_problem

from mnist_jax import attack


@pytest.mark.parametrize(("p", "length"), [(1, 0.7 / 0.8), (2, 0.7), (np.inf, 0.5)])
def test_the_first_radius_is_the_distance_of_the_linear_boundary(p, length):
    images = np.full((1, 2), 0.5, np.float32)
    w, b = np.array([[3.0, -3.0], [4.0, -4.0]]), np.array([0.0, 0.0])  # margin 7, gradient (6, 8)
    result = attack.fmn(classifier(w, b), images, np.array([0]), norm=p, steps=1)
    r = np.asarray(result.images[0] - images[0])
    assert min(np.linalg.norm(r, p), length) == pytest.approx(min(length, np.linalg.norm([0.5, 0.5], p)), rel=1e-5)


@pytest.mark.parametrize(("p", "close"), [(1, 1.01), (2, 1.005), (np.inf, 1.005)])
def test_comes_close_to_the_nearest_point_in_the_box(p, close):
    """A third of the pixels is 0, where a projection followed by clipping would stop short of the boundary."""
    w, b, images, labels = random_problem(np.random.default_rng(0), classes=2)
    distance = nearest(w, b, images, labels, p)
    seen = distance > 0.05 * np.median(distance)
    result = attack.fmn(classifier(w, b), images, labels, norm=p, steps=200)
    ratio = np.asarray(result.distance)[seen] / distance[seen]
    assert result.success.all()
    assert ratio.min() > 1 - 1e-4
    assert np.median(ratio) < close


def test_norm_0_changes_the_fewest_entries():
    w, b, images, labels = random_problem(np.random.default_rng(1), classes=2)
    gain = (w[:, 1 - labels] - w[:, labels]).T
    falls = np.sort(np.maximum(gain * (1 - images.reshape(32, -1)), -gain * images.reshape(32, -1)), 1)[:, ::-1]
    margin = np.abs(np.diff(images.reshape(32, -1) @ w + b, axis=1)[:, 0])
    fewest = (falls.cumsum(1) < margin[:, None]).sum(1) + 1
    result = attack.fmn(classifier(w, b), images, labels, norm=0, steps=100)
    changed = (np.asarray(result.images) != images.astype(np.float32)).reshape(32, -1).sum(1)
    np.testing.assert_array_equal(result.distance, changed)
    assert (changed >= fewest).all()
    assert (changed == fewest).mean() > 0.9


@pytest.mark.parametrize("wrong", [{"norm": 3}, {"steps": 0}, {"gamma": 0.0}, {"learning_rate": 0.0}])
def test_bad_arguments_are_refused(wrong):
    w, b, images, labels = random_problem(np.random.default_rng(2), batch=4)
    with pytest.raises(ValueError, match="must be"):
        attack.fmn(classifier(w, b), images, labels, **wrong)
