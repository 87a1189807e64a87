"""The networks against a plain NumPy forward pass that is written from the list of their layers."""

import functools
import math
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from mnist_jax import Classifier, attack, losses, networks
from mnist_jax.errors import InputError
from mnist_jax.networks import MLP, NETWORKS

REFERENCE = Path(__file__).parents[2] / "shared/reference/seed_networks"

# The layers, the six of the original project in its order: sizes are those of the kernel, or the number of features;
# after them a convolution's stride and padding, where it has them.
LAYERS = {
    "MLP": "flatten, linear 784 120, relu, linear 120 120, relu, linear 120 10",
    "MLP_d": "flatten, dropout, linear 784 120, relu, dropout, linear 120 120, relu, dropout, linear 120 10",
    "MLP_bn": "flatten, linear 784 120, relu, norm 120, linear 120 120, relu, norm 120, linear 120 10",
    "CNN": "conv 5 1 20, relu, pool, conv 3 20 40, relu, pool, flatten, linear 1000 120, relu, linear 120 10",
    "CNN_d": "conv 5 1 20, relu, pool, conv 3 20 40, relu, pool, "
    "flatten, dropout, linear 1000 120, relu, dropout, linear 120 10",
    "CNN_bn": "conv 5 1 20, relu, pool, norm 20, conv 3 20 40, relu, pool, norm 40, "
    "flatten, linear 1000 120, relu, norm 120, linear 120 10",
    "CNN5_bn": "conv 3 1 16 1 1, norm 16, relu, conv 4 16 16 2 1, norm 16, relu, conv 4 16 32 2 1, norm 32, relu, "
    "flatten, linear 1568 256, norm 256, relu, linear 256 10",
    "CNN7_bn": "conv 3 1 64 1 1, norm 64, relu, conv 3 64 64 1 1, norm 64, relu, conv 3 64 128 2 1, norm 128, relu, "
    "conv 3 128 128 1 1, norm 128, relu, conv 3 128 128 1 1, norm 128, relu, "
    "flatten, linear 25088 512, norm 512, relu, linear 512 10",
}
LAYERS = {name: layers.split(", ") for name, layers in LAYERS.items()}
TRAINED = {"MLP": 109_930, "MLP_d": 109_930, "MLP_bn": 110_410, "CNN": 129_090, "CNN_d": 129_090, "CNN_bn": 129_450}
TRAINED |= {"CNN5_bn": 417_370, "CNN7_bn": 13_259_338}

each_network = pytest.mark.parametrize("name", LAYERS)


def shapes_of(layer):
    """The weights of a layer, by their last names."""
    kind, *sizes = layer.split()
    sizes = [int(size) for size in sizes]
    if kind == "conv":
        return {"kernel": (sizes[0], *sizes[:3]), "bias": sizes[2:3]}
    if kind == "linear":
        return {"kernel": sizes, "bias": sizes[1:]}
    return dict.fromkeys(("scale", "bias", "mean", "var"), sizes) if kind == "norm" else {}


def layer_names(weights):
    """`features.0`, ..., `classifier.4`: the layers that have weights, in order."""
    return sorted({name.rpartition(".")[0] for name in weights}, key=lambda n: (n[0] == "c", int(n.split(".")[1])))


def random_weights(name, seed=0):
    """Weights as initialized, with random batch normalizations, in NumPy."""
    rng = np.random.default_rng(seed)
    weights = {k: np.array(w) for k, w in initialized(name).items()}
    for layer in layer_names(weights):
        if f"{layer}.scale" in weights:
            for kind in ("scale", "bias", "mean", "var"):
                low = 0.5 if kind in ("scale", "var") else -0.5
                shape = weights[f"{layer}.{kind}"].shape
                weights[f"{layer}.{kind}"] = rng.uniform(low, low + 1, shape).astype(np.float32)
    return weights


@functools.cache
def initialized(name):
    return NETWORKS[name].initialize(jax.random.key(0))


def random_images(count, seed=0):
    return np.random.default_rng(seed).random((count, 28, 28, 1), np.float32)


