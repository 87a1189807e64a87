"""Norms and projections against NumPy in float64, SciPy, and exhaustive search.

Every batch mixes all kinds of rows: values from 0 to 1e10, radii from 0 to far too large, and pixels at 0 and 1.
"""

from functools import cache

import jax
import numpy as np
import pytest
from scipy import optimize, stats

from mnist_jax import geometry

INF = geometry.INF
NORMS = (1, 1.1, 1.5, 2, 3, 10, INF)
SCALES = (0, 1e-12, 1e-6, 0.03, 0.3, 3, 100, 1e5, 1e10)
SHARES = (0, 1e-6, 0.03, 0.4, 0.95, 1, 1.3, 1e10)  # radii, relative to the norm at which the ball starts to matter
ROWS = len(SCALES) * len(SHARES)
SCALE, SHARE = (grid.ravel() for grid in np.meshgrid(SCALES, SHARES, indexing="ij"))

# Compiling takes longer than running, so not every norm is tested with every shape.
QUICKLY = {"xla_backend_optimization_level": 0}
# Shapes of an image, and p:
BALL = [((17,), p) for p in NORMS] + [((3,), 2), ((4, 4, 1), 1), ((28, 28, 1), 1), ((28, 28, 1), 3)]
SPHERE = [((2,), p) for p in NORMS] + [((17,), p) for p in (1, 1.5, 3, INF)] + [((28, 28, 1), 2)]


def numpy_norm(x, p):
    a = np.abs(np.asarray(x, np.float64)).reshape(len(x), -1)
    largest = a.max(1)
    unit = np.where(largest > 0, largest, 1)
    return largest if p == INF else unit * ((a / unit[:, None]) ** p).sum(1) ** (1 / p)


def per_row(numbers, like):
    return np.asarray(numbers).reshape(-1, *[1] * (like.ndim - 1))


def flat(*arrays):
    return [np.asarray(array, np.float64).reshape(len(array), -1) for array in arrays]


def pixels(rng, shape):
    x, kind = rng.random(shape), rng.random(shape)
    return np.where(kind < 0.3, 0, np.where(kind > 0.8, 1, x)).astype(np.float32)


def perturbations(rng, shape):
    v = rng.normal(size=shape)
    return (np.where(rng.random(shape) < 0.15, 0, v)).astype(np.float32)


def batch(shape, p):
    """`v`, images and radii, one row for every scale of v and every share of the norm of v clipped to the box."""
    rng = np.random.default_rng(shape)
    v, x = perturbations(rng, (ROWS, *shape)), pixels(rng, (ROWS, *shape))
    v = (v * per_row(SCALE, v)).astype(np.float32)
    size = numpy_norm(np.clip(x + np.float64(v), 0, 1) - x, p)
    return v, x, (SHARE * np.where(size > 0, size, 1)).astype(np.float32)


@cache
def compiled(function, p):
    """A compiled program that gives the function's value, and its vector-Jacobian products with a cotangent."""

    @jax.jit(compiler_options=QUICKLY)
    def run(cotangent, *arguments):
        y, pull_back = jax.vjp(lambda *arguments: function(*arguments, p), *arguments)
        return y, *pull_back(cotangent)

    return run


def value(function, p, *arguments):
    return np.asarray(compiled(function, p)(np.ones_like(arguments[0]), *arguments)[0])


def assert_finite(function, p, *arguments):
    cotangent = np.random.default_rng(5).normal(size=arguments[0].shape).astype(arguments[0].dtype)
    for array in compiled(function, p)(cotangent, *arguments):
        assert np.isfinite(array).all()


def assert_in_box(images, y):
    moved = images + y
    assert moved.dtype == np.float32
    assert (moved >= 0).all()
    assert (moved <= 1).all()


