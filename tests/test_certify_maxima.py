"""Planes above maxima of affine functions against the maxima, exact minima, and chords."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from mnist_jax import Classifier, certify, layers
from mnist_jax.certify import driver, linear
from mnist_jax.certify.maxima import Maxima, Slopes
from mnist_jax.geometry import INF
from mnist_jax.jaxprs import program, window

SHAPE = (8, 6, 1)  # after a convolution of 3x3 and a pool of 2x2 there are 3x2 maxima


def test_no_maximum_is_above_its_plane_at_a_corner_of_the_box():
    """Both are convex or linear, so that the corners suffice; a function that is left out may be above."""
    rng = np.random.default_rng(0)
    entries, pixels = np.array([[3, 0], [1, 2]]), np.array([[0, 1, 2, 5], [2, 3, 4, 6]])  # of 6 pixels; 6 is none
    weights = rng.normal(size=(3, 2, 2, 4))
    weights[:, 1, :, 3] = 0
    width, at = rng.uniform(size=(6, 5)), rng.normal(size=(3, 2, 2, 5))
    alive = rng.uniform(size=at.shape) < 0.7
    alive[0] = True
    given = (jnp.asarray(part, jnp.float32) for part in (weights, width, at))
    weights, width, at = given
    tops = Maxima(entries, pixels, weights, width, at, jnp.asarray(alive), jax.nn.softmax(at, 0))
    corners = np.array(list(itertools.product([-1, 1], repeat=6)))[:, :, None] * np.asarray(width, float)
    corners = np.concatenate([corners, np.zeros((64, 1, 5))], 1)
    f = np.einsum("kblq,cbqn->ckbln", np.asarray(weights, float), corners[:, pixels]) + np.asarray(at, float)
    largest = np.where(alive, f, -np.inf).max(1)
    above = jax.jit(lambda free, factors: tops.above(free, factors))
    planes = [tops.chords(), *(Slopes(jnp.asarray(rng.uniform(size=(2, 2, 4, 5)), jnp.float32)) for _ in range(9))]
    for free, (i, j) in itertools.product(planes, itertools.product(range(2), repeat=2)):
        (one := np.zeros((4, 5), np.float32))[entries[i, j]] = -1
        coefficients, highest = (np.asarray(part, float) for part in above(free, jnp.asarray(one)))
        plane = highest[entries[i, j]] - np.einsum("pn,cpn->cn", coefficients, corners[:, :6])
        assert (plane >= largest[:, i, j]).all()
        only = alive[:, i, j].sum(0) == 1
        np.testing.assert_array_equal(np.asarray(tops.planar)[entries[i, j]], ~only)


def pooled(params, x):
    """Logits of a convolution with ReLUs, a max-pool and dense layers."""
    h = layers.convolution(x, params[0], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    h = layers.max_pool(jax.nn.relu(h + params[1][None, None, None])).reshape(len(x), -1)
    return jax.nn.relu(h @ params[2] + params[3][None]) @ params[4] + params[5][None]


def problem(rng):
    sizes = ((3, 3, 1, 1), (1,), (6, 3), (3,), (3, 2), (2,))
    params = [rng.normal(size=size) / (np.prod(size[:-1]) ** 0.5 if len(size) > 1 else 4) for size in sizes]
    classifier = Classifier(pooled, tuple(np.asarray(p * 2, np.float32) for p in params))
    image = rng.uniform(size=(1, *SHAPE)).astype(np.float32)
    return classifier, image, int(classifier(image)[0].argmax())


def least_lead(classifier, image, label, radius):
    """The exact least lead within the radius, by a mixed-integer program in double precision."""
    conv, bias, *dense = (np.asarray(p, float) for p in classifier.params)
    x = image.astype(float)[0, :, :, 0]
    low, high = np.maximum(x - radius, 0).reshape(-1), np.minimum(x + radius, 1).reshape(-1)
    bounds, kinds, rows, limits = list(zip(low, high, strict=True)), [0] * low.size, [], []

    def largest(functions):
        """The number of a variable for the maximum of affine functions `(coefficients by variable, constant)`."""
        reaches = []
        for c, d in functions:
            ends = [[a * end for end in bounds[v]] for v, a in c.items()]
            reaches.append((d + sum(map(min, ends)), d + sum(map(max, ends))))
        least, most = max(r[0] for r in reaches), max(r[1] for r in reaches)
        y, first = len(bounds), len(bounds) + 1
        bounds.extend([(least, most), *[(0, 1)] * len(functions)])
        kinds.extend([0, *[1] * len(functions)])
        for k, ((c, d), (lowest, _)) in enumerate(zip(functions, reaches, strict=True)):
            rows.append({**c, y: -1.0})  # f <= y
            limits.append(-d)
            rows.append({**{v: -a for v, a in c.items()}, y: 1.0, first + k: most - lowest})  # y <= f if chosen
            limits.append(d + most - lowest)
        for sign in (1.0, -1.0):  # one is chosen
            rows.append({first + k: sign for k in range(len(functions))})
            limits.append(sign)
        return y

    def seen(i, j):
        square = itertools.product(range(3), range(3))
        return {(i + a) * SHAPE[1] + j + b: conv[a, b, 0, 0] for a, b in square}, bias[0]

    pools = [
        largest([*(seen(2 * i + a, 2 * j + b) for a in range(2) for b in range(2)), ({}, 0.0)])
        for i in range(3)
        for j in range(2)
    ]
    hidden = [
        largest([(dict(zip(pools, w, strict=True)), b), ({}, 0.0)]) for w, b in zip(dense[0].T, dense[1], strict=True)
    ]
    cost, matrix = np.zeros(len(bounds)), np.zeros((len(rows), len(bounds)))
    cost[hidden] = dense[2][:, label] - dense[2][:, 1 - label]
    for i, row in enumerate(rows):
        matrix[i, list(row)] = list(row.values())
    constraints = optimize.LinearConstraint(matrix, -np.inf, limits)
    where = optimize.Bounds(*np.array(bounds).T)
    found = optimize.milp(cost, constraints=constraints, bounds=where, integrality=kinds, options={"mip_rel_gap": 0})
    return found.fun + dense[3][label] - dense[3][1 - label]


@pytest.fixture
def cut(monkeypatch):
    """Receptive fields are used although they are a large share of this small image."""
    monkeypatch.setattr(window, "WORTH", 10.0)


def test_any_planes_give_a_bound_of_the_network(cut):
    rng = np.random.default_rng(1)
    classifier, image, label = problem(rng)
    radius, computation = np.float32(0.2), program.read(classifier, SHAPE, jnp.float32, driver.OTHERS)

    @jax.jit
    def bounded(shares):
        walk = linear.walk(classifier, image, jnp.full(1, radius), INF, computation)
        walk.forwards(lambda walk, place, factors, interval, wanted: interval)
        place, tops = walk.first_ramps()
        assert len(walk.tree(place)) == 4
        function = jnp.eye(2)[None, label, :, None] - jnp.eye(2)[None, 1 - label, :, None]
        center, off = walk.combined({computation.logits: 1.0})
        constant = (function * center - jnp.abs(function) * off).sum((0, 1))
        end, given = len(computation.equations), {computation.logits: function}
        free = jax.tree.map(lambda usual: jnp.where(jnp.isnan(shares), usual, shares), tops.chords())
        by_planes = walk.back(end, given, constant, above={place: (tops, free)}.get)
        return by_planes[0][0], walk.back(end, given, constant)[0][0]

    exact, better = least_lead(classifier, image, label, radius), 0
    for shares in (np.nan, 0.0, 1.0, *(rng.uniform(size=(6, 1, 16, 1)) for _ in range(20))):
        by_planes, by_chords = map(float, bounded(jnp.broadcast_to(jnp.float32(shares), (6, 1, 16, 1))))
        assert by_planes <= exact + 1e-5
        better += by_planes > by_chords
    assert better > 0


def test_it_says_what_the_mixed_integer_program_says(cut):
    rng, said = np.random.default_rng(2), []
    for _ in range(12):
        classifier, image, label = problem(rng)
        radius = np.float32(rng.choice([0.1, 0.2, 0.3]))
        exact = least_lead(classifier, image, label, radius)
        result = certify.branch_and_bound(classifier, image, [label], radius, domains=200)
        assert float(result.margin[0]) <= exact + 1e-5
        assert not (result.fooled[0] and exact > 1e-5)
        if abs(exact) > 5e-3:
            assert bool(result.certified[0]) == (exact > 0)
        said.append(bool(result.certified[0]))
    assert 3 <= sum(said) <= 9


def test_receptive_fields_have_all_pixels_that_count():
    def padded(params, x):
        return layers.convolution(x, params, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))

    kernel = np.ones((3, 3, 1, 2), np.float32)
    classifier = Classifier(lambda p, x: jax.nn.relu(padded(p, x)).reshape(len(x), -1), kernel)
    computation = program.read(classifier, (16, 16, 1), jnp.float32, driver.OTHERS)
    place = next(i for i, equation in enumerate(computation.equations) if equation.name == "max")
    (number,) = (n for n in computation.equations[place].operands if n in computation.depends)
    entries, pixels = window.receptive_fields(computation, place, [number])
    counts = jax.jacobian(lambda x: padded(kernel, x[None])[0].reshape(-1))(jnp.zeros((16, 16, 1)))
    for some, seen in zip(entries, pixels, strict=True):
        for entry in some:
            np.testing.assert_array_equal(np.flatnonzero(counts[entry]), np.sort(seen[seen < 256]))
    assert sorted(entries.reshape(-1)) == list(range(128))
