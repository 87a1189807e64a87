"""The networks against a plain NumPy forward pass that is written from the list of their layers."""

import functools
import math
import textwrap
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from mnist_jax import Classifier, attack, losses, networks, training
from mnist_jax.data import Split
from mnist_jax.errors import InputError
from mnist_jax.networks import MLP, NETWORKS
from mnist_jax.networks import capsules as capsules_of

REFERENCE = Path(__file__).parents[2] / "shared/reference/seed_networks"

# The layers of each network; those of the original project's six are in its order. Numbers are a layer's size (shape of
# the kernel, or number of features), and after it a convolution's stride and padding, where it has them.
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
    "AlexNet": "conv 5 1 32, relu, pool, conv 3 32 64, relu, pool, "
    "flatten, dropout, linear 1600 120, relu, dropout, linear 120 10",
    "AlexNet_bn": "conv 5 1 32, relu, pool, norm 32, conv 3 32 64, relu, pool, norm 64, "
    "flatten, linear 1600 120, relu, norm 120, linear 120 10",
    "VGG_bn": "conv 3 1 16 1 1, norm 16, relu, conv 3 16 16 1 1, norm 16, relu, pool, "
    "conv 3 16 32 1 1, norm 32, relu, conv 3 32 32 1 1, norm 32, relu, pool, "
    "conv 3 32 64 1 1, norm 64, relu, conv 3 64 64 1 1, norm 64, relu, pool, "
    "flatten, linear 576 128, norm 128, relu, linear 128 10",
}
LAYERS = {name: layers.split(", ") for name, layers in LAYERS.items()}
TRAINED = {"MLP": 109_930, "MLP_d": 109_930, "MLP_bn": 110_410, "CNN": 129_090, "CNN_d": 129_090, "CNN_bn": 129_450}
TRAINED |= {"CNN5_bn": 417_370, "CNN7_bn": 13_259_338}
TRAINED |= {"AlexNet": 212_658, "AlexNet_bn": 213_090, "VGG_bn": 147_642}
BRANCHED = {"Inception": 92_642, "ResNet": 94_738, "CapsNet": 731_472}  # networks that are no chain of layers: weights

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
    """`features.0`, ..., `classifier.4`: the layers that have weights; those of a chain in order."""
    names = {name.rpartition(".")[0] for name in weights}
    return sorted(names, key=lambda n: (n[0] == "c", *map(int, n.split(".")[1:2]), n))


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
    """Logits in float64, and the mean and variance of the input of every batch normalization."""
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
            x = pooled(x)
        elif kind == "dropout":
            x = x * 2 * next(masks, 0.5)
        elif kind == "linear":
            x = x @ w["kernel"] + w["bias"]
        elif kind == "conv":
            x = convolved(x, w, *map(int, layer.split()[4:]))
        elif kind == "norm":
            mean, var = w["mean"], w["var"]
            if batch_statistics:
                rows = x.reshape(-1, x.shape[-1])
                mean, var = rows.mean(0), rows.var(0)
                statistics.append((mean, var * len(rows) / (len(rows) - 1)))
            x = normed(x, w | {"mean": mean, "var": var})
    return x, statistics


def convolved(x, w, stride=1, padding=0):
    size = len(w["kernel"])
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    down, right = (n - size + 1 for n in x.shape[1:3])
    places = [(i, j) for i in range(size) for j in range(size)]
    return w["bias"] + sum(x[:, i : i + down : stride, j : j + right : stride] @ w["kernel"][i, j] for i, j in places)


def normed(x, w):
    return (x - w["mean"]) / np.sqrt(w["var"] + 1e-5) * w["scale"] + w["bias"]


def pooled(x):
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    return np.maximum.reduce([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])


