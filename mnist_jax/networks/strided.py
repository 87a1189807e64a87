"""Convolutions with strides in place of pools, which bounds go through without loss, and batch normalization."""

from flax import nnx

from mnist_jax import layers
from mnist_jax.networks.convolutional import CONVOLUTIONAL
from mnist_jax.networks.network import Network, conv, linear

FILTERS = 16  # of the first two convolutions; the third has twice as many


class CNN5_bn(Network):
    """Three convolutions and two dense layers, 3.4 million operations an image.

    CNN7 of the literature on certified training (Shi et al., "Fast certified robust training with short warmup", 2021),
    with two convolutions fewer and a quarter of its filters.
    """

    best = CONVOLUTIONAL

    def __init__(self, rngs: nnx.Rngs):
        self.features = nnx.Sequential(
            conv(1, FILTERS, 3, rngs, padding=1),
            layers.BatchNorm(FILTERS, rngs=rngs),
            nnx.relu,
            conv(FILTERS, FILTERS, 4, rngs, stride=2, padding=1),
            layers.BatchNorm(FILTERS, rngs=rngs),
            nnx.relu,
            conv(FILTERS, 2 * FILTERS, 4, rngs, stride=2, padding=1),
            layers.BatchNorm(2 * FILTERS, rngs=rngs),
            nnx.relu,
        )
        self.classifier = nnx.Sequential(
            linear(7 * 7 * 2 * FILTERS, 256, rngs), layers.BatchNorm(256, rngs=rngs), nnx.relu, linear(256, 10, rngs)
        )
