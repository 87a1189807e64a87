"""Linear relaxations of nonlinear operations: an interval of the result, a line below it and a line above.

Lines are functions of the arguments' differences to their centers, and give the result's difference to its center.
A line holds with its slope as rounded: its offset is computed for that slope, and moved by a slack for the rounding of
the offset itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mnist_jax.certify.rounding import TINY, unit

SLACK = 16  # largest number of roundings of each number in a line's offset
# Largest error assumed of a device's elementary functions, in units of half the last place of their value; for those
# with `Curve.limited`, also in units of half the last place of 1, as some devices compute them from other functions.
ELEMENTARY = 32


class Interval(NamedTuple):
    """Bounds of a value, `[*shape, B]`."""

    low: jax.Array
    high: jax.Array

    def within(self, other: "Interval") -> "Interval":
        """The intersection. NaN in one of the two stays NaN, so that it proves nothing."""
        return Interval(jnp.maximum(self.low, other.low), jnp.minimum(self.high, other.high))


class Lines(NamedTuple):
    """Linear bounds of y: `low + sum(below * (z - center)) <= y - center of y <= high + sum(above * (z - center))`.

    Attributes:
      below, above: slopes of the lower and of the upper line, `[*shape, B]` for each argument z.
      low, high: their offsets, `[*shape, B]`.
    """

    below: tuple[jax.Array, ...]
    above: tuple[jax.Array, ...]
    low: jax.Array
    high: jax.Array


class Curve(NamedTuple):
    """An increasing, decreasing or even function of one variable.

    Attributes:
      f, derivative: the function and its derivative, on arrays.
      bend: "convex", "concave", or "sigmoid": convex below 0 and concave above.
      grows: whether it is increasing; None where it is even and convex.
      limited: whether its error is absolute for values near 0; else it is relative.
      units: largest error of its value, in units of half the last place.
    """

    f: Callable[[jax.Array], jax.Array]
    derivative: Callable[[jax.Array], jax.Array]
    bend: str
    grows: bool | None = True
    limited: bool = False
    units: int = ELEMENTARY

    def error(self, value: jax.Array) -> jax.Array:
        """The largest error of a value of it that a device computes."""
        return error(value, self.limited, self.units)


def _logistic_slope(x: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(x) * jax.nn.sigmoid(-x)


CURVES: dict[str, Curve] = {
    "exp": Curve(jnp.exp, jnp.exp, "convex"),
    "expm1": Curve(jnp.expm1, jnp.exp, "convex", limited=True),
    "log": Curve(lambda x: jnp.where(x > 0, jnp.log(x), jnp.nan), lambda x: 1 / x, "concave", limited=True),
    "log1p": Curve(lambda x: jnp.where(x > -1, jnp.log1p(x), jnp.nan), lambda x: 1 / (1 + x), "concave", limited=True),
    "sqrt": Curve(lambda x: jnp.where(x > 0, jnp.sqrt(x), jnp.nan), lambda x: 0.5 / jnp.sqrt(x), "concave"),
    "rsqrt": Curve(
        lambda x: jnp.where(x > 0, jax.lax.rsqrt(x), jnp.nan), lambda x: -0.5 * jax.lax.rsqrt(x) / x, "convex", False
    ),
    "square": Curve(jnp.square, lambda x: 2 * x, "convex", None),
    "softplus": Curve(lambda x: jnp.logaddexp(x, 0), jax.nn.sigmoid, "convex", limited=True),
    "logistic": Curve(jax.nn.sigmoid, _logistic_slope, "sigmoid", limited=True),
    "tanh": Curve(jnp.tanh, lambda x: 4 * _logistic_slope(2 * x), "sigmoid", limited=True),
    "erf": Curve(
        jax.scipy.special.erf, lambda x: 1.1283791670955126 * jnp.exp(-jnp.square(x)), "sigmoid", limited=True
    ),
}


def even_power(y: int) -> Curve:
    """`x ** y` for an even y."""

    def derivative(x: jax.Array) -> jax.Array:
        return y * jax.lax.integer_pow(x, y - 1)

    return Curve(lambda x: jax.lax.integer_pow(x, y), derivative, "convex", None, units=power_units(y))


def power_units(y: int) -> int:
    """The largest error of an integer power, by repeated multiplication, in units of half the last place."""
    return ELEMENTARY + 4 * abs(y)


def curve_of(name: str, params: dict[str, Any]) -> Curve | None:
    """The curve of a primitive of one argument; None where there is none. Reciprocals have `reciprocal`."""
    if name == "integer_pow":
        return even_power(params["y"]) if params["y"] > 0 else None
    if name == "tanh" and params.get("accuracy") is not None:
        return None
    return CURVES.get(name)


def error(f: jax.Array, limited: bool, units: int = ELEMENTARY) -> jax.Array:
    """The largest error of an elementary function's value f that a device computes (see `Curve.limited`)."""
    return units * unit(f.dtype) * (jnp.abs(f) + (1 if limited else 0)) + TINY


