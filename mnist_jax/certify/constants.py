"""What a network works out from its weights alone, and how far that may be off."""

from typing import Any

import jax
import jax.numpy as jnp

from mnist_jax.certify.relaxations import ELEMENTARY, error
from mnist_jax.certify.rounding import TINY, gamma, unit
from mnist_jax.jaxprs import affine
from mnist_jax.jaxprs.program import Equation, Program

# Increasing or decreasing functions: where an operand is off, so is the result, by at most as much as at the ends.
MONOTONE = {"sqrt", "rsqrt", "exp", "expm1", "log", "log1p", "tanh", "logistic", "erf", "cbrt", "exp2"}
# Functions of operands that are exact; they are right to some units in the last place.
ELEMENTARIES = MONOTONE | {"sin", "cos", "tan", "pow", "erfc", "integer_pow", "square", "asin", "acos", "atan", "atan2"}
ABSOLUTE = {"sin", "cos", "tan", "log", "log1p", "expm1"}  # not relative to results near 0
SUMS = {"add", "add_any", "sub", "mul", "div", "dot_general", "conv_general_dilated", "reduce_sum", "cumsum"}
SUMS |= {"reduce_window_sum"}


class Constants:
    """Values `constants[number]` that don't depend on the image, and the errors of those that were rounded."""

    def __init__(self, program: Program, weights: list[Any]):
        self.program = program
        self.values: dict[int, Any] = dict(program.known) | dict(zip(program.weights, weights, strict=True))
        self.errors: dict[int, jax.Array] = {}

    def __getitem__(self, number: int) -> Any:
        return self.values[number]

    def error(self, number: int) -> jax.Array | None:
        """How far the value may be off; None where it is exact."""
        return self.errors.get(number)

    def work_out(self, equation: Equation) -> None:
        """Works an equation out.

        Raises:
          UnsupportedOperation: nothing is known of how it treats operands that are off already.
        """
        operands = [self.values[n] for n in equation.operands]
        results = equation.bind(*operands)
        self.values |= dict(zip(equation.results, results, strict=True))
        floating = all(jnp.issubdtype(r.dtype, jnp.floating) for r in results)
        errors = [self.errors.get(n) for n in equation.operands]
        if not floating or (equation.name not in SUMS | ELEMENTARIES and all(e is None for e in errors)):
            if any(e is not None for e in errors):
                raise equation.refused("it makes whole numbers or truth values of rounded ones")
            return
        if equation.name in SUMS:
            made = [self._sum(equation, operands, errors)]
        elif equation.name in ELEMENTARIES:
            made = [self._elementary(equation, operands, errors, results[0])]
        elif equation.name in affine.LINEAR or equation.name in ("max", "min"):
            made = self._moved(equation, operands, errors)
        else:
            raise equation.refused("nothing is known of it for operands that are rounded")
        self.errors |= dict(zip(equation.results, made, strict=True))

    def _sum(self, equation: Equation, operands: list[Any], errors: list[Any]) -> jax.Array:
        sizes = [jnp.abs(jnp.asarray(x)) for x in operands]
        offs = [jnp.zeros_like(x) if e is None else e for x, e in zip(sizes, errors, strict=True)]
        roundings, _ = affine.terms(self.program, equation)
        dtype = self.program.shapes[equation.results[0]].dtype
        if equation.name == "div":
            (a, b), (e, f) = sizes, offs
            least = b - f
            error = (a + e) / jnp.where(least > 0, least, jnp.nan) - a / b + 8 * unit(dtype) * a / b
            return error * (1 + 1e-3) + TINY
        if equation.name in ("mul", "dot_general", "conv_general_dilated"):
            (a, b), (e, f) = sizes, offs
            parts = [equation.bind(a, f)[0], equation.bind(e, b)[0], equation.bind(e, f)[0]]
            size = equation.bind(a, b)[0]
        else:
            plus = affine.as_sum(equation)
            parts, size = plus.bind(*offs), plus.bind(*sizes)[0]
        return (sum(parts) + 2 * gamma(roundings + 2, dtype) * size) * (1 + 1e-3) + TINY

    def _elementary(self, equation: Equation, operands: list[Any], errors: list[Any], result: Any) -> jax.Array:
        own = 2 * error(jnp.asarray(result), equation.name in ABSOLUTE)
        if all(e is None for e in errors):
            return own
        if equation.name not in MONOTONE:
            raise equation.refused("nothing is known of it for operands that are rounded")
        (x,), (e,) = operands, errors
        e = e + 2 * ELEMENTARY * unit(result.dtype) * jnp.abs(x)
        ends = [jnp.abs(equation.bind(x + s * e)[0] - result) for s in (-1, 1)]
        return (jnp.maximum(*ends) + 2 * own) * (1 + 1e-3)

    def _moved(self, equation: Equation, operands: list[Any], errors: list[Any]) -> list[jax.Array]:
        """Errors go where their values go."""
        if equation.name in ("max", "min"):
            offs = [jnp.zeros_like(x) if e is None else e for x, e in zip(operands, errors, strict=True)]
            return [jnp.maximum(*offs)]
        if equation.name == "neg":
            return [errors[0]]
        places = affine.LINEAR[equation.name](len(operands))
        offs = [
            (affine.without(x) if e is None else e) if i in places else x
            for i, (x, e) in enumerate(zip(operands, errors, strict=True))
        ]
        if any(e is not None for i, e in enumerate(errors) if i not in places):
            raise equation.refused("nothing is known of it for operands that are rounded")
        return equation.bind(*offs)
