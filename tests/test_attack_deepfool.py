"""DeepFool: the closed form of one step, for several norms."""

import numpy as np
import pytest
from linear import apply, classifier, nearest, random_problem

from mnist_jax import Classifier, attack, geometry

CENTER = np.full((1, 2), 0.5, np.float32)
W, B = np.array([[1.5, -1.5], [2.0, -2.0]]), np.array([-1.0, 1.0])  # margin 1.5, gradient (3, 4)


@pytest.mark.parametrize(("p", "step"), [(1, (0, 1.5 / 4)), (2, (0.18, 0.24)), (np.inf, (1.5 / 7, 1.5 / 7))])
def test_one_step_and_the_overshoot(p, step):
    result = attack.deepfool(classifier(W, B), CENTER, np.array([0]), norm=p, overshoot=0.1)
    np.testing.assert_allclose(result.images[0] - CENTER[0], -1.1 * np.array(step), rtol=1e-3)
    assert result.success[0]
    assert result.gradients[0] == 1


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, np.inf])
def test_one_step_is_to_the_nearest_of_the_boundaries(p):
    w, b, images, labels = random_problem(np.random.default_rng(0), free=True)
    b = b - 0.95 * np.array([*[np.median((images.reshape(32, -1) @ w + b), 0)]])[0]  # nearer than the box
    labels = (images.reshape(32, -1) @ w + b).argmax(1)
    distance = nearest(w, b, images, labels, p)
    free = (distance > 0.002) & (distance < 0.3)
    assert free.sum() > 5
    result = attack.deepfool(classifier(w, b), images, labels, norm=p)
    np.testing.assert_allclose(result.distance[free], 1.02 * distance[free], rtol=0.01)
    assert (np.asarray(result.gradients)[free] == 4).all()


@pytest.mark.parametrize("p", [1, 1.3, 2, np.inf])
def test_pixels_at_the_limit_of_the_box_are_left_out_of_a_step(p):
    w, b, images, labels = random_problem(np.random.default_rng(1), classes=3)
    distance = nearest(w, b, images, labels, p)
    result = attack.deepfool(classifier(w, b), images, labels, norm=p)
    assert result.success.mean() > 0.9
    assert (result.distance >= distance * (1 - 1e-5)).all()


def test_targets_take_one_gradient_a_step():
    w, b, images, labels = random_problem(np.random.default_rng(2), batch=8)
    targets = (labels + 1) % 5
    seen = Classifier(apply, classifier(w, b).params)
    result = attack.deepfool(seen, images, labels, targets=targets, steps=100)
    assert (np.asarray(seen(result.images)).argmax(1) == targets)[result.success].all()
    assert result.success.mean() > 0.8
    assert (result.gradients <= 100).all()


@pytest.mark.parametrize("wrong", [{"norm": 0.5}, {"steps": 0}, {"overshoot": -1.0}, {"classes": 1}])
def test_bad_arguments_are_refused(wrong):
    w, b, images, labels = random_problem(np.random.default_rng(3), batch=4)
    with pytest.raises(ValueError, match="must be"):
        attack.deepfool(classifier(w, b), images, labels, **wrong)


@pytest.mark.filterwarnings("ignore::mnist_jax.attack.ClassifierWarning")  # its gradients all but vanish
def test_a_step_is_never_longer_than_the_box():
    flat = Classifier(lambda params, x: 1e-30 * apply(params, x) + np.array([[1.0, 0.0]], np.float32), None)
    flat = Classifier(flat.apply, classifier(W, B).params)
    result = attack.deepfool(flat, CENTER, np.array([0]), steps=3)
    assert np.isfinite(result.images).all()
    assert geometry.norm(result.images - CENTER, 2)[0] <= geometry.largest(CENTER, 2)[0]
