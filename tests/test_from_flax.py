"""Flax modules as classifiers: the module's own logits in evaluation mode, and one program for all weights."""

import jax
import numpy as np
import pytest
from flax import linen, nnx

from mnist_jax import Preprocess, attack, certify, from_flax

SHAPE = (4, 4, 2)
IMAGES = np.random.default_rng(0).random((3, *SHAPE), np.float32)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (2, 2), rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(48, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.last(self.dropout(x.reshape(len(x), -1)))


class Linen(linen.Module):
    features: int = 3

    @linen.compact
    def __call__(self, x, train):
        x = linen.BatchNorm(use_running_average=not train)(linen.Conv(self.features, (2, 2))(x))
        x = linen.Dropout(0.5, deterministic=not train)(linen.relu(x))
        return linen.Dense(3)(x.reshape(len(x), -1))


def of_nnx(seed):
    module = Nnx(nnx.Rngs(seed))
    module(IMAGES)  # changes the running statistics
    return module, from_flax(module)


def of_linen(seed):
    module = Linen()
    variables = module.init(jax.random.key(seed), IMAGES, train=False)
    statistics = jax.tree.map(lambda x: x + 0.1, variables["batch_stats"])
    variables = {"params": variables["params"], "batch_stats": statistics}
    return (module, variables), from_flax(module, variables, train=False)


@pytest.mark.parametrize("made", [of_nnx, of_linen])
def test_logits_in_evaluation_mode_and_one_program_for_all_weights(made):
    original, classifier = made(0)
    if made is of_nnx:
        assert not original.dropout.deterministic  # the module stays in training mode
        evaluating = nnx.clone(original)
        evaluating.eval()
        expected = evaluating(IMAGES)
    else:
        expected = original[0].apply(original[1], IMAGES, train=False)
    np.testing.assert_allclose(classifier(IMAGES), expected, rtol=1e-6)
    np.testing.assert_allclose(classifier(IMAGES[:1]), expected[:1], rtol=1e-5)
    other = made(1)[1]
    assert (other.apply, hash(other.apply)) == (classifier.apply, hash(classifier.apply))
    assert {leaf.shape for leaf in jax.tree.leaves(classifier)} >= {(2, 2, 2, 3), (3,), (48, 3)}
    traces = []

    @jax.jit
    def run(network, images):
        traces.append(1)
        return network(images)

    assert (np.asarray(run(classifier, IMAGES)) != np.asarray(run(other, IMAGES))).any()
    assert len(traces) == 1


def test_attacks_and_certificates_work_on_it():
    _, classifier = of_nnx(0)
    radius = certify.largest_radius(classifier, IMAGES, None, rounds=3, method=certify.ibp)
    assert (radius > 0).all()
    assert not attack.fgsm(classifier, IMAGES, None, radius).success.any()
    assert attack.fgsm(classifier, IMAGES, None, np.ones(3)).success.any()


def test_preprocessing_and_bounds_are_passed_on():
    module, classifier = of_nnx(0)
    bytes_ = from_flax(module, preprocess=Preprocess(0, 255), bounds=(0, 255))
    np.testing.assert_allclose(bytes_(255 * IMAGES), classifier(IMAGES), rtol=1e-4, atol=1e-5)


def test_what_is_refused():
    with pytest.raises(ValueError, match="needs its variables"):
        from_flax(Linen())
    with pytest.raises(ValueError, match="its mode itself"):
        from_flax(Nnx(nnx.Rngs(0)), train=False)
    with pytest.raises(ValueError, match="not function"):
        from_flax(lambda images: images)
