"""Prediction over any number of images, and accuracy."""

import linear
import numpy as np
import pytest
from linear import grey_levels, whole_numbers

from mnist_jax import evaluation
from mnist_jax.classifier import Classifier
from mnist_jax.data import Split


@pytest.mark.parametrize("count", [1, 7, 8, 20])
def test_predict(count):
    shapes = []

    def apply(params, images):
        shapes.append(images.shape)
        return linear.apply(params, images)

    network = Classifier(apply, whole_numbers((4, 4, 1), 3).params)
    images = grey_levels(count, 4, 4, 1)
    got = evaluation.predict(network, images, chunk=8)
    assert isinstance(got, np.ndarray)
    assert (got.shape, got.dtype) == ((count, 3), np.float32)
    assert shapes == [(8, 4, 4, 1)]  # traced once
    expected = images.reshape(count, -1) / 255 @ network.params["w"].astype(np.float64) + np.arange(3)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_accuracy():
    # The logits are the pixels, so the class is the index of the brightest pixel.
    network = Classifier(lambda params, images: images.reshape(len(images), -1) * params, np.float32(2))
    images = grey_levels(300, 5, 1, seed=1)
    labels = images[..., 0].argmax(-1).astype(np.int32)
    assert evaluation.accuracy(network, Split(images, labels)) == 1
    labels[::3] = (labels[::3] + 1) % 5
    assert evaluation.accuracy(network, Split(images, labels)) == pytest.approx(2 / 3)
    assert evaluation.accuracy(Classifier(network.apply, np.float32(np.nan)), Split(images, labels)) == 0
