"""ALMA: the slope of its penalty, the length of its first step, and distances near the exact ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import classifier, nearest, random_problem

from mnist_jax import Classifier, attack
from mnist_jax.attack.minimal_norm.alma import penalty_slope, rate_of


def penalty(y, ρ, μ):
    return jnp.where(y >= 0, μ * y + μ * ρ * y**2 + ρ**2 * y**3 / 6, μ * y / (1 - ρ * jnp.minimum(y, 0)))


def test_the_slope_is_the_derivative_of_the_penalty():
    y, ρ, μ = jnp.linspace(-3, 3, 61), jnp.full(61, 1.7), jnp.full(61, 0.4)
    wanted = jax.grad(lambda y: penalty(y, ρ, μ).sum())(y)
    np.testing.assert_allclose(penalty_slope(y, ρ, μ), wanted, rtol=1e-5)
    np.testing.assert_allclose(penalty_slope(0 * y, ρ, μ), μ)


@pytest.mark.parametrize("p", [1, 2])
def test_the_first_step_is_as_long_as_asked_or_half_of_what_the_box_allows(p):
    rng = np.random.default_rng(0)
    g, x = rng.normal(size=(32, 5, 4)).astype(np.float32), rng.uniform(size=(32, 5, 4)).astype(np.float32)
    x[:, :2] = np.round(x[:, :2])
    g[0] = 0
    lengths = []
    for length in (0.3, 1e6):
        rate = np.asarray(rate_of(jnp.asarray(g), jnp.asarray(x), length, p))[:, None, None]
        step = np.clip(x - rate * g, 0, 1) - x
        lengths.append(np.linalg.norm(step.reshape(32, -1), p, axis=1))
    farthest = np.linalg.norm(np.where(g > 0, x, (1 - x) * (g < 0)).reshape(32, -1), p, axis=1)
    np.testing.assert_allclose(lengths[0], np.minimum(0.3, farthest / 2), rtol=1e-4)
    np.testing.assert_allclose(lengths[1], farthest / 2, rtol=1e-4)


def test_the_scale_of_the_logits_does_not_matter():
    w, b, images, labels = random_problem(np.random.default_rng(1))
    c = classifier(w, b)
    scaled = Classifier(lambda params, x: 2.0**13 * c(x), ())  # a power of two, which rounds nothing
    one, other = (attack.alma(network, images, labels, steps=50) for network in (c, scaled))
    assert one.success.all()
    np.testing.assert_allclose(one.distance, other.distance, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("p", "classes"), [(1, 5), (2, 5), (2, 2)])
def test_near_the_exact_distance(p, classes):
    w, b, images, labels = random_problem(np.random.default_rng(2), classes=classes)
    result = attack.alma(classifier(w, b), images, labels, norm=p, steps=300)
    exact = nearest(w, b, images, labels, p)
    assert result.success.all()
    ratio = np.asarray(result.distance) / exact
    assert ratio.min() > 0.999
    assert np.median(ratio[exact > 0.01]) < {1: 1.25, 2: 1.02}[p]


@pytest.mark.parametrize("wrong", [{"norm": 3}, {"steps": 0}, {"memory": 1.0}])
def test_bad_arguments_are_refused(wrong):
    w, b, images, labels = random_problem(np.random.default_rng(3), batch=4)
    with pytest.raises(ValueError, match="must be"):
        attack.alma(classifier(w, b), images, labels, **wrong)
