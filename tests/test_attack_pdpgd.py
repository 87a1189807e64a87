"""PDPGD: its proximal step against the minimum by scipy, and distances near the exact ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import classifier, nearest, random_problem
from scipy import optimize

from mnist_jax import attack
from mnist_jax.attack.minimal_norm.pdpgd import proximal_step


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_the_proximal_step_approaches_the_minimum(p):
    rng = np.random.default_rng(0)
    x, v = rng.uniform(0.2, 0.8, (6, 5)), rng.uniform(-0.2, 0.2, (6, 5))
    metric, weight = rng.uniform(0.7, 1, (6, 5)), rng.uniform(0.01, 0.1, 6)
    with jax.enable_x64(True):
        got = np.asarray(proximal_step(*map(jnp.asarray, (v, metric, weight, x)), p))
    for r, *row in zip(got, v, metric, weight, strict=True):

        def value(r, v, metric, weight):
            return weight * np.linalg.norm(r, p) + (metric * (r - v) ** 2).sum() / 2

        options = {"xatol": 1e-10, "fatol": 1e-12, "maxiter": 20_000, "maxfev": 20_000}
        best = optimize.minimize(value, r, tuple(row), method="Nelder-Mead", options=options).fun
        assert value(r, *row) - best < 1e-4 * best


@pytest.mark.parametrize(("p", "allowed"), [(1, 1.1), (2, 1.03), (np.inf, 1.1)])
def test_near_the_exact_distance(p, allowed):
    w, b, images, labels = random_problem(np.random.default_rng(2))
    result = attack.pdpgd(classifier(w, b), images, labels, norm=p)
    exact = nearest(w, b, images, labels, p)
    assert result.success.all()
    ratio = np.asarray(result.distance) / exact
    assert ratio.min() > 0.999
    assert np.median(ratio[exact > 0.01]) < allowed
