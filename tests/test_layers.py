"""Convolution and pooling against XLA's own, batch normalization against PyTorch's rules in NumPy.

Inputs are small integers wherever sums are compared: those are exact in float32, in whatever order they are added.
"""

from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from mnist_jax import layers

NHWC = ("NHWC", "HWIO", "NHWC")


def integers(*shape, seed=0, low=-4, high=5, dtype=np.float32):
    return np.random.default_rng((seed, *shape)).integers(low, high, shape).astype(dtype)


def lowered(function, *arguments, platform):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


# Convolution


def ours(x, kernel, strides=(1, 1), padding="VALID", lhs_dilation=(1, 1), rhs_dilation=(1, 1), groups=1):
    options = {"lhs_dilation": lhs_dilation, "rhs_dilation": rhs_dilation, "feature_group_count": groups}
    return layers.convolution(x, kernel, strides, padding, dimension_numbers=NHWC, **options)


def native(x, kernel, strides=(1, 1), padding="VALID", lhs_dilation=(1, 1), rhs_dilation=(1, 1), groups=1):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, lhs_dilation, rhs_dilation, NHWC, feature_group_count=groups
    )


def value_and_gradients(function, *options):
    """The convolution, and the gradients by inputs and kernel of its scalar product with random integers."""

    @jax.jit
    def run(x, kernel):
        y, pull_back = jax.vjp(lambda x, kernel: function(x, kernel, *options), x, kernel)
        return y, *pull_back(jnp.asarray(integers(*y.shape, seed=1), y.dtype))

    return run


def assert_equal(left, right):
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


@pytest.mark.parametrize(
    ("images", "kernel", "strides", "padding"),
    [
        ((1, 28, 28, 1), (5, 5, 1, 20), (1, 1), "VALID"),
        ((3, 12, 12, 20), (3, 3, 20, 40), (1, 1), "VALID"),
        ((5, 7, 9, 2), (2, 3, 2, 3), (2, 1), "SAME"),
        ((2, 6, 5, 2), (3, 2, 2, 2), (3, 2), "SAME_LOWER"),
        ((2, 8, 8, 3), (4, 4, 3, 5), (2, 2), ((1, 1), (1, 1))),
        ((3, 5, 6, 2), (3, 3, 2, 2), (1, 2), [(0, 2), (3, 1)]),
        ((7, 5, 6, 3), (1, 1, 3, 2), (1, 1), "VALID"),
        ((1, 4, 5, 3), (4, 5, 3, 2), (1, 1), "VALID"),
        ((3, 9, 8, 2), (2, 3, 2, 2), (4, 5), "VALID"),
        ((1, 2, 1, 1), (3, 3, 1, 1), (1, 1), "SAME"),
    ],
)
def test_convolution_and_its_gradients(images, kernel, strides, padding):
    arguments = integers(*images), integers(*kernel)
    options = (strides, padding)
    assert_equal(value_and_gradients(ours, *options)(*arguments), value_and_gradients(native, *options)(*arguments))


