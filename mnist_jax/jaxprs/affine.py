"""Equations that are affine in the image: run on many images at once, with absolute coefficients, and transposed.

An equation is affine only if its primitive is on a list in this file, and only operands in which it is linear depend on
the image. No derivative rule is used to find out.

Values that depend on the image have an additional last axis, the lanes: one lane for each image, or for each linear
function that is propagated backwards. With the lanes last, copies, comparisons and sums run over contiguous memory.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mnist_jax.jaxprs import convolution
from mnist_jax.jaxprs.program import Equation, Program

Shapes = list[jax.ShapeDtypeStruct]

# Primitives that are linear in these operands together, given how many operands there are. Those of them that are
# constant are added.
LINEAR: dict[str, Callable[[int], range]] = {
    "add": range,
    "add_any": range,
    "sub": range,
    "neg": range,
    "concatenate": range,
    "stack": range,
    "reduce_sum": range,
    "cumsum": range,
    "reshape": lambda _: range(1),
    "broadcast_in_dim": lambda _: range(1),
    "transpose": range,
    "squeeze": range,
    "expand_dims": range,
    "slice": range,
    "rev": range,
    "split": range,
    "tile": range,
    "pad": range,
    "reduce_window_sum": range,
    "convert_element_type": range,
    "select_n": lambda count: range(1, count),
    "gather": lambda _: range(1),
    "dynamic_slice": lambda _: range(1),
    "dynamic_update_slice": lambda _: range(2),
}
# Primitives that are linear in one of these operands while the other, which has the coefficients, is constant.
BILINEAR = {"mul": (0, 1), "dot_general": (0, 1), "conv_general_dilated": (0, 1), "div": (0,)}

PRODUCTS = {"dot_general", "conv_general_dilated"}
DIVISION = 3  # roundings of a division by a device that multiplies by a reciprocal


def dependent(program: Program, equation: Equation) -> tuple[bool, ...]:
    """Which operands depend on the image."""
    return tuple(n in program.depends for n in equation.operands)


def is_affine(program: Program, equation: Equation) -> bool:
    """Whether the equation is affine in the image.

    Raises `UnsupportedOperation` where it is, but computes in another precision than bounds are known for.
    """
    which = [i for i, depends in enumerate(dependent(program, equation)) if depends]
    if equation.name in LINEAR:
        allowed = set(which) <= set(LINEAR[equation.name](len(equation.operands)))
    else:
        allowed = len(which) == 1 and which[0] in BILINEAR.get(equation.name, ())
    if allowed:
        _check_precision(program, equation)
    return allowed


def _check_precision(program: Program, equation: Equation) -> None:
    given = program.shapes[next(n for n in equation.operands if n in program.depends)].dtype
    made = program.shapes[equation.results[0]].dtype
    for kind in (given, made):
        if kind not in (jnp.float32, jnp.float64):
            raise equation.refused(f"it computes in {kind}; float32 and float64 are bounded")
    if equation.name == "convert_element_type" and made != given:
        raise equation.refused(f"it goes from {given} to {made}; bounds are of one precision")
    if equation.name in PRODUCTS:
        precision = equation.params["precision"]
        each = precision if isinstance(precision, tuple) else (precision,)
        if any(p not in (None, lax.Precision.HIGHEST) for p in each):
            raise equation.refused(f"it asks for precision {precision}; bounds are known for the highest only")
        kinds = {program.shapes[n].dtype for n in equation.operands}
        if kinds != {made} or equation.params["preferred_element_type"] not in (None, made):
            raise equation.refused("its operands and its result are not of one type")


def run(equation: Equation, operands: Sequence[Any], which: Sequence[bool]) -> list[jax.Array]:
    """The equation's results `[*shape, N]`, where `which` operands depend on the image, `[*shape, N]`, others don't."""
    lanes = next(x.shape[-1] for x, depends in zip(operands, which, strict=True) if depends)
    if equation.name == "reshape":
        return [lax.reshape(operands[0], (*equation.params["new_sizes"], lanes))]
    if _is_plain_convolution(equation, which, operands[0]):
        return [convolution.run(operands[0], operands[1], equation.params)]
    if equation.name == "concatenate":
        every = [x if d else jnp.broadcast_to(x[..., None], (*x.shape, lanes)) for x, d in _pairs(operands, which)]
        return [lax.concatenate(every, equation.params["dimension"])]
    if equation.name in ("add", "sub", "mul", "div"):  # literal operands may be scalars
        shape = (*jnp.broadcast_shapes(*[x.shape[:-1] if d else jnp.shape(x) for x, d in _pairs(operands, which)]), 1)
        a, b = (_ranked(x if d else jnp.asarray(x)[..., None], len(shape)) for x, d in _pairs(operands, which))
        return [{"add": lax.add, "sub": lax.sub, "mul": lax.mul, "div": lax.div}[equation.name](*_alike(a, b))]
    axes = tuple(-1 if d else None for d in which)
    return list(jax.vmap(lambda *each: tuple(equation.bind(*each)), in_axes=axes, out_axes=-1)(*operands))


def _is_plain_convolution(equation: Equation, which: Sequence[bool], x: Any) -> bool:
    return equation.name == "conv_general_dilated" and which[0] and convolution.is_plain(equation.params, x.shape)


def _pairs(operands, which):
    return zip(operands, which, strict=True)


def _ranked(x: jax.Array, rank: int) -> jax.Array:
    """A scalar with lanes, reshaped to a rank."""
    return x if x.ndim == rank else x.reshape(*[1] * (rank - 1), x.shape[-1])


def _alike(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    shape = jnp.broadcast_shapes(a.shape, b.shape)
    return jnp.broadcast_to(a, shape), jnp.broadcast_to(b, shape)


def linear_part(equation: Equation, operands: Sequence[Any], which: Sequence[bool]) -> list[jax.Array]:
    """The equation's results as by `run`, without the constants that are added."""
    return run(equation, [x if d else _without(equation, x) for x, d in _pairs(operands, which)], which)


