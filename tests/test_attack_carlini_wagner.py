"""Carlini & Wagner: the search for the weight, and an early end that changes little."""

import numpy as np
import pytest
from linear import classifier, nearest, random_problem

from mnist_jax import attack


def test_comes_close_to_the_nearest_point_of_a_linear_boundary():
    w, b, images, labels = random_problem(np.random.default_rng(0), batch=8, classes=2, free=True)
    distance = nearest(w, b, images, labels, 2)
    result = attack.carlini_wagner(classifier(w, b), images, labels, steps=200, searches=6)
    seen = distance > 0.02
    ratio = np.asarray(result.distance)[seen] / distance[seen]
    assert ratio.min() > 1 - 1e-4
    assert np.median(ratio) < 1.02


def test_stopping_early_takes_fewer_gradients():
    w, b, images, labels = random_problem(np.random.default_rng(1), batch=8)
    run = {"steps": 200, "searches": 3, "weight": 1.0}
    whole, early = (
        attack.carlini_wagner(classifier(w, b), images, labels, stop_early=stop, **run) for stop in (False, True)
    )
    assert (whole.gradients == 600).all()
    assert (early.gradients < 600).any()
    np.testing.assert_array_equal(whole.success, early.success)


def test_confidence_is_a_margin():
    w, b, images, labels = random_problem(np.random.default_rng(2), batch=8, classes=2)
    c = classifier(w, b)
    result = attack.carlini_wagner(c, images, labels, steps=100, searches=5, weight=0.1, confidence=0.5)
    logits = np.asarray(c(result.images))
    margin = logits[np.arange(8), labels] - logits[np.arange(8), 1 - labels]
    assert result.success.any()
    assert (margin[result.success] < -0.499).all()


@pytest.mark.parametrize("wrong", [{"norm": 1}, {"steps": 0}, {"searches": 0}, {"weight": 0.0}, {"confidence": -1.0}])
def test_bad_arguments_are_refused(wrong):
    w, b, images, labels = random_problem(np.random.default_rng(3), batch=4)
    with pytest.raises(ValueError, match="must be"):
        attack.carlini_wagner(classifier(w, b), images, labels, **wrong)