@pytest.mark.parametrize(
    "options",
    [
        ((1, 1), "VALID", (1, 1), (2, 1)),
        ((2, 1), ((2, 1), (0, 3)), (1, 2), (1, 1)),
        ((1, 1), "SAME", (1, 1), (1, 1), 2),
    ],
    ids=["kernel dilated", "inputs dilated", "grouped"],
)
def test_dilated_and_grouped_convolutions_are_native(options):
    groups = options[4] if len(options) > 4 else 1
    arguments = integers(3, 7, 6, 4), integers(3, 2, 4 // groups, 6)
    assert_equal(value_and_gradients(ours, *options)(*arguments), value_and_gradients(native, *options)(*arguments))
    assert "stablehlo.convolution" in lowered(lambda *a: ours(*a, *options), *arguments, platform="cpu")


def test_convolution_under_vmap():
    x, kernel = integers(2, 3, 6, 6, 2), integers(2, 3, 3, 2, 4)
    one_by_one = [[native(one, other) for other in kernel] for one in x]
    both = jax.jit(jax.vmap(jax.vmap(ours, (None, 0)), (0, None)))
    np.testing.assert_array_equal(both(x, kernel), one_by_one)


@pytest.mark.parametrize(
    ("shape", "kernel_shape", "padding", "options"),
    [
        ((0, 6, 5, 2), (2, 2, 2, 3), "VALID", {}),  # no images
        ((3, 2, 2, 1), (3, 3, 1, 2), "VALID", {}),  # a kernel larger than the image
        ((3, 6, 5, 2), (2, 2, 2, 3), ((-1, 0), (0, -1)), {}),
        ((4, 6, 5, 2), (2, 2, 2, 4), "VALID", {"batch_group_count": 2}),
        ((3, 6, 5, 2), (2, 2, 2, 3), "VALID", {"preferred_element_type": jnp.float32}),
        ((3, 2, 6, 5), (4, 2, 2, 2), "VALID", {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}),
    ],
)
def test_what_is_not_plain_is_left_to_the_backend(shape, kernel_shape, padding, options):
    x, kernel = integers(*shape), integers(*kernel_shape)
    options = {"dimension_numbers": NHWC} | options
    got = layers.convolution(x, kernel, (1, 1), padding, **options)
    wanted = lax.conv_general_dilated(x, kernel, (1, 1), padding, **options)
    np.testing.assert_array_equal(got, wanted, strict=True)


def test_gradient_of_the_gradient_of_a_convolution():
    x, kernel, direction = integers(3, 6, 5, 2), integers(3, 2, 2, 3), integers(3, 2, 2, 3, seed=2)

    def twice(function):
        def slope(x, kernel):
            gradient = jax.grad(lambda kernel: (function(x, kernel) ** 2).sum())(kernel)
            return jnp.vdot(gradient, direction)

        return jax.jit(jax.grad(slope, (0, 1)))(x, kernel)

    assert_equal(twice(ours), twice(native))


def test_convolution_without_jit():
    x, kernel = integers(2, 5, 5, 1), integers(3, 3, 1, 2)
    with jax.disable_jit():
        got = ours(x, kernel)
    np.testing.assert_array_equal(got, native(x, kernel))


def test_convolution_and_pooling_in_float64():
    large = 2.0**40  # with it in a sum, float32 would lose the small numbers
    with jax.enable_x64(True):
        x, kernel = large + integers(2, 5, 5, 1, dtype=np.float64), integers(3, 3, 1, 2, dtype=np.float64)
        assert_equal(value_and_gradients(ours)(x, kernel), value_and_gradients(native)(x, kernel))
        pooled = layers.max_pool(jnp.asarray(x))
        assert pooled.dtype == np.float64
        np.testing.assert_array_equal(pooled, windows(x, 2).max(-1))


@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((2, 6, 5, 3), (3, 2), {"strides": 2, "padding": "CIRCULAR"}),
        ((6, 5, 3), (3, 2), {"padding": 1}),
        ((2, 2, 6, 5, 3), (3, 2), {"padding": "SAME", "use_bias": False}),
        ((2, 6, 5, 3), (3, 2), {"kernel_dilation": 2, "precision": "highest"}),
        ((2, 6, 3), (3,), {}),
    ],
    ids=["circular", "one image", "two batch axes", "dilated", "one dimension"],
)
def test_convolution_drops_into_flax(shape, kernel, options):
    options = options | {"kernel_init": lambda *_: jnp.asarray(integers(*kernel, 3, 4)), "rngs": nnx.Rngs(0)}
    plain = nnx.Conv(3, 4, kernel, **options)
    fast = nnx.Conv(3, 4, kernel, conv_general_dilated=layers.convolution, **options)
    x = integers(*shape)
    np.testing.assert_array_equal(jax.jit(fast)(x), jax.jit(plain)(x), strict=True)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_every_platform_gets_its_own_convolution(platform):
    def gradients(x, kernel):
        return jax.grad(lambda *a: ours(*a).sum(), (0, 1))(x, kernel)

    for function in (ours, gradients):
        program = lowered(function, integers(2, 6, 6, 2), integers(3, 3, 2, 3), platform=platform)
        assert ("stablehlo.convolution" in program) == (platform != "cpu")
        assert ("stablehlo.dot_general" in program) == (platform == "cpu")