def numpy_forward(name, weights, images, *, batch_statistics=False, masks=()):
    """Logits in float64, and the means and variances of what came into every batch normalization."""
    x, names, masks, statistics = images.astype(np.float64), iter(layer_names(weights)), iter(masks), []
    for layer in LAYERS[name]:
        kind = layer.split()[0]
        w = {}
        if kind in ("conv", "linear", "norm"):
            prefix = next(names)
            w = {k: weights[f"{prefix}.{k}"].astype(np.float64) for k in shapes_of(layer)}
        if kind == "flatten":
            x = x.reshape(len(x), -1)
        elif kind == "relu":
            x = np.maximum(x, 0)
        elif kind == "pool":
            x = np.maximum.reduce([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])
        elif kind == "dropout":
            x = x * 2 * next(masks, 0.5)
        elif kind == "linear":
            x = x @ w["kernel"] + w["bias"]
        elif kind == "conv":
            size = len(w["kernel"])
            stride, padding = map(int, layer.split()[4:] or (1, 0))
            x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
            places, reach = [(i, j) for i in range(size) for j in range(size)], x.shape[1] - size + 1
            x = w["bias"] + sum(
                x[:, i : i + reach : stride, j : j + reach : stride] @ w["kernel"][i, j] for i, j in places
            )
        elif kind == "norm":
            mean, var = w["mean"], w["var"]
            if batch_statistics:
                rows = x.reshape(-1, x.shape[-1])
                mean, var = rows.mean(0), rows.var(0)
                statistics.append((mean, var * len(rows) / (len(rows) - 1)))
            x = (x - mean) / np.sqrt(var + 1e-5) * w["scale"] + w["bias"]
    return x, statistics


# Architecture


def test_the_networks_are_those_of_the_list():
    assert list(NETWORKS) == list(LAYERS)


@each_network
def test_weights(name):
    weights = initialized(name)
    with_weights = [layer for layer in LAYERS[name] if shapes_of(layer)]
    expected = {
        f"{prefix}.{kind}": tuple(shape)
        for prefix, layer in zip(layer_names(weights), with_weights, strict=True)
        for kind, shape in shapes_of(layer).items()
    }
    assert {k: w.shape for k, w in weights.items()} == expected
    assert networks.shapes(NETWORKS[name]) == expected
    assert {w.dtype for w in weights.values()} == {np.dtype(np.float32)}
    assert sum(w.size for k, w in weights.items() if k not in NETWORKS[name].statistics()) == TRAINED[name]
    assert NETWORKS[name].statistics() == {k for k in weights if k.rpartition(".")[2] in ("mean", "var")}


def test_the_names_of_weights_stay_what_checkpoints_have():
    assert list(networks.shapes(networks.MLP)) == [
        f"classifier.{layer}.{kind}" for layer in (0, 2, 4) for kind in ("bias", "kernel")
    ]
    assert [k for k in networks.shapes(networks.CNN_bn) if k.endswith(".bias")] == [
        *(f"classifier.{layer}.bias" for layer in (0, 2, 3)),
        *(f"features.{layer}.bias" for layer in (0, 3, 4, 7)),
    ]


@pytest.mark.parametrize("name", list(LAYERS)[:6])
def test_shapes_are_those_of_the_original_weights(name):
    path = REFERENCE / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"no reference weights: {path} is missing")
    with np.load(path) as arrays:
        original = [arrays[k].shape for k in arrays.files if not k.endswith("num_batches_tracked")]
    assert sorted(map(sorted, original)) == sorted(map(sorted, networks.shapes(NETWORKS[name]).values()))


# The forward pass


