"""EAD: its two rules for which image is best, and pixels that it leaves unchanged."""

import numpy as np
import pytest
from linear import classifier, nearest, random_problem

from mnist_jax import attack


def test_rules():
    w, b, images, labels = random_problem(np.random.default_rng(0), batch=16, classes=3)
    run = {"steps": 100, "searches": 5, "weight": 0.1, "beta": 1e-2}
    one, net = (attack.ead(classifier(w, b), images, labels, rule=rule, **run) for rule in ("l1", "en"))
    assert one.success.all()
    assert (one.distance <= net.distance * (1 + 1e-5)).all()
    assert (one.distance >= nearest(w, b, images, labels, 1) * (1 - 1e-4)).all()
    r = np.asarray(net.images) - images.astype(np.float32)
    assert ((r == 0).mean() > 0.2).all()  # shrinking by β makes changes exactly zero


@pytest.mark.parametrize("wrong", [{"norm": 2}, {"rule": "l2"}, {"searches": 0}, {"beta": 0.0}])
def test_bad_arguments_are_refused(wrong):
    w, b, images, labels = random_problem(np.random.default_rng(1), batch=4)
    with pytest.raises(ValueError, match="must be"):
        attack.ead(classifier(w, b), images, labels, **wrong)
