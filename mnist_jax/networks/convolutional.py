"""Two convolutions, each with a pool, and two dense layers."""

from dataclasses import replace

import optax
from flax import nnx

from mnist_jax import layers, losses
from mnist_jax.distortion import MILD
from mnist_jax.networks.network import Network, conv, linear, outputs
from mnist_jax.objective import Plain
from mnist_jax.recipe import Recipe, fading, one_cycle

CONVOLUTIONAL = Recipe(
    "best",
    Plain(losses.cross_entropy),
    optax.adam,
    learning_rate=1.5e-3,
    epochs=45,
    batch_size=50,
    schedule=one_cycle,
    distortion=MILD,
    averaging=0.999,
)


def conv_features(channels: int, rngs: nnx.Rngs, first: int = 20, second: int = 40) -> layers.Sequential:
    # ReLU after the pool gives the same values as before it, for a quarter of the work.
    return layers.Sequential(
        conv(channels, first, 5, rngs),
        layers.max_pool,
        nnx.relu,
        conv(first, second, 3, rngs),
        layers.max_pool,
        nnx.relu,
    )


class CNN(Network):
    best = CONVOLUTIONAL

    def __init__(self, rngs: nnx.Rngs):
        self.features = conv_features(self.shape[-1], rngs)
        self.classifier = nnx.Sequential(
            linear(outputs(self.features, self.shape), 120, rngs), nnx.relu, linear(120, self.classes, rngs)
        )


class CNN_d(Network):
    best = replace(CONVOLUTIONAL, objective=Plain(losses.cross_entropy, masks=4), epochs=36)

    def __init__(self, rngs: nnx.Rngs):
        self.features = conv_features(self.shape[-1], rngs)
        self.classifier = nnx.Sequential(
            nnx.Dropout(0.5),
            linear(outputs(self.features, self.shape), 120, rngs),
            nnx.relu,
            nnx.Dropout(0.5),
            linear(120, self.classes, rngs),
        )


class CNN_bn(Network):
    best = replace(CONVOLUTIONAL, learning_rate=4e-3, strength=fading)

    def __init__(self, rngs: nnx.Rngs):
        self.features = layers.Sequential(
            conv(self.shape[-1], 20, 5, rngs),
            layers.max_pool,
            nnx.relu,
            layers.BatchNorm(20, rngs=rngs),
            conv(20, 40, 3, rngs),
            layers.max_pool,
            nnx.relu,
            layers.BatchNorm(40, rngs=rngs),
        )
        self.classifier = nnx.Sequential(
            linear(outputs(self.features, self.shape), 120, rngs),
            nnx.relu,
            layers.BatchNorm(120, rngs=rngs),
            linear(120, self.classes, rngs),
        )
