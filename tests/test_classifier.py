"""Classifier as a pytree and as a function, and prediction over any number of images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax import classifier, networks
from mnist_jax.classifier import Classifier
from mnist_jax.data import Split


def linear(params, images):
    return images.reshape(len(images), -1) @ params["w"] + params["b"][None]


def linear_classifier(shape, classes, seed=0):
    rng = np.random.default_rng(seed)
    w = rng.integers(-3, 4, (int(np.prod(shape)), classes)).astype(np.float32)
    return Classifier(linear, {"w": w, "b": np.arange(classes, dtype=np.float32)})


def grey_levels(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.uint8)


# As a pytree


def test_only_the_weights_are_leaves():
    network = linear_classifier((3, 2), 4)
    leaves, structure = jax.tree.flatten(network)
    assert [leaf.shape for leaf in leaves] == [(4,), (6, 4)]
    again = jax.tree.unflatten(structure, leaves)
    assert type(again) is Classifier
    assert again.apply is linear
    assert again.params["w"] is network.params["w"]
    images = np.ones((2, 3, 2), np.float32)
    negated = jax.tree.map(jnp.negative, network)
    np.testing.assert_array_equal(negated(images), -network(images))


def test_gradient_by_the_classifier():
    network, images = linear_classifier((3,), 2), np.array([[1.0, 2.0, 4.0]], np.float32)
    gradient = jax.grad(lambda network: network(images)[0, 1])(network)
    assert gradient.apply is linear
    np.testing.assert_array_equal(gradient.params["w"], [[0, 1], [0, 2], [0, 4]])
    np.testing.assert_array_equal(gradient.params["b"], [0, 1])


def test_classifiers_stack():
    several = [linear_classifier((3,), 2, seed) for seed in range(3)]
    images = np.arange(6, dtype=np.float32).reshape(2, 3)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *several)
    got = jax.vmap(lambda network: network(images))(stacked)
    np.testing.assert_array_equal(got, [network(images) for network in several])


def test_a_classifier_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        linear_classifier((3,), 2).params = {}


# As a function


@pytest.mark.parametrize(("shape", "classes"), [((), 2), ((5,), 3), ((4, 6), 7), ((8, 8, 3), 10), ((2, 3, 2, 2), 1)])
def test_any_image_shape_and_number_of_classes(shape, classes):
    network, images = linear_classifier(shape, classes), grey_levels(3, *shape).astype(np.float32)
    w = network.params["w"]
    expected = [[image.ravel() @ w[:, c] + c for c in range(classes)] for image in images]
    np.testing.assert_array_equal(network(images), expected)
    np.testing.assert_array_equal(jax.jit(Classifier.__call__)(network, images), expected)


def test_one_program_serves_all_weights_of_an_architecture():
    traces = []

    @jax.jit
    def run(network, images):
        traces.append(network.apply)
        return network(images)

    rng = np.random.default_rng(0)
    images = rng.random((2, 28, 28, 1), np.float32)

    def random_network(name):
        cls = networks.by_name(name)
        return Classifier(cls.apply, {k: rng.random(s, np.float32) for k, s in networks.shapes(cls).items()})

    logits = [np.asarray(run(random_network("MLP"), images)) for _ in range(3)]
    assert traces == [networks.MLP.apply]
    assert (logits[0] != logits[1]).all()
    # Another architecture, and another function that happens to do the same, are programs of their own.
    run(random_network("MLP_bn"), images)
    assert len(traces) == 2
    same = random_network("MLP")
    np.testing.assert_array_equal(
        run(Classifier(lambda *arguments: same.apply(*arguments), same.params), images), run(same, images)
    )
    assert len(traces) == 3


# Prediction


@pytest.mark.parametrize("count", [1, 7, 8, 20])
def test_predict(count):
    shapes = []

    def apply(params, images):
        shapes.append(images.shape)
        return linear(params, images)

    network = Classifier(apply, linear_classifier((4, 4, 1), 3).params)
    images = grey_levels(count, 4, 4, 1)
    got = classifier.predict(network, images, chunk=8)
    assert isinstance(got, np.ndarray)
    assert (got.shape, got.dtype) == ((count, 3), np.float32)
    assert shapes == [(8, 4, 4, 1)]  # traced once
    expected = images.reshape(count, -1) / 255 @ network.params["w"].astype(np.float64) + np.arange(3)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_accuracy():
    # The logits are the pixels themselves: the class is where the brightest one is.
    network = Classifier(lambda params, images: images.reshape(len(images), -1) * params, np.float32(2))
    images = grey_levels(300, 5, 1, seed=1)
    labels = images[..., 0].argmax(-1).astype(np.int32)
    assert classifier.accuracy(network, Split(images, labels)) == 1
    labels[::3] = (labels[::3] + 1) % 5
    assert classifier.accuracy(network, Split(images, labels)) == pytest.approx(2 / 3)
    assert classifier.accuracy(Classifier(network.apply, np.float32(np.nan)), Split(images, labels)) == 0