# Pooling


def windows(x, size):
    """`[B, H', W', C, size * size]`: the pixels of every window, in NumPy."""
    batch, height, width, channels = x.shape
    height, width = height // size, width // size
    tiles = x[:, : height * size, : width * size].reshape(batch, height, size, width, size, channels)
    return tiles.transpose(0, 1, 3, 5, 2, 4).reshape(batch, height, width, channels, size * size)


def pool_and_gradient(function, x):
    """The pool, the gradient of its scalar product with positive random integers, and these integers."""

    @jax.jit
    def run(x):
        y, pull_back = jax.vjp(function, x)
        cotangent = jnp.asarray(integers(*y.shape, seed=1, low=1))
        return y, pull_back(cotangent)[0], cotangent

    return [np.asarray(array) for array in run(x)]


def permuted(*shape):
    """Numbers from -n/2 to n/2 in random order: no two are equal."""
    n = int(np.prod(shape))
    return (np.random.default_rng(n).permutation(n) - n // 2).reshape(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "window"),
    [((1, 8, 8, 3), 2), ((3, 7, 5, 2), 2), ((2, 7, 11, 3), 3), ((1, 3, 4, 1), 3), ((2, 3, 2, 2), 1), ((2, 1, 4, 1), 2)],
)
def test_max_pool_and_its_gradient(shape, window):
    def native(x):
        steps = (1, window, window, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, steps, steps, "VALID")

    x = permuted(*shape)
    got = pool_and_gradient(lambda x: layers.max_pool(x, window), x)
    assert_equal(got, pool_and_gradient(native, x))
    np.testing.assert_array_equal(got[0], windows(x, window).max(-1))


@pytest.mark.parametrize("window", [2, 3])
def test_the_gradient_of_a_tie_goes_to_one_of_the_pixels(window):
    x = integers(3, 13, 12, 4, low=-1, high=1)  # two levels: nearly every window has a tie
    x[0] = 0.0
    y, gradient, cotangent = pool_and_gradient(lambda x: layers.max_pool(x, window), x)
    pixels, shares = windows(x, window), windows(gradient, window)
    assert ((pixels == pixels.max(-1, keepdims=True)).sum(-1) > 1).mean() > 0.5
    assert ((shares != 0).sum(-1) == 1).all()
    np.testing.assert_array_equal(shares.sum(-1), cotangent)
    np.testing.assert_array_equal(np.take_along_axis(pixels, (shares != 0).argmax(-1)[..., None], -1)[..., 0], y)


def test_max_pool_drops_what_is_left_over():
    x = permuted(2, 5, 7, 1)
    x[:, 4:] = x[:, :, 6:] = np.inf
    y, gradient, _ = pool_and_gradient(layers.max_pool, x)
    assert y.shape == (2, 2, 3, 1)
    assert np.isfinite(y).all()
    assert (gradient[:, 4:] == 0).all()
    assert (gradient[:, :, 6:] == 0).all()


@pytest.mark.parametrize("place", range(4))
def test_max_pool_of_special_values(place):
    x = np.full((1, 4, 4, 1), -np.inf, np.float32)
    row, column = divmod(place, 2)
    x[0, row, column] = np.nan
    x[0, row, column + 2] = -3.0
    x[0, row + 2, column] = np.inf
    np.testing.assert_array_equal(layers.max_pool(x)[0, ..., 0], [[np.nan, -3], [np.inf, -np.inf]])


