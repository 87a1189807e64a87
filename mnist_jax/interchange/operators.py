"""ONNX operators as functions of arrays, in the dictionary `OPERATORS` by name.

Each function is called with the operator's inputs, None for one that is left out, its attributes, and `opset`, the
version of the operators. NumPy arrays among the inputs are known values, such as shapes; results that depend on known
values alone are NumPy arrays, too. JAX arrays are images, weights, and values that depend on them. The definitions are
those of https://onnx.ai/onnx/operators/. Ranks are made equal explicitly, since JAX may be set to refuse implicit rank
promotion.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mnist_jax.errors import InputError

Array = Any  # a NumPy array where the value is known, else a JAX array


def _known(*arrays: Array) -> bool:
    return all(isinstance(array, np.ndarray) for array in arrays)


def _numbers(array: Array, what: str) -> list[int]:
    """The integers in an input, or in older versions in an attribute. Raises `InputError` where it is not known."""
    if not isinstance(array, np.ndarray | tuple):
        raise InputError(f"{what} depends on the image or on weights; only constants are supported there")
    return [int(n) for n in np.ravel(array)]


def _aligned(*arrays: Array) -> list[Array]:
    """The arrays with leading axes of length 1, so that all have the same rank; scalars as they are."""
    rank = max(np.ndim(array) for array in arrays)
    return [a.reshape((1,) * (rank - a.ndim) + a.shape) if a.ndim not in (0, rank) else a for a in arrays]


def _of_two(known: Callable, traced: Callable, a: Array, b: Array, *, opset: int) -> Array:
    return known(a, b) if _known(a, b) else traced(*_aligned(a, b))


def _of_many(function: Callable, *arrays: Array, opset: int) -> Array:
    return reduce(lambda a, b: function(*_aligned(a, b)), arrays)


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(a // b if a.dtype.kind in "iu" else a / b)


def _of_one(function: Callable, x: Array, *, opset: int) -> Array:
    return function(jnp.asarray(x))


def _pow(x: Array, y: Array, *, opset: int) -> Array:
    if _known(y) and y.ndim == 0 and float(y) == int(y):
        return jnp.asarray(x) ** int(y)
    return jnp.power(*_aligned(jnp.asarray(x), y))


def _clip(x: Array, low: Array = None, high: Array = None, *, opset: int, min: float = -np.inf, max: float = np.inf):
    """Clipping; the limits are inputs since opset 11, and attributes before."""
    low, high = (min if low is None else low), (max if high is None else high)
    return jnp.clip(x, jnp.asarray(low, x.dtype), jnp.asarray(high, x.dtype))


def _gelu(x: Array, *, opset: int, approximate: str = "none") -> Array:
    return jax.nn.gelu(x, approximate=approximate == "tanh")


def _prelu(x: Array, slope: Array, *, opset: int) -> Array:
    x, slope = _aligned(x, slope)
    return jnp.maximum(x, 0) + slope * jnp.minimum(x, 0)


def _softmax(function: Callable, x: Array, *, opset: int, axis: int | None = None) -> Array:
    return function(x, axis if axis is not None else -1 if opset >= 13 else 1)


# Products


def _gemm(
    a: Array, b: Array, c: Array = None, *, opset: int, alpha=1.0, beta=1.0, transA: int = 0, transB: int = 0
) -> Array:
    y = jnp.matmul(a.T if transA else a, b.T if transB else b)
    y = y if alpha == 1 else y * alpha
    if c is None:
        return y
    return jnp.add(*_aligned(y, c if beta == 1 else c * beta))


def _matmul(a: Array, b: Array, *, opset: int) -> Array:
    return a @ b if _known(a, b) else jnp.matmul(a, b)


Pads = list[tuple[int, int]]


def _pads(
    auto_pad: str, pads: Sequence[int] | None, sizes: Sequence[int], window: Sequence[int], strides: Sequence[int]
) -> Pads:
    """The padding before and after each spatial axis of length `sizes`; `window` includes dilation."""
    if auto_pad in ("NOTSET", "VALID"):
        pads = pads if pads and auto_pad == "NOTSET" else [0] * (2 * len(sizes))
        return list(zip(pads[: len(sizes)], pads[len(sizes) :], strict=True))
    lacking = [max((-(-n // s) - 1) * s + w - n, 0) for n, w, s in zip(sizes, window, strides, strict=True)]
    halves = [(total // 2, total - total // 2) for total in lacking]
    return halves if auto_pad == "SAME_UPPER" else [half[::-1] for half in halves]


def _conv(
    x: Array,
    kernel: Array,
    bias: Array = None,
    *,
    opset: int,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] = (),
    group: int = 1,
    kernel_shape: Sequence[int] = (),
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Array:
    """A convolution of images `[B, C, *sizes]` by a kernel `[O, C / group, *window]`."""
    axes = x.ndim - 2
    strides, dilations = strides or (1,) * axes, dilations or (1,) * axes
    window = [(k - 1) * d + 1 for k, d in zip(kernel.shape[2:], dilations, strict=True)]
    padding = _pads(auto_pad, pads, x.shape[2:], window, strides)
    y = lax.conv_general_dilated(x, kernel, strides, padding, rhs_dilation=dilations, feature_group_count=group)
    return y if bias is None else y + bias.reshape(1, -1, *[1] * axes)


# Pooling


def _windows(
    sizes: Sequence[int], window: Sequence[int], strides: Sequence[int], padding: Pads, ceil_mode: int
) -> Pads:
    """The padding, with more after each axis where `ceil_mode` rounds the number of windows up.

    A window that would begin after the end of the image is left out, as in PyTorch.
    """
    if not ceil_mode:
        return padding
    found = []
    for n, w, s, (before, after) in zip(sizes, window, strides, padding, strict=True):
        count = -(-(n + before + after - w) // s) + 1
        count -= (count - 1) * s >= n + before
        found.append((before, max((count - 1) * s + w - n - before, 0)))
    return found


def _max_pool(
    x: Array,
    *,
    opset: int,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] = (),
    pads: Sequence[int] = (),
    storage_order: int = 0,
    strides: Sequence[int] = (),
) -> Array:
    axes = x.ndim - 2
    strides, dilations = strides or (1,) * axes, dilations or (1,) * axes
    window = [(k - 1) * d + 1 for k, d in zip(kernel_shape, dilations, strict=True)]
    padding = _windows(x.shape[2:], window, strides, _pads(auto_pad, pads, x.shape[2:], window, strides), ceil_mode)
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        (1, 1, *kernel_shape),
        (1, 1, *strides),
        [(0, 0), (0, 0), *padding],
        window_dilation=(1, 1, *dilations),
    )


def _average_pool(
    x: Array,
    *,
    opset: int,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] = (),
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Array:
    axes, sizes = x.ndim - 2, x.shape[2:]
    strides, dilations = strides or (1,) * axes, dilations or (1,) * axes
    window = [(k - 1) * d + 1 for k, d in zip(kernel_shape, dilations, strict=True)]
    padding = _pads(auto_pad, pads, sizes, window, strides)
    wider = _windows(sizes, window, strides, padding, ceil_mode)
    sums = lax.reduce_window(
        x,
        0.0,
        lax.add,
        (1, 1, *kernel_shape),
        (1, 1, *strides),
        [(0, 0), (0, 0), *wider],
        window_dilation=(1, 1, *dilations),
    )
    each = []
    for n, k, d, s, (before, after), (_, last) in zip(
        sizes, kernel_shape, dilations, strides, padding, wider, strict=True
    ):
        counted = np.ones(before + n + last)
        counted[before + n + after :] = 0
        if not count_include_pad:
            counted[:before], counted[before + n :] = 0, 0
        begins = range(0, before + n + last - (k - 1) * d, s)
        each.append(np.array([counted[i : i + (k - 1) * d + 1 : d].sum() for i in begins]))
    counts = reduce(np.multiply.outer, each).astype(x.dtype)
    return sums / counts[None, None]


def _reduced(
    function: Callable,
    x: Array,
    axes: Array = None,
    *,
    opset: int,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Array:
    given = [] if axes is None else _numbers(axes, "what a sum, mean or maximum goes over")
    if not given and noop_with_empty_axes:
        return x
    where = tuple(range(x.ndim)) if not given else tuple(given)
    return np.asarray(function(np, x, where, bool(keepdims))) if _known(x) else function(jnp, x, where, bool(keepdims))


def _global(function: Callable, x: Array, *, opset: int) -> Array:
    return function(x, axis=tuple(range(2, x.ndim)), keepdims=True)


# Normalization


def _batch_normalization(
    x: Array, scale: Array, bias: Array, mean: Array, variance: Array, *, opset: int, epsilon=1e-5, training_mode=0, **_
) -> Array:
    if training_mode:
        raise InputError("the network's BatchNormalization is in training mode; export the network in evaluation mode")
    factor = scale / jnp.sqrt(variance + epsilon)
    shape = (1, -1, *[1] * (x.ndim - 2))
    return (x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)


def _layer_normalization(
    x: Array, scale: Array, bias: Array = None, *, opset: int, axis: int = -1, epsilon: float = 1e-5, **_
) -> Array:
    axes = tuple(range(axis % x.ndim, x.ndim))
    centered = x - x.mean(axes, keepdims=True)
    y = centered * lax.rsqrt(jnp.square(centered).mean(axes, keepdims=True) + epsilon)
    y = jnp.multiply(*_aligned(y, scale))
    return y if bias is None else jnp.add(*_aligned(y, bias))


# Shapes


def _flatten(x: Array, *, opset: int, axis: int = 1) -> Array:
    axis = axis % x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _reshape(x: Array, shape: Array, *, opset: int, allowzero: int = 0) -> Array:
    wanted = _numbers(shape, "the shape of a Reshape")
    if not allowzero:
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return x.reshape(wanted)


def _transpose(x: Array, *, opset: int, perm: Sequence[int] | None = None) -> Array:
    return x.transpose(perm or range(x.ndim)[::-1])


def _concat(*arrays: Array, opset: int, axis: int) -> Array:
    if _known(*arrays):
        return np.concatenate(arrays, axis)
    return jnp.concatenate([jnp.asarray(array) for array in arrays], axis)


def _pad(
    x: Array,
    pads: Array,
    value: Array = None,
    axes: Array = None,
    *,
    opset: int,
    mode: str = "constant",
) -> Array:
    numbers = _numbers(pads, "what a Pad pads by")
    where = range(x.ndim) if axes is None else [n % x.ndim for n in _numbers(axes, "the axes of a Pad")]
    widths, half = [(0, 0)] * x.ndim, len(numbers) // 2
    for axis, before, after in zip(where, numbers[:half], numbers[half:], strict=True):
        widths[axis] = (before, after)
    if mode != "constant":
        return jnp.pad(x, widths, mode=mode)
    filler = jnp.asarray(0 if value is None else value, x.dtype).reshape(())
    return lax.pad(x, filler, [(*width, 0) for width in widths])


def _squeeze(x: Array, axes: Array = None, *, opset: int) -> Array:
    return x.squeeze(None if axes is None else tuple(_numbers(axes, "the axes of a Squeeze")))


def _unsqueeze(x: Array, axes: Array, *, opset: int) -> Array:
    where = tuple(_numbers(axes, "the axes of an Unsqueeze"))
    return np.expand_dims(x, where) if _known(x) else jnp.expand_dims(x, where)


def _slice(x: Array, starts: Array, ends: Array, axes: Array = None, steps: Array = None, *, opset: int) -> Array:
    begin, end = _numbers(starts, "where a Slice begins"), _numbers(ends, "where a Slice ends")
    where = list(range(len(begin))) if axes is None else _numbers(axes, "the axes of a Slice")
    by = [1] * len(begin) if steps is None else _numbers(steps, "the steps of a Slice")
    chosen = [slice(None)] * x.ndim
    for axis, a, b, s in zip(where, begin, end, by, strict=True):
        chosen[axis] = slice(a, b if s > 0 or b >= -x.shape[axis] else None, s)
    return x[tuple(chosen)]


def _split(x: Array, split: Array = None, *, opset: int, axis: int = 0, num_outputs: int | None = None) -> Any:
    lengths = [] if split is None else _numbers(split, "the sizes of a Split")
    if not lengths:
        if num_outputs is None:
            raise InputError("a Split of the network does not say the number of parts")
        each = -(-x.shape[axis] // num_outputs)
        lengths = [min(each, x.shape[axis] - i) for i in range(0, x.shape[axis], each)]
    ends = np.cumsum(lengths)[:-1].tolist()
    return tuple((np if _known(x) else jnp).split(x, ends, axis))


def _gather(x: Array, places: Array, *, opset: int, axis: int = 0) -> Array:
    if _known(x, places):
        return np.asarray(np.take(x, places, axis))
    if not _known(places):
        raise InputError("a Gather's indices depend on the image or on weights; only constants are supported there")
    if places.ndim == 0:
        return lax.index_in_dim(x, int(places), axis, keepdims=False)
    return jnp.take(x, places, axis)


def _shape(x: Array, *, opset: int, start: int = 0, end: int | None = None) -> np.ndarray:
    return np.array(x.shape[start:end], np.int64)


def _cast(x: Array, *, opset: int, to: str, **_: Any) -> Array:
    """A conversion to the type with the name `to` in NumPy."""
    return np.asarray(x.astype(to)) if _known(x) else x.astype(jax.dtypes.canonicalize_dtype(to))


def _expand(x: Array, shape: Array, *, opset: int) -> Array:
    wanted = np.broadcast_shapes(x.shape, tuple(_numbers(shape, "the shape of an Expand")))
    (x,) = [x.reshape((1,) * (len(wanted) - x.ndim) + x.shape)]
    return np.broadcast_to(x, wanted) if _known(x) else jnp.broadcast_to(x, wanted)


def _constant_of_shape(shape: Array, *, opset: int, value: Any = None) -> np.ndarray:
    filler = np.zeros(1, np.float32) if value is None else value.array
    return np.full(_numbers(shape, "the shape of a ConstantOfShape"), filler.item(), filler.dtype)


def _where(condition: Array, a: Array, b: Array, *, opset: int) -> Array:
    if _known(condition, a, b):
        return np.where(condition, a, b)
    return jnp.where(*_aligned(condition, a, b))


def _same(x: Array, *_: Array, opset: int, **how: Any) -> Array:
    if how.get("training_mode"):
        raise InputError("the network's Dropout is in training mode; export the network in evaluation mode")
    return x


OPERATORS: dict[str, Callable[..., Any]] = {
    # Arithmetic
    "Add": partial(_of_two, np.add, jnp.add),
    "Sub": partial(_of_two, np.subtract, jnp.subtract),
    "Mul": partial(_of_two, np.multiply, jnp.multiply),
    "Div": partial(_of_two, _quotient, jnp.divide),
    "Equal": partial(_of_two, np.equal, jnp.equal),
    "Pow": _pow,
    "Sum": partial(_of_many, jnp.add),
    "Max": partial(_of_many, jnp.maximum),
    "Min": partial(_of_many, jnp.minimum),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    # Functions of one value
    "Abs": partial(_of_one, jnp.abs),
    "Clip": _clip,
    "Elu": lambda x, *, opset, alpha=1.0: jax.nn.elu(x, alpha),
    "Erf": partial(_of_one, lax.erf),
    "Exp": partial(_of_one, jnp.exp),
    "Gelu": _gelu,
    "HardSigmoid": lambda x, *, opset, alpha=0.2, beta=0.5: jnp.clip(alpha * x + beta, 0, 1),
    "HardSwish": lambda x, *, opset: x * jnp.clip(x / 6 + 0.5, 0, 1),
    "LeakyRelu": lambda x, *, opset, alpha=0.01: jax.nn.leaky_relu(x, alpha),
    "Log": partial(_of_one, jnp.log),
    "Neg": partial(_of_one, jnp.negative),
    "PRelu": _prelu,
    "Reciprocal": partial(_of_one, jnp.reciprocal),
    "Relu": partial(_of_one, jax.nn.relu),
    "Sigmoid": partial(_of_one, jax.nn.sigmoid),
    "Softplus": partial(_of_one, jax.nn.softplus),
    "Sqrt": partial(_of_one, jnp.sqrt),
    "Tanh": partial(_of_one, jnp.tanh),
    # Functions of several
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "GlobalAveragePool": partial(_global, jnp.mean),
    "GlobalMaxPool": partial(_global, jnp.max),
    "LayerNormalization": _layer_normalization,
    "LogSoftmax": partial(_softmax, jax.nn.log_softmax),
    "MaxPool": _max_pool,
    "ReduceMax": partial(_reduced, lambda xp, x, axes, keep: xp.max(x, axes, keepdims=keep)),
    "ReduceMean": partial(_reduced, lambda xp, x, axes, keep: xp.mean(x, axes, keepdims=keep)),
    "ReduceProd": partial(_reduced, lambda xp, x, axes, keep: xp.prod(x, axes, keepdims=keep)),
    "ReduceSum": partial(_reduced, lambda xp, x, axes, keep: xp.sum(x, axes, keepdims=keep)),
    "Softmax": partial(_softmax, jax.nn.softmax),
    # Shapes
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Dropout": _same,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": _same,
    "Pad": _pad,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