def inception(layer, x):
    """`layer(name)` has the weights of that name."""

    def branch(x, module, name, *padding, first=0):
        for at, pads in zip((first, 3), padding, strict=False):
            w = layer(f"features.{module}.{name}.{at}"), layer(f"features.{module}.{name}.{at + 1}")
            x = np.maximum(normed(convolved(x, w[0], padding=pads), w[1]), 0)
        return x

    def module(x, number):
        edged = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        around = np.maximum.reduce(
            [edged[:, i : i + x.shape[1], j : j + x.shape[2]] for i in range(3) for j in range(3)]
        )
        branches = branch(x, number, "one", 0), branch(x, number, "three", 0, 1), branch(x, number, "five", 0, 2)
        return np.concatenate([*branches, branch(around, number, "pooled", 0, first=1)], -1)

    x = np.maximum(normed(pooled(convolved(x, layer("features.0"))), layer("features.2")), 0)
    x = module(pooled(module(x, 4)), 6).mean((1, 2))
    return x @ layer("classifier.0")["kernel"] + layer("classifier.0")["bias"]


def resnet(layer, x):
    x = convolved(x, layer("features.0"), padding=1)
    for block, stride in enumerate((2, 1, 2, 1), 1):
        name = f"features.{block}"
        y = np.maximum(normed(x, layer(f"{name}.norm1")), 0)
        short = convolved(y, layer(f"{name}.shortcut"), 2) if stride == 2 else x
        y = convolved(y, layer(f"{name}.conv1"), stride, 1)
        x = short + convolved(np.maximum(normed(y, layer(f"{name}.norm2")), 0), layer(f"{name}.conv2"), padding=1)
    x = np.maximum(normed(x, layer("features.5")), 0).mean((1, 2))
    return x @ layer("classifier.0")["kernel"] + layer("classifier.0")["bias"]


def routed(votes, rounds):
    """Procedure 1 of Sabour et al. 2017, capsule by capsule: votes `[B, C, I, D]` to `[B, C, D]`."""
    batch, classes, capsules, size = votes.shape
    totals = np.zeros((batch, classes, size))
    for n in range(batch):
        b = np.zeros((capsules, classes))
        for _ in range(rounds):
            c = np.exp(b) / np.exp(b).sum(1, keepdims=True)
            for j in range(classes):
                s = totals[n, j] = sum(c[i, j] * votes[n, j, i] for i in range(capsules))
                v = s @ s / (1 + s @ s) * s / np.sqrt(s @ s)
                for i in range(capsules):
                    b[i, j] += votes[n, j, i] @ v
    return totals


def capsules(layer, x, rounds=3):
    """The classes' capsules `[B, 10, 16]` before squashing."""
    x = convolved(np.maximum(convolved(x, layer("features.0"), 2), 0), layer("features.2"))
    u = x.reshape(len(x), -1, 8)
    n = (u**2).sum(-1, keepdims=True)
    u = u * np.sqrt(n) / (1 + n)
    kernel = layer("capsules")["kernel"].reshape(-1, 8, 10, 16)
    return routed(np.einsum("bik,ikcd->bcid", u, kernel), rounds)


def capsnet(layer, x):
    n = (capsules(layer, x) ** 2).sum(-1)
    return n / (1 + n)


ORACLES = {"Inception": inception, "ResNet": resnet, "CapsNet": capsnet}


def reader(weights):
    """The weights of a layer in float64, by their last names."""

    def layer(name):
        return {k.rpartition(".")[2]: w.astype(np.float64) for k, w in weights.items() if k.rpartition(".")[0] == name}

    return layer


# Architecture


def test_the_networks_are_those_of_the_list():
    assert list(NETWORKS) == [*LAYERS, *BRANCHED]


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


@pytest.mark.parametrize("name", BRANCHED)
def test_weights_of_branched_networks(name):
    weights = initialized(name)
    assert networks.shapes(NETWORKS[name]) == {k: w.shape for k, w in weights.items()}
    assert sum(w.size for k, w in weights.items() if k not in NETWORKS[name].statistics()) == BRANCHED[name]
    assert NETWORKS[name].statistics() == {k for k in weights if k.rpartition(".")[2] in ("mean", "var")}


def test_weights_of_new_networks_take_less_than_five_megabytes():
    for name in [*list(LAYERS)[8:], *BRANCHED]:
        assert sum(w.nbytes for w in initialized(name).values()) < 5e6


