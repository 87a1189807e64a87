"""Backward propagation of blocks through their receptive field alone, against that through the whole program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from mnist_jax import Classifier, certify
from mnist_jax.certify import driver, linear
from mnist_jax.geometry import INF
from mnist_jax.jaxprs import program, window

SHAPE = (10, 9, 2)


def conv(x, kernel, strides=(1, 1), padding="VALID", numbers=("NHWC", "HWIO", "NHWC")):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)


def pools(w, x):
    h = jax.nn.relu(nnx.max_pool(conv(x, w[3, 3, 2, 4]), (2, 2), strides=(2, 2)) - 0.1)
    return jax.nn.relu(conv(h, w[2, 2, 4, 3]))


def skips(w, x):
    h = conv(x, w[3, 3, 2, 4], padding="SAME")
    h = jax.nn.leaky_relu(conv(jax.nn.relu(h) - w[1, 10, 9, 1], w[3, 3, 4, 4], padding=((2, 0), (1, 1))) + h, 0.2)
    return jax.nn.relu(conv(h, w[3, 2, 4, 3], (2, 1), padding="SAME"))


def channels_between(w, x):
    h = conv(x / 3, w[2, 3, 4, 2], (1, 2), "SAME", ("NHWC", "HWOI", "HCWN"))
    h = jnp.tanh(conv(jnp.exp(h), w[3, 2, 4, 3], padding="VALID", numbers=("HCWN", "HWIO", "NHWC")))
    return jax.nn.relu(h * h - h)


NETWORKS = {"pools": pools, "skips": skips, "channels between": channels_between}


class Weights(dict):
    """Random weights, made when they are first asked for, by their shape."""

    def __missing__(self, shape):
        size = np.prod(shape[:-1])
        return self.setdefault(shape, np.random.default_rng(len(self)).normal(size=shape) / np.sqrt(size))


def flat(network):
    return Classifier(lambda _, x: network(Weights(), x).reshape(len(x), -1), None)


@pytest.mark.parametrize("network", NETWORKS)
def test_blocks_have_the_same_coefficients_as_in_the_whole_program(network, monkeypatch):
    monkeypatch.setattr(window, "WORTH", np.inf)
    classifier, rng = flat(NETWORKS[network]), np.random.default_rng(0)
    compared = 0

    def compare(bounds, place, factors, interval, wanted):
        nonlocal compared
        numbers, shape = tuple(factors), interval.low.shape[:-1]
        view = window.view(bounds.program, place, numbers, 8)
        assert view is not None

        @jax.jit
        def both(a, corner):
            one, zero = bounds.of(0), jnp.zeros(a.shape[-1])
            at = lax.dynamic_update_slice(jnp.zeros((*shape, len(zero))), a, [*corner, 0])
            whole = one.back(place, {n: f * at for n, f in factors.items()}, zero)
            block = {view.targets[n]: f * a for n, f in factors.items()}
            return whole[0], one.within(view, corner).back(len(view.program.equations), block, zero)[0]

        firsts = window.blocks(shape, view.block)[:, 0]
        for first in (firsts[0], firsts[-1], *rng.choice(firsts, 3)):
            a = jnp.asarray(rng.normal(size=(*view.block, 5)))
            whole, part = both(a, jnp.stack(jnp.unravel_index(first, shape)))
            np.testing.assert_allclose(part, whole, rtol=1e-9, atol=1e-9)
            compared += 1
        return interval

    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        image = jnp.asarray(rng.uniform(size=(1, *SHAPE)))
        computation = program.read(classifier, SHAPE, image.dtype, driver.OTHERS)
        linear.walk(classifier, image, jnp.full(1, 0.1), INF, computation).forwards(compare)
    assert compared > 10


def whole_only(*_):
    return None


def padded(w, x):
    h = jax.nn.relu(conv(x, w[3, 3, 2, 4], padding="SAME"))
    return jax.nn.relu(conv(h, w[3, 3, 4, 2], padding="SAME"))


@pytest.mark.parametrize(
    ("network", "shape", "norm"),
    [
        (pools, SHAPE, INF),
        (pools, SHAPE, 2),
        (padded, (1, 24, 2), 2),
        (padded, (1, 24, 2), 1),
        (padded, (24, 1, 2), INF),
    ],
)
def test_bounds_by_blocks_are_no_looser(network, shape, norm, monkeypatch):
    monkeypatch.setattr(window, "WORTH", np.inf)
    monkeypatch.setattr(linear, "LANES", 16)
    classifier = flat(network)
    with jax.enable_x64(True):
        images = np.random.default_rng(1).uniform(size=(2, *shape))
        driver._run.clear_cache()
        blocks = certify.crown(classifier, images, None, 0.02, norm=norm)
        monkeypatch.setattr(window, "view", whole_only)
        driver._run.clear_cache()
        whole = certify.crown(classifier, images, None, 0.02, norm=norm)
        driver._run.clear_cache()
    assert np.isfinite(whole.margin).all()
    # Bounds by blocks may be tighter, as a block also bounds those of its entries that are not asked for.
    assert (np.asarray(blocks.margin) >= np.asarray(whole.margin) - 1e-9).all()
    np.testing.assert_allclose(blocks.margin, whole.margin, rtol=0.1, atol=1e-2)


@pytest.mark.parametrize(
    "seen",
    [
        lambda x: x[:, ::-1],
        lambda x: x.reshape(1, -1) @ jnp.ones((x.size, 3)),
        lambda x: jnp.cumsum(jnp.cumsum(jnp.cumsum(x, 1), 2), 3),
    ],
    ids=["reversed", "dense", "cumulative"],
)
def test_operations_without_windows_are_not_cut(seen):
    got = program.read(flat(lambda w, x: jax.nn.relu(seen(x))), SHAPE, jnp.float32, "cpu")
    place, equation = next((i, e) for i, e in enumerate(got.equations) if e.name == "max")
    assert window.view(got, place, equation.operands[:1], 8) is None


def test_blocks_are_not_cut_along_an_axis_where_windows_move_differently():
    got = program.read(
        flat(lambda w, x: jax.nn.relu(jax.lax.slice_in_dim(x, 0, None, 2, axis=1) + x[:, :5])),
        SHAPE,
        jnp.float32,
        "cpu",
    )
    place, equation = next((i, e) for i, e in enumerate(got.equations) if e.name == "max")
    assert window.view(got, place, equation.operands[:1], 8).block == (1, 5, 1, 1)


def test_blocks_cover_a_value_that_they_do_not_divide():
    entries = window.blocks((1, 7, 5), (1, 3, 5))
    assert entries.shape == (3, 15)
    assert set(entries.ravel()) == set(range(35))
    np.testing.assert_array_equal(entries[-1], np.arange(20, 35))
