"""Convolutions in forms that XLA's CPU backend computes fast; on other devices they are JAX's own.

That backend has a fast convolution only for images with the channels last and kernels with the output channels last. In
a loop, as in an attack, all others take 3 to 30 times as long, among them the gradients of all convolutions. So, on a
CPU:

- the operands of a convolution, and of each convolution in its derivatives, are transposed to that order;
- each group is convolved separately; where every channel is a group, shifted images are multiplied and added;
- a 3x3 kernel without strides takes 16 products for each 2x2 pixels instead of 36: F(2x2, 3x3) of Lavin & Gray, "Fast
  algorithms for convolutional neural networks", CVPR 2016, after Winograd.

`by_device` is a primitive, since JAX has no other means to define how the derivatives of a linear function are computed
in forward and in reverse mode.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import ad, batching, mlir

from mnist_jax.jaxprs.replacing import replaced
from mnist_jax.jaxprs.span import Span

# Largest number of groups that are convolved separately: more convolutions take too long to compile. Chosen by hand.
FEW_GROUPS = 8
NARROW = 8  # least number of channels for Winograd: with fewer its transformations cost more time than they save
FEW = 4  # largest number of images convolved without Winograd, as it takes longer to compile than it saves for so few

Params = dict[str, Any]

_native: Callable[..., jax.Array] = lax.conv_general_dilated_p.bind
by_device = jex.Primitive("convolution_by_device")  # operands and parameters are those of JAX's own


def convolution(eqn: jex.JaxprEqn) -> Callable[..., jax.Array] | None:
    """The function that replaces a `conv_general_dilated` equation; None where the equation stays as it is."""
    avals: list[Any] = [v.aval for v in (*eqn.invars, *eqn.outvars)]
    kinds = {np.dtype(aval.dtype) for aval in avals}
    as_usual = kinds in ({np.dtype("float32")}, {np.dtype("float64")}) and eqn.params["out_sharding"] is None
    return partial(by_device.bind, **eqn.params) if as_usual else None


def _by_device(function: Callable, *operands: jax.Array) -> jax.Array:
    """The function's result, with `by_device` in place of its convolutions."""
    closed = replaced(jax.make_jaxpr(function)(*operands), {"conv_general_dilated": convolution})
    return jex.jaxpr_as_fun(closed)(*operands)[0]


def _on_cpu(x: jax.Array, kernel: jax.Array, **params: Any) -> jax.Array:
    numbers = params["dimension_numbers"]
    batch, channel, *axes = numbers.lhs_spec
    outputs, inputs, *window = numbers.rhs_spec
    x, kernel = lax.transpose(x, (batch, *axes, channel)), lax.transpose(kernel, (*window, inputs, outputs))
    y = _grouped(x, kernel, _ordered(params))
    batch, channel, *axes = numbers.out_spec
    return lax.transpose(y, np.argsort((batch, *axes, channel)))


def _ordered(params: Params) -> Params:
    """The convolution's parameters for images and kernels with the channels last."""
    last = len(params["padding"]) + 1
    axes = tuple(range(1, last))
    kernel = (last, last - 1, *(axis - 1 for axis in axes))
    return params | {"dimension_numbers": lax.ConvDimensionNumbers((0, last, *axes), kernel, (0, last, *axes))}


def _grouped(x: jax.Array, kernel: jax.Array, params: Params) -> jax.Array:
    by_channel, by_batch = params["feature_group_count"], params["batch_group_count"]
    groups = max(by_channel, by_batch)
    if min(itertools.chain(*params["padding"]), default=0) < 0:  # XLA's convolution would read outside of the input
        x, params = _padded(x, params), _unpadded(params)
    if groups == 1:
        return _whole(x, kernel, params)
    if by_channel == x.shape[-1]:
        return _channelwise(x, kernel, params)
    if groups > FEW_GROUPS:
        return _native(x, kernel, **params)
    params = params | {"feature_group_count": 1, "batch_group_count": 1}
    last = x.ndim - 1
    parts = zip(_split(x, groups, 0 if by_batch > 1 else last), _split(kernel, groups, last), strict=True)
    return lax.concatenate([_whole(part, own, params) for part, own in parts], last)


def _split(x: jax.Array, parts: int, axis: int) -> list[jax.Array]:
    size = x.shape[axis] // parts
    return [lax.slice_in_dim(x, i * size, (i + 1) * size, axis=axis) for i in range(parts)]


def _whole(x: jax.Array, kernel: jax.Array, params: Params) -> jax.Array:
    """A convolution without groups."""
    steps = {*params["window_strides"], *params["lhs_dilation"], *params["rhs_dilation"]}
    wide = min(kernel.shape[-2:]) >= NARROW and len(x) > FEW
    if wide and kernel.shape[:-2] == (3, 3) and steps == {1}:
        return _winograd(x, kernel, params)
    # A barrier: without it XLA merges the kernel's transposition or reversal into the convolution, which is slow then.
    return _native(x, lax.optimization_barrier(kernel), **params)


