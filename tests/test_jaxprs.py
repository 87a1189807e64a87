"""Reading a classifier's computation, and running and transposing its affine equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from mnist_jax import Classifier, certify, layers, load_classifier
from mnist_jax.certify.constants import Constants
from mnist_jax.jaxprs import affine, convolution, program
from mnist_jax.jaxprs.program import UnsupportedOperation

SHAPE = (4, 4, 2)


def read(apply, params=None, shape=SHAPE, platform="cpu"):
    classifier = Classifier(apply, params)
    return program.read(classifier, shape, jnp.float32, platform)


def names(apply, **options):
    read_ = read(apply, **options)
    return [e.name for e in read_.equations if read_.depends.issuperset(e.results)]


def two(x):
    return x.reshape(len(x), -1)[:, :2]


@jax.custom_jvp
def hidden(x):
    return jnp.maximum(x, 0) * 2


hidden.defjvp(lambda primals, tangents: (hidden(*primals), 0 * tangents[0]))


@jax.custom_vjp
def hidden_too(x):
    return jnp.maximum(x, 0) * 2


hidden_too.defvjp(lambda x: (hidden_too(x), None), lambda _, t: (0 * t,))


@pytest.mark.parametrize(
    "call",
    [hidden, hidden_too, jax.jit(lambda x: hidden(x)), jax.checkpoint(lambda x: jnp.maximum(x, 0) * 2)],
    ids=["jvp", "vjp", "jit", "remat"],
)
def test_calls_are_inlined_by_what_they_compute(call):
    found = names(lambda _, x: two(call(x)))
    assert found[:2] == ["max", "mul"]


def test_loops_of_fixed_length_are_unrolled():
    def apply(_, x):
        def step(carry, row):
            return carry * row, jnp.maximum(carry, 0)

        last, rows = lax.scan(step, x, jnp.arange(1.0, 4), reverse=True)
        return two(last) + two(rows[1])

    found = names(apply)
    assert found.count("mul") == 3
    assert found.count("max") == 3
    assert "scan" not in found


def test_stop_gradient_is_the_identity():
    assert names(lambda _, x: two(lax.stop_gradient(x) * 2)) == names(lambda _, x: two(x * 2))


@pytest.mark.parametrize(("platform", "factor"), [("cpu", 2.0), ("tpu", 3.0), ("cuda", 5.0)])
def test_the_branch_of_the_platform_is_read(platform, factor):
    def apply(_, x):
        return two(lax.platform_dependent(x, cpu=lambda x: x * 2, tpu=lambda x: x * 3, default=lambda x: x * 5))

    got = read(apply, platform=platform)
    constants = [float(got.known[n]) for e in got.equations for n in e.operands if e.name == "mul" and n in got.known]
    assert constants == [factor]
    assert got.platforms == {"cpu", "tpu"}


def test_bounds_are_of_the_branch_that_the_device_takes():
    def apply(_, x):
        return two(lax.platform_dependent(x, cpu=lambda x: x, default=lambda x: -x)) - jnp.array([[0.0, 0.5]])

    result = certify.ibp(Classifier(apply, None), np.full((1, *SHAPE), 0.25, np.float32), [0], 0.01)
    np.testing.assert_allclose(result.margin, 0.48, atol=1e-5)


@pytest.mark.parametrize("network", ["MLP_bn", "CNN_bn"])
def test_the_projects_networks_are_read_as_convolutions_and_maxima(network):
    """The program does not depend on the form of the layers that is fastest on a device."""
    classifier = load_classifier(network)
    got = program.read(classifier, (28, 28, 1), jnp.float32, "cpu")
    bent = {e.name for e in got.equations if got.depends.issuperset(e.results) and not affine.is_affine(got, e)}
    assert bent == {"max"}
    assert sum(e.name == "conv_general_dilated" for e in got.equations) == (2 if network == "CNN_bn" else 0)


def evaluate(classifier, images):
    """The logits computed by the equations, with one lane for each image."""
    got = program.read(classifier, images.shape[1:], jnp.float32, "cpu")
    constants = Constants(got, jax.tree.leaves(classifier.params))
    values = {got.image: jnp.moveaxis(images, 0, -1)[None]}
    for equation in got.equations:
        which = affine.dependent(got, equation)
        if not any(which):
            constants.work_out(equation)
            continue
        operands = [values[n] if d else constants[n] for n, d in zip(equation.operands, which, strict=True)]
        if affine.is_affine(got, equation):
            results = affine.run(equation, operands, which)
        elif equation.name == "softplus":
            results = [jax.nn.softplus(operands[0])]
        else:
            operands = [x if d else jnp.asarray(x)[..., None] for x, d in zip(operands, which, strict=True)]
            shape = np.broadcast_shapes(*[np.shape(x) for x in operands])
            results = equation.bind(*[jnp.broadcast_to(x, shape) for x in operands])
        values |= dict(zip(equation.results, results, strict=True))
    return values[got.logits][0].T


def pooled(padding, window, strides):
    return lambda _, x: two(nnx.max_pool(x, window, strides=strides, padding=padding))


FUNCTIONS = {
    "relu": lambda _, x: two(jax.nn.relu(x - 0.5)),
    "leaky": lambda _, x: two(jax.nn.leaky_relu(x - 0.5)),
    "leaky by 0.2": lambda _, x: two(jax.nn.leaky_relu(x - 0.5, 0.2)),
    "leaky by 3": lambda _, x: two(jax.nn.leaky_relu(x - 0.5, 3.0)),
    "elu": lambda _, x: two(jax.nn.elu(x - 0.5)),
    "elu by 0.3": lambda _, x: two(jax.nn.elu(x - 0.5, 0.3)),
    "softplus": lambda _, x: two(jax.nn.softplus(4 * x - 2)),
    "logaddexp": lambda _, x: two(jnp.logaddexp(x, 0.3 - 3 * x)),
    "hard_tanh": lambda _, x: two(jax.nn.hard_tanh(4 * x - 2)),
    "relu6": lambda _, x: two(jax.nn.relu6(20 * x - 10)),
    "silu": lambda _, x: two(jax.nn.silu(4 * x - 2)),
    "gelu": lambda _, x: two(jax.nn.gelu(4 * x - 2, approximate=False)),
    "minimum": lambda _, x: two(jnp.minimum(x, 0.3 + 0 * x[:, ::-1])),
    "of one": lambda _, x: two(jnp.maximum(x, x) + jnp.minimum(x, x) + x * x + jnp.clip(x, 0.3, jnp.inf)),
    "clip": lambda _, x: two(jnp.clip(x, 0.2, 0.4)),
    "clamp": lambda _, x: two(lax.clamp(0.2, x, 0.4)),
    "abs": lambda _, x: two(jnp.abs(x - 0.5)),
    "max of all": lambda _, x: two(x) + x.max((1, 2, 3))[:, None],
    "min of rows": lambda _, x: two(x.min(1)),
    "pool 3 by 2, same": pooled("SAME", (3, 2), (2, 1)),
    "pool 2 by 2": pooled("VALID", (2, 2), (2, 2)),
    "pool of relu": lambda _, x: two(nnx.max_pool(jax.nn.relu(x - 0.5), (2, 3), strides=(1, 1), padding="SAME")),
    "pool of relu, used twice": lambda _, x: two(nnx.max_pool(y := jax.nn.relu(x - 0.5), (2, 2))) + two(y),
    "min pool": lambda _, x: two(-nnx.max_pool(-x, (2, 2), strides=(1, 1))),
    "powers": lambda _, x: two(x**3 + x**4 + (x + 1) ** -2 + x**1 + x**0),
    "quotient": lambda _, x: two(x / (1 + x[:, ::-1])),
    "mean": lambda _, x: two(x.mean((1,))),
    "where": lambda _, x: two(jnp.where(jnp.arange(4)[None, :, None, None] > 1, x, 0.25)),
    "gathered": lambda _, x: two(x[:, jnp.array([3, 0, 2])]),
    "columns first": lambda _, x: two(jax.vmap(lambda x: jnp.ravel(x, order="F"))(x)),
    "rolled and stacked": lambda _, x: two(jnp.stack([jnp.roll(x, 1, 1), x[:, ::-1]], 3)),
    "split and tiled": lambda _, x: two(jnp.tile(jnp.split(x, 2, 1)[1], (1, 2, 1, 1))),
    "padded": lambda _, x: two(jnp.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)), constant_values=0.7)),
    "cumulative": lambda _, x: two(jnp.cumsum(x, 1)),
    "average pool": lambda _, x: two(nnx.avg_pool(x, (2, 2), strides=(2, 2))),
    "einsum": lambda _, x: two(jnp.einsum("bhwc,ho->bwco", x, jnp.arange(12.0).reshape(4, 3))),
    "scalar": lambda _, x: jnp.stack([x.sum((1, 2, 3)), 2 - x[:, 0, 0, 0]], 1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_equations_compute_the_function(name):
    images = np.random.default_rng(0).uniform(size=(5, *SHAPE)).astype(np.float32)
    classifier = Classifier(FUNCTIONS[name], None)
    np.testing.assert_allclose(evaluate(classifier, jnp.asarray(images)), classifier(images), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("apply", "what"),
    [
        (lambda x: jnp.round(x), "round"),
        (lambda x: jnp.sign(x), "sign"),
        (lambda x: jnp.where(x > 0.5, x, 0), "gt"),
        (lambda x: x * (x > 0.5), "gt"),
        (lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), "convert_element_type"),
        (lambda x: x.astype(int).astype(jnp.float32), "convert_element_type"),
        (lambda x: lax.reduce_precision(x, 8, 7), "reduce_precision"),
        (lambda x: jnp.sort(x, 1), "sort"),
        (lambda x: jnp.einsum("bhwc,ho->bwco", x, jnp.ones((4, 3)), precision="default"), "dot_general"),
        (lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: x * 2, x), "while"),
        (lambda x: lax.cond(x.sum() > 1, lambda x: x, lambda x: -x, x), "gt"),
        (lambda x: jnp.sin(x), "sin"),
    ],
)
def test_unsupported_operations_are_refused_by_name_and_line(apply, what):
    classifier = Classifier(lambda _, x: two(apply(x)), None)
    with pytest.raises(UnsupportedOperation, match=rf"{what}.*test_jaxprs\.py:\d+"):
        certify.ibp(classifier, np.zeros((1, *SHAPE), np.float32), [0], 0.1)


def test_a_softmax_at_the_end_gets_advice():
    with pytest.raises(UnsupportedOperation, match="logits"):
        read(lambda _, x: jax.nn.softmax(two(x)))


def test_a_function_with_another_constant_is_not_taken_for_jaxs_own():
    """The function has the name and the form of JAX's own, but another constant."""

    @jax.jit
    def leaky_relu(x):
        return jnp.where(x >= 0.1, x, 0.01 * x)

    assert "ge" in names(lambda _, x: two(leaky_relu(x)))
    assert "ge" not in names(lambda _, x: two(jax.nn.leaky_relu(x)))


