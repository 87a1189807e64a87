"""Sigma-zero: near the fewest pixels that fool a linear classifier, and the count it returns as the distance."""

import numpy as np
import pytest
from linear import classifier, random_problem

from mnist_jax import attack


def test_changes_few_pixels():
    w, b, images, labels = random_problem(np.random.default_rng(0), classes=2)
    x = images.reshape(32, -1)
    gain = (w[:, 1 - labels] - w[:, labels]).T
    falls = np.sort(np.maximum(gain * (1 - x), -gain * x), 1)[:, ::-1]
    margin = np.abs(np.diff(x @ w + b, axis=1)[:, 0])
    fewest = (falls.cumsum(1) < margin[:, None]).sum(1) + 1
    result = attack.sigma_zero(classifier(w, b), images, labels, steps=200)
    changed = (np.asarray(result.images) != images.astype(np.float32)).reshape(32, -1).sum(1)
    assert result.success.all()
    np.testing.assert_array_equal(result.distance, changed)
    assert (changed >= fewest).all()
    assert (changed == fewest).mean() > 0.7


@pytest.mark.parametrize("wrong", [{"norm": 1}, {"steps": 0}, {"sigma": 0.0}, {"threshold": 2.0}])
def test_bad_arguments_are_refused(wrong):
    w, b, images, labels = random_problem(np.random.default_rng(1), batch=4)
    with pytest.raises(ValueError, match="must be"):
        attack.sigma_zero(classifier(w, b), images, labels, **wrong)
