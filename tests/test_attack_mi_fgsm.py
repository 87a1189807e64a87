"""The sum of gradients that MI-FGSM follows."""

import jax
import numpy as np
import pytest

from mnist_jax import Classifier, attack

CENTER = np.array([0.1, 0.9, 0.45, 0.7])


def apply(params, images):
    """The margin falls towards the center, in each pixel at its own rate, and never below zero."""
    margin = 1 + ((images - CENTER[None].astype(images.dtype)) ** 2 * params[None]).sum(1)
    return jax.numpy.stack([margin, 0 * margin], 1)


@pytest.mark.parametrize("p", [2, np.inf])
@pytest.mark.parametrize("momentum", [0.0, 0.7, 1.0])
def test_follows_the_paper(p, momentum):
    weights = np.array([1.0, 3.0, 5.0, 7.0])
    images = np.random.default_rng(1).uniform(0.3, 0.6, (8, 4)).astype(np.float32)
    result = attack.mi_fgsm(
        Classifier(apply, jax.numpy.array(weights)), images, np.zeros(8, int), 0.2, norm=p, steps=7, momentum=momentum
    )
    r, total = np.zeros((8, 4)), np.zeros((8, 4))
    for _ in range(7):
        gradient = 2 * weights * (images + r - CENTER)
        total = momentum * total + gradient / np.abs(gradient).sum(1, keepdims=True)
        step = np.sign(total) if p == np.inf else total / np.linalg.norm(total, axis=1, keepdims=True)
        r = r - 0.2 / 7 * step
        size = np.linalg.norm(r, axis=1, keepdims=True)
        r = np.clip(r, -0.2, 0.2) if p == np.inf else r * np.minimum(0.2 / size, 1)
    assert not result.success.any()
    np.testing.assert_allclose(result.images, images + r, atol=2e-6)


def test_bad_arguments_are_named():
    given = (Classifier(apply, jax.numpy.ones(4)), np.full((1, 4), 0.5), np.zeros(1, int), 0.1)
    for wrong, message in (
        ({"norm": 1}, "norm must be 2 or inf"),
        ({"momentum": -1.0}, "momentum must"),
        ({"steps": 0}, "steps"),
    ):
        with pytest.raises(ValueError, match=message):
            attack.mi_fgsm(*given, **wrong)
