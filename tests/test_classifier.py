"""Classifier as a pytree and as a function."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import apply, grey_levels, whole_numbers

from mnist_jax import networks
from mnist_jax.classifier import Classifier

# As a pytree


def test_only_the_weights_are_leaves():
    network = whole_numbers((3, 2), 4)
    leaves, structure = jax.tree.flatten(network)
    assert [leaf.shape for leaf in leaves] == [(4,), (6, 4)]
    again = jax.tree.unflatten(structure, leaves)
    assert type(again) is Classifier
    assert again.apply is apply
    assert again.params["w"] is network.params["w"]
    images = np.ones((2, 3, 2), np.float32)
    negated = jax.tree.map(jnp.negative, network)
    np.testing.assert_array_equal(negated(images), -network(images))


def test_gradient_by_the_classifier():
    network, images = whole_numbers((3,), 2), np.array([[1.0, 2.0, 4.0]], np.float32)
    gradient = jax.grad(lambda network: network(images)[0, 1])(network)
    assert gradient.apply is apply
    np.testing.assert_array_equal(gradient.params["w"], [[0, 1], [0, 2], [0, 4]])
    np.testing.assert_array_equal(gradient.params["b"], [0, 1])


def test_classifiers_stack():
    several = [whole_numbers((3,), 2, seed) for seed in range(3)]
    images = np.arange(6, dtype=np.float32).reshape(2, 3)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *several)
    got = jax.vmap(lambda network: network(images))(stacked)
    np.testing.assert_array_equal(got, [network(images) for network in several])


def test_a_classifier_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        whole_numbers((3,), 2).params = {}


# As a function


@pytest.mark.parametrize(("shape", "classes"), [((), 2), ((5,), 3), ((4, 6), 7), ((8, 8, 3), 10), ((2, 3, 2, 2), 2)])
def test_any_image_shape_and_number_of_classes(shape, classes):
    network, images = whole_numbers(shape, classes), grey_levels(3, *shape).astype(np.float32)
    w = network.params["w"]
    expected = [[image.ravel() @ w[:, c] + c for c in range(classes)] for image in images]
    np.testing.assert_array_equal(network(images), expected)
    np.testing.assert_array_equal(jax.jit(Classifier.__call__)(network, images), expected)


@pytest.mark.parametrize(
    ("answer", "given"),
    [
        (lambda images: images[:, :1], r"float32 \[3, 1\]"),  # one output says nothing of two classes
        (lambda images: images[:, 0], r"float32 \[3\]"),
        (lambda images: images[:2], r"float32 \[2, 5\]"),
        (lambda images: images[:, :, None], r"float32 \[3, 5, 1\]"),
        (lambda images: images.astype(int), r"int\d+ \[3, 5\]"),
        (lambda images: (images, images), "tuple"),
        (lambda images: 0.0, "float"),
    ],
)
def test_functions_that_do_not_give_logits_are_refused(answer, given):
    network = Classifier(lambda params, images: answer(images), ())
    with pytest.raises(ValueError, match=f"must give floating logits .* not {given}"):
        network(np.ones((3, 5), np.float32))


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
    np.testing.assert_allclose(
        run(Classifier(lambda *arguments: same.apply(*arguments), same.params), images), run(same, images), rtol=1e-5
    )
    assert len(traces) == 3