def test_max_pool_under_transformations():
    x, direction = permuted(3, 2, 6, 4, 2), integers(3, 2, 6, 4, 2)
    one_by_one = [windows(one, 2).max(-1) for one in x]
    np.testing.assert_array_equal(jax.jit(jax.vmap(layers.max_pool))(x), one_by_one)
    with jax.disable_jit():
        np.testing.assert_array_equal(layers.max_pool(x[0]), one_by_one[0])

    def cubes(x):
        return (layers.max_pool(x) ** 3).sum()

    # The second derivative of m^3 is 6 m at the largest pixel of a window, and 0 elsewhere.
    second = jax.jit(lambda *a: jax.jvp(jax.grad(cubes), a[:1], a[1:])[1])(x[0], direction[0])
    largest = np.isin(x[0], windows(x[0], 2).max(-1))
    np.testing.assert_array_equal(second, 6 * x[0] * largest * direction[0])


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_every_platform_gets_its_own_pooling(platform):
    x = permuted(2, 6, 6, 2)
    forward = lowered(layers.max_pool, x, platform=platform)
    backward = lowered(jax.grad(lambda x: layers.max_pool(x).sum()), x, platform=platform)
    assert ("reduce_window" in forward) == (platform != "cpu")
    assert ("select_and_scatter" in backward) == (platform != "cpu")


# Pooling around every pixel


def native_around(window):
    def pool(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, 1, 1, 1), "SAME")

    return pool


@pytest.mark.parametrize(("shape", "window"), [((2, 7, 5, 3), 3), ((3, 4, 6, 2), 5), ((2, 2, 1, 1), 3)])
def test_max_pool_around_and_its_gradient(shape, window):
    x = permuted(*shape) - 100.0  # all below 0: what is outside doesn't count
    got = pool_and_gradient(lambda x: layers.max_pool_around(x, window), x)
    assert_equal(got, pool_and_gradient(native_around(window), x))
    with layers.plain():
        assert_equal(got, pool_and_gradient(lambda x: layers.max_pool_around(x, window), x))


def test_the_gradient_of_a_tie_around_pixels_goes_to_one_of_them():
    x = integers(2, 6, 7, 3, low=-1, high=1)
    x[0] = 0.0
    y, gradient, cotangent = pool_and_gradient(layers.max_pool_around, x)
    np.testing.assert_array_equal(y, native_around(3)(x))
    np.testing.assert_array_equal(gradient.sum((1, 2)), cotangent.sum((1, 2)))
    assert (gradient == np.round(gradient)).all()  # nothing is shared out
    one, pull_back = jax.vjp(layers.max_pool_around, x)
    for at in ((0, 0), (3, 4), (5, 6)):  # of one window each
        (share,) = pull_back(jnp.zeros_like(one).at[:, at[0], at[1]].set(1))
        assert ((share != 0).sum((1, 2)) == 1).all()
        np.testing.assert_array_equal((x * share).sum((1, 2)), y[:, at[0], at[1]])


def test_max_pool_around_of_an_even_window_is_refused():
    with pytest.raises(ValueError, match="odd, not 2"):
        layers.max_pool_around(np.zeros((1, 3, 3, 1), np.float32), 2)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_every_platform_gets_its_own_pooling_around_pixels(platform):
    x = permuted(2, 6, 6, 2)
    backward = lowered(jax.grad(lambda x: layers.max_pool_around(x).sum()), x, platform=platform)
    assert ("select_and_scatter" in backward) == (platform != "cpu")


# Both in one step


@pytest.fixture(params=["few", "many"])
def however_many(request, monkeypatch):
    """Sets `layers.FEW`, up to which number of images the backend's own convolution is used: tests try both ways."""
    monkeypatch.setattr(layers, "FEW", {"few": 100, "many": 0}[request.param])
    return request.param


def separate(x, kernel, bias):
    return layers.max_pool(
        layers.convolution(x, kernel, (1, 1), "VALID", dimension_numbers=NHWC) + bias[None, None, None]
    )


