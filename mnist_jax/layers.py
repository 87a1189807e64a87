"""Convolution and pooling that are fast on every backend, and PyTorch's batch normalization.

`lax.conv_general_dilated` and `lax.reduce_window` are the right choice on a GPU or TPU. XLA's CPU backend runs them,
and above all their gradients, several times slower than equivalent matrix products. So on a CPU:

- a convolution gathers the patches of its input and multiplies them by the kernel, as one product of matrices;
- pooling takes the maximum of strided slices; overlapping windows are pooled over rows first and then over columns;
- in evaluation mode a convolution and the pool after it are one step (`Sequential`), which halves the time of an
  attack. For a few images, as at a prompt, compiling that step would take longer than it saves, so they go through
  the backend's own convolution;
- all of these work with the batch as the last axis. Copies, comparisons and sums then run over contiguous memory that
  holds one number for every image of the batch, which vectorizes for any number of channels. Between two such layers
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

THIN = 4  # input channels: with fewer, `_by_place` computes two columns of the output at once, for a larger matrix
FEW = 4  # images: up to this number the backend's own convolution is about as fast, and compiles in a tenth of the time
_plain: ContextVar[bool] = ContextVar("plain", default=False)  # whether layers are traced as on a GPU; see `plain`
MOMENTUM = 0.9  # share of the old value in an updated running statistic; PyTorch's default, there given as 0.1
AS_WRITTEN = "as_written"  # name of the `jax.named_scope` whose convolutions `jaxprs.fast` does not replace
BATCH_LAST = (3, 1, 2, 0)  # permutation of axes from NHWC to CHWN, and back


NHWC = lax.ConvDimensionNumbers(lhs_spec=(0, 3, 1, 2), rhs_spec=(3, 2, 0, 1), out_spec=(0, 3, 1, 2))

# Values of options of lax.conv_general_dilated with which `convolution` uses its product of matrices; with any other it
# calls lax.conv_general_dilated itself.
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
    """Within `with plain():`, the layers are traced as ordinary convolutions and pools, on every backend.

    The values are the same up to rounding. It is for code that reads the traced computation, such as bounds.
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def convolution(
    inputs, kernel, window_strides, padding, *, dimension_numbers=None, precision=None, **options
) -> jax.Array:
    """Convolution that is fast on a CPU, for `nnx.Conv(..., conv_general_dilated=layers.convolution)`.

    Args:
      inputs: images `[B, H, W, C]`.
      kernel: `[h, w, C, O]`.
      window_strides: as in `lax.conv_general_dilated`, whose place it takes.
      padding: likewise.
      dimension_numbers: likewise; with other layouts than NHWC and HWIO it calls `lax.conv_general_dilated`.
      precision: likewise.
      options: likewise; with unusual ones, such as dilation, it calls `lax.conv_general_dilated`.

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
    """`convolution` as one product of the kernel and the patches of the inputs, with the batch as the last axis."""
    x = jnp.pad(inputs.transpose(BATCH_LAST), ((0, 0), *padding, (0, 0)))
    patches = jnp.concatenate(_window_slices(x, kernel.shape[:2], strides))
    matrix = kernel.reshape(-1, kernel.shape[-1])
    y = jnp.matmul(matrix.T, patches.reshape(len(patches), -1), precision=precision)
    return y.reshape(-1, *patches.shape[1:]).transpose(BATCH_LAST)


class Conv(nnx.Conv):
    """A convolution with square kernels, by `convolution`.

    Args:
      inputs: number of channels.
      outputs: number of filters.
      size: height and width of the kernel, in pixels.
      stride: in pixels.
      padding: rows and columns of zeros added at each side.
      init: draws the kernel and the bias.
      rngs: source of the random numbers for `init`.
    """

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
    """Flax's `Sequential`, which in evaluation mode fuses a `Conv` and the `max_pool` after it.

    In training they stay apart, because the fused step rounds differently: retraining a shipped network must give its
    bits.
    """

    def __init__(self, *layers: Callable):
        super().__init__(*layers)
        self.deterministic = False  # `nnx.Module.eval` sets it to True

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
    """`max_pool(convolution(x, kernel) + bias)` as one step: stride 1, no padding, windows of 2 by 2 pixels.

    Args:
      x: images `[B, H, W, C]`.
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
    """`max_pool` of NHWC as the maximum over four arrays, one for each place in the 2 by 2 window."""
    height, width = x.shape[1] // 2, x.shape[2] // 2
    x = x[:, : 2 * height, : 2 * width].reshape(len(x), height, 2, width, 2, -1)
    return _largest(x.transpose(2, 4, 0, 1, 3, 5).reshape(4, len(x), height, width, -1))


