"""ResNet: blocks that add the output of two convolutions to their input."""

from dataclasses import replace

import jax
from flax import nnx

from mnist_jax import layers
from mnist_jax.networks.convolutional import CONVOLUTIONAL
from mnist_jax.networks.network import Network, conv, linear, mean_of_pixels, outputs
from mnist_jax.recipe import fading

STEM = 16  # filters of the first convolution
BLOCKS = (24, 2), (24, 1), (48, 2), (48, 1)  # filters and stride of each block


class Block(nnx.Module):
    """A pre-activation residual block `x + f(x)` (He et al. 2016, figure 4e).

    f is two convolutions, each after batch normalization and ReLU. It maps `[B, H, W, C]` to
    `[B, ceil(H / stride), ceil(W / stride), C']`. Where the shape changes, x in the sum is replaced by a 1x1
    convolution of the first normalization's ReLU.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs):
        self.norm1 = layers.BatchNorm(inputs, rngs=rngs)
        self.conv1 = conv(inputs, outputs, 3, rngs, stride=stride, padding=1)
        self.norm2 = layers.BatchNorm(outputs, rngs=rngs)
        self.conv2 = conv(outputs, outputs, 3, rngs, padding=1)
        same = (inputs, stride) == (outputs, 1)
        self.shortcut = None if same else conv(inputs, outputs, 1, rngs, stride=stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm1(x))
        short = x if self.shortcut is None else self.shortcut(y)
        return short + self.conv2(nnx.relu(self.norm2(self.conv1(y))))


class ResNet(Network):
    """A convolution, four pre-activation residual blocks, and a mean over pixels; 13 million operations per image.

    After He et al., "Identity mappings in deep residual networks", 2016, whose networks have up to 1001 layers; this
    one has ten. Strides alone reduce the image's size; nothing is pooled before the mean.
    """

    best = replace(CONVOLUTIONAL, learning_rate=4e-3, epochs=30, strength=fading)

    def __init__(self, rngs: nnx.Rngs):
        blocks, inputs = [], STEM
        for filters, stride in BLOCKS:
            blocks.append(Block(inputs, filters, stride, rngs))
            inputs = filters
        self.features = nnx.Sequential(
            conv(self.shape[-1], STEM, 3, rngs, padding=1),
            *blocks,
            layers.BatchNorm(inputs, rngs=rngs),
            nnx.relu,
            mean_of_pixels,
        )
        self.classifier = nnx.Sequential(linear(outputs(self.features, self.shape), self.classes, rngs))
