"""CNN5_bn and CNN7_bn, for certified training: strided convolutions in place of pools, and batch normalization.

Bounds of a strided convolution are exact, while those of a maximum lose some tightness.
"""

from flax import nnx

from mnist_jax import layers
from mnist_jax.networks.convolutional import CONVOLUTIONAL
from mnist_jax.networks.network import Network, conv, linear, outputs

FILTERS = 16  # of the first two convolutions; the third has twice as many


class CNN5_bn(Network):
    """Three convolutions and two dense layers; 3.4 million operations per image.

    It is CNN7 of the literature on certified training (Shi et al., "Fast certified robust training with short warmup",
    2021) with two convolutions fewer and a quarter of the filters.
    """

    best = CONVOLUTIONAL

    def __init__(self, rngs: nnx.Rngs):
        self.features = nnx.Sequential(
            conv(self.shape[-1], FILTERS, 3, rngs, padding=1),
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
            linear(outputs(self.features, self.shape), 256, rngs),
            layers.BatchNorm(256, rngs=rngs),
            nnx.relu,
            linear(256, self.classes, rngs),
        )


class CNN7_bn(Network):
    """Five convolutions and two dense layers; 229 million operations per image, so for a GPU.

    It is the network CNN7 of published results of certified training (Shi et al. 2021; Müller et al. 2023; De Palma et
    al. 2024).
    """

    best = CONVOLUTIONAL

    def __init__(self, rngs: nnx.Rngs):
        layout = (
            (self.shape[-1], 64, 1),
            (64, 64, 1),
            (64, 128, 2),
            (128, 128, 1),
            (128, 128, 1),
        )  # inputs, outputs, stride
        self.features = nnx.Sequential(
            *[
                layer
                for inputs, outputs, stride in layout
                for layer in (
                    conv(inputs, outputs, 3, rngs, stride=stride, padding=1),
                    layers.BatchNorm(outputs, rngs=rngs),
                    nnx.relu,
                )
            ]
        )
        self.classifier = nnx.Sequential(
            linear(outputs(self.features, self.shape), 512, rngs),
            layers.BatchNorm(512, rngs=rngs),
            nnx.relu,
            linear(512, self.classes, rngs),
        )
