"""Convolution and pooling that are fast on every backend, and PyTorch's batch normalization.

`lax.conv_general_dilated` and `lax.reduce_window` are right on a GPU or TPU. XLA's CPU backend runs them, and
above all their gradients, several times slower than the matrix products they amount to, so on a CPU:

- a convolution gathers its patches and multiplies them by the kernel as one matrix;
- pooling takes the maximum of strided slices; where windows overlap, of rows first and then of columns;
- in evaluation mode the two of them are one step (`Sequential`), which halves the time of an attack; but for a few
  images, as at a prompt, what takes time is compiling it, and there it is the backend's own convolution;
- all of them work with the batch as the last axis. What is copied, compared or added then lies in contiguous runs of
  one number for every image of the batch, which vectorizes whatever the number of channels. Between two such layers
  XLA cancels the transpositions.

`lax.platform_dependent` makes the choice when a program is compiled for its device. Arguments, results and the shapes
of the parameters are those of Flax (NHWC, HWIO) on every backend. `experiments/benchmark_training.py` times the
alternatives.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

THIN = 4  # fewer inputs than that are few
FEW = 4  # images: the backend's own convolution is about as fast for them, and compiled in a tenth of the time
_plain: ContextVar[bool] = ContextVar("plain", default=False)  # whether to be formulated as on a GPU
MOMENTUM = 0.9  # of running statistics: PyTorch calls it 0.1, the share of the new
AS_WRITTEN = "as_written"  # the `jax.named_scope` of what `jaxprs.fast` leaves alone
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


@contextmanager
def plain() -> Iterator[None]:
    """What is traced inside is convolutions and pooling as such: the same sums, for those who read the computation."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


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
    as_usual = dimension_numbers == NHWC and all(PLAIN.get(name, ...) == value for name, value in options.items())
    if not as_usual or not inputs.size or _plain.get():
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


