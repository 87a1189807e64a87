"""Values that a network computes from its weights alone, with bounds of their rounding errors."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mnist_jax.certify.relaxations import ELEMENTARY, error, power_units
from mnist_jax.certify.rounding import TINY, gamma, unit
from mnist_jax.jaxprs import affine
from mnist_jax.jaxprs.program import Equation, Program

# Increasing or decreasing functions: an operand's error changes the result by no more than at the ends of its range.
MONOTONE = {"sqrt", "rsqrt", "exp", "expm1", "log", "log1p", "tanh", "logistic", "erf", "erfc", "cbrt", "exp2"}
# Functions whose results are taken to be within `ELEMENTARY` units of half the last place, for exact operands.
ELEMENTARY_FUNCTIONS = MONOTONE | {"sin", "cos", "tan", "pow", "integer_pow", "square", "asin", "acos", "atan", "atan2"}
ABSOLUTE = {"sin", "cos", "tan", "log", "log1p", "expm1", "erfc"}  # those whose error near 0 is absolute, not relative
# Sums of products, whose error is that of rounding each term.
SUMS = {"add", "add_any", "sub", "mul", "div", "dot_general", "conv_general_dilated", "reduce_sum", "cumsum"}
SUMS |= {"reduce_window_sum"}
# Those sums that are products of two operands.
PRODUCTS = {"mul", "dot_general", "conv_general_dilated"}
# Primitives that move numbers, or choose among them, without rounding. The error of a number moves with it.
MOVES = (set(affine.LINEAR) - SUMS) | {"abs", "max", "min", "reduce_max", "reduce_min", "clamp", "reduce_window_max"}
# Other primitives that give exact results for exact operands.
EXACT = {"iota", "floor", "ceil", "round", "sign", "sort", "scatter", "device_put", "select_and_gather_add", "cummax"}
EXACT |= {"cummin", "reduce_precision", "bitcast_convert_type", "nextafter", "top_k", "empty2", "random_bits"}


class Constants:
    """Values `constants[number]` that do not depend on the image, with error bounds of those that were rounded.

    A primitive that is on none of the lists in this file is refused, as its error is not known.

    Attributes:
      program: the classifier's computation.
      values: the values so far, by number.
      errors: absolute error bounds of the values that were rounded, by number.
      sound: 0, or NaN where a weight is subnormal, so that a device may take it for 0; it is added to every bound.
    """

    def __init__(self, program: Program, weights: list[Any]):
        self.program = program
        self.values: dict[int, Any] = dict(program.known) | dict(zip(program.weights, weights, strict=True))
        self.errors: dict[int, jax.Array] = {}
        subnormal = jnp.stack([jnp.zeros((), bool), *map(_subnormal, self.values.values())]).any()
        self.sound = jnp.where(subnormal, jnp.nan, 0.0)

    def __getitem__(self, number: int) -> Any:
        return self.values[number]

    def beside(self, values: dict[int, Any]) -> "Constants":
        """A copy that has further values, by number, such as the inputs of a part of the program."""
        both = copy.copy(self)
        both.values = self.values | values
        return both

    def error(self, number: int) -> jax.Array | None:
        """The absolute error bound of a value, of its shape; None where it is exact."""
        return self.errors.get(number)

    def work_out(self, equation: Equation) -> None:
        """Computes an equation's results and their error bounds.

        Raises:
          UnsupportedOperation: the error of the equation is not known.
        """
        operands = [self.values[n] for n in equation.operands]
        results = equation.bind(*operands)
        self.values |= dict(zip(equation.results, results, strict=True))
        errors = [self.errors.get(n) for n in equation.operands]
        floating = [r.dtype for r in results if jnp.issubdtype(r.dtype, jnp.inexact)]
        # A cast to fewer bits rounds, and a compiler may leave it out where a cast back follows.
        exact = all(e is None for e in errors) and not (floating and _narrows(equation, operands))
        if not floating:
            if not exact:
                raise equation.refused("it makes integers or booleans of rounded numbers")
        elif not (exact and equation.name in MOVES | EXACT) and any(jnp.finfo(kind).tiny > TINY for kind in floating):
            raise equation.refused(f"it rounds to {floating[0]}, in which more underflows than bounds allow for")
        elif equation.name in SUMS:
            self.errors[equation.results[0]] = self._sum(equation, operands, errors)
        elif equation.name in ELEMENTARY_FUNCTIONS:
            self.errors[equation.results[0]] = self._elementary(equation, operands, errors, results[0])
        elif not exact and equation.name in MOVES:
            self.errors |= dict(zip(equation.results, self._moved(equation, operands, errors), strict=True))
        elif not (exact and equation.name in MOVES | EXACT):
            raise equation.refused("its rounding error, or its effect on rounded operands, is not known")

    def _sum(self, equation: Equation, operands: list[Any], errors: list[Any]) -> jax.Array:
        """The error bound of a sum of products: from the errors of its operands, and from its own roundings."""
        sizes = [jnp.abs(jnp.asarray(x)) for x in operands]
        offs = [jnp.zeros_like(x) if e is None else e for x, e in zip(sizes, errors, strict=True)]
        roundings, _ = affine.terms(self.program, equation)
        dtype = self.program.shapes[equation.results[0]].dtype
        if equation.name == "div":
            (a, b), (e, f) = sizes, offs
            least = jnp.where(b > f, b - f, jnp.nan)
            return (e / least + a * f / (b * least) + 8 * unit(dtype) * a / b) * (1 + 1e-3) + TINY
        if equation.name in PRODUCTS:
            (a, b), (e, f) = sizes, offs
            parts = [equation.bind(a, f)[0], equation.bind(e, b)[0], equation.bind(e, f)[0]]
            size = equation.bind(a, b)[0]
        else:
            plus = affine.as_sum(equation)
            parts, size = plus.bind(*offs), plus.bind(*sizes)[0]
        lost = gamma(roundings + 2, dtype)
        return (sum(parts) + 2 * lost * size) * (1 + 1e-3 + 2 * lost) + TINY

    def _elementary(self, equation: Equation, operands: list[Any], errors: list[Any], result: Any) -> jax.Array:
        """The error bound of an elementary function: from the error of its operand, and from its own rounding."""
        units = power_units(equation.params["y"]) if equation.name == "integer_pow" else ELEMENTARY
        if equation.name == "exp2":  # XLA computes exp(x log(2)), with the rounding of a product of up to 89
            units = 4 * ELEMENTARY
        own = 2 * error(jnp.asarray(result), equation.name in ABSOLUTE, units)
        if all(e is None for e in errors):
            return own
        if equation.name == "square":
            (x,), (e,) = operands, errors
            return (2 * jnp.abs(x) * e + e * e + own) * (1 + 1e-3)
        if equation.name not in MONOTONE:
            raise equation.refused("its error for rounded operands is not known")
        (x,), (e,) = operands, errors
        e = e + 2 * ELEMENTARY * unit(result.dtype) * jnp.abs(x)
        ends = [jnp.abs(equation.bind(x + s * e)[0] - result) for s in (-1, 1)]
        return (jnp.maximum(*ends) + 2 * own) * (1 + 1e-3)

    def _moved(self, equation: Equation, operands: list[Any], errors: list[Any]) -> list[jax.Array]:
        """The errors of results of a primitive that moves numbers or chooses among them.

        A maximum or minimum of several numbers changes by the largest of their errors at most.
        """
        offs = [affine.without(x) if e is None else e for x, e in zip(operands, errors, strict=True)]
        if equation.name in ("max", "min", "clamp"):
            shape = jnp.shape(self.values[equation.results[0]])
            return [jnp.stack([jnp.broadcast_to(e, shape) for e in offs]).max(0)]
        if equation.name in ("neg", "abs"):
            return [offs[0]]
        if equation.name in ("reduce_max", "reduce_min"):
            return [offs[0].max(equation.params["axes"])]
        if equation.name == "convert_element_type":
            kind = equation.params["new_dtype"]
            x = jnp.abs(operands[0]).astype(jnp.result_type(operands[0], kind))
            lost = 2 * unit(kind)
            return [((offs[0] + x * lost) * (1 + 1e-3 + 2 * lost) + TINY).astype(kind)]
        if equation.name not in affine.LINEAR:
            raise equation.refused("its error for rounded operands is not known")
        places = affine.LINEAR[equation.name](len(operands))
        if any(e is not None for i, e in enumerate(errors) if i not in places):
            raise equation.refused("rounded numbers select or place others")
        given = [e if i in places else x for i, (x, e) in enumerate(zip(operands, offs, strict=True))]
        return affine.by_sizes(equation, added=False).bind(*given)


def _narrows(equation: Equation, operands: list[Any]) -> bool:
    """Whether the equation casts floating-point numbers to a type with a shorter significand."""
    if equation.name != "convert_element_type" or not jnp.issubdtype(operands[0].dtype, jnp.floating):
        return False
    return jnp.finfo(equation.params["new_dtype"]).nmant < jnp.finfo(operands[0].dtype).nmant


def _subnormal(x: Any) -> jax.Array:
    """Whether any of the numbers is subnormal; read from their bits, since a comparison may take them for 0."""
    x = jnp.asarray(x)
    if x.dtype not in (jnp.float32, jnp.float64):
        return jnp.zeros((), bool)
    whole = jnp.uint32 if x.dtype == jnp.float32 else jnp.uint64
    bits = lax.bitcast_convert_type(x, whole) << 1  # without the sign
    return (
        (bits != 0) & (bits < (lax.bitcast_convert_type(jnp.asarray(jnp.finfo(x.dtype).tiny, x.dtype), whole) << 1))
    ).any()
