"""VGG: blocks of convolutions with 3x3 kernels, with a pool after each block."""

from collections.abc import Callable
from dataclasses import replace

from flax import nnx

from mnist_jax import layers
from mnist_jax.networks.convolutional import CONVOLUTIONAL
from mnist_jax.networks.network import Network, conv, linear, outputs
from mnist_jax.recipe import fading

BLOCKS = (16, 16), (32, 32), (64, 64)  # filters of the convolutions of each block


class VGG_bn(Network):
    """Six 3x3 convolutions in blocks of two, and two dense layers, with batch normalization; 13 million operations.

    After Simonyan & Zisserman, "Very deep convolutional networks for large-scale image recognition", 2015, with three
    of its five blocks and a quarter of its filters.
    """

    best = replace(CONVOLUTIONAL, learning_rate=4e-3, epochs=30, strength=fading)

    def __init__(self, rngs: nnx.Rngs):
        steps: list[Callable] = []
        inputs = self.shape[-1]
        for block in BLOCKS:
            for filters in block:
                steps += [conv(inputs, filters, 3, rngs, padding=1), layers.BatchNorm(filters, rngs=rngs), nnx.relu]
                inputs = filters
            # ReLU after the pool gives the same values as before it, on a quarter of the entries.
            steps[-1:] = [layers.max_pool, nnx.relu]
        self.features = nnx.Sequential(*steps)
        self.classifier = nnx.Sequential(
            linear(outputs(self.features, self.shape), 128, rngs),
            layers.BatchNorm(128, rngs=rngs),
            nnx.relu,
            linear(128, self.classes, rngs),
        )
