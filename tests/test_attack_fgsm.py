"""FGSM: one step along the dual direction of the gradient."""

import jax.numpy as jnp
import numpy as np
import pytest
from linear import classifier, random_problem

from mnist_jax import Classifier, attack


def binary(free):
    """Two classes, and the gradient of the label's log-odds, which is that of the margin, at every image."""
    w, b, images, labels = random_problem(np.random.default_rng(1), batch=16, classes=2, free=free)
    gradient = (w[:, labels] - w[:, 1 - labels]).T.reshape(images.shape)
    return classifier(w, b), images.astype(np.float32), labels, gradient


def test_the_sign_of_the_gradient_for_inf():
    c, images, labels, gradient = binary(free=False)
    result = attack.fgsm(c, images, labels, 0.2)
    moved = np.clip(images - 0.2 * np.sign(gradient), 0, 1)
    there = np.asarray(result.distance) > 0
    np.testing.assert_allclose(result.images[there], moved[there], atol=1e-6)
    assert (result.gradients == 1).all()


def test_the_gradient_over_its_norm_for_2_and_a_pixel_for_1():
    c, images, labels, gradient = binary(free=True)
    rows = gradient.reshape(16, -1)
    r = attack.fgsm(c, images, labels, 0.1, norm=2).images - images
    np.testing.assert_allclose(r.reshape(16, -1), -0.1 * rows / np.linalg.norm(rows, axis=1)[:, None], atol=1e-6)
    r = np.asarray(attack.fgsm(c, images, labels, 0.1, norm=1).images - images).reshape(16, -1)
    assert (np.abs(r).argmax(1) == np.abs(rows).argmax(1)).all()
    np.testing.assert_allclose(np.abs(r).sum(1), 0.1, atol=1e-6)


def test_a_confident_network_has_a_gradient():
    c, images, labels, _ = binary(free=False)
    confident = Classifier(lambda params, x: 1e4 * c(x), ())
    np.testing.assert_array_equal(
        attack.fgsm(confident, images, labels, 0.3).images, attack.fgsm(c, images, labels, 0.3).images
    )


def test_a_radius_for_each_image():
    c, images, labels, _ = binary(free=True)
    radius = jnp.linspace(0, 0.1, 16)
    r = attack.fgsm(c, images, labels, radius).images - images
    np.testing.assert_allclose(jnp.abs(r).max((1, 2, 3)), radius, atol=1e-6)


def test_other_norms_are_refused():
    c, images, labels, _ = binary(free=True)
    with pytest.raises(ValueError, match="norm must be 1 or 2 or inf, not 3"):
        attack.fgsm(c, images, labels, 0.1, norm=3)