def _padded(x: jax.Array, params: Params, more: Sequence[int] | None = None) -> jax.Array:
    """The input with its padding and dilation applied, and `more` zeros at the end of each spatial axis."""
    each = zip(params["padding"], params["lhs_dilation"], more or [0] * (x.ndim - 2), strict=True)
    pads = [(low, high + extra, dilation - 1) for (low, high), dilation, extra in each]
    return lax.pad(x, np.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])


def _unpadded(params: Params) -> Params:
    axes = len(params["padding"])
    return params | {"padding": ((0, 0),) * axes, "lhs_dilation": (1,) * axes}


def _channelwise(x: jax.Array, kernel: jax.Array, params: Params) -> jax.Array:
    """A depthwise convolution: each of C channels by M kernels of its own, `[*window, 1, C * M]`."""
    window = kernel.shape[:-2]
    steps = zip(window, params["window_strides"], params["rhs_dilation"], strict=True)
    spans = [Span(axis, *step) for axis, step in enumerate(steps, 1)]
    kernel = kernel.reshape(*window, *[1] * (x.ndim - 1), x.shape[-1], -1)
    x = _padded(x, params)[..., None]
    parts = []
    for places in itertools.product(*map(range, window)):
        seen = x
        for span, place in zip(spans, places, strict=True):
            seen = span.at(seen, place)
        parts.append(seen * kernel[places])
    y = sum(parts[1:], parts[0])
    return y.reshape(*y.shape[:-2], -1)


def _winograd(x: jax.Array, kernel: jax.Array, params: Params) -> jax.Array:
    """A 3x3 convolution by Winograd's F(2x2, 3x3).

    Overlapping tiles of 4x4 pixels and the kernel are transformed; a matrix product for each of the 16 positions in a
    tile follows, and the products are transformed to tiles of 2x2 pixels of the result.
    """
    high, wide = (n + sum(pads) - 2 for n, pads in zip(x.shape[1:3], params["padding"], strict=True))
    x = _padded(x, params, (high % 2, wide % 2))
    kernels = lax.optimization_barrier([_of_kernel(column, 0) for column in _of_kernel(kernel, 1)])
    dot = partial(lax.dot_general, dimension_numbers=(((3,), (0,)), ((), ())), precision=params["precision"])
    columns = [map(dot, _of_image(column, 1), own) for column, own in zip(_of_image(x, 2), kernels, strict=True)]
    pixels = [_of_products(*column) for column in columns]
    tiles = jnp.stack([jnp.stack(_of_products(*row), 3) for row in zip(*pixels, strict=True)], 2)
    return tiles.reshape(len(x), tiles.shape[1] * 2, tiles.shape[3] * 2, -1)[:, :high, :wide]


def _of_image(x: jax.Array, axis: int) -> list[jax.Array]:
    a, b, c, d = (Span(axis, 4, 2).at(x, place) for place in range(4))
    return [a - c, b + c, c - b, b - d]


def _of_kernel(kernel: jax.Array, axis: int) -> list[jax.Array]:
    a, b, c = (lax.index_in_dim(kernel, i, axis, keepdims=False) for i in range(3))
    return [a, (a + b + c) / 2, (a - b + c) / 2, c]


def _of_products(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> list[jax.Array]:
    return [a + b + c, b - c - d]


def _transposed(function: Callable, unknown: Any, y: jax.Array) -> jax.Array:
    (x,) = jax.linear_transpose(function, jax.ShapeDtypeStruct(unknown.aval.shape, unknown.aval.dtype))(y)
    return x


def _transposed_by_x(y: jax.Array, x: Any, kernel: jax.Array, **params: Any) -> jax.Array:
    return _by_device(lambda y, kernel: _transposed(lambda x: _native(x, kernel, **params), x, y), y, kernel)


def _transposed_by_kernel(y: jax.Array, x: jax.Array, kernel: Any, **params: Any) -> jax.Array:
    return _by_device(lambda y, x: _transposed(lambda kernel: _native(x, kernel, **params), kernel, y), y, x)


def _batched(operands: Sequence[jax.Array], axes: Sequence[int | None], **params: Any) -> tuple[jax.Array, int]:
    return _by_device(jax.vmap(partial(_native, **params), tuple(axes)), *operands), 0


@partial(jax.jit, static_argnums=0)
def _compiled(params: tuple[tuple[str, Any], ...], x: jax.Array, kernel: jax.Array) -> jax.Array:
    return by_device.bind(x, kernel, **dict(params))


def _shaped(x: Any, kernel: Any, **params: Any) -> Any:
    (aval,) = jax.make_jaxpr(partial(_native, **params))(x, kernel).out_avals
    return aval


by_device.def_impl(lambda x, kernel, **params: _compiled(tuple(params.items()), x, kernel))
by_device.def_abstract_eval(_shaped)
ad.defbilinear(by_device, _transposed_by_x, _transposed_by_kernel)
batching.primitive_batchers[by_device] = _batched
mlir.register_lowering(by_device, mlir.lower_fun(_native, multiple_results=False))
mlir.register_lowering(by_device, mlir.lower_fun(_on_cpu, multiple_results=False), platform="cpu")