@pytest.mark.parametrize("name", list(LAYERS)[8:] + list(BRANCHED))
def test_other_images_and_classes(name):
    network = NETWORKS[name].of((20, 24, 3), 7)
    weights = jax.eval_shape(network.initialize, jax.random.key(0))
    images = jax.ShapeDtypeStruct((5, 20, 24, 3), np.float32)
    assert jax.eval_shape(network.apply, weights, images).shape == (5, 7)
    logits, statistics = jax.eval_shape(network.apply_training, weights, images, jax.random.key(0))
    assert (logits.shape, statistics.keys()) == ((5, 7), network.statistics())
    with pytest.raises(ValueError, match=rf"{name} takes images \[B, 20, 24, 3\], not \[1, 28, 28, 1\]"):
        network.apply(initialized(name), random_images(1))


@pytest.mark.parametrize("name", ["AlexNet", "VGG_bn", "Inception", "CapsNet"])
def test_too_small_images_are_refused(name):
    with pytest.raises(InputError, match="images of 4x4 pixels are too small"):
        NETWORKS[name].of((4, 4, 1), 10).initialize(jax.random.key(0))


# The forward pass


@pytest.mark.parametrize("name", BRANCHED)
def test_evaluation_of_branched_networks(name):
    weights, images = random_weights(name), random_images(6)

    @jax.jit
    def run(weights, images):
        return NETWORKS[name].apply(weights, images), jax.grad(lambda x: NETWORKS[name].apply(weights, x)[:, 3].sum())(
            images
        )

    logits, gradients = run(weights, images)
    assert (logits.shape, logits.dtype) == ((6, 10), np.float32)
    np.testing.assert_allclose(logits, ORACLES[name](reader(weights), images.astype(np.float64)), rtol=1e-5, atol=1e-5)
    others = random_images(6, seed=1)
    others[1] = images[1]
    others_logits, others_gradients = run(weights, others)
    np.testing.assert_allclose(others_logits[1], logits[1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(others_gradients[1], gradients[1], rtol=1e-3, atol=1e-5)
    assert np.isfinite(gradients).all()
    assert (np.abs(gradients).max((1, 2, 3)) > 0).all()


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


@pytest.mark.parametrize("name", [*LAYERS, "Inception", "ResNet"])
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
    [
        ("cnn", "CNN"),
        ("mlp-bn", "MLP_bn"),
        ("CNN-d", "CNN_d"),
        ("MPL", "MLP"),
        ("", None),
        ("resnet50", "ResNet"),
        ("transformer", None),
    ],
)
def test_by_an_unknown_name(name, guess):
    with pytest.raises(InputError) as caught:
        networks.by_name(name)
    start, _, end = str(caught.value).partition("There are ")
    assert start.startswith(f"unknown network {name!r}: " + (f"did you mean {guess}" if guess else ""))
    assert ("did you mean" in start) == (guess is not None)
    assert end == ", ".join(NETWORKS)


@pytest.mark.parametrize("shape", [(3, 784), (3, 28, 28), (3, 1, 28, 28), (3, 32, 32, 1), (3, 28, 28, 3)])
def test_images_of_another_shape_are_refused_by_name(shape):
    weights = MLP.initialize(jax.random.key(0))
    for run in (MLP.apply, lambda w, x: attack.nearest(Classifier(MLP.apply, w), x)):
        with pytest.raises(ValueError, match=r"MLP takes images \[B, 28, 28, 1\], not \[\d, "):
            run(weights, np.zeros(shape, np.float32))


# Capsules


def test_routing_is_that_of_the_paper():
    votes = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    for rounds in (1, 3):
        np.testing.assert_allclose(capsules_of.route(votes, rounds), routed(votes, rounds), rtol=1e-5, atol=1e-6)


def test_squashing_and_its_gradient_are_right_at_zero():
    squash = capsules_of.squash
    s = np.array([[0, 0, 0], [1e-30, 0, 0], [3, 4, 0]], np.float32)
    np.testing.assert_allclose(squash(s), [[0, 0, 0], [0, 0, 0], [15 / 26, 20 / 26, 0]], atol=1e-7)
    jacobians = jax.vmap(jax.jacobian(squash))(s)
    np.testing.assert_array_equal(jacobians[0], np.zeros((3, 3)))
    np.testing.assert_allclose(jacobians[1], np.zeros((3, 3)), atol=1e-20)
    unit, n = s[2].astype(np.float64) / 5, 25.0  # of g(|s|) unit, with g = n / (1 + n): across, and along
    across, along = n / (1 + n) / 5, 2 * 5 / (1 + n) ** 2
    expected = across * (np.eye(3) - np.outer(unit, unit)) + along * np.outer(unit, unit)
    np.testing.assert_allclose(jacobians[2], expected, atol=1e-6)


def test_lengths_squares_votes_and_reconstructions_of_capsules():
    network, weights, images = networks.CapsNet, random_weights("CapsNet"), random_images(6)
    squares, votes, shown = jax.jit(
        lambda w, x: (network.squared_norms(w, x), network.votes(w, x), network.reconstruct(w, x, np.arange(6)))
    )(weights, images)
    for got, rounds in ((squares, 3), (votes, 1)):
        expected = (capsules(reader(weights), images.astype(np.float64), rounds) ** 2).sum(-1)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)

    layer = reader(weights)
    totals = capsules(layer, images.astype(np.float64))
    n = (totals**2).sum(-1, keepdims=True)
    x = np.where(np.arange(10)[:, None] == np.arange(6)[:, None, None], totals * np.sqrt(n) / (1 + n), 0)
    x = x.reshape(6, 160)
    for number in (0, 2, 4):
        w = layer(f"decoder.{number}")
        x = x @ w["kernel"] + w["bias"]
        x = np.maximum(x, 0) if number < 4 else 1 / (1 + np.exp(-x))
    assert shown.shape == (6, 28, 28, 1)
    np.testing.assert_allclose(shown.reshape(6, -1), x, atol=1e-5)


