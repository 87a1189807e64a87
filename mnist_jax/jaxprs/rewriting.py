"""Rules that rewrite equations that depend on the image as fewer kinds of operations, which bounds are known for.

All rules are equalities in exact arithmetic. A maximum of any form becomes maxima of two values; a minimum is minus the
maximum of the negatives; absolute value and clipping are maxima; a quotient is a product with a reciprocal. Activation
functions with branches are recognized by comparing their jaxpr with that of JAX's own function, whatever their name.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import lax

if TYPE_CHECKING:
    from mnist_jax.jaxprs.program import Reader

COMPARISONS = {"ge", "gt", "le", "lt", "ne", "eq"}


def _maximum_of(values: Sequence[jax.Array]) -> jax.Array:
    """The elementwise maximum of several arrays as a balanced tree of maxima of two."""
    values = list(values)
    while len(values) > 1:
        pairs = [lax.max(a, b) for a, b in zip(values[::2], values[1::2], strict=False)]
        values = pairs + values[len(values) // 2 * 2 :]
    return values[0]


def _reduce_max(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    for axis in sorted(axes, reverse=True):
        while (size := x.shape[axis]) > 1:
            half = size // 2
            one, other = (lax.slice_in_dim(x, i * half, (i + 1) * half, axis=axis) for i in range(2))
            rest = lax.slice_in_dim(x, 2 * half, size, axis=axis)
            x = lax.max(one, other)
            x = lax.concatenate([x, rest], axis) if rest.size else x
        x = lax.squeeze(x, [axis])
    return x


def _window_max(x: jax.Array, *, window, strides, padding) -> jax.Array:
    """The maximum over windows. Padding repeats the nearest pixel, which every such window contains anyway."""
    for axis, (low, high) in enumerate(padding):
        first = lax.slice_in_dim(x, 0, 1, axis=axis)
        last = lax.slice_in_dim(x, x.shape[axis] - 1, x.shape[axis], axis=axis)
        if low or high:
            x = lax.concatenate([first] * low + [x] + [last] * high, axis)
    counts = [(n - w) // s + 1 for n, w, s in zip(x.shape, window, strides, strict=True)]
    starts = itertools.product(*map(range, window))
    return _maximum_of(
        [
            lax.slice(x, start, [i + s * (n - 1) + 1 for i, s, n in zip(start, strides, counts, strict=True)], strides)
            for start in starts
        ]
    )


def _reduce_window(reader: "Reader", operands: list[int], params: dict[str, Any], sign: int) -> list[int] | None:
    window, padding = params["window_dimensions"], params["padding"]
    dilated = {*params["base_dilation"], *params["window_dilation"]} != {1}
    if dilated or any(not 0 <= pad < w for pads, w in zip(padding, window, strict=True) for pad in pads):
        return None
    maximum = functools.partial(_window_max, window=window, strides=params["window_strides"], padding=padding)
    if sign > 0 and (parts := _floored(reader, operands[0])) is not None:
        # The pool of a ReLU as the ReLU of a pool: there are fewer ReLUs, and differences of their arguments, which are
        # more nearly affine in the image, have better bounds than differences of their results. Maxima round nothing.
        value, floor = parts
        (pooled,) = reader.trace(maximum, value)
        return reader.write("max", lax.max_p, [pooled, floor], [reader.shape(pooled)], {})
    return reader.trace(lambda x: sign * maximum(sign * x) if sign < 0 else maximum(x), operands[0])


def _floored(reader: "Reader", number: int) -> tuple[int, int] | None:
    """The value and the scalar constant whose maximum a value is, as a ReLU's result is; None for any other value."""
    made = next((e for e in reversed(reader.program.equations) if number in e.results), None)
    if made is None or made.name != "max":
        return None
    for value, floor in (made.operands, made.operands[::-1]):
        if reader.depends([value]) and not reader.depends([floor]) and not reader.shape(floor).shape:
            return value, floor
    return None


def _integer_pow(reader: "Reader", operands: list[int], params: dict[str, Any]) -> list[int] | None:
    y = params["y"]
    if y == -1 or (y > 2 and y % 2 == 0):
        return None
    if y == 2:
        return reader.trace(lax.square, *operands)
    if y < -1:
        return reader.trace(lambda x: lax.integer_pow(lax.integer_pow(x, -1), -y), *operands)
    if y == 0:
        return reader.trace(jnp.ones_like, *operands)
    return operands if y == 1 else reader.trace(lambda x: x * lax.integer_pow(x, y - 1), *operands)


def _extremum(reader: "Reader", operands: list[int], params: dict[str, Any], limit: float) -> list[int] | None:
    """A maximum (`limit` -inf) or minimum (`limit` inf) of two values.

    With itself, or with the limit, a value stays as it is; any other minimum becomes minus a maximum of negatives.
    """
    if operands[0] == operands[1]:
        return operands[:1]
    for one, other in (operands, operands[::-1]):
        bound = reader.program.known.get(other)
        if bound is not None and not isinstance(bound, jax.core.Tracer) and np.all(np.asarray(bound) == limit):
            return [one]
    return None if limit < 0 else reader.trace(lambda a, b: -jnp.maximum(-a, -b), *operands)


def _mul(reader: "Reader", operands: list[int], params: dict[str, Any]) -> list[int] | None:
    return reader.trace(lax.square, operands[0]) if operands[0] == operands[1] else None


def _div(reader: "Reader", operands: list[int], params: dict[str, Any]) -> list[int] | None:
    divided = reader.depends(operands[1:])
    return reader.trace(lambda a, b: a * lax.integer_pow(b, -1), *operands) if divided else None


def _same_type(reader: "Reader", operands: list[int], params: dict[str, Any]) -> list[int] | None:
    return operands if reader.shape(operands[0]).dtype == params["new_dtype"] else None