@pytest.mark.usefixtures("however_many")
@pytest.mark.parametrize(
    ("images", "kernel"),
    [
        ((2, 28, 28, 1), (5, 5, 1, 3)),
        ((3, 12, 12, 5), (3, 3, 5, 4)),
        ((3, 8, 7, 2), (3, 2, 2, 3)),  # odd sizes of what comes out, and of what goes in
        ((2, 7, 8, 4), (1, 3, 4, 2)),
        ((5, 4, 6, 6), (3, 5, 6, 1)),  # a single window
        ((2, 5, 5, 1), (5, 5, 1, 2)),  # no window
        ((2, 4, 4, 1), (5, 5, 1, 2)),
        ((0, 8, 8, 1), (3, 3, 1, 2)),
    ],
)
def test_convolution_and_max_pool_and_its_gradients(images, kernel):
    x, kernel = permuted(*images), permuted(*kernel)
    bias = integers(kernel.shape[-1])

    def value_and_gradients(function):
        y, pull_back = jax.vjp(function, x, kernel, bias)
        return y, *pull_back(jnp.asarray(integers(*y.shape, seed=1), y.dtype))

    got, wanted = (
        jax.jit(value_and_gradients, static_argnums=0)(f) for f in (layers.convolution_and_max_pool, separate)
    )
    for one, other in zip(got, wanted, strict=True):
        scale = np.abs(other).max(initial=1)
        np.testing.assert_allclose(one / scale, other / scale, atol=1e-6, strict=True)


@pytest.mark.usefixtures("however_many")
def test_the_gradient_of_a_tie_of_convolutions_goes_to_one_of_the_places():
    x, kernel = np.zeros((2, 6, 6, 1), np.float32), integers(1, 1, 1, 3, low=1)
    bias, cotangent = integers(3), integers(2, 3, 3, 3, low=1)
    _, pull_back = jax.vjp(lambda x: layers.convolution_and_max_pool(x, kernel, bias), x)
    shares = windows(pull_back(jnp.asarray(cotangent))[0], 2)[..., 0, :]
    assert ((shares != 0).sum(-1) == 1).all()
    np.testing.assert_array_equal(shares.sum(-1), (cotangent * kernel[0, 0, 0]).sum(-1))


@pytest.mark.usefixtures("however_many")
def test_convolution_and_max_pool_under_transformations():
    x, kernel, bias = permuted(3, 2, 6, 7, 2), integers(3, 2, 2, 3), integers(3)
    one_by_one = [separate(one, kernel, bias) for one in x]
    every = jax.vmap(lambda x: layers.convolution_and_max_pool(x, kernel, bias))
    np.testing.assert_array_equal(jax.jit(every)(x), one_by_one)
    with jax.disable_jit():
        np.testing.assert_array_equal(layers.convolution_and_max_pool(x[0], kernel, bias), one_by_one[0])
    direction = integers(2, 6, 7, 2)

    def second(function):
        slope = jax.grad(lambda x: (function(x, kernel, bias) ** 2).sum())
        return jax.jvp(slope, (x[0],), (direction.astype(np.float32),))[1]

    np.testing.assert_array_equal(second(layers.convolution_and_max_pool), second(separate))


@pytest.mark.usefixtures("however_many")
def test_convolution_and_max_pool_in_float64():
    large = 2.0**40
    with jax.enable_x64(True):
        x, kernel = large + permuted(2, 6, 6, 1).astype(np.float64), integers(3, 3, 1, 2, dtype=np.float64)
        bias = jnp.zeros(2)
        np.testing.assert_array_equal(
            layers.convolution_and_max_pool(x, kernel, bias), separate(x, kernel, bias), strict=True
        )


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_every_platform_gets_its_own_convolution_and_max_pool(platform, however_many):
    arguments = integers(2, 6, 6, 2), integers(3, 3, 2, 3), integers(3)
    # A new function for each case, as JAX would reuse a trace that was made with another `layers.FEW`.
    program = lowered(lambda *a: layers.convolution_and_max_pool(*a), *arguments, platform=platform)
    assert ("stablehlo.convolution" in program) == (platform != "cpu" or however_many == "few")
    assert ("reduce_window" in program) == (platform != "cpu" and however_many == "many")