def _by_place(x, kernel, bias):
    """`convolution_and_max_pool` on a CPU: a product of matrices for each of the four places in the pool's window.

    So neither the values nor the gradients need strided slices for the pool.
    """
    h, w, inputs, outputs = kernel.shape
    height, width = (x.shape[1] - h + 1) // 2, (x.shape[2] - w + 1) // 2
    rows = _rows_and_columns(x.transpose(BATCH_LAST))
    # With few input channels the kernel's matrix is too small to be efficient. Two copies of the kernel, the second
    # moved by one column, give the outputs of two places in one product.
    columns = 2 if inputs < THIN else 1
    moved = [jnp.pad(kernel, ((0, 0), (j, columns - 1 - j), (0, 0), (0, 0))) for j in range(columns)]
    matrix = jnp.stack(moved, 3).reshape(-1, columns * outputs)

    def at(i, j):
        """The pixels at row i and column j of the patch, for all windows: `[C, height, width, B]`."""
        return rows[i % 2][j % 2][:, i // 2 : i // 2 + height, j // 2 : j // 2 + width]

    places = []
    for down in range(2):
        for right in range(0, 2, columns):
            patches = jnp.concatenate([at(down + i, right + j) for i in range(h) for j in range(w + columns - 1)])
            y = matrix.T @ patches.reshape(len(patches), -1)
            places.append(y.reshape(columns, outputs, height, width, -1))
    # Adding the bias after the maximum gives the same bits for a quarter of the additions.
    return (_largest(jnp.concatenate(places)) + bias[:, None, None, None]).transpose(BATCH_LAST)


def _rows_and_columns(x):
    """Pixels `[C, H, W, B]` separated by even and odd rows (first index) and columns; odd sizes are padded by zeros."""
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    x = x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2, x.shape[3])
    # Without the barrier XLA would separate them anew for every patch that reads them.
    return lax.optimization_barrier([[x[:, :, i, :, j] for j in range(2)] for i in range(2)])


@jax.custom_jvp
def _largest(x):
    """The maximum over the first axis, whose size is 4."""
    a, b, c, d = x
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


@_largest.defjvp
def _largest_jvp(primals, tangents):
    # The gradient goes to the first of the largest entries only: a single mask, and no division for ties.
    (x,), (t,) = primals, tangents
    largest = _largest(x)
    first = jnp.where(x[0] == largest, 0, jnp.where(x[1] == largest, 1, jnp.where(x[2] == largest, 2, 3)))
    place = jnp.arange(4, dtype=jnp.int8).reshape(4, *[1] * largest.ndim)
    return largest, jnp.where(first.astype(jnp.int8)[None] == place, t, 0).sum(0)


def max_pool(x: jax.Array, window: int = 2) -> jax.Array:
    """Maximum over windows of `window` by `window` pixels that do not overlap, `[B, H, W, C]` to `[B, H', W', C]`.

    Pixels at the right and at the bottom that fill no window are dropped. Where several pixels of a window are the
    largest, the gradient goes to one of them.
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

    Pixels of the window outside of the image do not count. Where several of its pixels are the largest, the gradient
    goes to one of them.

    Raises:
      ValueError: `window` is even.
    """
    if window % 2 == 0:
        raise ValueError(f"a window around a pixel is odd, not {window}")

    def slices(x):
        # Pooling rows first and then columns takes the maximum of 2 * window arrays instead of window * window.
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
    """For each place in the window, the pixels `[C, H', W', B]` of `x` `[C, H, W, B]` at that place, of all windows."""
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
    # jnp.maximum would divide the gradient of a tie, at the cost of two more comparisons and a division for each pixel.
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
            # Computed again, as Flax stops the running statistics' gradients; XLA computes the common part only once.
            n, axes = x.size // x.shape[-1], tuple(range(x.ndim - 1))
            center = x.mean(axes)
            spread = jnp.square(x - jnp.expand_dims(center, axes)).mean(axes)
            self.mean[...] = self.momentum * mean + (1 - self.momentum) * center
            moved, old = self.momentum * var + (1 - self.momentum) * spread, self.momentum * var
            self.var[...] = old + (moved - old) * (n / (n - 1) if n > 1 else 1)
        return y