@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (2, 3)])
@pytest.mark.parametrize("padding", ["VALID", "SAME", [(2, 0), (0, 1)]])
def test_convolutions_are_those_of_jax(strides, padding):
    rng = np.random.default_rng(1)
    x, kernel = rng.normal(size=(1, 7, 6, 3, 5)).astype(np.float32), rng.normal(size=(3, 2, 3, 4)).astype(np.float32)

    def convolve(x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)

    (eqn,) = jax.make_jaxpr(convolve)(x[..., 0]).eqns
    assert convolution.is_plain(eqn.params, x.shape)
    expected, back = jax.vjp(jax.vmap(convolve, -1, -1), x)
    got = convolution.run(jnp.asarray(x), jnp.asarray(kernel), eqn.params)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    y = jnp.asarray(rng.normal(size=expected.shape), jnp.float32)
    got = convolution.transpose(y, jnp.asarray(kernel), x.shape, eqn.params)
    np.testing.assert_allclose(got, back(y)[0], rtol=1e-4, atol=1e-4)


def test_layers_are_plain_only_inside_the_context():
    x = jnp.ones((8, 6, 6, 1))
    usual = str(jax.make_jaxpr(layers.max_pool)(x))
    with layers.plain():
        plain = str(jax.make_jaxpr(lambda x: layers.max_pool(x))(x))
    assert "platform_index" in usual
    assert "platform_index" not in plain
    assert "reduce_window_max" in plain


