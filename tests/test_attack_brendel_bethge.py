"""Brendel & Bethge: the start on the boundary, and how near to the exact distance it ends."""

import numpy as np
import pytest
from linear import classifier, nearest, random_problem

from mnist_jax import attack


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_near_the_exact_distance(p):
    w, b, images, labels = random_problem(np.random.default_rng(0), batch=16, classes=2)
    result = attack.brendel_bethge(classifier(w, b), images, labels, norm=p, steps=40, region=0.05)
    exact = nearest(w, b, images, labels, p)
    ratio = np.asarray(result.distance) / exact
    assert result.success.all()
    assert ratio.min() > 0.999
    assert np.median(ratio[exact > 0.01]) < 1.01
    np.testing.assert_array_equal(result.gradients, 60)


def test_it_starts_at_the_given_image():
    w, b, images, labels = random_problem(np.random.default_rng(1), batch=8, classes=2)
    slope = (w[:, 0] - w[:, 1]) * np.where(labels == 0, 1, -1)[:, None]
    corner = (slope < 0).reshape(images.shape).astype(float)
    result = attack.brendel_bethge(classifier(w, b), images, labels, steps=1, start=corner)
    assert result.success.all()
    np.testing.assert_array_equal(result.gradients, 1)
    step, whole = (np.asarray(result.images) - images).reshape(8, -1), (corner - images).reshape(8, -1)
    assert (np.linalg.norm(step, axis=1) < np.linalg.norm(whole, axis=1)).all()


@pytest.mark.parametrize("wrong", [{"norm": 3}, {"steps": 0}, {"start": np.zeros(3)}])
def test_bad_arguments_are_refused(wrong):
    w, b, images, labels = random_problem(np.random.default_rng(2), batch=4)
    with pytest.raises(ValueError, match="must be"):
        attack.brendel_bethge(classifier(w, b), images, labels, **wrong)
