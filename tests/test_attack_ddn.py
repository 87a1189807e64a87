"""DDN: its schedule of the norm, and a gradient that does not vanish."""

import jax
import numpy as np
import pytest
from linear import classifier, nearest, random_problem

from mnist_jax import Classifier, attack


def test_direction_and_norm_of_the_first_steps():
    """Two pixels far from the box: after a step the perturbation points down the gradient, of norm (1 + γ) ε."""
    images = np.full((1, 2), 0.5, np.float32)
    w, b = np.array([[3.0, -3.0], [4.0, -4.0]]), np.array([0.0, 0.0])
    result = attack.ddn(classifier(w, b), images, np.array([0]), steps=1, initial=0.2, gamma=0.5)
    assert not result.success[0]  # the logits are 3.5 and -3.5, the boundary is at distance 0.7
    np.testing.assert_allclose(result.images[0] - images[0], [-0.3 * 0.6, -0.3 * 0.8], rtol=1e-5)


def test_comes_close_to_the_nearest_point_of_a_linear_boundary():
    w, b, images, labels = random_problem(np.random.default_rng(0), classes=2)
    distance = nearest(w, b, images, labels, 2)
    seen = distance > 0.02
    result = attack.ddn(classifier(w, b), images, labels, steps=200)
    ratio = np.asarray(result.distance)[seen] / distance[seen]
    assert ratio.min() > 1 - 1e-4
    assert np.median(ratio) < 1.01


def test_moves_where_the_confidence_is_one():
    w, b, images, labels = random_problem(np.random.default_rng(1))
    confident = Classifier(lambda params, x: 2.0**14 * classifier(w, b)(x), ())  # which rounds nothing
    assert (jax.nn.softmax(confident(images)).max(1) == 1).all()
    assert attack.ddn(confident, images, labels).success.all()


@pytest.mark.parametrize("wrong", [{"norm": 1}, {"steps": 0}, {"gamma": 1.0}, {"initial": -1.0}])
def test_bad_arguments_are_refused(wrong):
    w, b, images, labels = random_problem(np.random.default_rng(2), batch=4)
    with pytest.raises(ValueError, match="must be"):
        attack.ddn(classifier(w, b), images, labels, **wrong)
