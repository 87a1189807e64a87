"""The forms of convolutions and pools for a CPU: values, gradients by images and kernels, and JAX transformations.

Pools are compared with JAX's own. Convolutions are compared with the sum in their definition, since XLA's CPU backend
reads outside of its arrays where a padding is negative.
Inputs are small integers: sums of them, and the halves and quarters of Winograd's kernels, are exact in float32.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

from mnist_jax import attack, certify, layers, networks
from mnist_jax.classifier import Classifier
from mnist_jax.jaxprs import fast, program


def integers(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng((seed, *shape)).integers(-4, 5, shape).astype(dtype)


def names(closed):
    """The names of all primitives in a jaxpr and in the jaxprs inside of it."""
    found, jaxprs = set(), [closed.jaxpr]
    while jaxprs:
        for eqn in jaxprs.pop().eqns:
            found.add(eqn.primitive.name)
            for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
                jaxprs += [j for j in (getattr(value, "jaxpr", value),) if hasattr(j, "eqns")]
    return found


def rewritten(function):
    """A function of a weight and images, rewritten as in a compiled classifier."""
    return lambda weight, x: fast.logits(function, weight, x)


def summed(
    x,
    kernel,
    *,
    window_strides,
    padding,
    dimension_numbers,
    lhs_dilation=None,
    rhs_dilation=None,
    groups=1,
    batch_groups=1,
):
    """A convolution by its definition, a sum over the positions of its window."""
    numbers = lax.conv_dimension_numbers(x.shape, kernel.shape, dimension_numbers)
    x, kernel = x.transpose(numbers.lhs_spec), kernel.transpose(numbers.rhs_spec)
    ones = (1,) * len(window_strides)
    lhs_dilation, rhs_dilation = lhs_dilation or ones, rhs_dilation or ones
    if isinstance(padding, str):
        window = [(n - 1) * d + 1 for n, d in zip(kernel.shape[2:], rhs_dilation, strict=True)]
        padding = lax.padtype_to_pads(x.shape[2:], window, window_strides, padding)
    x = lax.pad(
        x, np.zeros((), x.dtype), [(0, 0, 0)] * 2 + [(*p, d - 1) for p, d in zip(padding, lhs_dilation, strict=True)]
    )
    y = 0
    for place in np.ndindex(*kernel.shape[2:]):
        seen = x
        for axis, (at, stride, dilation, size) in enumerate(
            zip(place, window_strides, rhs_dilation, kernel.shape[2:], strict=True), 2
        ):
            end = x.shape[axis] - (size - 1 - at) * dilation
            seen = lax.slice_in_dim(seen, at * dilation, end, stride, axis)
        parts = zip(
            jnp.split(seen, max(groups, batch_groups), 1 if groups > 1 else 0),
            jnp.split(kernel[(slice(None), slice(None), *place)], max(groups, batch_groups)),
            strict=True,
        )
        y = y + jnp.concatenate([jnp.einsum("bc...,oc->bo...", part, own) for part, own in parts], 1)
    return y.transpose(np.argsort(numbers.out_spec))


def value_and_gradients(function):
    @jax.jit
    def run(weight, x):
        y, pull_back = jax.vjp(function, weight, x)
        return y, *pull_back(jnp.asarray(integers(*y.shape, seed=1), y.dtype))

    return run


def assert_same(function, weight, x, reference=None, **near):
    ours, theirs = (value_and_gradients(f)(weight, x) for f in (rewritten(function), reference or function))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, **{"rtol": 0, "atol": 0} | near)


def assert_convolution(kernel, x, options, **near):
    assert_same(
        lambda w, x: lax.conv_general_dilated(x, w, **options),
        kernel,
        x,
        lambda w, x: summed(x, w, **{SHORT.get(name, name): value for name, value in options.items()}),
        **near,
    )


SHORT = {"feature_group_count": "groups", "batch_group_count": "batch_groups"}


# Convolutions

CONVOLUTIONS = {
    "3x3": ((6, 9, 8, 8), (3, 3, 8, 8), {}),
    "3x3, odd padding": ((6, 6, 7, 9), (3, 3, 9, 8), {"padding": ((1, 0), (2, 3))}),
    "3x3, cropped": ((6, 8, 8, 8), (3, 3, 8, 8), {"padding": ((-1, 1), (0, -2))}),
    "3x3, few images": ((2, 6, 6, 8), (3, 3, 8, 8), {"padding": "SAME"}),
    "first layer": ((5, 8, 8, 1), (5, 5, 1, 4), {}),
    "strided 4x4": ((5, 8, 8, 3), (4, 4, 3, 5), {"window_strides": (2, 2), "padding": ((1, 1), (1, 1))}),
    "strided, uneven": ((3, 9, 8, 2), (2, 3, 2, 4), {"window_strides": (3, 2), "padding": ((0, 1), (2, -1))}),
    "1x1, strided": ((3, 7, 7, 4), (1, 1, 4, 6), {"window_strides": (2, 2)}),
    "dilated": ((3, 9, 9, 2), (3, 2, 2, 3), {"rhs_dilation": (2, 3), "padding": "SAME"}),
    "transposed": ((3, 4, 5, 2), (3, 4, 2, 3), {"lhs_dilation": (2, 3), "padding": ((1, 2), (-1, 3))}),
    "all of it": (
        (2, 6, 7, 4),
        (2, 2, 2, 6),
        {
            "window_strides": (2, 1),
            "padding": ((2, -1), (1, 0)),
            "lhs_dilation": (2, 1),
            "rhs_dilation": (1, 2),
            "feature_group_count": 2,
        },
    ),
    "groups": ((5, 6, 6, 16), (3, 3, 8, 16), {"feature_group_count": 2}),
    "many groups": ((2, 3, 3, 20), (1, 2, 2, 10), {"feature_group_count": 10}),
    "depthwise": ((2, 6, 6, 5), (3, 3, 1, 5), {"feature_group_count": 5, "padding": "SAME"}),
    "depthwise, two each": (
        (2, 6, 7, 3),
        (3, 2, 1, 6),
        {"feature_group_count": 3, "window_strides": (2, 1), "rhs_dilation": (1, 2), "padding": ((1, 0), (1, 1))},
    ),
    "batch groups": ((6, 5, 5, 2), (3, 3, 2, 6), {"batch_group_count": 3}),
}
NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize(("images", "kernel", "options"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions(images, kernel, options):
    options = {"window_strides": (1, 1), "padding": "VALID", "dimension_numbers": NHWC} | options
    assert_convolution(integers(*kernel), integers(*images), options)


@pytest.mark.parametrize(
    ("images", "kernel", "numbers"),
    [
        ((5, 8, 7, 6), (8, 8, 3, 3), ("NCHW", "OIHW", "NCHW")),
        ((6, 8, 5, 7), (8, 3, 9, 3), ("HCNW", "IHOW", "WNHC")),
        ((3, 9, 2), (3, 2, 4), ("NWC", "WIO", "NWC")),
        ((3, 2, 9), (4, 2, 3), ("NCW", "OIW", "NCW")),
        ((2, 4, 5, 4, 2), (3, 2, 3, 2, 3), ("NDHWC", "DHWIO", "NDHWC")),
        ((3, 5), (5, 4), ("NC", "IO", "NC")),
    ],
)
def test_orders_of_axes(images, kernel, numbers):
    options = {"window_strides": (1,) * (len(images) - 2), "padding": "SAME", "dimension_numbers": numbers}
    assert_convolution(integers(*kernel), integers(*images), options)


def test_random_convolutions_in_double_precision():
    rng = np.random.default_rng(0)

    def draw(low, high):
        return tuple(int(n) for n in rng.integers(low, high, 2))

    with jax.enable_x64(True):
        for _ in range(5):
            options = {
                "window_strides": draw(1, 3),
                "padding": [draw(-1, 3), draw(-1, 3)],
                "lhs_dilation": draw(1, 3),
                "rhs_dilation": draw(1, 3),
                "dimension_numbers": NHWC,
            }
            kernel, x = rng.normal(size=(*draw(1, 4), 9, 10)), rng.normal(size=(5, *draw(7, 10), 9))
            assert_convolution(kernel, x, options, atol=1e-11)


def test_winograd_rounds_about_as_a_sum_does():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(8, 14, 14, 32)).astype("f4"), rng.normal(size=(3, 3, 32, 16)).astype("f4")
    y, by_kernel, by_x = value_and_gradients(rewritten(padded))(kernel, x)
    with jax.enable_x64(True):
        exact = [np.asarray(a) for a in value_and_gradients(padded)(kernel.astype("f8"), x.astype("f8"))]
    for ours, reference in zip((y, by_kernel, by_x), exact, strict=True):
        assert np.abs(np.asarray(ours) - reference).max() < 1e-6 * np.abs(reference).max()


def padded(kernel, x):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC)


@pytest.mark.parametrize("axes", [(None, 0), (0, None), (3, 1), (0, 0)])
def test_convolutions_under_vmap(axes):
    shapes = [(2, 2, 3, 4), (3, 5, 6, 3)]
    w, x = (
        integers(*s) if a is None else np.moveaxis(integers(3, *s), 0, a) for s, a in zip(shapes, axes, strict=True)
    )
    function = jax.vmap(padded, axes)
    ours = value_and_gradients(jax.vmap(rewritten(padded), axes))(w, x)
    for one, other in zip(ours, value_and_gradients(function)(w, x), strict=True):
        np.testing.assert_array_equal(one, other)


def test_convolutions_in_forward_mode_and_twice():
    w, x = integers(3, 3, 8, 8), integers(5, 5, 5, 8)

    def twice(function):
        # A derivative of a derivative along directions, as second-order methods need it.
        cubed = lambda w, x: (function(w, x) ** 3).sum()  # noqa: E731
        return jax.jit(lambda w, x: jax.jvp(jax.grad(cubed, (0, 1)), (w, x), (w, x)))(w / 4, x / 4)

    for one, other in zip(*(jax.tree.leaves(twice(f)) for f in (rewritten(padded), padded)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_convolutions_of_other_or_mixed_types_stay():
    x, w = integers(2, 5, 5, 3), integers(3, 3, 3, 2)
    for kind in (jnp.bfloat16, jnp.float16, jnp.complex64):
        assert "convolution_by_device" not in seen(padded, w.astype(kind), x.astype(kind))
    wider = partial(lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC)
    stays = lambda w, x: wider(x, w, preferred_element_type=jnp.float32)  # noqa: E731
    assert "convolution_by_device" not in seen(stays, w.astype(jnp.bfloat16), x.astype(jnp.bfloat16))
    assert "convolution_by_device" in seen(padded, w, x)


def seen(function, weight, x):
    """The names of all primitives of a function once it is rewritten."""
    return names(jax.make_jaxpr(rewritten(function))(weight, x))


# Pools

POOLS = {
    "2x2": ((1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    "3x3, left over": ((1, 3, 3, 1), (1, 3, 3, 1), "VALID"),
    "apart": ((1, 2, 1, 1), (1, 3, 2, 1), "VALID"),
    "overlapping": ((1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (0, 2), (0, 0))),
    "around": ((1, 3, 3, 1), (1, 1, 1, 1), "SAME"),
    "global": ((1, 7, 8, 1), (1, 1, 1, 1), "VALID"),
    "channels first": ((1, 1, 2, 3), (1, 1, 2, 1), "SAME"),
}


@pytest.mark.parametrize(("window", "strides", "padding"), POOLS.values(), ids=POOLS)
@pytest.mark.parametrize(("name", "computed", "start"), [("max", lax.max, -np.inf), ("mean", lax.add, 0.0)])
def test_pools(name, computed, start, window, strides, padding):
    # Inputs have so few values that most windows have ties; as in JAX, the first of tied pixels gets the gradient.
    x = np.minimum(integers(3, 7, 8, 4), 1)
    pool = lambda w, x: w * lax.reduce_window(x, start, computed, window, strides, padding)  # noqa: E731
    assert_same(pool, np.float32(3), x)


def test_pools_under_vmap():
    pool = lambda w, x: w * nnx.max_pool(x, (3, 3), (2, 2), padding="SAME")  # noqa: E731
    x, each = integers(3, 2, 5, 6, 3), (None, 0)
    ours, theirs = (value_and_gradients(jax.vmap(f, each))(np.float32(2), x) for f in (rewritten(pool), pool))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_pools_that_stay_as_they_are():
    x = integers(2, 40, 40, 2)
    for how in ({"window_dilation": (1, 2, 2, 1)}, {"base_dilation": (1, 2, 2, 1)}):
        dilated = partial(lax.reduce_window, padding="VALID", window_strides=(1, 1, 1, 1), **how)
        assert "reduce_window_max" in seen(lambda w, x: dilated(x, -np.inf, lax.max, (1, 2, 2, 1)), (), x)  # noqa: B023
    assert "reduce_window_sum" in seen(lambda w, x: nnx.avg_pool(x, (20, 20)), (), x)
    assert "reduce_window_max" in seen(lambda w, x: nnx.max_pool(x, (2, 2), (2, 2)), (), x.astype(jnp.bfloat16))


# Jaxprs around them


@jax.custom_jvp
def odd(x):
    return padded(KERNEL, x)


@odd.defjvp
def odd_jvp(primals, tangents):
    return odd(*primals), 7 * tangents[0]  # not its derivative


@jax.custom_vjp
def odder(x):
    return padded(KERNEL, x)


odder.defvjp(lambda x: (odder(x), None), lambda _, y: (11 * y,))
KERNEL = integers(3, 3, 2, 2)


def test_custom_derivatives_stay_inside_of_calls_loops_and_branches():
    def function(w, x):
        def step(x, _):
            return lax.cond(x[0, 0, 0, 0] < np.inf, jax.jit(lambda x: odder(odd(x))), lambda x: x, x), None

        x, _ = lax.scan(jax.checkpoint(step), padded(w, x), length=2)
        return lax.while_loop(lambda each: each[0] < 0, lambda each: (each[0] + 1, padded(w, each[1])), (0, x))[1]

    w, x = integers(3, 3, 2, 2, seed=2), integers(2, 3, 3, 2)
    gradient = jax.jit(jax.grad(lambda x, function: (3 * function(w, x)).sum()), static_argnums=1)
    once = lambda x: (77**2 * 3 * padded(w, x)).sum()  # noqa: E731
    np.testing.assert_array_equal(jax.jit(rewritten(lambda w, x: function(w, x)))(w, x), jax.jit(function)(w, x))
    scanned = lambda w, x: lax.scan(lambda x, _: (odder(odd(x)), None), padded(w, x), length=2)[0]  # noqa: E731
    np.testing.assert_array_equal(gradient(x, rewritten(jax.checkpoint(scanned))), jax.grad(once)(x))
    assert "conv_general_dilated" not in seen(function, w, x)


def test_platform_branches_and_functions_without_convolutions_stay():
    chosen = lambda w, x: lax.platform_dependent(w, x, cpu=padded, default=padded)  # noqa: E731
    scoped = lambda w, x: jax.named_scope(layers.AS_WRITTEN)(padded)(w, x)  # noqa: E731
    w, x = integers(3, 3, 2, 2), integers(2, 3, 3, 2)
    for function in (chosen, scoped, lambda w, x: x + w.sum()):
        assert str(jax.make_jaxpr(rewritten(function))(w, x)) == str(jax.make_jaxpr(function)(w, x))


@pytest.mark.parametrize(("name", "batch"), [("CNN", 1), ("CNN_bn", 8), ("Inception", 8), ("CNN7_bn", 2)])
def test_the_projects_own_networks_are_not_rewritten(name, batch):
    network = networks.by_name(name)
    weights = {name: jnp.zeros(shape) for name, shape in networks.shapes(network).items()}
    x = jnp.zeros((batch, *network.shape))
    ours = jax.make_jaxpr(lambda w, x: Classifier(network.apply, w)(x))(weights, x)
    assert str(ours) == str(jax.make_jaxpr(network.apply)(weights, x))


def test_other_devices_get_the_function_as_written():
    def lowered(function, platform):
        gradient = jax.jit(jax.grad(lambda x, w: function(w, x).sum()))
        text = gradient.trace(x, w).lower(lowering_platforms=(platform,)).as_text()
        return [
            line.split(" : ")[0].split("=", 1)[1]
            for line in text.splitlines()
            if "stablehlo.convolution" in line or "select_and_scatter" in line
        ]

    def function(w, x):
        return nnx.max_pool(padded(w, x), (2, 2), (2, 2))

    w, x = integers(4, 4, 2, 2), integers(2, 6, 6, 2)
    for platform in ("cuda", "tpu"):
        own = lowered(function, platform)
        assert len(own) == 3
        assert [line.split(")", 1)[1] for line in lowered(rewritten(function), platform)] == [
            line.split(")", 1)[1] for line in own
        ]
    assert not any("select_and_scatter" in line for line in lowered(rewritten(function), "cpu"))


# A classifier


class Plain(nnx.Module):
    """A convolutional network as a user of Flax writes one."""

    def __init__(self, rngs):
        self.convs = nnx.List([nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in ((1, 8), (8, 8))])
        self.end = nnx.Linear(72, 3, rngs=rngs)

    def __call__(self, x):
        for conv in self.convs:
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), (2, 2))
        return self.end(x.reshape(len(x), -1))


def plain(seed=0, **how):
    graph, state = nnx.split(Plain(nnx.Rngs(seed)))
    if not hasattr(plain, "apply"):
        plain.apply = lambda state, x: nnx.merge(graph, state)(x)
    return Classifier(plain.apply, state, **how)


def test_an_attack_finds_the_same_distances_as_without_rewriting():
    images = np.random.default_rng(0).random((6, 12, 12, 1), np.float32)
    found = attack.ddn(plain(), images, steps=20)
    as_written = attack.ddn(plain(fast=False), images, steps=20)
    assert found.success.all()
    np.testing.assert_allclose(found.distance, as_written.distance, rtol=1e-3)
    assert (plain()(found.images).argmax(1) != plain()(images).argmax(1)).all()


def test_without_fast_a_classifier_is_not_rewritten():
    x = np.random.default_rng(0).random((6, 12, 12, 1), np.float32)
    network = plain(fast=False)
    text = str(jax.make_jaxpr(lambda c, x: c(x))(network, x))
    assert text == str(jax.make_jaxpr(plain.apply)(network.params, x))
    assert "convolution_by_device" in str(jax.make_jaxpr(lambda c, x: c(x))(plain(), x))
    assert not plain().as_written().fast


def test_one_program_serves_all_weights():
    count = []

    @jax.jit
    def run(classifier, x):
        count.append(1)
        return jax.grad(lambda x: classifier(x)[:, 0].sum())(x)

    x = np.random.default_rng(0).random((6, 12, 12, 1), np.float32)
    one, other = run(plain(0), x), run(plain(1), x)
    assert len(count) == 1
    assert np.abs(one - other).max() > 0


def test_weights_that_a_function_closes_over():
    x, w = integers(5, 4, 4, 8), integers(3, 3, 8, 8)

    @jax.jit
    def gradients(w):
        logits = lambda w: Classifier(lambda _, x: padded(w, x).sum((1, 2)), ())(x).sum()  # noqa: E731
        return jax.grad(logits)(w)

    np.testing.assert_array_equal(gradients(w), jax.grad(lambda w: padded(w, x).sum())(w))


def test_certificates_read_the_function_as_it_is_written():
    read, own = (program.read(plain(fast=how), (12, 12, 1), np.float32, "cpu") for how in (True, False))
    assert [e.name for e in read.equations] == [e.name for e in own.equations]
    assert "conv_general_dilated" in {e.name for e in read.equations}
    found = certify.ibp(plain(), np.random.default_rng(0).random((2, 12, 12, 1), np.float32), None, 1e-4)
    assert found.certified.all()


def test_linen():
    class Linen(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.avg_pool(linen.Conv(4, (3, 3), 2)(x), (2, 2), (2, 2))
            return linen.Dense(2)(x.reshape(len(x), -1))

    x = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)
    params = Linen().init(jax.random.key(0), x)
    got = value_and_gradients(rewritten(Linen().apply))(params, x)
    for one, other in zip(
        jax.tree.leaves(got), jax.tree.leaves(value_and_gradients(Linen().apply)(params, x)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