@pytest.mark.usefixtures("however_many")
def test_sequential_is_one_step_in_evaluation_and_two_in_training():
    rngs = nnx.Rngs(0)
    conv = partial(layers.Conv, init=jax.nn.initializers.normal(), rngs=rngs)
    parts = conv(1, 2, 3), layers.max_pool, nnx.relu, conv(2, 3, 2), nnx.relu, conv(3, 2, 2), layers.max_pool
    fused, plain = layers.Sequential(*parts), nnx.Sequential(*parts)
    x = integers(3, 14, 14, 1)
    steps = []
    with mock.patch.object(layers, "convolution_and_max_pool", lambda *a: steps.append(a[1].shape) or separate(*a)):
        np.testing.assert_array_equal(fused(x), plain(x))
        assert not steps
        fused.eval()
        np.testing.assert_array_equal(fused(x), plain(x))
        assert steps == [(3, 3, 1, 2), (2, 2, 3, 2)]
    np.testing.assert_allclose(fused(x), plain(x), rtol=1e-5, atol=1e-5)
    fused.train()
    np.testing.assert_array_equal(fused(x), plain(x))


# Batch normalization


class TorchBatchNorm:
    """What torch.nn.BatchNorm1d and 2d compute, with the features last."""

    def __init__(self, scale, bias):
        self.scale, self.bias = scale, bias
        self.mean, self.var = np.zeros_like(scale), np.ones_like(scale)

    def __call__(self, x, training):
        if training:
            rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
            mean, var, n = rows.mean(0), rows.var(0), len(rows)
            self.mean = 0.9 * self.mean + 0.1 * mean
            self.var = 0.9 * self.var + 0.1 * (var * n / (n - 1) if n > 1 else var)
        else:
            mean, var = self.mean, self.var
        return (x - mean) / np.sqrt(var + 1e-5) * self.scale + self.bias


def pair_of_batch_norms(features):
    rng = np.random.default_rng(features)
    scale, bias = rng.normal(size=(2, features)).astype(np.float32)
    layer = layers.BatchNorm(features, rngs=nnx.Rngs(0))
    layer.scale[...], layer.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    return layer, TorchBatchNorm(scale, bias)


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 1, 3), (1, 2, 2, 3), (1, 3)])
def test_batch_norm_in_training_then_evaluation(shape):
    layer, reference = pair_of_batch_norms(3)
    x = 5 + 3 * np.random.default_rng(1).normal(size=(4, *shape)).astype(np.float32)
    layer.train()
    for batch in x[:3]:
        np.testing.assert_allclose(layer(batch), reference(batch, training=True), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(layer.mean[...], reference.mean, rtol=1e-5)
        np.testing.assert_allclose(layer.var[...], reference.var, rtol=1e-5)
    layer.eval()
    before = np.asarray(layer.mean[...]), np.asarray(layer.var[...])
    np.testing.assert_allclose(layer(x[3]), reference(x[3], training=False), rtol=1e-5, atol=1e-5)
    assert_equal((layer.mean[...], layer.var[...]), before)


def test_batch_norm_obeys_the_argument_before_the_mode():
    layer, reference = pair_of_batch_norms(3)
    x = 5 + np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)
    layer.eval()
    np.testing.assert_allclose(layer(x, use_running_average=False), reference(x, training=True), rtol=1e-4, atol=1e-4)
    layer.train()
    np.testing.assert_allclose(layer(x, use_running_average=True), reference(x, training=False), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(layer.var[...], reference.var, rtol=1e-5)
