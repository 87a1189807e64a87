"""The nearest adversarial image: exact on linear classifiers, and never farther for more effort."""

from functools import partial

import jax
import numpy as np
import pytest
from linear import classifier, nearest, random_problem

from mnist_jax import attack, data, load_classifier


@pytest.mark.parametrize("free", [False, True], ids=["box", "free"])
@pytest.mark.parametrize("p", [1, 1.5, 2, 3, 10, np.inf])
def test_linear_oracle(p, free):
    w, b, images, labels = random_problem(np.random.default_rng(0), batch=64, free=free)
    distance = nearest(w, b, images, labels, p)
    logits = images.reshape(64, -1) @ w + b
    margin = np.sort(logits)[:, -1] - np.sort(logits)[:, -2]
    with jax.enable_x64(True):
        result = attack.nearest(classifier(w, b, float), images, labels, norm=p)
    # A success has to exceed 1e-5 of the largest logit, which is of the order of a part of the margin.
    seen = np.isfinite(distance) & (margin > 0.1 * np.abs(logits).max(1))
    ratio = np.asarray(result.distance)[seen] / distance[seen]
    assert seen.sum() > 40
    assert result.success[seen].all()
    assert ratio.min() > 1 - 1e-9
    assert (ratio - 1 < 1e-4 + 2e-5 * (np.abs(logits).max(1) / margin)[seen]).all()


@pytest.mark.parametrize(("p", "efforts"), [(2, (60, 100, 140, 400)), (1, (60, 100, 140, 1000))])
def test_more_effort_is_never_farther(p, efforts):
    c, split = load_classifier("MLP-original"), data.load().val
    images, labels = np.asarray(data.normalize(split.images[:32])), split.labels[:32]
    results = [attack.nearest(c, images, labels, norm=p, effort=effort) for effort in efforts]
    attacked = results[0].distance > 0
    for less, more, effort in zip(results[:-1], results[1:], efforts[1:], strict=True):
        assert (more.distance <= less.distance * (1 + 1e-5)).all()
        assert (more.gradients[attacked] > less.gradients[attacked]).all()
        assert (more.gradients <= effort).all()
    assert results[-1].success.all()
    assert results[-1].distance.mean() < results[0].distance.mean()
    if p == 2:
        assert results[-1].distance.mean() <= 1.001 * attack.dichotomy(c, images, labels).distance.mean()


def test_blocks_are_tried_on_images_that_are_not_settled():
    c, split = load_classifier("MLP-original"), data.load().val
    images, labels = np.asarray(data.normalize(split.images[:32])), split.labels[:32]
    before, after = (attack.nearest(c, images, labels, norm=1, effort=effort) for effort in (199, 600))
    assert (before.forwards < 300).all()
    tried = np.asarray(after.forwards) >= 2 * 14 * 14
    assert tried.any()
    assert not tried.all()
    assert (after.distance[tried] < before.distance[tried]).any()


def test_distances_are_what_they_are_said_to_be():
    c, split = load_classifier("CNN-original"), data.load().val
    images, labels = np.asarray(data.normalize(split.images[:8])), split.labels[:8]
    result = attack.nearest(c, images, labels, norm=np.inf, effort="fast")
    assert result.success.all()
    assert (np.asarray(c(result.images)).argmax(1) != labels).all()
    assert (result.images >= 0).all()
    assert (result.images <= 1).all()
    lengths = np.abs(np.asarray(result.images) - images).reshape(8, -1).max(1)
    np.testing.assert_allclose(result.distance, lengths, rtol=1e-5)


def test_inside_a_jitted_function():
    w, b, images, labels = random_problem(np.random.default_rng(4), batch=8)
    run = partial(attack.nearest, classifier(w, b), effort=60)
    images = images.astype(np.float32)
    np.testing.assert_allclose(jax.jit(run)(images, labels).distance, run(images, labels).distance, rtol=1e-4)


@pytest.mark.parametrize("wrong", [{"effort": "much"}, {"effort": 0}, {"norm": 0.5}])
def test_bad_arguments_are_refused(wrong):
    w, b, images, labels = random_problem(np.random.default_rng(5), batch=4)
    with pytest.raises(ValueError, match="must be"):
        attack.nearest(classifier(w, b), images, labels, **wrong)