# Norms


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("shape", [(3,), (28, 28, 1)])
def test_norm_and_its_gradient(shape, p):
    rng = np.random.default_rng(shape)
    scale = np.array([0, 1e-25, 1e-8, 1, 1e8, 1e25])
    x = perturbations(rng, (len(scale), *shape))
    x = (x * per_row(scale, x)).astype(np.float32)
    got, gradient = compiled(geometry.norm, p)(np.ones(len(x), np.float32), x)
    wanted = numpy_norm(x, p)
    np.testing.assert_allclose(got, wanted, rtol=2e-6)
    share = np.abs(x) / per_row(np.where(wanted > 0, wanted, 1), x)
    if p == INF:
        share = share == 1
    slope = np.sign(x) * (share > 0 if p == 1 else share if p == INF else share ** (p - 1))
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-6)
    assert (gradient[0] == 0).all()


@pytest.mark.parametrize("p", NORMS)
def test_dual_direction_attains_the_dual_norm(p):
    scale = np.array([0, 1e-25, 1e-8, 1, 1e8, 1e25])
    g = perturbations(np.random.default_rng(1), (len(scale), 4, 4, 1))
    g = (g * per_row(scale, g)).astype(np.float32)
    direction = np.asarray(jax.jit(geometry.dual_direction, static_argnums=1)(g, p))
    assert direction.shape == g.shape
    np.testing.assert_allclose(numpy_norm(direction, p), scale > 0, rtol=1e-5)
    product = np.einsum("bd,bd->b", *flat(g, direction))
    np.testing.assert_allclose(product, numpy_norm(g, geometry.dual(p)), rtol=1e-5)
    if p == 1:
        assert ((direction != 0).sum((1, 2, 3)) == (scale > 0)).all()


def test_sparse_direction_moves_the_largest_alike():
    g = perturbations(np.random.default_rng(1), (4, 3, 7))
    direction = np.asarray(geometry.sparse_direction(g, np.array([1, 4.2, 21, 0])))
    moved = (direction != 0).reshape(4, -1)
    assert moved.sum(1).tolist() == [1, 5, (g[2] != 0).sum(), 1]
    np.testing.assert_allclose(np.abs(direction).sum((1, 2)), 1, rtol=1e-6)
    np.testing.assert_array_equal(np.sign(direction)[direction != 0], np.sign(g)[direction != 0])
    for row, a in zip(moved, np.abs(g).reshape(4, -1), strict=True):
        assert a[row].min() >= a[~row].max(initial=0)
    assert (geometry.sparse_direction(np.zeros_like(g), 3) == 0).all()


@pytest.mark.parametrize("p", NORMS)
def test_random_in_ball_is_uniform(p):
    keys, radius = jax.random.split(jax.random.key(1), 4000), np.linspace(0, 2, 4000, dtype=np.float32)
    draw = jax.jit(geometry.random_in_ball, static_argnums=3)
    r = np.asarray(draw(keys, np.zeros((4000, 3, 1), np.float32), radius, p))
    size = numpy_norm(r, p)[1:] / radius[1:]
    assert (size <= 1 + 1e-5).all()
    # The share of the volume inside is uniform in [0, 1], and no direction is preferred.
    assert stats.kstest(size**3, "uniform").pvalue > 1e-3
    assert np.abs(np.sign(r).mean(0)).max() < 0.08
    inner = np.abs(r[1:, :, 0]) / radius[1:, None]
    np.testing.assert_allclose(inner.mean(0), inner.mean(), atol=0.02)


def test_the_dual_of_the_dual_is_the_norm():
    for p in NORMS:
        assert geometry.dual(geometry.dual(p)) == pytest.approx(p)


@pytest.mark.parametrize("p", NORMS)
def test_largest_is_the_norm_of_the_farthest_corner(p):
    x = pixels(np.random.default_rng(2), (9, 2, 3))
    corners = np.stack(np.meshgrid(*[[0, 1]] * 6, indexing="ij")).reshape(6, 1, -1)
    wanted = numpy_norm((corners - x.reshape(9, 6).T[..., None]).reshape(6, -1).T, p).reshape(9, -1).max(1)
    np.testing.assert_allclose(geometry.largest(x, p), wanted, rtol=1e-6)