def curve_interval(curve: Curve, z: Interval) -> Interval:
    """The interval of a curve over an interval of its argument."""
    at_low, at_high = curve.f(z.low), curve.f(z.high)
    low, high = (at_high, at_low) if curve.grows is False else (at_low, at_high)
    if curve.grows is None:
        at_zero = curve.f(low * 0)  # stays NaN where low is
        low = jnp.where((z.low <= 0) & (z.high >= 0), at_zero, jnp.minimum(at_low, at_high))
        high = jnp.maximum(at_low, at_high)
    return Interval(low - curve.error(low), high + curve.error(high))


def curve_lines(curve: Curve, z: Interval, center: jax.Array, result: jax.Array) -> Lines:
    """Lines of a curve over an interval of its argument: a chord on one side, a tangent at the middle on the other.

    Where a sigmoid's interval has 0 inside, neither bounds it: both lines then have the least slope at the ends of the
    interval, and go through an end. `center` is that of the argument, `result` that of the curve's value.
    """
    (low, high), f, slope = z, curve.f, curve.derivative
    f_low, f_high = f(low), f(high)
    middle = low + (high - low) / 2
    f_middle, tangent = f(middle), slope(middle)
    ends = jnp.minimum(slope(low), slope(high)), jnp.maximum(slope(low), slope(high))
    wide = high > low
    chord = jnp.where(wide, (f_high - f_low) / jnp.where(wide, high - low, 1), tangent)
    if curve.bend == "sigmoid":
        chord = jnp.clip(chord, 0, slope(jnp.zeros_like(low)))
        flat = ends[0] * (1 - 2 * curve.units * unit(low.dtype))
        convex, concave = high <= 0, low >= 0
        below = jnp.where(convex, tangent, jnp.where(concave, chord, flat))
        above = jnp.where(concave, tangent, jnp.where(convex, chord, flat))
        by_ends = _lower(z, f_low, f_high, below, center), _upper(z, f_low, f_high, above, center)
        touch_low = jnp.where(convex, _through(middle, f_middle, below, center), by_ends[0])
        touch_high = jnp.where(concave, _through(middle, f_middle, above, center), by_ends[1])
    else:
        chord = jnp.clip(chord, *ends)
        by_tangent, by_chord = _through(middle, f_middle, tangent, center), (_upper, _lower)[curve.bend == "concave"]
        by_chord = by_chord(z, f_low, f_high, chord, center)
        if curve.bend == "convex":
            below, above, touch_low, touch_high = tangent, chord, by_tangent, by_chord
        else:
            below, above, touch_low, touch_high = chord, tangent, by_chord, by_tangent
    largest = jnp.maximum(jnp.maximum(jnp.abs(f_low), jnp.abs(f_high)), jnp.abs(f_middle))
    steep = jnp.maximum(jnp.abs(below), jnp.abs(above)) + jnp.maximum(jnp.abs(ends[0]), jnp.abs(ends[1]))
    reach = jnp.abs(low) + jnp.abs(high) + jnp.abs(center)
    slack = 2 * curve.error(largest) + 4 * curve.units * unit(low.dtype) * (steep * reach + jnp.abs(result))
    return Lines((below,), (above,), touch_low - result - slack, touch_high - result + slack)


def _through(x, y, slope, center):
    """The value at the center of the line through a point (x, y)."""
    return y - slope * (x - center)


def _lower(z, f_low, f_high, slope, center):
    return jnp.minimum(_through(z.low, f_low, slope, center), _through(z.high, f_high, slope, center))


def _upper(z, f_low, f_high, slope, center):
    return jnp.maximum(_through(z.low, f_low, slope, center), _through(z.high, f_high, slope, center))


def reciprocal(z: Interval) -> tuple[Interval, Curve]:
    """The interval of `1 / z`, NaN where z may be 0, and the curve of it for positive z.

    For negative z, `1 / z` is bounded as minus the reciprocal of `-z`.
    """
    apart = (z.low > 0) | (z.high < 0)
    low, high = jnp.where(apart, 1 / z.high, jnp.nan), jnp.where(apart, 1 / z.low, jnp.nan)
    curve = Curve(lambda x: 1 / x, lambda x: -1 / (x * x), "convex", False)
    return Interval(low - error(low, False), high + error(high, False)), curve


def reciprocal_lines(z: Interval, center: jax.Array, result: jax.Array) -> Lines:
    """Lines of `1 / z`; NaN where z may be 0."""
    sign = jnp.where(z.low > 0, 1.0, jnp.where(z.high < 0, -1.0, jnp.nan)).astype(center.dtype)
    negative = sign < 0
    turned = Interval(jnp.where(negative, -z.high, z.low), jnp.where(negative, -z.low, z.high))
    turned = Interval(turned.low * sign * sign, turned.high)
    lines = curve_lines(reciprocal(z)[1], turned, sign * center, sign * result)
    (below,), (above,), low, high = lines
    return Lines(
        (jnp.where(negative, above, below),),
        (jnp.where(negative, below, above),),
        jnp.where(negative, -high, low),
        jnp.where(negative, -low, high),
    )