def by_absolutes(equation: Equation, operands: Sequence[Any], which: Sequence[bool], *, added: bool) -> list[jax.Array]:
    """The equation's results as by `run`, with absolute values of all coefficients and of added constants.

    Half-widths give half-widths without the added constants; magnitudes give magnitudes with them (`added`).
    """
    values = []
    for x, depends in _pairs(operands, which):
        x = x if depends or added else _without(equation, x)
        values.append(x if depends or not jnp.issubdtype(jnp.result_type(x), jnp.floating) else jnp.abs(x))
    if equation.name == "neg":
        return [values[0]]
    return run(by_sizes(equation, added), values, which)


def by_sizes(equation: Equation, added: bool) -> Equation:
    """The equation for absolute values: a difference as a sum; a gather with its fill value's size, or 0."""
    if equation.name == "gather" and equation.params.get("fill_value") is not None:
        fill = abs(equation.params["fill_value"]) if added else 0
        return replace(equation, params=equation.params | {"fill_value": fill})
    return as_sum(equation)


def as_product(equation: Equation) -> Equation:
    """The equation of a quotient as that of a product."""
    return replace(equation, name="mul", primitive=lax.mul_p, params={})


def as_sum(equation: Equation) -> Equation:
    """The equation of a difference as that of a sum; any other equation as it is."""
    if equation.name != "sub":
        return equation
    return replace(equation, name="add", primitive=lax.add_p, params={})


def _without(equation: Equation, constant: Any) -> Any:
    """A constant operand of an equation, or zeros where it is added."""
    return without(constant) if equation.name in LINEAR else constant


def without(constant: Any) -> Any:
    """Zeros in place of a floating constant; integers and booleans, which select or place values, stay."""
    return jnp.zeros_like(constant) if jnp.issubdtype(jnp.result_type(constant), jnp.floating) else constant


def transpose(
    equation: Equation, operands: Sequence[Any], which: Sequence[bool], shapes: Shapes, results: Sequence[Any]
) -> list[jax.Array]:
    """The transpose of an affine equation: coefficients of its results, `[*shape, N]`, to those of its operands.

    Args:
      operands: the constant operands; those that depend on the image are not read.
      which: which operands depend on the image.
      shapes: shapes and types of the operands that depend on the image.
      results: coefficients of the results, or None where they are zero.

    Returns:
      Coefficients `[*shape, N]` of the operands that depend on the image.
    """
    lanes = next(x.shape[-1] for x in results if x is not None)
    given = [jax.ShapeDtypeStruct((*s.shape, lanes), s.dtype) for s in shapes]

    def forwards(*values):
        each = iter(values)
        return linear_part(equation, [next(each) if d else x for x, d in _pairs(operands, which)], which)

    if equation.name == "reshape":
        return [lax.reshape(results[0], given[0].shape)]
    if _is_plain_convolution(equation, which, given[0]):
        return [convolution.transpose(results[0], operands[1], given[0].shape, equation.params)]
    out = jax.eval_shape(forwards, *given)
    results = [jnp.zeros(o.shape, o.dtype) if x is None else x for x, o in zip(results, out, strict=True)]
    return list(jax.linear_transpose(forwards, *given)(results))


def terms(program: Program, equation: Equation) -> tuple[int, int]:
    """The largest number of roundings of a term in the equation, and in its transpose."""
    shapes = [program.shapes[n].shape for n in equation.operands]
    name, params, out = equation.name, equation.params, program.shapes[equation.results[0]].shape
    if name in ("add", "add_any", "sub", "mul"):
        return 1, 1
    if name == "div":
        return DIVISION, DIVISION
    if name == "reduce_sum":
        return math.prod(shapes[0][axis] for axis in params["axes"]), 0
    if name == "cumsum":
        return (shapes[0][params["axis"]],) * 2
    if name == "reduce_window_sum":
        return (math.prod(params["window_dimensions"]),) * 2
    if name in ("broadcast_in_dim", "tile"):
        return 0, math.prod(out) // max(math.prod(shapes[0]), 1)
    if name == "gather":
        return 0, math.prod(out)
    which = dependent(program, equation)
    if name == "pad":  # padding that depends on the image is one number in many places
        return 0, math.prod(out) if which[1] else 0
    place = which.index(True) if any(which) else 0
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        inner = math.prod(shapes[0][axis] for axis in contracted)
        return inner, math.prod(out) * inner // max(math.prod(shapes[place]), 1)
    if name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        kernel = shapes[1]
        inner = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
        return inner, math.prod(kernel) // kernel[numbers.rhs_spec[1]] if place == 0 else math.prod(out)
    return 0, 0
