"""The minimum of a linear function over ball and box, against exact solutions in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.certify.region import Region
from mnist_jax.geometry import INF, exact_norm

SHAPE = (5, 4, 1)
LANES = 64  # problems in a batch: each an image, a radius and a linear function


def least(a, x, radius, p):
    """The exact minimum of `<a, y - x>` over images y in [0, 1] within the radius of x, for each row `[LANES]`."""
    values = []
    for a_, x_, r in zip(a, x, radius, strict=True):
        room = np.where(a_ > 0, x_, 1 - x_)
        size = np.abs(a_)
        if p == INF:
            values.append(-(size * np.minimum(room, r)).sum())
        elif p == 1:
            order = np.argsort(-size)
            before = np.cumsum(room[order]) - room[order]
            values.append(-(size[order] * np.clip(r - before, 0, room[order])).sum())
        else:
            low, high = 0.0, 1e9
            for _ in range(200):
                middle = (low + high) / 2
                longer = np.linalg.norm(np.minimum(size * middle, room)) > r
                low, high = (low, middle) if longer else (middle, high)
            values.append(-(size * np.minimum(size * low, room)).sum())
    return np.array(values)


def problem(seed):
    """Coefficients and images `[LANES, *SHAPE]`, some of them 0 or 1, and radii `[LANES]` from 0 to 10, two huge."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(LANES, *SHAPE)).astype(np.float32)
    x[rng.uniform(size=x.shape) < 0.3] = 0
    x[rng.uniform(size=x.shape) < 0.1] = 1
    radius = (10.0 ** rng.uniform(-4, 1, LANES)).astype(np.float32)
    a = rng.normal(size=(LANES, *SHAPE)) * 10.0 ** rng.integers(-3, 4, (LANES, 1, 1, 1))
    a[rng.uniform(size=a.shape) < 0.1] = 0
    a[0], radius[:3] = 0, (1e25, 0, 1e25)
    return a.astype(np.float32), x, radius


@pytest.mark.parametrize("p", [1, 2, INF])
def test_the_bound_is_below_the_least_value_and_next_to_it(p):
    bound = jax.jit(lambda a, x, r: Region.around(x, r).least(jnp.moveaxis(a, 0, -1)[None], p))
    for seed in range(3):
        a, x, radius = problem(seed)
        region = Region.around(jnp.asarray(x), jnp.asarray(radius))
        value, d = bound(a, x, radius)
        rows, images = (z.reshape(LANES, -1).astype(float) for z in (a, x))
        center = np.moveaxis(np.asarray(region.center, float)[0], -1, 0).reshape(LANES, -1)
        exact = least(rows, images, radius.astype(float), p) - (rows * (center - images)).sum(1)
        scale = (np.abs(rows) * (np.minimum(radius[:, None], 1) + 1e-2)).sum(1) + 1e-30
        assert (np.asarray(value, float) <= exact).all()
        assert ((exact - np.asarray(value, float)) / scale).max() < 2e-3
        assert np.median((exact - np.asarray(value, float)) / scale) < 2e-4
        found = np.asarray(jax.jit(Region.at)(region, d), float)
        assert ((found >= 0) & (found <= 1)).all()
        assert (exact_norm(found - x, p) <= radius).all()
        reached = (rows * (found.reshape(LANES, -1) - images)).sum(1) - (rows * (center - images)).sum(1)
        assert np.median((reached - exact) / scale) < 1e-2


@pytest.mark.parametrize("p", [1, 2, INF])
def test_bounds_of_the_same_functions_for_all_images_are_those_of_each(p):
    a, x, radius = problem(5)
    region = Region.around(jnp.asarray(x), jnp.asarray(radius))
    of_all = jax.jit(lambda a: region.least_of_all(a, p))(jnp.moveaxis(jnp.asarray(a[:7]), 0, -1)[None])
    assert of_all.shape == (7, LANES)
    for i in (0, 3):
        own = Region(*(z[..., i : i + 1] for z in region)).least(jnp.moveaxis(jnp.asarray(a[:7]), 0, -1)[None], p)[0]
        np.testing.assert_allclose(of_all[:, i], own, rtol=1e-4, atol=1e-4)


def test_the_box_around_the_center_has_all_of_the_region():
    _, x, radius = problem(6)
    region = jax.tree.map(lambda z: np.asarray(z, float), jax.jit(Region.around)(x, radius))
    x, radius = x.astype(float), radius.astype(float)[:, None, None, None]
    low, high = np.maximum(x - radius, 0), np.minimum(x + radius, 1)
    center, width = (np.moveaxis(z[0], -1, 0) for z in (region.center, region.width))
    assert (center - width <= low).all()
    assert (high <= center + width).all()