def test_zero_counts_pixels():
    x = np.asarray([[[0.0, 1.0], [-2.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert geometry.norm(x, 0).tolist() == [2, 0]


def test_check():
    assert [geometry.check_norm(p) for p in (1, 1.5, "2", INF)] == [1, 1.5, 2, INF]
    assert geometry.check_norm(0, (0, 1)) == 0
    for p in (0, 0.5, -1, -INF, float("nan")):
        with pytest.raises(ValueError, match=r"norm must be a number in \[1, inf\], not"):
            geometry.check_norm(p)
    with pytest.raises(ValueError, match="must be 0 or 1, not 3"):
        geometry.check_norm(3, (0, 1))


# The proximal step


@pytest.mark.parametrize("p", [1, 1.5, 2, INF])
def test_the_proximal_step_is_the_minimum(p):
    rng = np.random.default_rng(9)
    v, weight = perturbations(rng, (40, 17)), rng.uniform(0, 4, 40).astype(np.float32)
    weight[:3] = 0, 1e-6, 1e6
    r = np.asarray(jax.jit(geometry.proximal, static_argnums=2)(v, weight, p))
    np.testing.assert_array_equal(r[0], v[0])
    np.testing.assert_array_equal(r[2], 0)

    def total(y):
        return weight * numpy_norm(y, p) + ((np.float64(y) - v) ** 2).sum(1) / 2

    for spread in (1e-3, 0.1, 1):
        for _ in range(20):
            y = r + spread * rng.normal(size=r.shape)
            assert (total(y) >= total(r) - 1e-5 * np.maximum(weight, 1)).all()
    np.testing.assert_array_less(total(r)[1:], total(v)[1:])


# Projection onto the ball


def closest_in_ball(v, low, high, radius, p):
    """The projection in float64: two nested bisections, of every pixel and of the Lagrange multiplier."""
    v, low, high, radius = flat(v, low, high, radius)
    unit = np.where(radius > 0, radius, 1)
    a, room = np.abs(v) / unit, np.where(v > 0, high, -low) / unit
    clipped = np.minimum(a, room)
    if p == INF:
        return np.sign(v) * unit * np.minimum(clipped, radius > 0)

    def at(log_multiplier):
        low, high = np.zeros_like(a), clipped
        for _ in range(60):
            middle = (low + high) / 2
            over = middle + np.exp(log_multiplier)[:, None] * middle ** (p - 1) > a
            low, high = np.where(over, low, middle), np.where(over, middle, high)
        return low

    low, high = np.full(len(a), -60.0), np.full(len(a), 60.0)
    for _ in range(60):
        middle = (low + high) / 2
        over = numpy_norm(at(middle), p) > 1
        low, high = np.where(over, middle, low), np.where(over, high, middle)
    outside = numpy_norm(clipped, p)[:, None] > 1
    return np.sign(v) * unit * np.where(radius > 0, np.where(outside, at(high), clipped), 0)


def closest_by_scipy(v, low, high, radius, p):
    """The projection of one row by SciPy's general solver, in r = up - down with both parts at least 0."""
    v, low, high = flat(v[None], low[None], high[None])
    v, low, high, radius = v[0], low[0], high[0], float(radius)
    count, unit = len(v), np.tile(np.eye(len(v)), 2) * np.repeat([1, -1], len(v))
    bounds = np.concatenate([np.stack([0 * high, high], 1), np.stack([0 * low, -low], 1)])
    constraint = {
        "type": "ineq",
        "fun": lambda z: 1 - ((z / radius) ** p).sum(),
        "jac": lambda z: -p * (z / radius) ** (p - 1) / radius,
    }
    found = optimize.minimize(
        lambda z: ((unit @ z - v) ** 2).sum() / 2,
        np.full(2 * count, 1e-3 * radius),
        jac=lambda z: unit.T @ (unit @ z - v),
        method="SLSQP",
        bounds=np.minimum(bounds, radius),
        constraints=[] if p == INF else [constraint],
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return unit @ found.x


def nearby(v, r, x, radius, p):
    """Points inside the ball and the box: random ones, some of them close to r or in the direction of v."""
    rng = np.random.default_rng(7)
    v, r, x, radius = flat(v, r, x, radius)
    size = np.abs(r).max(1, keepdims=True)
    for spread in (1e-3, 0.1, 1, 10):
        for start in (r, r + spread * (v - r), 0 * r):
            y = start + spread * size * rng.normal(size=r.shape)
            y = np.clip(x + y, 0, 1) - x
            norm = numpy_norm(y, p)[:, None]
            yield y * np.minimum(1, radius / np.where(norm > 0, norm, 1))


@pytest.mark.parametrize(("shape", "p"), BALL)
def test_projection_onto_ball_and_box(shape, p):
    v, x, radius = batch(shape, p)
    assert_finite(geometry.project_ball_in_box, p, v, x, radius)
    r = value(geometry.project_ball_in_box, p, v, x, radius)
    assert r.shape == v.shape
    assert_in_box(x, r)
    assert (numpy_norm(r, p) <= radius * (1 + 1e-6)).all()
    # The reference is inexact for huge v beside a tiny radius, and float32 where the radius is just the norm.
    usual = np.flatnonzero((SCALE <= 100) & (SHARE != 1))[:: 1 if v[0].size < 100 else 4]
    wanted = closest_in_ball(v[usual], -x[usual], 1 - np.float64(x[usual]), radius[usual], p)
    error = np.abs(flat(r[usual])[0] - wanted).max(1)
    assert (error <= 1e-6 * radius[usual]).all()
    for y in nearby(v, r, x, radius, p):
        away, step = flat(v)[0] - flat(r)[0], y - flat(r)[0]
        product, largest = (away * step).sum(1), np.linalg.norm(away, axis=1) * radius
        assert (product <= 1e-6 * largest + 1e-12 * radius).all()
    # A perturbation inside the ball is not changed.
    np.testing.assert_array_equal(value(geometry.project_ball_in_box, p, r, x, (radius * 1.001).astype(np.float32)), r)
    again = value(geometry.project_ball_in_box, p, r, x, radius)
    assert (np.abs(flat(again)[0] - flat(r)[0]).max(1) <= 1e-6 * radius).all()


@pytest.mark.parametrize("p", [1, 1.5, 2, INF])
def test_projection_onto_ball(p):
    v, _, _ = batch((17,), p)
    size = numpy_norm(v, p)
    radius = (SHARE * np.where(size > 0, size, 1)).astype(np.float32)
    assert_finite(geometry.project_ball, p, v, radius)
    r = value(geometry.project_ball, p, v, radius)
    assert (numpy_norm(r, p) <= radius * (1 + 1e-6)).all()
    everywhere = np.full_like(v, 1e30)
    error = np.abs(r - closest_in_ball(v, -everywhere, everywhere, radius, p)).max(1)
    assert (error <= 1e-6 * np.minimum(radius, size)).all()
    np.testing.assert_array_equal(value(geometry.project_ball, p, r, (radius * 1.001).astype(np.float32)), r)
    np.testing.assert_array_equal(r[(SHARE > 1)], v[(SHARE > 1)])


@pytest.mark.parametrize("p", NORMS)
def test_projection_against_scipy(p):
    v, x, radius = batch((17,), p)
    r = value(geometry.project_ball_in_box, p, v, x, radius)
    for row in np.flatnonzero((SCALE >= 0.3) & (SCALE <= 3) & (SHARE >= 0.4) & (SHARE < 1)):
        wanted = closest_by_scipy(v[row], -x[row], 1 - x[row], radius[row], p)
        np.testing.assert_allclose(r[row], wanted, atol=1e-5)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, INF])
def test_projection_and_its_gradient_in_float64(p):
    v, x, radius = (array.astype(np.float64) for array in batch((17,), p))
    generic = 0.1 + 0.8 * x
    cotangent = np.tile(np.random.default_rng(3).normal(size=17), (ROWS, 1))
    with jax.enable_x64(True):
        run = compiled(geometry.project_ball_in_box, p)
        r = np.asarray(run(cotangent, v, x, radius)[0])
        assert r.dtype == np.float64
        exact = 1e-12 if p in (1, 2, INF) else 1e-7
        assert (numpy_norm(r, p) <= radius * (1 + exact)).all()
        usual = (SCALE <= 100) & (SHARE != 1) & (SHARE != 1e-6)
        error = np.abs(r - closest_in_ball(v, -x, 1 - x, radius, p)).max(1)
        assert (error <= 10 * exact * radius)[usual].all()
        step = 1e-7
        for row in np.flatnonzero((SCALE >= 0.3) & (SCALE <= 3) & (SHARE >= 0.03) & (SHARE <= 1.3) & (SHARE != 1)):
            # Every row of a batch moves one number: a pixel of v, one of the images, or the radius.
            moves = step * np.vstack([np.eye(35), -np.eye(35), np.zeros((2, 35))])
            moves[:, :17] *= v[row] != 0  # there the derivative is one-sided
            arguments = v[row] + moves[:, :17], generic[row] + moves[:, 17:34], radius[row] + moves[:, 34]
            r, *gradients = run(cotangent, *arguments)
            product = (np.asarray(r) * cotangent).sum(1)
            wanted = (product[:35] - product[35:70]) / (2 * step)
            got = np.concatenate([np.ravel(gradient[70]) for gradient in gradients])
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_projection_of_zero_keeps_the_entries_that_bring_it_closest():
    rng = np.random.default_rng(11)
    v, x = perturbations(rng, (20, 2, 3)), pixels(rng, (20, 2, 3))
    v[0], v[1] = 0, 1  # rows in which all entries are equal
    # Numbers of pixels that may differ from zero, from -1, which counts as 0, to 6, which is all of them.
    count = (np.arange(20) % 8 - 1).astype(np.float32)
    choices = np.stack(np.meshgrid(*[[0, 1]] * 6, indexing="ij")).reshape(6, -1).T
    inside = np.clip(x + v, 0, 1) - x
    for clipped, y in ((v, geometry.project_ball(v, count, 0)), (inside, geometry.project_ball_in_box(v, x, count, 0))):
        got, clipped, wanted = flat(y, clipped, v)
        assert ((got != 0).sum(1) <= np.maximum(count, 0)).all()
        np.testing.assert_allclose(got[got != 0], clipped[got != 0], rtol=1e-6)
        every = ((choices[:, None] * clipped - wanted) ** 2).sum(2)
        closest = np.where(choices.sum(1)[:, None] <= np.maximum(count, 0), every, np.inf).min(0)
        np.testing.assert_allclose(((got - wanted) ** 2).sum(1), closest, rtol=1e-5, atol=1e-6)


# Projections onto the sphere


def batch_for_sphere(shape, p):
    """`v`, images and radii, one row for every scale of v and every share of the largest norm."""
    v, x, _ = batch(shape, p)
    v[::3] = np.clip(x[::3] + v[::3], 0, 1) - x[::3]  # inside the box, as an attack's perturbations are
    return v, x, (SHARE * geometry.largest(x, p)).astype(np.float32)


def distance(v, r):
    return ((np.float64(r) - np.float64(v)) ** 2).sum(-1)


@pytest.mark.parametrize(
    ("function", "shape", "p"),
    [(geometry.project_sphere_in_box, *case) for case in SPHERE]
    + [(geometry.scale_to_sphere_in_box, (17,), p) for p in (1, 3, INF)],
)
def test_on_the_sphere_and_in_the_box(function, shape, p):
    v, x, radius = batch_for_sphere(shape, p)
    assert_finite(function, p, v, x, radius)
    r = value(function, p, v, x, radius)
    assert r.shape == v.shape
    assert_in_box(x, r)
    wanted = np.minimum(radius, geometry.largest(x, p))
    np.testing.assert_allclose(numpy_norm(r, p), wanted, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(value(function, p, r, x, radius), r, atol=1e-5)
    if p < INF:
        corner = np.maximum(x, 1 - x)[SHARE > 1]
        np.testing.assert_allclose(np.abs(r)[SHARE > 1], corner, atol=1e-5)


@pytest.mark.parametrize("p", [1, 1.5, 3, INF])
def test_from_outside_the_sphere_it_is_the_projection_onto_the_ball(p):
    v, x, radius = batch((17,), p)
    outside = (SHARE < 1) & (SCALE > 0)
    onto = value(geometry.project_sphere_in_box, p, v, x, radius)
    away = np.abs(onto - value(geometry.project_ball_in_box, p, v, x, radius)).max(1)
    assert (away <= 2e-6 * radius)[outside].all()


def closest_of_two_pixels(v, x, radius, p):
    """The squared distance of a row of two pixels to the sphere in the box, and the best lower bound by duality."""
    low, high = -np.float64(x), 1 - np.float64(x)
    points = []
    for i, j in ((0, 1), (1, 0)):
        first = np.linspace(max(low[i], -radius), min(high[i], radius), 20001)
        second = np.full_like(first, radius) if p == INF else (radius**p - np.abs(first) ** p).clip(0) ** (1 / p)
        for other in (second, -second):
            inside = (other >= low[j] - 1e-9) & (other <= high[j] + 1e-9)
            points.append(np.stack([first, other] if i == 0 else [other, first], 1)[inside])
    points = np.concatenate(points)
    away = distance(v, points)
    if p == INF:
        return away.min(), away.min()
    nearest = points[away.argmin()]
    pixels = np.sort(np.concatenate([np.linspace(low, high, 501), [0 * low, nearest]]), 0)
    cost, power = (pixels - v) ** 2, np.abs(pixels) ** p
    multipliers = np.concatenate([-np.geomspace(1e-3, 1e3, 150), np.geomspace(1e-3, 1e3, 150)])[:, None, None]
    bound = (cost - multipliers * power).min(1).sum(1) + multipliers[:, 0, 0] * radius**p
    return away.min(), bound.max()


@pytest.mark.parametrize("p", NORMS)
def test_closest_point_on_the_sphere_of_two_pixels(p):
    rng = np.random.default_rng(9)
    v = perturbations(rng, (72, 2)) * 10 ** rng.uniform(-3, 0.5, (72, 1)).astype(np.float32)
    x = pixels(rng, v.shape)
    radius = (geometry.largest(x, p) * rng.random(72)).astype(np.float32)
    r = value(geometry.project_sphere_in_box, p, v, x, radius)
    best, bound = np.array([closest_of_two_pixels(*row, p) for row in zip(v, x, np.float64(radius), strict=True)]).T
    attained = best - bound < 1e-4  # no duality gap: a minimizer of the Lagrangian is on the sphere
    assert attained.sum() >= 5
    assert (distance(v, r) <= best + 1e-6)[attained].all()


@pytest.mark.parametrize("p", [1, 1.5])
def test_a_radius_slightly_above_the_norm_gives_the_closest_point(p):
    """Here the norm of the Lagrangian's minimizer does not jump over the radius, so that it is the closest point."""
    v, x, _ = batch((17,), p)
    v = (np.clip(x + v, 0.01, 0.99) - x)[SCALE == 0.3].astype(np.float32)
    x = x[SCALE == 0.3]
    radius = (1.05 * numpy_norm(v, p)).astype(np.float32)
    arguments = [np.resize(array, (ROWS, *array.shape[1:])) for array in (v, x, radius)]
    r = value(geometry.project_sphere_in_box, p, *arguments)[: len(v)]
    away = distance(v, r)
    for y in nearby(v, r, x, radius, p):
        size = numpy_norm(y, p)
        y = y * np.where(size > 0, radius / np.where(size > 0, size, 1), 0)[:, None]
        inside = (size > 0) & (np.abs(x + y - 0.5) <= 0.5).all(1)
        assert (away <= distance(v, y) + 1e-6)[inside].all()


@pytest.mark.parametrize("p", [1, 3, INF])
def test_scaling_to_the_sphere_scales(p):
    v, x, radius = batch_for_sphere((17,), p)
    r = value(geometry.scale_to_sphere_in_box, p, v, x, radius)
    corner = np.where(v > 0, 1 - x, -x)
    reach = numpy_norm(np.where(v == 0, 0, corner), p)
    reached = (radius <= 0.99 * reach) & (radius > 0) & (SCALE > 0)
    free = (np.abs(r) < np.abs(corner)) & (v != 0)
    ratio = r / np.where(v == 0, 1, v)
    t = np.where(free, ratio, 0).max(1, keepdims=True)
    wanted = np.where(free, t * v, np.where(v == 0, 0, corner))
    assert reached.sum() > 20
    np.testing.assert_allclose(r[reached], wanted[reached], rtol=1e-5)


def linear(shape, p):
    """A gradient, images with room on both sides, a radius, and the minimum of the linear function over the sphere."""
    rng = np.random.default_rng(4)
    g, x = rng.normal(size=(5, *shape)).astype(np.float32), np.full((5, *shape), 0.5, np.float32)
    radius = np.float32(0.3)
    return g, x, radius, -radius * geometry.dual_direction(g, p)


@pytest.mark.parametrize("p", [1, 1.1, 1.5, 2, 3, 10])
def test_nothing_is_left_along_the_sphere_at_a_minimum(p):
    g, x, _, r = linear((4, 4, 1), p)
    np.testing.assert_allclose(geometry.along_sphere(g, r, x, p), np.zeros_like(g), atol=1e-5)
    elsewhere = geometry.along_sphere(g, np.roll(r, 1, 0), x, p)
    assert (numpy_norm(elsewhere, 2) > 0.1).sum() >= 3


def test_along_the_sphere_is_orthogonal_to_it():
    rng = np.random.default_rng(6)
    g, x = perturbations(rng, (50, 17)), pixels(rng, (50, 17))
    r = np.clip(x + perturbations(rng, x.shape), 0, 1) - x
    along = np.asarray(geometry.along_sphere(g, r, x, 2))
    moved = x + r
    free = (moved > 0) & (moved < 1)
    assert (free.sum(1) > 0).all()
    assert (free.sum(1) < 17).all()
    np.testing.assert_allclose((along * r * free).sum(1), np.zeros(50), atol=1e-5)
    # Only a multiple of r is taken away.
    share = ((g - along) * r).sum(1) / (r * r).sum(1)
    np.testing.assert_allclose(g - along, share[:, None] * r, atol=1e-5)


@pytest.mark.parametrize("p", NORMS)
def test_along_the_sphere_where_there_is_no_perturbation(p):
    g, x, _, _ = linear((4, 4, 1), p)
    np.testing.assert_array_equal(geometry.along_sphere(g, np.zeros_like(g), x, p), g)


# The nearest point of a plane


@pytest.mark.parametrize("p", NORMS)
def test_nearest_on_plane(p):
    rng = np.random.default_rng(8)
    g, x = perturbations(rng, (40, 4, 4, 1)), pixels(rng, (40, 4, 4, 1))
    lowest = np.where(g < 0, 1 - x, -x * (g > 0))  # the corner where the function is lowest
    most = -np.einsum("bd,bd->b", *flat(g, lowest))
    fall = (most * np.linspace(-0.1, 1.21, 40)).astype(np.float32)  # never exactly 0 or most, where rounding decides
    run = jax.jit(geometry.nearest_on_plane_in_box, static_argnums=3, compiler_options=QUICKLY)
    r = np.asarray(run(g, fall, x, p))
    assert_in_box(x, r)
    got = -np.einsum("bd,bd->b", *flat(g, r))
    np.testing.assert_allclose(got, np.clip(fall, 0, most), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(r[fall <= 0], np.zeros_like(r)[fall <= 0])
    np.testing.assert_array_equal(r[fall > most], lowest[fall > most])
    # No random point at which the function is as low has a smaller norm.
    towards, size = flat(lowest)[0], numpy_norm(r, p)
    for spread in (0.01, 0.1, 1):
        for _ in range(20):
            y = flat(np.clip(x + r + spread * rng.normal(size=r.shape), 0, 1) - x)[0]
            short = fall + (flat(g)[0] * y).sum(1)
            y += (short / (most - fall + short)).clip(0, 1)[:, None] * (towards - y)
            falls = -(flat(g)[0] * y).sum(1) >= fall - 1e-9
            assert (numpy_norm(y, p) >= size * (1 - 1e-5))[falls & (fall < most)].all()


@pytest.mark.parametrize("p", [1, 2, INF])
def test_shorten_on_plane(p):
    rng = np.random.default_rng(10)
    x = pixels(rng, (40, 17))
    v = (np.clip(x + 0.5 * rng.normal(size=x.shape), 0, 1) - x).astype(np.float32)
    g, reach = perturbations(rng, x.shape), np.linspace(0.05, 1.5, 40).astype(np.float32)
    fall = rng.normal(scale=0.3, size=40).astype(np.float32)
    function = jax.jit(geometry.shorten_on_plane_in_box, static_argnums=5, compiler_options=QUICKLY)
    r = np.asarray(function(v, g, fall, reach, x, p))
    assert_in_box(x, r)
    away = np.linalg.norm(r - v, axis=1)
    assert (away <= reach * (1 + 1e-5)).all()
    missed = np.abs((g * (r - v)).sum(1) + fall)
    there = missed < 1e-4
    assert there.sum() > 20
    np.testing.assert_allclose(away[~there], reach[~there], rtol=1e-4)
    # No random point that satisfies the constraints has a smaller norm.
    for spread in (0.01, 0.1, 1):
        for _ in range(50):
            y = np.clip(x + r + spread * rng.normal(size=x.shape), 0, 1) - x
            y = np.clip(x + y - ((g * (y - r)).sum(1) / (g * g).sum(1))[:, None] * g, 0, 1) - x
            allowed = (np.abs((g * (y - r)).sum(1)) < 1e-6) & (np.linalg.norm(y - v, axis=1) <= reach)
            assert (numpy_norm(y, p) >= numpy_norm(r, p) - 1e-4)[allowed & there].all()


# Transformations


@pytest.mark.parametrize("p", [1, 3, INF])
@pytest.mark.parametrize(
    "function", [geometry.project_ball_in_box, geometry.project_sphere_in_box, geometry.scale_to_sphere_in_box]
)
def test_a_row_does_not_depend_on_its_neighbours(function, p):
    v, x, radius = batch_for_sphere((17,), p)
    cotangent = np.ones_like(v)
    alone = compiled(function, p)(cotangent, v, x, radius)
    kept = np.arange(ROWS) % 3 == 0
    order = np.where(kept, np.arange(ROWS), np.random.default_rng(1).permutation(ROWS))
    together = compiled(function, p)(cotangent, v[order], x[order], radius[order])
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(np.asarray(one)[kept], np.asarray(other)[kept])


@pytest.mark.parametrize(
    ("function", "p"),
    [(geometry.project_ball_in_box, 1), (geometry.project_ball_in_box, 3), (geometry.project_sphere_in_box, 1.5)],
)
def test_under_vmap(function, p):
    arguments = batch_for_sphere((17,), p)
    stacked = [array.reshape(8, 9, *array.shape[1:]) for array in arguments]
    got = jax.jit(jax.vmap(lambda *arguments: function(*arguments, p)), compiler_options=QUICKLY)(*stacked)
    wanted = value(function, p, *arguments)
    np.testing.assert_allclose(np.reshape(got, wanted.shape), wanted, rtol=1e-5, atol=1e-6)


def test_without_jit_and_with_a_number_as_radius():
    v, x, _ = batch((17,), 1)
    everywhere = np.full(ROWS, 0.5, np.float32)
    for function in (geometry.project_ball_in_box, geometry.project_sphere_in_box):
        np.testing.assert_array_equal(function(v, x, 0.5, INF), function(v, x, everywhere, INF))
    np.testing.assert_array_equal(geometry.project_ball(v, 0.5, INF), np.clip(v, -0.5, 0.5))