def test_coefficients_of_padding_that_depends_on_the_image_are_added_up():
    """The padding is one number, which is in many places of the result; a constant one has no coefficient."""
    for value, added in ((lambda x: x[0, 0, 0, 0] * 2, 6 * 4 * 2 - 1), (lambda x: 0.5, 0)):
        got = read(lambda _, x, value=value: two(lax.pad(x, value(x), [(0, 0, 0), (1, 1, 0), (0, 0, 0), (0, 0, 0)])))
        (pad,) = [e for e in got.equations if e.name == "pad"]
        assert affine.terms(got, pad)[1] >= added
        assert bool(affine.terms(got, pad)[1]) == bool(added)


def test_a_pool_of_relus_is_read_as_a_relu_of_a_pool():
    """That has a ReLU for each window, and no equation is left of the ReLUs for each pixel."""
    apply = FUNCTIONS["pool of relu, used twice"]
    for function, relus in ((FUNCTIONS["pool of relu"], 1), (apply, 2)):
        got = program.read(Classifier(function, ()), (4, 4, 2), jnp.float32, "cpu")
        floors = [e for e in got.equations if e.name == "max" and not got.depends.issuperset(e.operands)]
        assert len(floors) == relus
        used = {n for e in got.equations for n in e.operands} | {got.logits}
        assert all(used.intersection(e.results) for e in got.equations)
