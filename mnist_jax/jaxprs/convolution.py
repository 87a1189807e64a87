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
    sizes = [(n - w) // s + 1 for n, w, s in zip(x.shape[1:-1], window, strides, strict=True)]
    patches = jnp.stack([x[(slice(None), *_places(at, strides, sizes))] for at in _all(window)])
    y = jnp.tensordot(matrix, patches.reshape(-1, *patches.shape[2:]), [[1], [0]], precision=params["precision"])
    inverse = sorted(range(len(numbers.out_spec)), key=numbers.out_spec.__getitem__)
    return y[None].transpose(*inverse, y.ndim)


def _transposed_by_matrix(params: dict[str, Any], shape: tuple[int, ...], y: jax.Array, kernel: jax.Array) -> jax.Array:
    numbers, strides = params["dimension_numbers"], params["window_strides"]
    y = y.transpose(*numbers.out_spec, y.ndim - 1)[0]  # [O, *spatial, N]
    matrix, window = _matrix(kernel, numbers)
    patches = jnp.tensordot(matrix, y, [[0], [0]], precision=params["precision"])
    # A barrier: without it XLA repeats the products for each of the sums below.
    patches = lax.optimization_barrier(patches.reshape(*window, -1, *y.shape[1:]))
    *spatial, lanes = [shape[axis] for axis in numbers.lhs_spec[2:]] + [shape[-1]]
    padded = [n + sum(pads) for n, pads in zip(spatial, params["padding"], strict=True)]
    x = jnp.zeros((patches.shape[len(window)], *padded, lanes), y.dtype)
    for at in _all(window):
        spread = [
            (i, n - i - s * (m - 1) - 1, s - 1) for i, n, s, m in zip(at, padded, strides, y.shape[1:-1], strict=True)
        ]
        x = x + lax.pad(patches[at], jnp.zeros((), y.dtype), [(0, 0, 0), *spread, (0, 0, 0)])
    inside = [slice(low, low + n) for (low, _), n in zip(params["padding"], spatial, strict=True)]
    x = x[(slice(None), *inside)]
    inverse = sorted(range(len(numbers.lhs_spec)), key=numbers.lhs_spec.__getitem__)
    return x[None].transpose(*inverse, x.ndim)


def _matrix(kernel: jax.Array, numbers: Any) -> tuple[jax.Array, tuple[int, ...]]:
    """The kernel as a matrix `[O, window * C]`, and the shape of its window."""
    ordered = kernel.transpose(numbers.rhs_spec)  # [O, C, *window]
    window = ordered.shape[2:]
    return jnp.moveaxis(ordered, 1, -1).reshape(ordered.shape[0], -1), window


def _all(window: Sequence[int]) -> Any:
    return itertools.product(*map(range, window))


def _places(at: Sequence[int], strides: Sequence[int], sizes: Sequence[int]) -> list[slice]:
    """The pixels that meet one position of the window, over all windows, as a slice of each axis."""
    return [slice(i, i + s * (n - 1) + 1, s) for i, s, n in zip(at, strides, sizes, strict=True)]