def test_the_objective_of_capsules_is_their_margin_loss_and_the_reconstruction():
    network, weights, images = networks.CapsNet, random_weights("CapsNet"), random_images(6)
    labels = np.arange(6)
    objective = network.recipe("original").objective

    @jax.jit
    def run(weights):
        outcome = objective(network, weights, images, labels, jax.random.key(0), 0.0)
        return outcome.losses.sum(), outcome

    gradients, outcome = jax.jit(jax.grad(run, has_aux=True))(weights)
    shown = np.asarray(network.reconstruct(weights, images, labels), np.float64)
    errors = ((shown - images) ** 2).sum((1, 2, 3))
    expected = losses.capsule_margin(network.apply(weights, images), labels) + 0.0005 * errors
    np.testing.assert_allclose(outcome.losses, expected, rtol=1e-5)
    assert (outcome.penalty, outcome.statistics) == (0, {})
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all()
        assert np.any(gradient), name


def test_capsules_of_a_black_image_have_finite_gradients():
    network = networks.CapsNet
    weights = {k: np.zeros_like(w) if k.endswith("bias") else np.asarray(w) for k, w in initialized("CapsNet").items()}
    images = np.zeros((6, 28, 28, 1), np.float32)
    for logits in (network.apply, network.squared_norms, network.votes):
        gradient = jax.jit(jax.grad(lambda x, logits=logits: logits(weights, x).sum()))(images)
        np.testing.assert_array_equal(gradient, np.zeros_like(images))


# The documentation


def test_the_network_that_is_added_in_the_documentation_trains():
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    code = textwrap.dedent("    " + text.split("```python\n")[1].split("```")[0].strip())
    exec(code, names := {"__name__": "mine"})
    network = names["LeNet"]
    assert network.of((20, 24, 3), 7).initialize(jax.random.key(0))["classifier.4.kernel"].shape == (84, 7)
    recipe = network.recipe("original")
    assert network.recipe("best").steps(50_000) <= recipe.steps(50_000)
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (16, 28, 28, 1), np.uint8), np.arange(16, dtype=np.int32) % 10)
    state = training.start(network, recipe, jax.random.key(0), 2)
    batches = np.arange(16).reshape(2, 8)
    trained, (loss, _) = training.train_steps(network, recipe, 2, state, split, batches, jax.random.key(0))
    assert np.isfinite(loss)
    for name, weight in trained.weights.items():
        assert np.any(weight != state.weights[name]), name
