"""Inception: modules of parallel convolutions whose kernels have several sizes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx

from mnist_jax import layers
from mnist_jax.networks.convolutional import CONVOLUTIONAL
from mnist_jax.networks.network import Network, conv, linear, mean_of_pixels, outputs
from mnist_jax.recipe import fading

STEM = 16  # filters of the first convolution
WIDTHS = (32, 32, 48, 8, 16, 16), (48, 48, 96, 16, 32, 32)  # filters of the two modules, in the order of `Module`


def conv_norm(inputs: int, outputs: int, size: int, rngs: nnx.Rngs) -> list:
    """The layers of a convolution that keeps the image's size, batch normalization, and ReLU."""
    return [conv(inputs, outputs, size, rngs, padding=size // 2), layers.BatchNorm(outputs, rngs=rngs), nnx.relu]


class Module(nnx.Module):
    """The Inception module of Szegedy et al. 2015, figure 2b: `[B, H, W, C]` to `[B, H, W, C']`.

    Its four branches, whose channels are concatenated, are a 1x1 convolution; 1x1, then 3x3; 1x1, then 5x5; and a 3x3
    maximum around every pixel, then 1x1. Each convolution is followed by batch normalization and ReLU.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], rngs: nnx.Rngs):
        """`widths`: numbers of filters of the six convolutions, in the order above."""
        one, before_three, three, before_five, five, pooled = widths
        self.one = nnx.Sequential(*conv_norm(inputs, one, 1, rngs))
        self.three = nnx.Sequential(*conv_norm(inputs, before_three, 1, rngs), *conv_norm(before_three, three, 3, rngs))
        self.five = nnx.Sequential(*conv_norm(inputs, before_five, 1, rngs), *conv_norm(before_five, five, 5, rngs))
        self.pooled = nnx.Sequential(layers.max_pool_around, *conv_norm(inputs, pooled, 1, rngs))
        self.outputs = one + three + five + pooled

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.concatenate([branch(x) for branch in (self.one, self.three, self.five, self.pooled)], -1)


class Inception(Network):
    """A convolution, two Inception modules with batch normalization, and a mean over pixels; 10 million operations.

    After Szegedy et al., "Going deeper with convolutions", 2015, which has nine modules, and the batch normalization of
    Ioffe & Szegedy 2015.
    """

    best = replace(CONVOLUTIONAL, learning_rate=4e-3, epochs=12, strength=fading)

    def __init__(self, rngs: nnx.Rngs):
        first = Module(STEM, WIDTHS[0], rngs)
        second = Module(first.outputs, WIDTHS[1], rngs)
        self.features = layers.Sequential(
            conv(self.shape[-1], STEM, 5, rngs),
            layers.max_pool,
            layers.BatchNorm(STEM, rngs=rngs),
            nnx.relu,
            first,
            layers.max_pool,
            second,
            mean_of_pixels,
        )
        self.classifier = nnx.Sequential(linear(outputs(self.features, self.shape), self.classes, rngs))