@each_network
def test_evaluation(name):
    weights, images = random_weights(name), random_images(4)
    images[2] = 0.0

    @jax.jit
    def run(weights, images):
        return NETWORKS[name].apply(weights, images), NETWORKS[name].apply(weights, images[1:2])

    logits, alone = run(weights, images)
    assert (logits.shape, logits.dtype) == ((4, 10), np.float32)
    np.testing.assert_allclose(logits, numpy_forward(name, weights, images)[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(alone[0], logits[1], rtol=0, atol=1e-5)
    others = random_images(4, seed=1)
    others[1] = images[1]
    np.testing.assert_allclose(run(weights, others)[0][1], logits[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["MLP", "MLP_bn", "CNN_bn", "CNN5_bn"])
def test_training_without_dropout(name):
    weights, images = random_weights(name), random_images(5)
    logits, moved = jax.jit(NETWORKS[name].apply_training)(weights, images, jax.random.key(0))
    expected, statistics = numpy_forward(name, weights, images, batch_statistics=True)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5)

    norms = [layer for layer in layer_names(weights) if f"{layer}.var" in weights]
    assert len(norms) == {"MLP": 0, "MLP_bn": 2, "CNN_bn": 3, "CNN5_bn": 4}[name]
    running = {}
    for layer, (mean, var) in zip(norms, statistics, strict=True):
        running[f"{layer}.mean"] = 0.9 * weights[f"{layer}.mean"] + 0.1 * mean
        running[f"{layer}.var"] = 0.9 * weights[f"{layer}.var"] + 0.1 * var
    assert moved.keys() == running.keys()
    for key, array in moved.items():
        np.testing.assert_allclose(array, running[key], rtol=1e-5, atol=1e-6)


def test_training_by_given_statistics_still_drops_out():
    images, key = random_images(5), jax.random.key(3)
    weights = random_weights("MLP_bn")
    given = jax.jit(networks.MLP_bn.apply_dropping)(weights, images, key)
    np.testing.assert_allclose(given, networks.MLP_bn.apply(weights, images), rtol=0, atol=1e-5)
    weights = random_weights("MLP_d")
    given = jax.jit(networks.MLP_d.apply_dropping)(weights, images, key)
    np.testing.assert_array_equal(given, jax.jit(networks.MLP_d.apply_training)(weights, images, key)[0])
    assert (np.asarray(given) != networks.MLP_d.apply(weights, images)).any()


def test_a_batchs_own_statistics():
    weights, images = random_weights("MLP_bn"), random_images(5)
    own = jax.jit(lambda w, x: networks.MLP_bn.apply_training(w, x, jax.random.key(0), moved=False))(weights, images)
    _, statistics = numpy_forward("MLP_bn", weights, images, batch_statistics=True)
    for layer, (mean, var) in zip((2, 5), statistics, strict=True):
        np.testing.assert_allclose(own[1][f"classifier.{layer}.mean"], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(own[1][f"classifier.{layer}.var"], var, rtol=1e-4)


@pytest.mark.parametrize("name", ["MLP_d", "CNN_d"])
def test_dropout_in_training(name):
    # All weights positive: no ReLU is at 0, so a row of a linear kernel has a gradient just where its input was kept.
    weights = {k: np.abs(w) for k, w in random_weights(name).items()}
    kernels = [f"{layer}.kernel" for layer in layer_names(weights) if layer.startswith("classifier")]
    image = 0.5 + random_images(1) / 2
    keys = jax.random.split(jax.random.key(1), 16)

    @jax.jit
    @jax.vmap
    def run(key):
        def total(weights):
            logits, moved = NETWORKS[name].apply_training(weights, image, key)
            return logits.sum(), (logits[0], moved)

        gradients, aux = jax.grad(total, has_aux=True)(weights)
        return [gradients[k].any(axis=1) for k in kernels], aux

    masks, (logits, moved) = run(keys)
    masks = [np.asarray(mask) for mask in masks]
    assert [mask.shape[1] for mask in masks] == ([784, 120, 120] if name == "MLP_d" else [1000, 120])
    for mask in masks:
        deviations = (mask.mean() - 0.5) * 2 * math.sqrt(mask.size)
        assert abs(deviations) < 4
    # No two keys, and no two layers, have a mask in common.
    assert len({row[:120].tobytes() for mask in masks for row in mask}) == len(masks) * len(keys)

    expected = [numpy_forward(name, weights, image, masks=[mask[i] for mask in masks])[0][0] for i in range(len(keys))]
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    for key, array in moved.items():
        np.testing.assert_array_equal(array[0], weights[key])


def test_dropout_differs_between_images_and_is_drawn_by_the_key():
    weights, images = initialized("MLP_d"), np.ones((6, 28, 28, 1), np.float32)
    run = jax.jit(networks.MLP_d.apply_training)
    logits, _ = run(weights, images, jax.random.key(0))
    assert len(np.unique(np.asarray(logits), axis=0)) == 6
    np.testing.assert_array_equal(run(weights, images, jax.random.key(0))[0], logits)
    assert (np.asarray(run(weights, images, jax.random.key(1))[0]) != logits).all()


# Initialization


@each_network
def test_initialization(name):
    weights = initialized(name)
    seen = set()
    for key, array in weights.items():
        layer, _, kind = key.rpartition(".")
        array = np.asarray(array)
        if f"{layer}.scale" in weights:
            np.testing.assert_array_equal(array, np.float32(kind in ("scale", "var")))
            continue
        bound = 1 / math.sqrt(math.prod(weights[f"{layer}.kernel"].shape[:-1]))
        assert np.abs(array).max() <= bound
        assert np.abs(array).max() > bound * (1 - 10 / array.size)
        # Five standard errors of the mean and of the mean square of n uniform draws.
        assert abs(array.mean()) < 5 * bound / math.sqrt(3 * array.size)
        assert abs((array**2).mean() * 3 / bound**2 - 1) < 5 * math.sqrt(0.8 / array.size)
        seen |= {np.float32(array.flat[0] / bound)}
    assert len(seen) == len([k for k in weights if k.endswith(".kernel")]) * 2  # all drawn apart


@pytest.mark.parametrize("name", ["MLP_bn", "CNN_d"])
def test_initialization_is_drawn_by_the_key(name):
    same, other = (NETWORKS[name].initialize(jax.random.key(seed)) for seed in (0, 1))
    for key, array in initialized(name).items():
        np.testing.assert_array_equal(array, same[key], strict=True)
        drawn = f"{key.rpartition('.')[0]}.scale" not in same
        assert np.any(array != other[key]) == drawn


# What else a network carries


@each_network
def test_hyperparameters_are_the_originals(name):
    network = NETWORKS[name]
    assert (network.__name__, network.learning_rate, network.epochs, network.batch_size) == (name, 2e-4, 30, 32)
    assert network.optimizer is optax.adam
    assert network.loss is losses.cross_entropy_of_softmax


@each_network
def test_by_name(name):
    assert networks.by_name(name) is NETWORKS[name]


@pytest.mark.parametrize(
    ("name", "guess"),
    [("cnn", "CNN"), ("mlp-bn", "MLP_bn"), ("CNN-d", "CNN_d"), ("MPL", "MLP"), ("", None), ("resnet50", None)],
)
def test_by_an_unknown_name(name, guess):
    with pytest.raises(InputError) as caught:
        networks.by_name(name)
    start, _, end = str(caught.value).partition("There are ")
    assert start.startswith(f"unknown network {name!r}: " + (f"did you mean {guess}" if guess else ""))
    assert ("did you mean" in start) == (guess is not None)
    assert end == "MLP, MLP_d, MLP_bn, CNN, CNN_d, CNN_bn, CNN5_bn, CNN7_bn"


@pytest.mark.parametrize("shape", [(3, 784), (3, 28, 28), (3, 1, 28, 28), (3, 32, 32, 1), (3, 28, 28, 3)])
def test_images_of_another_shape_are_refused_by_name(shape):
    weights = MLP.initialize(jax.random.key(0))
    for run in (MLP.apply, lambda w, x: attack.nearest(Classifier(MLP.apply, w), x)):
        with pytest.raises(ValueError, match=r"MLP takes images \[B, 28, 28, 1\], not \[\d, "):
            run(weights, np.zeros(shape, np.float32))
