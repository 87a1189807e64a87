"""`fixed_norm`: perturbations are on the sphere and in the box, and it succeeds where a linear classifier allows it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import classifier, nearest, random_problem

from mnist_jax import Classifier, attack, data, geometry, load_classifier

NORMS = (1, 1.5, 2, 3, np.inf)


def lengths(result, images, p):
    r = np.asarray(result.images, float) - np.asarray(images, float)
    return np.linalg.norm(r.reshape(len(r), -1), p, axis=1)


@pytest.mark.parametrize("p", NORMS)
def test_every_attempt_is_on_the_sphere_and_in_the_box(p):
    rng = np.random.default_rng(1)
    w, b, images, labels = random_problem(rng, batch=64, classes=2)
    images = images.astype(np.float32)
    radius = np.asarray(geometry.largest(jnp.asarray(images), p)) * rng.uniform(0.001, 1, 64).astype(np.float32)
    result = attack.fixed_norm(classifier(w, b), images, labels, radius, norm=p, steps=60, learning_rate=0.03)
    assert (result.images >= 0).all()
    assert (result.images <= 1).all()
    np.testing.assert_allclose(lengths(result, images, p), radius, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(result.distance[result.success], radius[result.success], rtol=1e-5, atol=2e-6)
    assert np.isinf(result.distance[~result.success]).all()


@pytest.mark.parametrize("p", NORMS)
def test_succeeds_beyond_the_exact_distance_and_fails_below_it(p):
    w, b, images, labels = random_problem(np.random.default_rng(2), batch=64, classes=2)
    distance = nearest(w, b, images, labels, p)
    run = partial(attack.fixed_norm, classifier(w, b), images, labels, norm=p, steps=60)
    run = partial(run, learning_rate=0.3 if p == 1 else 0.03)
    clear = distance > 0.05  # the others are closer than a success has to be
    reach = np.asarray(geometry.largest(jnp.asarray(images), p))
    assert run(radius=np.minimum(1.05 * distance, reach)).success[clear & (1.05 * distance < reach)].all()
    assert not run(radius=0.999 * distance).success.any()


def test_a_radius_out_of_reach_fails_for_that_image_only():
    images = jnp.stack([jnp.full((2, 2), 0.5), jnp.zeros((2, 2))])
    w = np.array([[1.0, -1.0]] * 4)
    c = classifier(w, np.array([1.0, 3.0]))  # logits 3 and 1 for gray; 1 and 3 for black
    result = attack.fixed_norm(c, images, jnp.array([0, 1]), 1.5, norm=2, steps=20, learning_rate=0.1)
    assert result.success.tolist() == [False, True]
    assert result.distance.tolist() == [np.inf, pytest.approx(1.5, rel=1e-5)]
    assert np.isfinite(result.images).all()


def test_a_misclassified_image_comes_back_as_it_is():
    w, b, images, labels = random_problem(np.random.default_rng(3), batch=8)
    wrong = (labels + np.arange(8) % 2) % 5
    result = attack.fixed_norm(classifier(w, b), images, wrong, 1.0, steps=5)
    as_is = wrong != labels
    np.testing.assert_array_equal(result.images[as_is], images[as_is].astype(np.float32))
    assert (result.distance[as_is] == 0).all()
    assert result.success[as_is].all()
    assert (result.gradients[as_is] == 0).all()
    assert (result.gradients[~as_is] == 5).all()


def test_targets_are_reached():
    w, b, images, labels = random_problem(np.random.default_rng(4), batch=32)
    targets = (labels + 2) % 5
    c = classifier(w, b)
    result = attack.fixed_norm(c, images, labels, 2.0, steps=40, learning_rate=0.05, targets=targets)
    assert result.success.mean() > 0.8
    assert (np.asarray(c(result.images)).argmax(1) == targets)[result.success].all()


def test_labels_are_the_predictions_unless_given():
    w, b, images, labels = random_problem(np.random.default_rng(5))
    run = partial(attack.fixed_norm, classifier(w, b), images, radius=1.0, steps=5)
    for ours, theirs in zip(run(labels=None), run(labels=labels), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_margin_has_a_gradient_where_confidence_has_none():
    w, b, images, labels = random_problem(np.random.default_rng(6), classes=3)
    confident = Classifier(lambda params, x: 2.0**14 * classifier(w, b)(x), ())  # which rounds nothing
    run = partial(attack.fixed_norm, confident, images, labels, 2.0, steps=30, learning_rate=0.05)
    assert run().success.all()
    assert run(loss="log_odds").success.all()
    assert not run(loss="confidence").success.all()
    assert run(loss=lambda logits, labels: jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]).success.any()


def test_an_image_does_not_depend_on_its_neighbours():
    c, split = load_classifier("MLP-original"), data.load().val
    images, labels = np.asarray(data.normalize(split.images[:8])), split.labels[:8]
    run = partial(attack.fixed_norm, c, radius=0.6, steps=15, learning_rate=0.05)
    together, others = run(images, labels), run(images[[0, 7, 7, 7, 7, 7, 7, 7]], labels[[0, 7, 7, 7, 7, 7, 7, 7]])
    np.testing.assert_array_equal(together.images[0], others.images[0])
    alone = run(images[:1], labels[:1])
    assert alone.success[0] == together.success[0]
    np.testing.assert_allclose(alone.images[0], together.images[0], atol=1e-4)


def test_nothing_is_random_without_a_key():
    w, b, images, labels = random_problem(np.random.default_rng(7))
    run = partial(attack.fixed_norm, classifier(w, b), images, labels, 1.0, steps=5)
    np.testing.assert_array_equal(run().images, run().images)
    np.testing.assert_array_equal(run(key=jax.random.key(1)).images, run(key=jax.random.key(1)).images)
    assert not np.array_equal(run(key=jax.random.key(1)).images, run(key=jax.random.key(2)).images)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"norm": 0.5}, "norm must be"),
        ({"steps": 0}, "steps must be"),
        ({"radius": -1.0}, "radius must be at least 0"),
        ({"radius": np.ones(3)}, "one for each of the 4 images"),
        ({"loss": "nope"}, "loss must be"),
        ({"labels": np.zeros(3, int)}, "labels must be 4 integers"),
        ({"targets": np.zeros(4)}, "targets must be 4 integers"),
        ({"images": np.full((4, 5, 4, 1), 255.0)}, "divide bytes by 255"),
        ({"images": np.zeros(4)}, "images must be an array"),
    ],
)
def test_bad_arguments_are_named(wrong, message):
    w, b, images, labels = random_problem(np.random.default_rng(8), batch=4)
    with pytest.raises(ValueError, match=message):
        attack.fixed_norm(classifier(w, b), **{"images": images, "labels": labels, "radius": 1.0, "steps": 2} | wrong)
