"""The networks, and the hyperparameters that each was trained with in the original project.

A network is a Flax module class. What the rest of the project works with is its pure functions: weights are a flat
dictionary from names (`"features.0.kernel"`) to arrays, parameters and batch statistics together.
"""

import functools
import math
from dataclasses import replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mnist_jax import layers, losses
from mnist_jax.distortion import Distortion
from mnist_jax.errors import unknown
from mnist_jax.recipe import RECIPES, Recipe, fading, one_cycle

Weights = dict[str, jax.Array]

IMAGE_SHAPE = (28, 28, 1)
CLASSES = 10


def uniform_by_fan_in(key, shape, dtype, *, fan_in: int):
    """PyTorch's initialization of linear and convolutional layers, kernel and bias: U(-1, 1) / sqrt(fan_in)."""
    return jax.random.uniform(key, shape, dtype, -1, 1) / fan_in**0.5


def linear(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    init = functools.partial(uniform_by_fan_in, fan_in=inputs)
    return nnx.Linear(inputs, outputs, kernel_init=init, bias_init=init, rngs=rngs)


def conv(inputs: int, outputs: int, size: int, rngs: nnx.Rngs) -> layers.Conv:
    init = functools.partial(uniform_by_fan_in, fan_in=size * size * inputs)
    return layers.Conv(inputs, outputs, size, init=init, rngs=rngs)


class Network(nnx.Module):
    """`features` on the image, `classifier` on what comes out of them, flattened; the result is the logits.

    The class attributes are the original project's training hyperparameters; recipe `original` uses just these.
    """

    learning_rate = 2e-4
    epochs = 30
    batch_size = 32
    optimizer = staticmethod(optax.adam)
    loss = staticmethod(losses.cross_entropy_of_softmax)

    best: ClassVar[Recipe]  # what the field knows by now, in no more gradient steps than the original takes

    features: nnx.Sequential
    classifier: nnx.Sequential

    def __init__(self, rngs: nnx.Rngs):
        """Each network's own sets `features` and `classifier`."""

    def __call__(self, images: jax.Array, rngs: nnx.Rngs | None = None, masks: int = 1) -> jax.Array:
        """Logits `[B, 10]` of images `[B, 28, 28, 1]` in [0, 1].

        In training mode `rngs` draws the dropout masks: `masks` of them for each image, and the logits are the mean.

        Raises:
          ValueError: the images are of another shape.
        """
        if images.shape[1:] != IMAGE_SHAPE:
            wanted = ", ".join(map(str, ("B", *IMAGE_SHAPE)))
            raise ValueError(f"{type(self).__name__} takes images [{wanted}], not {list(images.shape)}")
        x = self.features(images, rngs=rngs)
        x = jnp.concatenate([x.reshape(len(x), math.prod(x.shape[1:]))] * masks)
        return self.classifier(x, rngs=rngs).reshape(masks, len(images), CLASSES).mean(0)

    @classmethod
    def initialize(cls, key: jax.Array) -> Weights:
        """Fresh weights, distributed as PyTorch initializes these layers."""
        return _flatten(cls(nnx.Rngs(key)))

    @classmethod
    def apply(cls, weights: Weights, images: jax.Array) -> jax.Array:
        """Logits in evaluation mode: running batch statistics, no dropout, so no image depends on another."""
        model = _unflatten(cls, weights)
        model.eval()
        return model(images)

    @classmethod
    def apply_training(
        cls, weights: Weights, images: jax.Array, key: jax.Array, masks: int = 1
    ) -> tuple[jax.Array, Weights]:
        """Logits in training mode, and the weights with their batch statistics moved on by this batch."""
        model = _unflatten(cls, weights)
        model.train()
        logits = model(images, rngs=nnx.Rngs(dropout=key), masks=masks)
        return logits, _flatten(model)

    @classmethod
    def recipe(cls, name: str) -> Recipe:
        """The recipe of that name for this network. Raises `InputError` where there is none."""
        if name not in RECIPES:
            raise unknown("recipe", name, RECIPES)
        if name == "best":
            return cls.best
        return Recipe("original", cls.loss, cls.optimizer, cls.learning_rate, cls.epochs, cls.batch_size)

    @classmethod
    @functools.cache
    def statistics(cls) -> frozenset[str]:
        """The names of the weights that are running batch statistics, which no gradient trains."""
        flat = nnx.to_flat_state(_skeleton(cls)[1])
        return frozenset(_name(path) for path, variable in flat if not isinstance(variable, nnx.Param))

    @classmethod
    def parameters(cls, weights: Weights) -> Weights:
        """The weights that are trained: all but the statistics."""
        return {name: array for name, array in weights.items() if name not in cls.statistics()}


# Recipe `best` of most networks.
MILD = Distortion(rotation=8, scaling=0.08, shear=0.05, translation=1.0, elastic=0.7)
STRONG = Distortion(rotation=12, scaling=0.12, shear=0.1, translation=1.5, elastic=1.0)
CONVOLUTIONAL = Recipe(
    "best",
    losses.cross_entropy,
    optax.adam,
    learning_rate=1.5e-3,
    epochs=45,
    batch_size=50,
    schedule=one_cycle,
    distortion=MILD,
    averaging=0.999,
)
DENSE = replace(CONVOLUTIONAL, learning_rate=2e-3, epochs=90, batch_size=100, distortion=STRONG)


class MLP(Network):
    best = DENSE

    def __init__(self, rngs: nnx.Rngs):
        self.features = nnx.Sequential()
        self.classifier = nnx.Sequential(
            linear(784, 120, rngs), nnx.relu, linear(120, 120, rngs), nnx.relu, linear(120, 10, rngs)
        )


class MLP_d(Network):
    best = replace(DENSE, learning_rate=3e-3, epochs=60, batch_size=250, distortion=MILD, averaging=0.9995, masks=4)

    def __init__(self, rngs: nnx.Rngs):
        self.features = nnx.Sequential()
        self.classifier = nnx.Sequential(
            nnx.Dropout(0.5),
            linear(784, 120, rngs),
            nnx.relu,
            nnx.Dropout(0.5),
            linear(120, 120, rngs),
            nnx.relu,
            nnx.Dropout(0.5),
            linear(120, 10, rngs),
        )


class MLP_bn(Network):
    best = DENSE

    def __init__(self, rngs: nnx.Rngs):
        self.features = nnx.Sequential()
        self.classifier = nnx.Sequential(
            linear(784, 120, rngs),
            nnx.relu,
            layers.BatchNorm(120, rngs=rngs),
            linear(120, 120, rngs),
            nnx.relu,
            layers.BatchNorm(120, rngs=rngs),
            linear(120, 10, rngs),
        )


def conv_features(rngs: nnx.Rngs) -> layers.Sequential:
    # ReLU after the pool gives the same values as before it, for a quarter of the work.
    return layers.Sequential(
        conv(1, 20, 5, rngs), layers.max_pool, nnx.relu, conv(20, 40, 3, rngs), layers.max_pool, nnx.relu
    )


class CNN(Network):
    best = CONVOLUTIONAL

    def __init__(self, rngs: nnx.Rngs):
        self.features = conv_features(rngs)
        self.classifier = nnx.Sequential(linear(1000, 120, rngs), nnx.relu, linear(120, 10, rngs))


class CNN_d(Network):
    best = replace(CONVOLUTIONAL, epochs=36, masks=4)

    def __init__(self, rngs: nnx.Rngs):
        self.features = conv_features(rngs)
        self.classifier = nnx.Sequential(
            nnx.Dropout(0.5), linear(1000, 120, rngs), nnx.relu, nnx.Dropout(0.5), linear(120, 10, rngs)
        )


class CNN_bn(Network):
    best = replace(CONVOLUTIONAL, learning_rate=4e-3, strength=fading)

    def __init__(self, rngs: nnx.Rngs):
        self.features = layers.Sequential(
            conv(1, 20, 5, rngs),
            layers.max_pool,
            nnx.relu,
            layers.BatchNorm(20, rngs=rngs),
            conv(20, 40, 3, rngs),
            layers.max_pool,
            nnx.relu,
            layers.BatchNorm(40, rngs=rngs),
        )
        self.classifier = nnx.Sequential(
            linear(1000, 120, rngs), nnx.relu, layers.BatchNorm(120, rngs=rngs), linear(120, 10, rngs)
        )


NETWORKS: dict[str, type[Network]] = {cls.__name__: cls for cls in (MLP, MLP_d, MLP_bn, CNN, CNN_d, CNN_bn)}


def by_name(name: str) -> type[Network]:
    """The network class of that name. Raises `InputError`, with the nearest names, where there is none."""
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    return NETWORKS[name]


@functools.cache
def _skeleton(cls: type[Network]) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: cls(nnx.Rngs(0))))


def _name(path) -> str:
    return ".".join(str(part) for part in path if part != "layers")


def _flatten(model: Network) -> Weights:
    return {_name(path): variable[...] for path, variable in nnx.to_flat_state(nnx.state(model))}


def _unflatten(cls: type[Network], weights: Weights) -> Network:
    graphdef, skeleton = _skeleton(cls)
    flat = [(path, variable.replace(weights[_name(path)])) for path, variable in nnx.to_flat_state(skeleton)]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def shapes(cls: type[Network]) -> dict[str, tuple[int, ...]]:
    """The names of the network's weights, each with its shape."""
    return {_name(path): variable.shape for path, variable in nnx.to_flat_state(_skeleton(cls)[1])}