class Conv(nnx.Conv):
    """A convolution by square kernels; `init` draws the kernel and the bias, `padding` is of zeros on each side."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        init: nnx.Initializer,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            inputs,
            outputs,
            (size, size),
            strides=stride,
            padding=padding,
            kernel_init=init,
            bias_init=init,
            conv_general_dilated=convolution,
            rngs=rngs,
        )


class Sequential(nnx.Sequential):
    """Flax's, but in evaluation mode a `Conv` and the `max_pool` after it are one step.

    Training keeps them apart, and so the bits that the shipped networks were trained to.
    """

    def __init__(self, *layers: Callable):
        super().__init__(*layers)
        self.deterministic = False  # `eval` sets it

    def __call__(self, *args, rngs=None, **kwargs):
        if not self.deterministic:
            return super().__call__(*args, rngs=rngs, **kwargs)
        (x,) = args
        steps = iter(zip(self.layers, [*self.layers[1:], None], strict=True))
        for layer, after in steps:
            if isinstance(layer, Conv) and (layer.strides, layer.padding) == (1, 0) and after is max_pool:
                assert layer.bias is not None
                x = convolution_and_max_pool(x, layer.kernel[...], layer.bias[...])
                next(steps)
            else:
                x = layer(x)
        return x


def convolution_and_max_pool(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """`max_pool(convolution(x, kernel) + bias)`, with stride 1, no padding, and windows of 2 by 2 pixels.

    Args:
      x: `[B, H, W, C]`.
      kernel: `[h, w, C, O]`.
      bias: `[O]`.

    Returns:
      `[B, (H - h + 1) // 2, (W - w + 1) // 2, O]`.
    """

    def natively(x, kernel, bias, pool=max_pool):
        return (
            pool(lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=NHWC)) + bias[None, None, None]
        )

    small = min(n - k for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)) < 1
    if not x.size or small or _plain.get():
        return natively(x, kernel, bias)
    if len(x) <= FEW:
        with jax.named_scope(AS_WRITTEN):
            return natively(x, kernel, bias, _pool_by_place)
    return lax.platform_dependent(x, kernel, bias, cpu=_by_place, default=natively)


def _pool_by_place(x):
    height, width = x.shape[1] // 2, x.shape[2] // 2
    x = x[:, : 2 * height, : 2 * width].reshape(len(x), height, 2, width, 2, -1)
    return _largest(x.transpose(2, 4, 0, 1, 3, 5).reshape(4, len(x), height, width, -1))


def _by_place(x, kernel, bias):
    """A product of matrices for each place in the window of the pool: no strides are left in values or gradients."""
    h, w, inputs, outputs = kernel.shape
    height, width = (x.shape[1] - h + 1) // 2, (x.shape[2] - w + 1) // 2
    rows = _rows_and_columns(x.transpose(BATCH_LAST))
    # A kernel with few inputs makes a thin matrix; moved by one column, for two places at once, a better one.
    columns = 2 if inputs < THIN else 1
    moved = [jnp.pad(kernel, ((0, 0), (j, columns - 1 - j), (0, 0), (0, 0))) for j in range(columns)]
    matrix = jnp.stack(moved, 3).reshape(-1, columns * outputs)

    def at(i, j):
        """What the pixel at this place of the kernel meets, for all windows."""
        return rows[i % 2][j % 2][:, i // 2 : i // 2 + height, j // 2 : j // 2 + width]

    places = []
    for down in range(2):
        for right in range(0, 2, columns):
            patches = jnp.concatenate([at(down + i, right + j) for i in range(h) for j in range(w + columns - 1)])
            y = matrix.T @ patches.reshape(len(patches), -1)
            places.append(y.reshape(columns, outputs, height, width, -1))
    # The bias after the maximum: the same bits for a quarter of the work.
    return (_largest(jnp.concatenate(places)) + bias[:, None, None, None]).transpose(BATCH_LAST)


def _rows_and_columns(x):
    """The pixels `[C, H, W, B]` of even and odd rows, and of even and odd columns, apart. An odd size is filled up."""
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    x = x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2, x.shape[3])
    # A barrier: XLA would take them apart anew for every patch that reads them.
    return lax.optimization_barrier([[x[:, :, i, :, j] for j in range(2)] for i in range(2)])


@jax.custom_jvp
def _largest(x):
    """The maximum over a first axis of four."""
    a, b, c, d = x
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


@_largest.defjvp
def _largest_jvp(primals, tangents):
    # The gradient goes to the first of the largest: one mask, without strides, and no division for ties.
    (x,), (t,) = primals, tangents
    largest = _largest(x)
    first = jnp.where(x[0] == largest, 0, jnp.where(x[1] == largest, 1, jnp.where(x[2] == largest, 2, 3)))
    place = jnp.arange(4, dtype=jnp.int8).reshape(4, *[1] * largest.ndim)
    return largest, jnp.where(first.astype(jnp.int8)[None] == place, t, 0).sum(0)


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

    native = partial(nnx.max_pool, window_shape=shape, strides=shape)
    return native(x) if _plain.get() else lax.platform_dependent(x, cpu=slices, default=native)


def max_pool_around(x: jax.Array, window: int = 3) -> jax.Array:
    """Maximum over the window of `window` by `window` pixels around each pixel, `[B, H, W, C]` to the same shape.

    The window is odd; what it has outside of the image does not count. Where several of its pixels are equal, the
    gradient goes to one of them.
    """
    if window % 2 == 0:
        raise ValueError(f"a window around a pixel is odd, not {window}")

    def slices(x):
        # Rows first, then columns: the maximum of 2 * window arrays instead of window * window.
        x = x.transpose(BATCH_LAST)
        for shape in ((window, 1), (1, window)):
            pads = [(0, 0), *((w // 2, w // 2) for w in shape), (0, 0)]
            first, *rest = _window_slices(jnp.pad(x, pads, constant_values=-jnp.inf), shape, (1, 1))
            for other in rest:
                first = _maximum(first, other)
            x = first
        return x.transpose(BATCH_LAST)

    native = partial(nnx.max_pool, window_shape=(window, window), strides=(1, 1), padding="SAME")
    return native(x) if _plain.get() else lax.platform_dependent(x, cpu=slices, default=native)


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
        mean, var = self.mean[...], self.var[...]
        y = super().__call__(x, use_running_average, mask=mask)
        if not (self.use_running_average if use_running_average is None else use_running_average):
            # Once more, as Flax lets no gradient through those that it keeps; XLA computes them once.
            n, axes = x.size // x.shape[-1], tuple(range(x.ndim - 1))
            center = x.mean(axes)
            spread = jnp.square(x - jnp.expand_dims(center, axes)).mean(axes)
            self.mean[...] = self.momentum * mean + (1 - self.momentum) * center
            moved, old = self.momentum * var + (1 - self.momentum) * spread, self.momentum * var
            self.var[...] = old + (moved - old) * (n / (n - 1) if n > 1 else 1)
        return y
