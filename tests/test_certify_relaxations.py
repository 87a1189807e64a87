"""Intervals and lines of each nonlinear operation, against the function in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from mnist_jax.certify import relaxations
from mnist_jax.certify.relaxations import CURVES, Interval, Ramp

MANY = 3000
BETWEEN = np.linspace(0, 1, 41)

EXACT = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "square": np.square,
    "softplus": lambda x: np.logaddexp(x, 0),
    "logistic": special.expit,
    "tanh": np.tanh,
    "erf": special.erf,
    "fourth": lambda x: x**4,
    "reciprocal": lambda x: 1 / x,
}
POSITIVE = {"log", "sqrt", "rsqrt"}


def intervals(name, seed=0):
    """Intervals that are wide, narrow or points, of one sign or both, and centers that are not their middles."""
    rng = np.random.default_rng(seed)
    low = rng.normal(size=MANY) * 10.0 ** rng.integers(-6, 2, MANY)
    width = np.abs(rng.normal(size=MANY)) * 10.0 ** rng.integers(-7, 2, MANY)
    width[::10] = 0
    if name in POSITIVE:
        low = np.abs(low) + 1e-6
    if name == "log1p":
        low = np.maximum(low, -0.99)
    if name == "reciprocal":
        apart = np.abs(low) + 1e-3
        low = np.where(rng.uniform(size=MANY) < 0.5, apart, -apart - width)
    low = low.astype(np.float32)
    high = np.maximum((low + width).astype(np.float32), low)
    if name == "reciprocal":
        keep = (low > 0) | (high < 0)
        low, high = np.where(keep, low, 1), np.where(keep, high, 2)
    center = (low + (high - low) * rng.uniform(-1, 2, MANY)).astype(np.float32)
    return Interval(jnp.asarray(low), jnp.asarray(high)), jnp.asarray(center)


@jax.jit
def middle(z):
    return z.low / 2 + z.high / 2


@pytest.mark.parametrize("name", EXACT)
def test_curves_stay_between_their_lines(name):
    z, center = intervals(name)

    def bound(z, center):
        if name == "reciprocal":
            result, _ = relaxations.reciprocal(z)
            return result, relaxations.reciprocal_lines(z, center, middle(result))
        curve = relaxations.even_power(4) if name == "fourth" else CURVES[name]
        result = relaxations.curve_interval(curve, z)
        return result, relaxations.curve_lines(curve, z, center, middle(result))

    result, lines = jax.tree.map(lambda x: np.asarray(x, float), jax.jit(bound)(z, center))
    low, high, center = (np.asarray(x, float) for x in (*z, center))
    x = low + (high - low) * BETWEEN[:, None]
    with np.errstate(all="ignore"):
        y = EXACT[name](x)
    finite = np.isfinite(result.low) & np.isfinite(result.high)  # bounds that overflow prove nothing
    assert finite.mean() > 0.85
    assert (result.low <= y)[:, finite].all()
    assert (y <= result.high)[:, finite].all()
    offset = (result.low / 2 + result.high / 2).astype(np.float32).astype(float)
    below = offset + lines.low + lines.below[0] * (x - center)
    above = offset + lines.high + lines.above[0] * (x - center)
    assert not (below > y)[:, finite].any()
    assert not (above < y)[:, finite].any()
    # Lines are not loose either: on wide intervals their gap is comparable to the width of the interval of the result.
    wide = finite & (high - low > 0.1) & (np.abs(low) + np.abs(high) < 10)
    gap = (above - below).max(0) / np.maximum(result.high - result.low, 1e-6)
    assert np.median(gap[wide]) < 1.5


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("slope", ["adaptive", "flat", 0.3])
def test_maxima_stay_between_their_lines(slope, fixed):
    z, center = intervals("ramp")
    rng = np.random.default_rng(3)
    base = jnp.asarray(rng.normal(size=MANY), jnp.float32)
    spread = jnp.zeros(MANY) if fixed else jnp.abs(base) / 4
    result = jnp.asarray(rng.normal(size=MANY), jnp.float32)

    def bound(z, center):
        ramp = Ramp(z, center + base, base, result, spread, fixed)
        chosen = jnp.full(MANY, slope) if isinstance(slope, float) else relaxations.steepness(z, slope)
        return ramp.lines(chosen), ramp.argument

    lines, argument = jax.tree.map(lambda x: np.asarray(x, float), jax.jit(bound)(z, center))
    low, high = (np.asarray(x, float) for x in z)
    d = low + (high - low) * BETWEEN[:, None]
    base, spread, result = (np.asarray(x, float) for x in (base, spread, result))
    for move in (-1, 0.5, 1):
        b = base + move * spread
        y = b + np.maximum(d, 0)
        arguments = (d + b - argument, b - base)
        below = result + lines.low + sum(s * a for s, a in zip(lines.below, arguments, strict=False))
        above = result + lines.high + sum(s * a for s, a in zip(lines.above, arguments, strict=False))
        assert (below <= y).all()
        assert (y <= above).all()


def test_products_stay_between_their_planes():
    (x, a), (y, b) = intervals("x"), intervals("y", 1)
    x, y = (Interval(z.low, jnp.minimum(z.high, z.low + 100)) for z in (x, y))

    def bound(x, y, a, b):
        result = relaxations.product_interval(x, y)
        return result, relaxations.product_lines(x, y, (a, b), middle(result))

    result, lines = jax.tree.map(lambda z: np.asarray(z, float), jax.jit(bound)(x, y, a, b))
    offset = (result.low / 2 + result.high / 2).astype(np.float32).astype(float)
    (xl, xh), (yl, yh), a, b = jax.tree.map(lambda z: np.asarray(z, float), (tuple(x), tuple(y), a, b))
    for s in (0, 0.3, 1):
        for t in (0, 0.6, 1):
            p, q = xl + s * (xh - xl), yl + t * (yh - yl)
            assert (result.low <= p * q).all()
            assert (p * q <= result.high).all()
            assert (offset + lines.low + lines.below[0] * (p - a) + lines.below[1] * (q - b) <= p * q).all()
            assert (offset + lines.high + lines.above[0] * (p - a) + lines.above[1] * (q - b) >= p * q).all()


def test_bounds_are_nan_where_a_function_is_not_defined():
    z = Interval(jnp.array([-1.0, -2.0, 0.0]), jnp.array([1.0, -1.0, 1.0]))
    for name in ("log", "sqrt", "rsqrt"):
        assert np.isnan(relaxations.curve_interval(CURVES[name], z).low).any()
    result, _ = relaxations.reciprocal(z)
    assert np.isnan(result.low).tolist() == [True, False, True]
    lines = relaxations.reciprocal_lines(z, jnp.zeros(3), jnp.zeros(3))
    assert np.isnan(lines.low).tolist() == [True, False, True]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_infinite_or_nan_intervals_have_no_finite_lines(bad):
    z = Interval(jnp.array([-bad]), jnp.array([bad]))
    ramp = Ramp(z, jnp.zeros(1), jnp.zeros(1), jnp.zeros(1), jnp.zeros(1), False)
    lines = ramp.lines(relaxations.steepness(z, "adaptive"))
    assert not np.isfinite(lines.high - lines.low).any()
    for curve in CURVES.values():
        lines = relaxations.curve_lines(curve, z, jnp.zeros(1), jnp.zeros(1))
        assert not np.isfinite(lines.high - lines.low).any()
