"""Bounds of every value that a network computes, forwards by intervals and backwards by linear functions (CROWN).

Forwards, every value that depends on the image has a center, a half-width around it, and a magnitude. The center goes
through an affine equation as it is, half-width and magnitude go through the absolute values of its coefficients, so
that no interval is formed between two nonlinear operations. A nonlinear operation has an interval for its result, and a
line below and one above it.

Backwards, a linear function of values becomes a linear function of the image: affine equations are transposed, and
nonlinear operations are replaced by their lines (Zhang et al., "Efficient neural network robustness certification with
general activation functions", 2018: CROWN). The arguments of nonlinear operations are bounded in the same way, during
the forward pass.

**Rounding.** Call the affine equations from one nonlinear operation (or the image) to the next a stretch. Let a value
at its end have the center c, the half-width w and the magnitude G. The value that a device computes, and the center
computed here, are each within `gamma(n) G` of the exact ones, where n is the largest number of roundings on any path
through the stretch, in any order of summation. The coefficients computed in the backward pass are within
`gamma(m) |coefficients|` of the exact ones; they multiply differences to centers, so their error is `gamma(m) w` at the
end of the stretch. The sum of these is `Value.error`: every linear function that is propagated through the stretch is
charged for it, by the absolute values of its coefficients at the end of the stretch. Sums of the lines' offsets are
charged by the same rule. Lines and the region account for their own rounding. Constants computed from the weights have
error bounds. Underflow is covered by `TINY` and `UNDERFLOWN`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mnist_jax import unstable
from mnist_jax.certify import maxima, planes, relaxations
from mnist_jax.certify.constants import Constants
from mnist_jax.certify.maxima import Maxima, Slopes
from mnist_jax.certify.planes import Planes, Ramps
from mnist_jax.certify.region import Region
from mnist_jax.certify.relaxations import Interval, Lines, Ramp
from mnist_jax.certify.rounding import TINY, UNDERFLOWN, gamma, unit
from mnist_jax.geometry import INF
from mnist_jax.jaxprs import affine, window
from mnist_jax.jaxprs.program import Equation, Program

# Roundings counted besides those of the sums: of the half-width, of the error itself, of the difference of two values.
EXTRA = 8


class Value(NamedTuple):
    """Bounds of a value that depends on the image, `[*shape, B]`: it is within `width + error` of `center`.

    Attributes:
      center, width: center and half-width of its interval if nothing were rounded.
      size: the magnitude: the sum of the absolute values of all terms that are added up. None where rounding is left
        out.
      off: by how much errors of constants may change the value; None where all constants are exact.
      roundings, back: the largest number of roundings on any path from the last nonlinear operation to the value, and
        in the backward pass from the value to that operation.
      nonlinear: whether a nonlinear operation comes before it.
    """

    center: jax.Array
    width: jax.Array
    size: jax.Array | None
    off: jax.Array | None
    roundings: int
    back: int
    nonlinear: bool

    @property
    def error(self) -> jax.Array:
        """A bound of the errors of the value and of its bounds, by rounding and by constants, `[*shape, B]`."""
        if self.size is None:
            return jnp.zeros_like(self.center)
        forwards, back = (gamma(n + EXTRA, self.center.dtype) for n in (self.roundings, self.back + self.roundings))
        # The size and the width are sums with rounding errors of their own, at most as large as these.
        error = (2 * forwards * self.size + 3 * back * self.width) * (1 + 1e-3 + 2 * back) + TINY
        return error if self.off is None else error + self.off

    @property
    def interval(self) -> Interval:
        """The interval that contains the value, exact or as a device computes it."""
        reach = self.width + self.error
        return Interval(self.center - reach, self.center + reach)


class Node(NamedTuple):
    """A nonlinear operation, once its arguments are bounded.

    Attributes:
      arguments: numbers of its operands that depend on the image.
      errors: rounding errors of these operands, `[*shape, B]` each.
      usual: its lines with the default slopes.
      ramp: the operation as a ramp, whose lower line can have another slope; None for all others.
      width: half-width of the result around its center, `[*shape, B]`.
    """

    arguments: tuple[int, ...]
    errors: tuple[jax.Array, ...]
    usual: Lines
    ramp: Ramp | None
    width: jax.Array

    def lines(self, slope: jax.Array | None) -> Lines:
        """Its lines with this slope of the lower one; the default lines for None, and for what is no ramp."""
        return self.usual if slope is None or self.ramp is None else self.ramp.lines(slope)


# A function that bounds a linear combination of values better than interval arithmetic. Arguments: the bounds so far,
# the index of the equation that needs them, the factors by the number of the value, the interval so far, and where a
# better one is of use.
Tighten = Callable[["Bounds", int, dict[int, float], Interval, jax.Array], Interval]


@dataclass
class Bounds:
    """Bounds of a program's values over a region, for a batch of B images.

    Attributes:
      program: the classifier's computation.
      constants: values of it that do not depend on the image.
      region: the set of images that the bounds hold for.
      p: exponent of the norm of the region.
      rounded: whether bounds are charged for rounding. Without, they prove nothing but take less time: training
        minimizes them.
      splits: assumptions on the signs of the differences `d` of ramps (see `Ramp`), by the index of their equation,
        `[*shape, B]`: 1 for d >= 0, -1 for d <= 0, 0 for none. The bounds then hold for those images of the region for
        which the assumptions are true.
      values: bounds of the values so far, by number.
      nodes: the nonlinear operations so far, by the index of their equation.
      underflow: by how much underflow may change a bound, `[B]`; NaN where a weight is subnormal.
    """

    program: Program
    constants: Constants
    region: Region
    p: float
    rounded: bool = True
    splits: dict[int, jax.Array] = field(default_factory=dict)
    values: dict[int, Value] = field(default_factory=dict)
    nodes: dict[int, Node] = field(default_factory=dict)
    underflow: jax.Array = field(default_factory=lambda: jnp.zeros(1))

    def begin(self) -> None:
        """Sets the bounds of the image, from which the forward pass begins."""
        r = self.region
        size = jnp.abs(r.center) + r.width + TINY if self.rounded else None
        self.underflow = jnp.zeros(r.images.shape[-1], r.images.dtype)
        if self.rounded:
            self.underflow = self.underflow + self.constants.sound.astype(r.images.dtype)
        self.set(self.program.image, Value(r.center, r.width, size, None, 1, 1, False))

    def set(self, number: int, value: Value) -> None:
        """Sets the bounds of a value, and charges for its underflow."""
        self.values[number] = value
        if value.size is not None:
            over = tuple(range(value.size.ndim - 1))
            self.underflow = self.underflow + UNDERFLOWN * (value.size.sum(over) + 1)

    # Forwards

    def forwards(self, tighten: "Tighten") -> None:
        """Bounds all values in order; `tighten` gives better bounds of the arguments of nonlinear operations."""
        for place, equation in enumerate(self.program.equations):
            if not self.program.depends.issuperset(equation.results):
                self.constants.work_out(equation)
            elif affine.is_affine(self.program, equation):
                self._affine(equation)
            else:
                self._nonlinear(place, equation, tighten)

    def _affine(self, equation: Equation) -> None:
        which = affine.dependent(self.program, equation)
        given = [self.values[n] if d else None for n, d in zip(equation.operands, which, strict=True)]
        constants = [None if d else self.constants[n] for n, d in zip(equation.operands, which, strict=True)]

        def taken(field: str) -> list[Any]:
            return [c if v is None else getattr(v, field) for v, c in zip(given, constants, strict=True)]

        centers = affine.run(equation, taken("center"), which)
        widths = affine.by_absolutes(equation, taken("width"), which, added=False)
        sizes: list[jax.Array | None] = [None] * len(equation.results)
        offs = sizes
        if self.rounded:
            sizes = [x + TINY for x in affine.by_absolutes(equation, taken("size"), which, added=True)]
            offs = self._off(equation, given, constants, which)
        forth, back = affine.terms(self.program, equation)
        before = [v for v in given if v is not None]
        uses = max(self.program.uses[n] for n, d in zip(equation.operands, which, strict=True) if d)
        roundings = max(v.roundings for v in before) + forth
        nonlinear = any(v.nonlinear for v in before)
        returns = max(v.back for v in before) + back + uses
        for number, center, width, size, off in zip(equation.results, centers, widths, sizes, offs, strict=True):
            self.set(number, Value(center, width, size, off, roundings, returns, nonlinear))

    def _off(self, equation, given, constants, which) -> list[jax.Array | None]:
        """By how much errors of constants may change the results; None each where all constants are exact."""
        parts = []
        if any(v is not None and v.off is not None for v in given):
            mixed = [
                c if v is None else jnp.zeros_like(v.center) if v.off is None else v.off
                for v, c in zip(given, constants, strict=True)
            ]
            parts.append(affine.by_absolutes(equation, mixed, which, added=False))
        errors = [None if d else self.constants.error(n) for n, d in zip(equation.operands, which, strict=True)]
        for i, error in enumerate(errors):
            if error is None:
                continue
            if equation.name == "div":  # the error of the reciprocal
                divisor = jnp.abs(jnp.asarray(constants[i]))
                least = jnp.where(divisor > error, divisor - error, jnp.nan)
                equation, error = affine.as_product(equation), error / (divisor * least) * (1 + 1e-5)
            reaches = [v if v is None else v.size if v.off is None else v.size + v.off for v in given]
            if equation.name in affine.LINEAR:  # the constant is added: its error multiplies nothing
                reaches = [v if v is None else jnp.zeros_like(v) for v in reaches]
            others = [affine.without(c) if v is None else v for v, c in zip(reaches, constants, strict=True)]
            others[i] = error
            parts.append(affine.by_absolutes(equation, others, which, added=True))
        if not parts:
            return [None] * len(equation.results)
        return [sum(each) * (1 + 1e-3) for each in zip(*parts, strict=True)]

    def _nonlinear(self, place: int, equation: Equation, tighten: Tighten) -> None:
        name, operands, params = equation.name, equation.operands, equation.params
        which = affine.dependent(self.program, equation)
        if name == "max":
            node, result = self._ramp(place, equation, tighten)
        elif name == "mul" and all(which):
            x, y = (self._bounded(place, n, tighten) for n in operands)
            result = relaxations.product_interval(x, y)
            a, b = (self.values[n].center for n in operands)
            lines = relaxations.product_lines(x, y, (a, b), _middle(result))
            node = self._node(operands, lines, result)
        elif len(operands) == 1 and name == "integer_pow" and params["y"] == -1:
            z = self._bounded(place, operands[0], tighten)
            result, _ = relaxations.reciprocal(z)
            lines = relaxations.reciprocal_lines(z, self.values[operands[0]].center, _middle(result))
            node = self._node(operands, lines, result)
        elif len(operands) == 1 and (curve := relaxations.curve_of(name, params)) is not None:
            z = self._bounded(place, operands[0], tighten)
            result = relaxations.curve_interval(curve, z)
            lines = relaxations.curve_lines(curve, z, self.values[operands[0]].center, _middle(result))
            node = self._node(operands, lines, result)
        else:
            raise equation.refused("it is neither affine in the image nor a function whose curve is known")
        size = jnp.maximum(jnp.abs(result.low), jnp.abs(result.high)) + TINY if self.rounded else None
        center = _middle(result)
        if self.rounded:  # training, which does not round, keeps the bits that it had
            node, center, size = stored((node, center, size))
        self.nodes[place] = node
        (number,) = equation.results
        self.set(number, Value(center, node.width, size, None, 0, 0, True))

    def _bounded(self, place: int, number: int, tighten: Tighten) -> Interval:
        interval = self.values[number].interval
        return tighten(self, place, {number: 1.0}, interval, jnp.ones_like(interval.low, bool))

    def _node(self, arguments: tuple[int, ...], lines: Lines, result: Interval) -> Node:
        errors = tuple(self.values[n].error for n in arguments)
        return Node(arguments, errors, lines, None, _half(result))

    def _ramp(self, place: int, equation: Equation, tighten: Tighten) -> tuple[Node, Interval]:
        """A maximum of two values, one of which may be a constant, as a ramp, and the interval of its result."""
        one, other = equation.operands
        if one not in self.program.depends:
            one, other = other, one
        fixed = other not in self.program.depends
        a = self.values[one]
        if fixed:
            off = self.constants.error(other) if self.rounded else None
            level = jnp.asarray(self.constants[other])[..., None]
            size = jnp.abs(level) if self.rounded else None
            b = Value(level, jnp.zeros_like(level), size, off if off is None else off[..., None], 0, 0, False)
            if b.center.ndim < a.center.ndim:
                b = jax.tree.map(lambda x: x.reshape(*[1] * (a.center.ndim - 1), -1) if jnp.ndim(x) else x, b)
        else:
            b = self.values[other]
        reach = (a.width + a.error + b.width + b.error) * (1 + 4 * unit(a.center.dtype))
        reach = reach + 4 * unit(a.center.dtype) * (jnp.abs(a.center) + jnp.abs(b.center)) + TINY
        difference = Interval(a.center - b.center - reach, a.center - b.center + reach)
        factors = {one: 1.0} if fixed else {one: 1.0, other: -1.0}
        undecided = ~((difference.low >= 0) | (difference.high <= 0))
        if fixed:
            moved = Interval(difference.low + b.center, difference.high + b.center)
            better = tighten(self, place, factors, moved, undecided)
            # For rounding in subtracting the constant, and for the constant's own error.
            u = 2 * unit(a.center.dtype) * (jnp.abs(better.low) + jnp.abs(better.high) + jnp.abs(b.center)) + b.error
            d = difference.within(Interval(better.low - b.center - u, better.high - b.center + u))
        else:
            d = tighten(self, place, factors, difference, undecided)
        if (split := self.splits.get(place)) is not None:
            d = Interval(
                jnp.where(split > 0, jnp.maximum(d.low, 0), d.low), jnp.where(split < 0, jnp.minimum(d.high, 0), d.high)
            )
        x, y = a.interval, b.interval
        result = Interval(jnp.maximum(x.low, y.low), jnp.maximum(x.high, y.high))
        if fixed:  # `tighten` may have given better bounds of the argument than `x` has
            u = 2 * unit(a.center.dtype) * (jnp.abs(b.center) + jnp.abs(d.low) + jnp.abs(d.high)) + b.error
            ramp_low, ramp_high = jnp.maximum(d.low, 0) + b.center - u, jnp.maximum(d.high, 0) + b.center + u
            result = result.within(Interval(ramp_low, ramp_high))
        center = _middle(result)
        spread = b.width + b.error
        ramp = Ramp(d, a.center, jnp.broadcast_to(b.center, a.center.shape), center, spread, fixed)
        usual = ramp.lines(relaxations.steepness(d, "adaptive"))
        arguments = (one,) if fixed else (one, other)
        errors = (a.error,) if fixed else (a.error, b.error)
        return Node(arguments, errors, usual, ramp, _half(result)), result

    # Backwards

    def of(self, image: Any) -> "Bounds":
        """The part of these bounds that `back` needs for one of the images, given by its index in the batch."""

        def own(x: Any) -> Any:
            return lax.dynamic_slice_in_dim(x, image, 1, -1) if isinstance(x, jax.Array) else x

        nodes, region, underflow = stored(jax.tree.map(own, (self.nodes, self.region, self.underflow)))
        return replace(self, nodes=nodes, region=region, values={}, underflow=underflow)

    def within(self, view: window.View, corner: jax.Array) -> "Bounds":
        """The part of these bounds that `back` needs for the receptive field of the block at a corner `[rank]`.

        Outside of the receptive field all coefficients are zero, so bounds of the block by this part are those by the
        whole.
        """
        shapes, dtype = self.program.shapes, self.region.images.dtype

        def part(of: Any, seen: window.Window, shape: tuple[int, ...]) -> Any:
            """Arrays of one shape are cut as one array, which takes less time to compile."""
            leaves, form = jax.tree.flatten(of)
            for alike in {x.shape for x in leaves if isinstance(x, jax.Array)}:
                places = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array) and x.shape == alike]
                together = jnp.concatenate([leaves[i] for i in places], -1)
                each = jnp.split(stored(window.cut(together, seen, shape, corner)), len(places), -1)
                for i, x in zip(places, each, strict=True):
                    leaves[i] = x
            return jax.tree.unflatten(form, leaves)

        known = {
            n: window.cut(self.constants[whole], seen, shape, corner)
            for n, (whole, seen, shape) in view.constants.items()
        }
        known |= {n: window.inside(seen, shape, corner, dtype) for n, (seen, shape) in view.masks.items()}
        nodes = {}
        for at, (whole, seen) in view.steps.items():
            equation = view.program.equations[at]
            arguments = tuple(n for n in equation.operands if n in view.program.depends)
            node = part(self.nodes[whole], seen, shapes[equation.results[0]].shape)
            nodes[at] = node._replace(arguments=arguments)
        # The radius must not be cut: along an axis of length 1 its single entry looks like one for each pixel.
        seen = part(self.region, view.image, shapes[self.program.image].shape)
        region = seen._replace(radius=self.region.radius)
        constants = self.constants.beside(known)
        return replace(self, program=view.program, constants=constants, region=region, values={}, nodes=nodes)

    def combined(self, factors: dict[int, float]) -> tuple[jax.Array, jax.Array]:
        """The center of a linear combination of values, and its rounding error before the backward pass.

        `factors` are those of the combination, by the number of the value.
        """
        values = [(f, self.values[n]) for n, f in factors.items()]
        sums = 2 * gamma(len(self.nodes) + EXTRA, values[0][1].center.dtype)  # for adding the lines' offsets
        center = sum((f * v.center for f, v in values[1:]), values[0][0] * values[0][1].center)
        errors = [abs(f) * (v.error if v.size is None else v.error + sums * v.size) for f, v in values]
        return center, sum(errors[1:], errors[0])

    def back(
        self,
        place: int,
        functions: dict[int, jax.Array],
        constant: jax.Array,
        slopes: Callable[[int], jax.Array | None] = lambda _: None,
        *,
        multipliers: Callable[[int, jax.Array], jax.Array | None] = lambda *_: None,
        above: Callable[[int], tuple[Ramps | Maxima, Planes | Slopes] | None] = lambda _: None,
        whole: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """Lower bounds of `constant + sum(coefficients * (values - centers))` over the region.

        Arguments are those of `taken_back`.

        Returns:
          The bounds `[N]`, and differences to the images `[1, *shape, N]` at which they are nearly attained.
        """
        more: dict[str, Any] = {"multipliers": multipliers, "above": above, "whole": whole}
        a, constant = self.taken_back(place, functions, constant, slopes, **more)
        least, where = self.region.least(a, self.p)
        return self.total(constant, 0, least), where

    def taken_back(
        self,
        place: int,
        functions: dict[int, jax.Array],
        constant: jax.Array,
        slopes: Callable[[int], jax.Array | None] = lambda _: None,
        *,
        multipliers: Callable[[int, jax.Array], jax.Array | None] = lambda *_: None,
        above: Callable[[int], tuple[Ramps | Maxima, Planes | Slopes] | None] = lambda _: None,
        whole: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """Linear functions of the image that lie below `constant + sum(coefficients * (values - centers))`.

        Args:
          place: index of an equation; the values are results of equations before it.
          functions: coefficients `[*shape, N]` by the number of the value: of one function for each of N images, or of
            N functions for the image that these bounds are `of`.
          constant: `[N]`, the functions' values at the centers, less the rounding errors of the values there.
          slopes: gives the slope of the lower line of the operation at an index, or None for the default one.
          multipliers: gives, for the operation at an index and the coefficients `[*shape, N]` of its result, the
            multiplier by which its difference `d` is subtracted, `[*shape, N]`, or None for none. It has the sign that
            is assumed of d, so that the bound holds where the assumption is true (Wang et al., "Beta-CROWN: efficient
            bound propagation with per-neuron split constraints for neural network robustness verification", 2021,
            theorem 3.1).
          above: gives, for the operation at an index, its ramps and planes above them, which are used instead of the
            chords where `Ramps.planar`, or None for chords. It may do so for one operation, that of `first_ramps`.
          whole: whether to propagate to the image; else only to the last nonlinear operations, whose intervals are
            used, as in interval arithmetic.

        Returns:
          Coefficients of the image `[1, *shape, N]`, and the functions' values at its center `[N]`.
        """
        functions = dict(functions)
        for at in range(place - 1, -1, -1):
            equation = self.program.equations[at]
            results = [functions.pop(n, None) for n in equation.results]
            if all(a is None for a in results):
                continue
            if at not in self.nodes:
                self._transposed(equation, results, functions)
                continue
            (a,) = results
            assert a is not None
            a = stored(a) if self.rounded else a
            if whole:
                less = multipliers(at, a)
                constant = constant + self._through(self.nodes[at], a, slopes(at), less, above(at), functions)
            else:
                reach = (jnp.abs(a) * self.nodes[at].width).reshape(-1, a.shape[-1]).sum(0)
                constant = constant - reach * (1 + self._lost(a))
        a = functions.pop(self.program.image, None)
        if a is None:  # the propagated functions do not depend on the image
            a = jnp.zeros((*self.region.images.shape[:-1], constant.shape[0]), constant.dtype)
        return a, constant

    def affine_back(self, place: int, functions: dict[int, jax.Array]) -> jax.Array:
        """Coefficients of the image `[1, *shape, N]` in linear functions of values that are affine in it.

        They are the same for all images. `place` and `functions` are as in `taken_back`.
        """
        functions = dict(functions)
        for equation in reversed(self.program.equations[:place]):
            results = [functions.pop(n, None) for n in equation.results]
            if any(a is not None for a in results):
                self._transposed(equation, results, functions)
        return functions[self.program.image]

    def total(self, constant: jax.Array, off: jax.Array | float, least: jax.Array) -> jax.Array:
        """The lower bound `constant - off + least`, less what rounding and underflow may add to it."""
        bound = constant - off + least
        rounded = 4 * unit(bound.dtype) * (jnp.abs(constant) + jnp.abs(off) + jnp.abs(least))
        return bound - rounded - jnp.expand_dims(self.underflow, tuple(range(bound.ndim - 1)))

    def _transposed(self, equation: Equation, results: list[Any], functions: dict[int, jax.Array]) -> None:
        which = affine.dependent(self.program, equation)
        constants = [None if d else self.constants[n] for n, d in zip(equation.operands, which, strict=True)]
        numbers = [n for n, d in zip(equation.operands, which, strict=True) if d]
        shapes = [self.program.shapes[n] for n in numbers]
        for number, a in zip(numbers, affine.transpose(equation, constants, which, shapes, results), strict=True):
            _add(functions, number, a)

    def first_ramps(self) -> tuple[int, Ramps | Maxima] | None:
        """The first operation of ramps that planes can be above: the index of its equation, and its ramps.

        Their differences are affine in the image, or they are maxima of such functions and of constants; the region is
        a box; and there are at most `maxima.MOST` free slopes, or `planes.MOST` weights. None if there is none.
        """
        if self.p != INF:
            return None
        functions = {place: self.functions(place) for place, node in self.nodes.items() if node.ramp is not None}
        for place, parts in sorted(functions.items(), key=lambda item: -len(item[1])):
            if parts and (top := self._maxima(place, parts)) is not None:
                return place, top
        width = self.region.width.reshape(-1, self.region.width.shape[-1])
        for place, parts in functions.items():
            if (ramp := self.nodes[place].ramp) is None or not ramp.fixed or len(parts) != 2:
                continue
            shape = ramp.d.low.shape[:-1]
            count = math.prod(shape)
            if count * len(width) <= planes.MOST:
                each = jnp.eye(count, dtype=width.dtype).reshape(*shape, count)
                (number,) = self.nodes[place].arguments
                weights = self.affine_back(place, {number: each}).reshape(-1, count).T
                return place, Ramps.of(weights, width, ramp.d)
        return None

    def functions(self, place: int) -> list[tuple[int, jax.Array, jax.Array]]:
        """The functions that a tree of ramps is the maximum of; none if they are not affine in the image or constant.

        Returns:
          for each of them its number, its share of the chords' slopes, and whether it may be the largest.
        """
        node, made = self.nodes[place], {self.program.equations[at].results[0]: at for at in self.nodes}
        if (ramp := node.ramp) is None:
            return []
        one = node.arguments[0]
        (other,) = node.arguments[1:] or [n for n in self.program.equations[place].operands if n != one]
        share = ramp.lines(jnp.zeros_like(ramp.d.low)).above[0]
        wins = ramp.d.low >= 0
        found = []
        for number, part, may in ((one, share, wins | ~(ramp.d.high <= 0)), (other, 1 - share, ~wins)):
            if number in made:
                below = self.functions(made[number])
                if not below:
                    return []
                found += [(n, part * of, may & alive) for n, of, alive in below]
            elif number in self.program.depends and self.values[number].nonlinear:
                return []
            else:
                found.append((number, part, may))
        return found

    def tree(self, place: int) -> list[int]:
        """The operations of ramps, with the one at an index first, that compute one maximum of several values."""
        made = {self.program.equations[at].results[0]: at for at, node in self.nodes.items() if node.ramp is not None}
        below = [self.tree(made[n]) for n in self.program.equations[place].operands if n in made]
        return [place, *(at for each in below for at in each)]

    def _maxima(self, place: int, parts: list[tuple[int, jax.Array, jax.Array]]) -> Maxima | None:
        """The maxima of these functions, as `functions` returns them; None where they see too many pixels."""
        numbers = [n for n, *_ in parts if n in self.program.depends]
        shape = self.program.shapes[self.program.equations[place].results[0]].shape
        fields = window.receptive_fields(self.program, place, numbers)
        if fields is None or fields[0].size * fields[1].shape[1] > maxima.MOST:
            return None
        entries, pixels = fields
        width = self.region.width.reshape(-1, self.region.width.shape[-1])
        count, dtype = entries.size, width.dtype
        each = jnp.eye(len(numbers) * count, dtype=dtype).reshape(len(numbers), *shape, -1)
        functions: dict[int, jax.Array] = {}
        for number, one in zip(numbers, each, strict=True):
            _add(functions, number, one)
        weights = self.affine_back(place, functions).reshape(len(width), len(numbers), count)
        weights = weights.at[pixels[:, None], :, entries[:, :, None]].get(mode="fill", fill_value=0)
        ours, at = iter(jnp.moveaxis(weights, -1, 0)), []
        for number, _, _ in parts:
            if number in self.program.depends:
                value = self.values[number]
                at.append(value.center + value.error)
            else:
                level, error = jnp.asarray(self.constants[number]), self.constants.error(number)
                at.append((level if error is None else level + error)[..., None])
        flat = [
            jnp.stack([jnp.broadcast_to(x, (*shape, width.shape[1])).reshape(count, -1)[entries] for x in each])
            for each in (at, [may for *_, may in parts], [share for _, share, _ in parts])
        ]
        none = jnp.zeros((*entries.shape, pixels.shape[1]), dtype)
        weights = jnp.stack([next(ours) if n in self.program.depends else none for n, *_ in parts])
        return Maxima(entries, pixels, *stored((weights, width, *flat)))

    def _above(
        self,
        node: Node,
        down: jax.Array,
        ramps: Ramps | Maxima,
        free: Planes | Slopes,
        functions: dict[int, jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        """Propagates negative coefficients `down` of ramps to the image by planes, where these are used.

        Returns:
          the coefficients that remain for the chords, and what is added to the constant `[N]`.
        """
        ramp, planar = node.ramp, ramps.planar
        assert ramp is not None
        shares = jnp.where(planar.reshape(down.shape), down, 0)
        if isinstance(ramps, Maxima):
            assert isinstance(free, Slopes)
            coefficients, highest = ramps.above(free, shares.reshape(planar.shape))
            highest = highest.reshape(down.shape) - ramp.result
            error = jnp.zeros_like(highest)  # it is in the planes
        else:
            assert isinstance(free, Planes)
            coefficients, sums = planes.summed(ramps, free, shares.reshape(planar.shape))
            center = (ramp.argument - ramp.base).reshape(sums.shape)
            highest = jnp.maximum(sums, center + ramps.reach - sums)
            # Of the sums over pixels, and of those over ramps for a pixel. That the sums are added to the image's
            # coefficients is one rounding, of which `EXTRA` has enough as long as one operation does it.
            lost = 2 * gamma(sum(ramps.weights.shape) + EXTRA, down.dtype)
            rounded = lost * (4 * ramps.reach + jnp.abs(center)) + TINY * (1 + ramps.width.sum(0, keepdims=True))
            highest = (highest + rounded).reshape(down.shape) + ramp.base - ramp.result + ramp.slack
            error = node.errors[0]
        lost = self._lost(down)
        total = shares * (highest + lost * jnp.abs(highest) + error * (1 + 2 * lost))
        _add(functions, self.program.image, coefficients.reshape(self.region.width.shape))
        underflow = UNDERFLOWN * (ramps.width.sum(0) + 1)
        return down - shares, total.reshape(-1, total.shape[-1]).sum(0) - underflow

    def _through(
        self,
        node: Node,
        a: jax.Array,
        slope: Any,
        less: jax.Array | None,
        above: tuple[Ramps | Maxima, Planes | Slopes] | None,
        functions: dict[int, jax.Array],
    ) -> jax.Array:
        """Propagates coefficients `a` of an operation's result to its arguments; gives what is added to the constant.

        `less` are the multipliers of the ramp's difference, and `above` planes, as in `taken_back`.
        """
        lines = node.lines(slope)
        up, down = jnp.maximum(a, 0), jnp.minimum(a, 0)
        lost = self._lost(a)
        by_planes: jax.Array | float = 0.0
        if above is not None:
            down, by_planes = self._above(node, down, *above, functions)
        total = up * (lines.low - lost * jnp.abs(lines.low)) + down * (lines.high + lost * jnp.abs(lines.high))
        shares: list[Any] = [0.0] * len(node.arguments)
        if less is not None and (ramp := node.ramp) is not None:
            shares = [-less, less][: len(node.arguments)]
            sizes = jnp.abs(ramp.argument) + jnp.abs(ramp.base)
            slack = 4 * unit(a.dtype) * sizes + TINY + (ramp.spread if ramp.fixed else 0)
            total = total - less * (ramp.argument - ramp.base) - jnp.abs(less) * (slack + lost * sizes)
        for number, below, upper, error, share in zip(
            node.arguments, lines.below, lines.above, node.errors, shares, strict=True
        ):
            part = up * below + down * upper
            # Errors are charged for each of the two by itself: where the two cancel, their errors do not.
            total = total - (jnp.abs(part) + jnp.abs(share)) * error * (1 + 2 * lost)
            part = part + share
            _add(functions, number, part)
        return total.reshape(-1, a.shape[-1]).sum(0) + by_planes

    def _lost(self, a: jax.Array) -> float:
        """The largest relative error of a sum over an operation's entries and over all operations."""
        return 2 * gamma(a[..., 0].size + len(self.nodes) + EXTRA, a.dtype)


def stored(tree: Any) -> Any:
    """The pytree with its arrays computed once, however many operations read them, by `unstable.stored`."""
    leaves, form = jax.tree.flatten(tree)
    each = iter(unstable.stored([x for x in leaves if isinstance(x, jax.Array)]))
    return jax.tree.unflatten(form, [next(each) if isinstance(x, jax.Array) else x for x in leaves])


def _add(functions: dict[int, jax.Array], number: int, a: jax.Array) -> None:
    functions[number] = a if number not in functions else functions[number] + a


def _middle(z: Interval) -> jax.Array:
    return z.low / 2 + z.high / 2


def _half(z: Interval) -> jax.Array:
    """The half-width of an interval around its `_middle`, rounded up."""
    u = unit(z.low.dtype)
    return (z.high / 2 - z.low / 2) * (1 + 8 * u) + 4 * u * (jnp.abs(z.low) + jnp.abs(z.high)) + TINY
