"""Projected gradient descent: its steps, its starts and its restarts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import classifier, nearest, random_problem

from mnist_jax import Classifier, attack, losses
from mnist_jax.attack.engine.problem import Problem
from mnist_jax.attack.fixed_radius.pgd import kernel


def binary(seed=1, batch=16):
    w, b, images, labels = random_problem(np.random.default_rng(seed), batch=batch, classes=2)
    return w, b, images.astype(np.float32), labels


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_one_step_is_projected_onto_the_ball_and_the_box(p):
    w, b, images, labels = binary()
    result = attack.pgd(classifier(w, b), images, labels, 0.5, norm=p, steps=1, share=0.15)
    gradient = (w[:, labels] - w[:, 1 - labels]).T
    x = images.reshape(16, -1)
    if p == 1:  # three of the twenty pixels, of those that can move
        gradient = np.where(((x == 0) & (gradient > 0)) | ((x == 1) & (gradient < 0)), 0, gradient)
        gradient = np.where(np.abs(gradient) >= np.sort(np.abs(gradient), 1)[:, [-3]], gradient, 0)
        direction = np.sign(gradient) / 3
    else:
        direction = np.sign(gradient) if p == np.inf else gradient / np.linalg.norm(gradient, axis=1)[:, None]
    step = -1.25 * direction  # 2.5 times the radius
    # The projection, by bisection on its multiplier.
    low, high = np.zeros((16, 1)), np.full((16, 1), 100.0)
    for _ in range(60):
        middle = (low + high) / 2
        a = {1: np.maximum(np.abs(step) - middle, 0), 2: np.abs(step) / (1 + middle)}.get(p, np.abs(step).clip(0, 0.5))
        r = np.clip(x + np.sign(step) * a, 0, 1) - x
        over = np.linalg.norm(r, p, axis=1, keepdims=True) > 0.5
        low, high = np.where(over, middle, low), np.where(over, high, middle)
    there = np.asarray(result.distance) > 0
    np.testing.assert_allclose(result.images.reshape(16, -1)[there], (x + r)[there], atol=1e-5)


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_succeeds_beyond_the_exact_distance_and_fails_below_it(p):
    w, b, images, labels = binary(2, 32)
    distance = nearest(w, b, images.astype(float), labels, p)
    run = partial(attack.pgd, classifier(w, b), images, labels, norm=p, steps=60, step_size=0.1 * distance, share=0.05)
    clear = distance > 0.05
    assert run(radius=1.05 * distance).success[clear].mean() > 0.95
    assert not run(radius=0.999 * distance).success.any()


def walls(params, images):
    """Fooled only near the upper left corner of the square, with a gradient that leads there from one half of it."""
    u, v = images[:, 0], images[:, 1]
    near = 0.2 - jnp.maximum(u, 1 - v)
    return jnp.stack([jnp.zeros_like(u), jnp.where(u < v, near, -1 + 0 * u)], 1)


@pytest.mark.filterwarnings("ignore::mnist_jax.attack.ClassifierWarning")  # in places there is no gradient
def test_restarts_go_on_until_an_image_is_broken():
    images, labels = jnp.full((64, 2), jnp.array([0.6, 0.4])), jnp.zeros(64, int)
    run = partial(attack.pgd, Classifier(walls, ()), images, labels, 1.0, steps=5, key=jax.random.key(1))
    once, often = run(), run(restarts=8)
    assert 0.2 < once.success.mean() < 0.8
    assert often.success.mean() > 0.95
    np.testing.assert_allclose(often.images[once.success], once.images[once.success], atol=1e-6)
    assert (often.gradients[once.success] == 5).all()
    assert (often.gradients[~once.success] > 5).all()
    assert (often.gradients <= 40).all()


@pytest.mark.filterwarnings("ignore::mnist_jax.attack.ClassifierWarning")  # in places there is no gradient
def test_starts_at_the_image_without_a_key_and_anywhere_with_one():
    constant = Classifier(lambda params, x: jnp.zeros((len(x), 3), x.dtype) + jnp.arange(3.0, dtype=x.dtype)[None], ())
    images = jnp.full((64, 4, 4), 0.5)
    run = partial(attack.pgd, constant, images, None, 0.3, steps=1)
    np.testing.assert_array_equal(run().images, images)
    r = run(key=jax.random.key(1)).images - images
    assert jnp.abs(r).max() <= 0.3 + 1e-6
    assert len(np.unique(r)) > 1000
    again = run(restarts=3)  # the further runs of no key are always the same
    np.testing.assert_array_equal(again.images, run(restarts=3).images)
    assert (again.images != images).any()


def test_a_key_for_each_image():
    w, b, images, labels = binary()
    keys = jax.random.split(jax.random.key(1), 16)
    run = partial(attack.pgd, classifier(w, b), radius=0.3, steps=3)
    together = run(images, labels, key=jax.random.key(1))
    np.testing.assert_array_equal(together.images, run(images, labels, key=keys).images)
    np.testing.assert_allclose(together.images[9:10], run(images[9:10], labels[9:10], key=keys[9:10]).images, atol=1e-6)
    with pytest.raises(ValueError, match="key must be one key, or one for each of the 16 images"):
        run(images, labels, key=keys[:3])


def test_the_kernel_runs_inside_a_training_step():
    """As adversarial training calls it: without the driver, in one program with the gradient by the weights."""
    w, b, images, labels = random_problem(np.random.default_rng(0), batch=16)
    c, x = classifier(w, b), jnp.asarray(images, jnp.float32)
    given = Problem(x, jnp.asarray(labels, jnp.int32), None)
    radius, keys = jnp.full(16, 0.1), jax.random.split(jax.random.key(0), 16)
    how = {"norm": np.inf, "step_size": None, "steps": 5, "restarts": 1, "share": 0.01, "at_image": True}

    @jax.jit
    def step(params):
        found = kernel(Classifier(c.apply, params), given, keys, radius=radius, loss=losses.log_odds, **how)
        adversarial = jax.lax.stop_gradient(given.at(found.r))
        return adversarial, *jax.value_and_grad(partial(mean_loss, adversarial))(params)

    def mean_loss(images, params):
        return losses.cross_entropy(c.apply(params, images), given.labels).mean()

    adversarial, loss, slopes = step(c.params)
    wanted = attack.pgd(c, images, labels, 0.1, steps=5)
    np.testing.assert_allclose(adversarial, wanted.images, atol=1e-6)
    assert loss > losses.cross_entropy(c(x), given.labels).mean()
    assert np.abs(slopes["w"]).max() > 0
