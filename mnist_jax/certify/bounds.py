"""Bounds of everything that a network computes, and linear bounds of its logits, in one walk over its equations.

Forwards, every value that depends on the image has a center, a half-width around it, and a magnitude; an affine
equation takes the center through itself and the others through the absolute values of its coefficients, so that no
interval is formed between two nonlinear steps. At a nonlinear step there is an interval, and lines below and above it.

Backwards, linear functions of a value are taken to linear functions of the image: affine equations transposed, lines
in place of the nonlinear steps (Zhang et al., "Efficient neural network robustness certification with general
activation functions", 2018: CROWN). Bounds of the steps between are made in the same way, on the way forwards.

**Rounding.** Let an affine stretch, from nonlinear steps (or the image) to the next, take the center c, the half-width
w and the magnitude G to its end. The device's value, and ours of the center, are each within `gamma(n) G` of the exact
ones, where n counts the roundings on the longest way through, in any order of summation. The coefficients that we take
back are within `gamma(m) |coefficients|` of the exact ones, which multiply differences to centers, so `gamma(m) w` at
the end of the stretch. All of that is one error at the end of the stretch, `Value.error`, and whatever linear function
is taken through the stretch pays for it by the absolute values of its coefficients there. Sums over the steps'
offsets are charged by the same rule. Lines and the region have their own. Constants that are worked out from the
weights carry how far they may be off. What underflows is in `TINY` and `UNDERFLOWN`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mnist_jax.certify import relaxations
from mnist_jax.certify.constants import Constants
from mnist_jax.certify.region import Region
from mnist_jax.certify.relaxations import Interval, Lines, Ramp
from mnist_jax.certify.rounding import TINY, UNDERFLOWN, gamma, unit
from mnist_jax.jaxprs import affine, window
from mnist_jax.jaxprs.program import Equation, Program

EXTRA = 8  # roundings besides those of the sums: of the half-width, of the error itself, of two values' difference


class Value(NamedTuple):
    """A value that depends on the image, `[*shape, B]`: within `width` of `center`, but for `error`.

    Attributes:
      center, width: see above, as if nothing were rounded.
      size: magnitude; of everything that is added up to make it, in absolute values. None where rounding is left out.
      off: how far constants that are not exact may take it.
      roundings, back: on the longest way from the last nonlinear step to here, and from here back.
      bent: whether there is a nonlinear step before it.
    """

    center: jax.Array
    width: jax.Array
    size: jax.Array | None
    off: jax.Array | None
    roundings: int
    back: int
    bent: bool

    @property
    def error(self) -> jax.Array:
        """By how much all that is rounded may be off here."""
        if self.size is None:
            return jnp.zeros_like(self.center)
        forwards, back = (gamma(n + EXTRA, self.center.dtype) for n in (self.roundings, self.back + self.roundings))
        # The size and the width are sums that were rounded themselves, by as much at most.
        error = (2 * forwards * self.size + 3 * back * self.width) * (1 + 1e-3 + 2 * back) + TINY
        return error if self.off is None else error + self.off

    @property
    def interval(self) -> Interval:
        reach = self.width + self.error
        return Interval(self.center - reach, self.center + reach)


class Node(NamedTuple):
    """A nonlinear step, once its arguments are bounded.

    Attributes:
      arguments: numbers of the values that depend on the image.
      errors: of the arguments, `[*shape, B]`.
      usual: lines with the usual slopes.
      ramp: the step, where there is a choice of the slope below.
      width: of the result around its center.
    """

    arguments: tuple[int, ...]
    errors: tuple[jax.Array, ...]
    usual: Lines
    ramp: Ramp | None
    width: jax.Array

    def lines(self, slope: jax.Array | None) -> Lines:
        """The lines with this slope below, or the usual ones."""
        return self.usual if slope is None or self.ramp is None else self.ramp.lines(slope)


# Better bounds of a linear function of values: of the walk, the place of the equation, factors by the number of the
# value, the interval so far, and where a better one is of use.
Tighten = Callable[["Bounds", int, dict[int, float], Interval, jax.Array], Interval]


@dataclass
class Bounds:
    """The walk.

    Attributes:
      program, constants: the classifier's.
      region: where images may be.
      p: of the norm.
      rounded: whether bounds are charged for rounding. Those that are not prove nothing, and are made sooner: training
        follows them.
      splits: what is supposed of the differences `d` of steps with a `Ramp`, by the place of their equation,
        `[*shape, B]`: 1 that they are at least 0, -1 that they are at most 0, 0 nothing. Bounds then hold for those
        images of the region of which it is true.
      values: of the image, so far.
      nodes: the nonlinear steps so far, by the place of their equation.
      underflow: `[B]`, what is lost by underflow.
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
        """Sets the value of the image."""
        r = self.region
        size = jnp.abs(r.center) + r.width + TINY if self.rounded else None
        self.underflow = jnp.zeros(r.images.shape[-1], r.images.dtype)
        if self.rounded:
            self.underflow = self.underflow + self.constants.sound.astype(r.images.dtype)
        self.set(self.program.image, Value(r.center, r.width, size, None, 1, 1, False))

    def set(self, number: int, value: Value) -> None:
        self.values[number] = value
        if value.size is not None:
            over = tuple(range(value.size.ndim - 1))
            self.underflow = self.underflow + UNDERFLOWN * (value.size.sum(over) + 1)

    # Forwards

    def forwards(self, tighten: "Tighten") -> None:
        """Bounds all values, and asks for better bounds of what nonlinear steps are functions of."""
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
        bent = any(v.bent for v in before)
        returns = max(v.back for v in before) + back + uses
        for number, center, width, size, off in zip(equation.results, centers, widths, sizes, offs, strict=True):
            self.set(number, Value(center, width, size, off, roundings, returns, bent))

    def _off(self, equation, given, constants, which) -> list[jax.Array | None]:
        """How far constants that are off take the results."""
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
            if equation.name == "div":  # of the reciprocal
                divisor = jnp.abs(jnp.asarray(constants[i]))
                least = jnp.where(divisor > error, divisor - error, jnp.nan)
                equation, error = affine.as_product(equation), error / (divisor * least) * (1 + 1e-5)
            reaches = [v if v is None else v.size if v.off is None else v.size + v.off for v in given]
            if equation.name in affine.LINEAR:  # where the constant is added
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
        self.nodes[place] = node
        size = jnp.maximum(jnp.abs(result.low), jnp.abs(result.high)) + TINY if self.rounded else None
        (number,) = equation.results
        self.set(number, Value(_middle(result), node.width, size, None, 0, 0, True))

    def _bounded(self, place: int, number: int, tighten: Tighten) -> Interval:
        interval = self.values[number].interval
        return tighten(self, place, {number: 1.0}, interval, jnp.ones_like(interval.low, bool))

    def _node(self, arguments: tuple[int, ...], lines: Lines, result: Interval) -> Node:
        errors = tuple(self.values[n].error for n in arguments)
        return Node(arguments, errors, lines, None, _half(result))

    def _ramp(self, place: int, equation: Equation, tighten: Tighten) -> tuple[Node, Interval]:
        """The maximum of two, one of which may be a constant."""
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
            # Their own rounding, and the constant's.
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
        if fixed:  # bounds of the argument may be better by now
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
        """The walk for one of the images, by its place, as far as `back` needs it."""
        leaves, form = jax.tree.flatten((self.nodes, self.region, self.underflow))
        own = [lax.dynamic_slice_in_dim(x, image, 1, -1) for x in leaves if isinstance(x, jax.Array)]
        # A barrier: XLA would take them out anew wherever they are read.
        each = iter(lax.optimization_barrier(own))
        parts = [next(each) if isinstance(x, jax.Array) else x for x in leaves]
        nodes, region, underflow = jax.tree.unflatten(form, parts)
        return replace(self, nodes=nodes, region=region, values={}, underflow=underflow)

    def within(self, view: window.View, corner: jax.Array) -> "Bounds":
        """The walk for what a block at a corner `[rank]` sees, as far as `back` needs it.

        Outside of it all coefficients are zero: what goes back from the block is what it is in the whole.
        """
        shapes, dtype = self.program.shapes, self.region.images.dtype

        def part(of: Any, seen: window.Window, shape: tuple[int, ...]) -> Any:
            return jax.tree.map(lambda x: window.cut(x, seen, shape, corner), of)

        known = {n: part(self.constants[whole], seen, shape) for n, (whole, seen, shape) in view.constants.items()}
        known |= {n: window.inside(seen, shape, corner, dtype) for n, (seen, shape) in view.masks.items()}
        nodes = {}
        for at, (whole, seen) in view.steps.items():
            equation = view.program.equations[at]
            arguments = tuple(n for n in equation.operands if n in view.program.depends)
            node = part(self.nodes[whole], seen, shapes[equation.results[0]].shape)
            nodes[at] = node._replace(arguments=arguments)
        # The radius is one number, which along an axis that is 1 long looks like one for each entry.
        seen = part(self.region, view.image, shapes[self.program.image].shape)
        region = seen._replace(radius=self.region.radius)
        constants = self.constants.beside(known)
        return replace(self, program=view.program, constants=constants, region=region, values={}, nodes=nodes)

    def combined(self, factors: dict[int, float]) -> tuple[jax.Array, jax.Array]:
        """The center of a linear function of values, and the error that it has before it goes back."""
        values = [(f, self.values[n]) for n, f in factors.items()]
        sums = 2 * gamma(len(self.nodes) + EXTRA, values[0][1].center.dtype)  # of the constants on the way
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
        whole: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """Lower bounds of `constant + sum(coefficients * (values - centers))` over the region.

        Args: as of `taken_back`.

        Returns:
          `[N]`, and differences to the images `[1, *shape, N]` where it is nearly attained.
        """
        a, constant = self.taken_back(place, functions, constant, slopes, multipliers=multipliers, whole=whole)
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
        whole: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """Linear functions of the image that are below `constant + sum(coefficients * (values - centers))`.

        Args:
          place: of an equation; the values are of those before it.
          functions: coefficients `[*shape, N]` by the number of the value. The N functions are of as many images, or of
            one, when the walk is `of` it.
          constant: `[N]`, what they are at the centers, less the errors of the values there.
          slopes: of the lines below, for the step at a place; None is the usual one.
          multipliers: for the step at a place and the coefficients `[*shape, N]` of its result, what its difference `d`
            is multiplied by before it is subtracted, `[*shape, N]`: of the sign of what is supposed of it, so that the
            bound holds where that is true; None for nothing (Wang et al., "Beta-CROWN: efficient bound propagation
            with per-neuron split constraints for neural network robustness verification", 2021, theorem 3.1).
          whole: else only as far as the last nonlinear steps, which is what interval arithmetic gives.

        Returns:
          coefficients of the image `[1, *shape, N]`, and what the functions are at its center `[N]`.
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
            if whole:
                less = multipliers(at, a)
                constant = constant + self._through(self.nodes[at], a, slopes(at), less, functions)
            else:
                reach = (jnp.abs(a) * self.nodes[at].width).reshape(-1, a.shape[-1]).sum(0)
                constant = constant - reach * (1 + self._lost(a))
        a = functions.pop(self.program.image, None)
        if a is None:  # nothing of the image gets here
            a = jnp.zeros((*self.region.images.shape[:-1], constant.shape[0]), constant.dtype)
        return a, constant

    def affine_back(self, place: int, functions: dict[int, jax.Array]) -> jax.Array:
        """Coefficients of the image `[1, *shape, N]` in functions of values that are affine in it, for all images."""
        functions = dict(functions)
        for equation in reversed(self.program.equations[:place]):
            results = [functions.pop(n, None) for n in equation.results]
            if any(a is not None for a in results):
                self._transposed(equation, results, functions)
        return functions[self.program.image]

    def total(self, constant: jax.Array, off: jax.Array | float, least: jax.Array) -> jax.Array:
        """The sum that a bound is, rounded down."""
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

    def _through(
        self, node: Node, a: jax.Array, slope: Any, less: jax.Array | None, functions: dict[int, jax.Array]
    ) -> jax.Array:
        """Takes coefficients of a step's result, and less so many differences, to its arguments; gives what is added to
        the constant."""
        lines = node.lines(slope)
        up, down = jnp.maximum(a, 0), jnp.minimum(a, 0)
        lost = self._lost(a)
        total = up * (lines.low - lost * jnp.abs(lines.low)) + down * (lines.high + lost * jnp.abs(lines.high))
        shares: list[Any] = [0.0] * len(node.arguments)
        if less is not None and (ramp := node.ramp) is not None:
            shares = [-less, less][: len(node.arguments)]
            sizes = jnp.abs(ramp.argument) + jnp.abs(ramp.base)
            slack = 4 * unit(a.dtype) * sizes + TINY + (ramp.spread if ramp.fixed else 0)
            total = total - less * (ramp.argument - ramp.base) - jnp.abs(less) * (slack + lost * sizes)
        for number, below, above, error, share in zip(
            node.arguments, lines.below, lines.above, node.errors, shares, strict=True
        ):
            part = up * below + down * above
            # Each of the two by itself: where they cancel, their rounding does not.
            total = total - (jnp.abs(part) + jnp.abs(share)) * error * (1 + 2 * lost)
            part = part + share
            _add(functions, number, part)
        return total.reshape(-1, a.shape[-1]).sum(0)

    def _lost(self, a: jax.Array) -> float:
        """By what share sums over a step, and over all of them, are rounded at most."""
        return 2 * gamma(a[..., 0].size + len(self.nodes) + EXTRA, a.dtype)


def _add(functions: dict[int, jax.Array], number: int, a: jax.Array) -> None:
    functions[number] = a if number not in functions else functions[number] + a


def _middle(z: Interval) -> jax.Array:
    return z.low / 2 + z.high / 2


def _half(z: Interval) -> jax.Array:
    """Half the width around the middle, rounded up."""
    u = unit(z.low.dtype)
    return (z.high / 2 - z.low / 2) * (1 + 8 * u) + 4 * u * (jnp.abs(z.low) + jnp.abs(z.high)) + TINY
