"""Convolutions, and their transposes, of inputs with the lanes as last axis, by matrix products on a CPU.

XLA's CPU backend takes ten times as long for its own convolutions of this form. On other devices XLA's own are used.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def is_plain(params: dict[str, Any], shape: Sequence[int]) -> bool:
    """Whether a convolution of inputs of a shape has one image, no dilation, no groups and no negative padding."""
    if shape[params["dimension_numbers"].lhs_spec[0]] != 1:
        return False
    dilations = {*params["lhs_dilation"], *params["rhs_dilation"]}
    groups = {params["feature_group_count"], params["batch_group_count"]}
    return dilations <= {1} and groups == {1} and min(itertools.chain(*params["padding"]), default=0) >= 0


def run(x: jax.Array, kernel: jax.Array, params: dict[str, Any]) -> jax.Array:
    """The convolution of one image, with the lanes last, by a kernel without lanes."""
    return lax.platform_dependent(x, kernel, cpu=partial(_by_matrix, params), default=partial(_natively, params))


def transpose(y: jax.Array, kernel: jax.Array, shape: Sequence[int], params: dict[str, Any]) -> jax.Array:
    """The transposed convolution: from outputs with the lanes last to inputs of a shape, with the lanes last."""

    def natively(y, kernel):
        x = jax.ShapeDtypeStruct(tuple(shape), y.dtype)
        return jax.linear_transpose(lambda x: _natively(params, x, kernel), x)(y)[0]

    by_matrix = partial(_transposed_by_matrix, params, tuple(shape))
    return lax.platform_dependent(y, kernel, cpu=by_matrix, default=natively)


def _natively(params: dict[str, Any], x: jax.Array, kernel: jax.Array) -> jax.Array:
    convolve = partial(lax.conv_general_dilated_p.bind, **params)
    return jax.vmap(lambda x: convolve(x, kernel), in_axes=-1, out_axes=-1)(x)


def _by_matrix(params: dict[str, Any], x: jax.Array, kernel: jax.Array) -> jax.Array:
    numbers, strides = params["dimension_numbers"], params["window_strides"]
    x = x.transpose(*numbers.lhs_spec, x.ndim - 1)[0]  # [C, *spatial, N]
    x = jnp.pad(x, ((0, 0), *params["padding"], (0, 0)))
    matrix, window = _matrix(kernel, numbers)
    # Gathered axis by axis, the last one first, to `[*window, C, *windows, N]`, as there are fewer slices to compile.
    for length, stride in reversed(list(zip(window, strides, strict=True))):
        last = x.shape[len(window)] - length  # where the last window begins, along the axis whose turn it is
        x = jnp.stack([lax.slice_in_dim(x, i, last + i + 1, stride, len(window)) for i in range(length)])
    y = jnp.tensordot(matrix, x.reshape(-1, *x.shape[len(window) + 1 :]), [[1], [0]], precision=params["precision"])
    inverse = sorted(range(len(numbers.out_spec)), key=numbers.out_spec.__getitem__)
    return y[None].transpose(*inverse, y.ndim)


def _transposed_by_matrix(params: dict[str, Any], shape: tuple[int, ...], y: jax.Array, kernel: jax.Array) -> jax.Array:
    numbers, strides = params["dimension_numbers"], params["window_strides"]
    y = y.transpose(*numbers.out_spec, y.ndim - 1)[0]  # [O, *spatial, N]
    matrix, window = _matrix(kernel, numbers)
    x = jnp.tensordot(matrix, y, [[0], [0]], precision=params["precision"]).reshape(*window, -1, *y.shape[1:])
    spatial = [shape[axis] for axis in numbers.lhs_spec[2:]]
    # Added up axis by axis, the last one first, so that there are few operations to compile: an addition for each place
    # along an axis of the window, instead of one for each place in the window.
    for axis, (n, pads) in reversed(list(enumerate(zip(spatial, params["padding"], strict=True)))):
        # A barrier: without it XLA repeats the products, and the sums before, for each of these sums.
        x = _added_up(lax.optimization_barrier(x), axis, strides[axis], n + sum(pads))
    inside = [slice(low, low + n) for (low, _), n in zip(params["padding"], spatial, strict=True)]
    x = x[(slice(None), *inside)]
    inverse = sorted(range(len(numbers.lhs_spec)), key=numbers.lhs_spec.__getitem__)
    return x[None].transpose(*inverse, x.ndim)


def _added_up(x: jax.Array, axis: int, stride: int, pixels: int) -> jax.Array:
    """Sums along an axis of the image, over all windows: each window's number at a place is added to the pixel there.

    Args:
      x: `[*window, C, *windows, N]`. Of the window's axes those from `axis + 1` on are summed already, and there are
        pixels in place of windows along them.
      axis: which axis of the image it is, and the last one of the window.
      stride: from one window to the next, in pixels.
      pixels: how many there are along the axis.

    Returns:
      `[*window, C, *windows, N]` without the window's last axis, with pixels in place of windows along `axis`.
    """
    along = 2 * axis + 1  # the axis of the windows and then of the pixels, after that of the window is gone
    count, rows = x.shape[along + 1], -(-pixels // stride)
    each = [x[(slice(None),) * axis + (i,)] for i in range(x.shape[axis])]

    def moved(part: jax.Array, by: int) -> jax.Array:
        low_and_high = [(by, rows - count - by) if i == along else (0, 0) for i in range(part.ndim)]
        return jnp.pad(part, low_and_high)

    # Places that are a stride apart meet the same pixels, so that these are summed in groups of every stride-th.
    groups = [[moved(part, by) for by, part in enumerate(each[first::stride])] for first in range(stride)]
    zeros = jnp.zeros_like(moved(each[0], 0))
    sums = [sum(group[1:], group[0]) if group else zeros for group in groups]
    y = sums[0] if stride == 1 else jnp.stack(sums, along + 1)
    y = y.reshape(*y.shape[:along], rows * stride, *y.shape[along + (1 if stride == 1 else 2) :])
    return lax.slice_in_dim(y, 0, pixels, axis=along)


def _matrix(kernel: jax.Array, numbers: Any) -> tuple[jax.Array, tuple[int, ...]]:
    """The kernel as a matrix `[O, window * C]`, and the shape of its window."""
    ordered = kernel.transpose(numbers.rhs_spec)  # [O, C, *window]
    window = ordered.shape[2:]
    return jnp.moveaxis(ordered, 1, -1).reshape(ordered.shape[0], -1), window