def steepness(d: Interval, how: str) -> jax.Array:
    """The slope of the lower line of `max(d, 0)`: 1 where d >= 0, 0 where d <= 0, else by the rule `how`.

    The rule "adaptive" takes 0 or 1, whichever leaves less area between the lines (Zhang et al. 2018, section 3.3); the
    rule "flat" takes 0.
    """
    middle = (d.high > -d.low) if how == "adaptive" else jnp.zeros_like(d.low, bool)
    return jnp.where(d.low >= 0, 1.0, jnp.where(d.high <= 0, 0.0, middle)).astype(d.low.dtype)


class Ramp(NamedTuple):
    """A maximum of two values as a ramp: `y = base + max(d, 0)` with `d = argument - base`; the base may be a constant.

    Attributes:
      d: bounds of the difference.
      argument, base, result: centers of the argument, of the base and of y.
      spread: largest difference of the base to its center.
      fixed: whether the base is a constant.
    """

    d: Interval
    argument: jax.Array
    base: jax.Array
    result: jax.Array
    spread: jax.Array
    fixed: bool

    @property
    def slack(self) -> jax.Array:
        """What its lines are moved by for rounding and for the error of a constant base, `[*shape, B]`."""
        d, u = self.d, unit(self.argument.dtype)
        sizes = jnp.abs(self.argument) + jnp.abs(self.base) + jnp.abs(self.result) + jnp.abs(d.low) + jnp.abs(d.high)
        # The error of a constant base changes y by no more than itself; a base that is a value has its own error.
        return SLACK * u * (sizes + self.spread) + TINY + (self.spread if self.fixed else 0)

    def lines(self, slope: jax.Array) -> Lines:
        """Lines of the ramp: the lower one with this slope, in [0, 1], the upper one the chord.

        Where d has one sign, the slope is 0 or 1 whatever is given. `slope` may have further axes before the last one:
        `[*shape, ..., B]`.
        """
        d = self.d
        low, high = jnp.minimum(d.low, 0), jnp.maximum(d.high, 0)  # these keep NaN
        wide = high > low
        chord = jnp.where(wide, high / jnp.where(wide, high - low, 1), 0.5)
        chord = jnp.where(d.low >= 0, 1.0, jnp.where(d.high <= 0, 0.0, jnp.clip(chord, 0, 1))).astype(d.low.dtype)
        chord = chord + 0 * (d.low + d.high)  # NaN where a bound is not finite: there is no chord
        center = self.argument - self.base
        at_low = jnp.maximum(d.low, 0) - chord * (d.low - center)
        at_high = jnp.maximum(d.high, 0) - chord * (d.high - center)
        slack = self.slack
        high_line = jnp.maximum(at_low, at_high) + self.base - self.result + slack
        between = slope.ndim - d.low.ndim
        low_, high_, center_, slack_, shift = (
            x.reshape(*x.shape[:-1], *[1] * between, x.shape[-1])
            for x in (d.low, d.high, center, slack, self.base - self.result)
        )
        slope = jnp.where(low_ >= 0, 1.0, jnp.where(high_ <= 0, 0.0, slope)).astype(slope.dtype)
        low_line = slope * center_ + shift - slack_
        if self.fixed:
            return Lines((slope,), (chord,), low_line, high_line)
        return Lines((slope, 1 - slope), (chord, 1 - chord), low_line, high_line)


def product_interval(x: Interval, y: Interval) -> Interval:
    """The interval of a product of two values."""
    corners = jnp.stack([x.low * y.low, x.low * y.high, x.high * y.low, x.high * y.high])
    low, high = corners.min(0), corners.max(0)
    return Interval(low - error(low, False), high + error(high, False))


def product_lines(x: Interval, y: Interval, centers: tuple[jax.Array, jax.Array], result: jax.Array) -> Lines:
    """Linear bounds of a product of two values: two of McCormick's four planes (1976), one below and one above."""
    (a, b), u = centers, unit(result.dtype)
    low = y.low * a + x.low * b - x.low * y.low - result
    high = y.high * a + x.low * b - x.low * y.high - result
    reach = (jnp.abs(x.low) + jnp.abs(x.high) + jnp.abs(a)) * (jnp.abs(y.low) + jnp.abs(y.high) + jnp.abs(b))
    slack = 2 * SLACK * u * (reach + jnp.abs(result)) + TINY
    return Lines((y.low, x.low), (y.high, x.low), low - slack, high + slack)
