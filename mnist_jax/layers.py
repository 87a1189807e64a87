"""Convolution and pooling that are fast on every backend, and PyTorch's batch normalization.

`lax.conv_general_dilated` and `lax.reduce_window` are right on a GPU or TPU. XLA's CPU backend runs them, and
above all their gradients, several times slower than the matrix products they amount to, so on a CPU:

- a convolution gathers its patches and multiplies them by the kernel as one matrix;
- pooling takes the maximum of strided slices;
- both work with the batch as the last axis. What is copied, compared or added then lies in contiguous runs of one
  number for every image of the batch, which vectorizes whatever the number of channels. Between two such layers XLA
  cancels the transpositions.

`lax.platform_dependent` makes the choice when a program is compiled for its device. Arguments, results and the shapes
of the parameters are those of Flax (NHWC, HWIO) on every backend. `experiments/benchmark_training.py` times the
alternatives.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

MOMENTUM = 0.9  # of running statistics: PyTorch calls it 0.1, the share of the new
BATCH_LAST = (3, 1, 2, 0)  # exchanges NHWC and CHWN; its own inverse


NHWC = lax.ConvDimensionNumbers(lhs_spec=(0, 3, 1, 2), rhs_spec=(3, 2, 0, 1), out_spec=(0, 3, 1, 2))

# The options of lax.conv_general_dilated that the product of matrices stands for; others take the backend's own way.
PLAIN = {
    "lhs_dilation": (1, 1),
    "rhs_dilation": (1, 1),
    "feature_group_count": 1,
    "batch_group_count": 1,
    "preferred_element_type": None,
    "out_sharding": None,
}


def convolution(
    inputs, kernel, window_strides, padding, *, dimension_numbers=None, precision=None, **options
) -> jax.Array:
    """A drop-in for `lax.conv_general_dilated` in `nnx.Conv(..., conv_general_dilated=layers.convolution)`.

    Args:
      inputs: `[B, H, W, C]`.
      kernel: `[h, w, C, O]`.
      window_strides, padding, precision, and the options: as in `lax.conv_general_dilated`.

    Returns:
      `[B, H', W', O]`.
    """
    dimension_numbers = lax.conv_dimension_numbers(inputs.shape, kernel.shape, dimension_numbers)
    native: Callable[..., jax.Array] = partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        dimension_numbers=dimension_numbers,
        precision=precision,
        **options,
    )
    plain = dimension_numbers == NHWC and all(PLAIN.get(name, ...) == value for name, value in options.items())
    if not plain or not inputs.size:
        return native(inputs, kernel)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(inputs.shape[1:3], kernel.shape[:2], window_strides, padding)
    room = [n + sum(pads) - k for n, pads, k in zip(inputs.shape[1:3], padding, kernel.shape[:2], strict=True)]
    if min(*room, *padding[0], *padding[1]) < 0:
        return native(inputs, kernel)
    as_matrix = partial(_patches_times_matrix, strides=window_strides, padding=padding, precision=precision)
    return lax.platform_dependent(inputs, kernel, cpu=as_matrix, default=native)


def _patches_times_matrix(inputs, kernel, *, strides, padding, precision):
    x = jnp.pad(inputs.transpose(BATCH_LAST), ((0, 0), *padding, (0, 0)))
    patches = jnp.concatenate(_window_slices(x, kernel.shape[:2], strides))
    matrix = kernel.reshape(-1, kernel.shape[-1])
    y = jnp.matmul(matrix.T, patches.reshape(len(patches), -1), precision=precision)
    return y.reshape(-1, *patches.shape[1:]).transpose(BATCH_LAST)


def max_pool(x: jax.Array, window: int = 2) -> jax.Array:
    """Maximum over windows of `window` by `window` pixels that do not overlap, `[B, H, W, C]` to `[B, H', W', C]`.

    What is left over at the right and at the bottom is dropped. Where several pixels of a window are equal, the
    gradient goes to one of them.
    """
    shape = (window, window)

    def slices(x):
        first, *rest = _window_slices(x.transpose(BATCH_LAST), shape, shape)
        for other in rest:
            first = _maximum(first, other)
        return first.transpose(BATCH_LAST)

    return lax.platform_dependent(x, cpu=slices, default=partial(nnx.max_pool, window_shape=shape, strides=shape))


def _window_slices(x, window, strides):
    """For every place in the window, the pixels that it meets: a list of `[C, H', W', B]` from `[C, H, W, B]`."""
    height, width = ((size - w) // s + 1 for size, w, s in zip(x.shape[1:3], window, strides, strict=True))
    (down, right) = strides
    return [
        x[:, i : i + down * (height - 1) + 1 : down, j : j + right * (width - 1) + 1 : right]
        for i in range(window[0])
        for j in range(window[1])
    ]


@jax.custom_jvp
def _maximum(a, b):
    return jnp.maximum(a, b)


@_maximum.defjvp
def _maximum_jvp(primals, tangents):
    # jnp.maximum halves the gradient of a tie, at the cost of two comparisons and a division a pixel.
    a, b = primals
    return jnp.maximum(a, b), jnp.where(a >= b, *tangents)


class BatchNorm(nnx.BatchNorm):
    """Batch normalization as PyTorch does it (Ioffe & Szegedy 2015).

    A batch is normalized by its own biased variance, while the running variance, which evaluation uses, averages the
    unbiased one; Flax keeps the biased one.
    """

    def __init__(self, num_features: int, *, rngs: nnx.Rngs):
        super().__init__(num_features, momentum=MOMENTUM, epsilon=1e-5, use_fast_variance=False, rngs=rngs)

    def __call__(self, x, use_running_average=None, *, mask=None):
        old = self.momentum * self.var[...]
        y = super().__call__(x, use_running_average, mask=mask)
        if not (self.use_running_average if use_running_average is None else use_running_average):
            n = x.size // x.shape[-1]
            self.var[...] = old + (self.var[...] - old) * (n / (n - 1) if n > 1 else 1)
        return y