def _padded(reader: "Reader", operands: list[int], params: dict[str, Any]) -> list[int] | None:
    """A convolution with padding as a pad and a convolution without."""
    padding = params["padding"]
    inner = not reader.depends(operands[:1]) or {*params["lhs_dilation"]} != {1}
    if inner or not any(map(any, padding)) or min(map(min, padding)) < 0:
        return None
    sides = dict(zip(params["dimension_numbers"].lhs_spec[2:], padding, strict=True))
    config = [(*sides.get(axis, (0, 0)), 0) for axis in range(2 + len(padding))]
    params = params | {"padding": ((0, 0),) * len(padding)}
    return reader.trace(
        lambda x, kernel: lax.conv_general_dilated_p.bind(lax.pad(x, jnp.zeros((), x.dtype), config), kernel, **params),
        *operands,
    )


def _reshape(reader: "Reader", operands: list[int], params: dict[str, Any]) -> list[int] | None:
    """A reshape that takes the axes in another order, as `jnp.ravel(order="F")`: a transposition and a plain one."""
    order, sizes = params.get("dimensions"), params["new_sizes"]
    return None if order is None else reader.trace(lambda x: lax.reshape(lax.transpose(x, order), sizes), *operands)


# By the name of the primitive: a function of the reader, the operands and the parameters that writes the equations to
# replace it by and gives the numbers of their results, or gives None to keep it.
RULES: dict[str, Callable[["Reader", list[int], dict[str, Any]], list[int] | None]] = {
    "max": functools.partial(_extremum, limit=-math.inf),
    "min": functools.partial(_extremum, limit=math.inf),
    "abs": lambda reader, operands, _: reader.trace(lambda x: lax.max(x, -x), *operands),
    "clamp": lambda reader, operands, _: reader.trace(
        lambda low, x, high: jnp.minimum(jnp.maximum(x, low), high), *operands
    ),
    "reduce_max": lambda reader, operands, p: reader.trace(lambda x: _reduce_max(x, p["axes"]), *operands),
    "reduce_min": lambda reader, operands, p: reader.trace(lambda x: -_reduce_max(-x, p["axes"]), *operands),
    "reduce_window_max": functools.partial(_reduce_window, sign=1),
    "reduce_window_min": functools.partial(_reduce_window, sign=-1),
    "integer_pow": _integer_pow,
    "erfc": lambda reader, operands, _: reader.trace(lambda x: 1 - lax.erf(x), *operands),
    "conv_general_dilated": _padded,
    "mul": _mul,
    "div": _div,
    "convert_element_type": _same_type,
    "reshape": _reshape,
}


def _leaky_relu(reader: "Reader", x: int, slope: int | None = None) -> list[int] | None:
    factor = 1e-2 if slope is None else reader.program.known.get(slope)
    if factor is None or jnp.ndim(factor) or isinstance(factor, jax.core.Tracer):
        return None
    larger = jnp.maximum if factor <= 1 else jnp.minimum
    return reader.trace(lambda x: larger(x, jnp.asarray(factor, x.dtype) * x), x)


def _elu(reader: "Reader", x: int, alpha: int | None = None) -> list[int] | None:
    scale = reader.constant(jnp.ones((), reader.shape(x).dtype)) if alpha is None else alpha
    return reader.trace(lambda x, a: jnp.maximum(x, 0) + a * jnp.expm1(-jnp.maximum(-x, 0)), x, scale)


def _logaddexp(reader: "Reader", a: int, b: int) -> list[int] | None:
    """`logaddexp(a, b)` as `b + softplus(a - b)`, softplus being one convex operation with a curve of its own."""
    (difference,) = reader.trace(jnp.subtract, a, b)
    softplus = reader.write("softplus", None, [difference], [reader.shape(difference)], {})
    return reader.trace(jnp.add, b, *softplus)


def _hard_tanh(reader: "Reader", x: int) -> list[int]:
    return reader.trace(lambda x: jnp.minimum(jnp.maximum(x, -1), 1), x)


# JAX's functions with branches, and the rule that rewrites each. Their further operands have to be constants.
KNOWN: tuple[tuple[Callable, Callable], ...] = (
    (jax.nn.leaky_relu, _leaky_relu),
    (jax.nn.elu, _elu),
    (jax.nn.hard_tanh, _hard_tanh),
    (jnp.logaddexp, _logaddexp),
)


def recognized(reader: "Reader", closed: Any, operands: Sequence[int]) -> list[int] | None:
    """The results of a call that computes the same as a function in `KNOWN`, rewritten; None for any other call."""
    if closed.consts or not any(eqn.primitive.name in COMPARISONS for eqn in closed.jaxpr.eqns):
        return None
    text = str(closed.jaxpr)
    for function, written in KNOWN:
        if text in _texts(function, tuple((v.aval.shape, v.aval.dtype, v.aval.weak_type) for v in closed.jaxpr.invars)):
            return written(reader, *operands)
    return None


@functools.lru_cache
def _texts(function: Callable, shapes: tuple[Any, ...]) -> set[str]:
    """The jaxpr of a function for operands of these shapes as text, and those of all calls inside of it."""
    try:
        closed = jax.make_jaxpr(function)(*[jax.ShapeDtypeStruct(s, kind, weak_type=weak) for s, kind, weak in shapes])
    except (TypeError, ValueError):  # the function takes other operands
        return set()
    texts: set[str] = set()
    jaxprs = [closed.jaxpr]
    while jaxprs:
        jaxpr = jaxprs.pop()
        texts.add(str(jaxpr))
        for eqn in jaxpr.eqns:
            jaxprs += [p.jaxpr for p in eqn.params.values() if isinstance(p, jex.ClosedJaxpr)]
    return texts
