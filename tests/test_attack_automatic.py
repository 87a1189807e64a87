"""Method B: it succeeds where the confidence is 1, too, and its history agrees with its result."""

import jax
import numpy as np
import pytest
from linear import classifier, nearest, random_problem

from mnist_jax import Classifier, attack, data, load_classifier
from mnist_jax.attack.minimal_norm.automatic import history


@pytest.mark.parametrize("p", [1, 2, 5, np.inf])
def test_fools_a_linear_classifier_not_far_from_the_boundary(p):
    w, b, images, labels = random_problem(np.random.default_rng(0), classes=3)
    result = attack.automatic(classifier(w, b), images, labels, norm=p)
    distance = nearest(w, b, images, labels, p)
    assert result.success.all()
    assert (result.distance >= distance * (1 - 1e-5)).all()
    assert np.median(result.distance / distance) < 3


def test_moves_where_the_confidence_is_one():
    w, b, images, labels = random_problem(np.random.default_rng(1))
    confident = Classifier(lambda params, x: 2.0**14 * classifier(w, b)(x), ())  # which rounds nothing
    assert (jax.nn.softmax(confident(images)).max(1) == 1).all()
    assert attack.automatic(confident, images, labels).success.all()


def test_fools_the_images_that_the_dichotomy_fools():
    c, split = load_classifier("MLP-original"), data.load().val
    images, labels = np.asarray(data.normalize(split.images[:16])), split.labels[:16]
    ours, best = attack.automatic(c, images, labels), attack.dichotomy(c, images, labels)
    assert ours.success.all()
    assert (np.asarray(c(ours.images)).argmax(1) != labels).all()
    attacked = best.distance > 0
    assert np.median(ours.distance[attacked] / best.distance[attacked]) < 1.2


def test_history():
    w, b, images, labels = random_problem(np.random.default_rng(2))
    result, way = history(classifier(w, b), images, labels, steps=50)
    assert way.confidence.shape == way.norm.shape == (32, 50)
    np.testing.assert_allclose(
        way.confidence[:, 0], jax.nn.softmax(classifier(w, b)(images.astype(np.float32))).max(1), rtol=1e-4
    )
    assert (way.norm[:, 0] == 0).all()
    near = np.abs(np.asarray(way.norm) - np.asarray(result.distance)[:, None]).min(1)
    assert (near[result.success] < 1e-5).all()  # the image that was kept is one of the steps


def test_targets_and_keys():
    w, b, images, labels = random_problem(np.random.default_rng(3))
    c, targets = classifier(w, b), (labels + 1) % 5
    result = attack.automatic(c, images, labels, targets=targets)
    assert result.success.mean() > 0.8
    assert (np.asarray(c(result.images)).argmax(1) == targets)[result.success].all()
    one, two = (attack.automatic(c, images, labels, key=jax.random.key(k)).images for k in (1, 2))
    assert not np.array_equal(one, two)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"thresholds": (0.1, 0.2)}, {"norm": 0.5}])
def test_bad_arguments_are_refused(wrong):
    w, b, images, labels = random_problem(np.random.default_rng(4), batch=4)
    with pytest.raises(ValueError, match="must"):
        attack.automatic(classifier(w, b), images, labels, **wrong)
