"""Two wider convolutions, each with a pool, and two dense layers: AlexNet's layout at the size of a digit."""

from dataclasses import replace

from flax import nnx

from mnist_jax import layers, losses
from mnist_jax.networks.convolutional import CONVOLUTIONAL, conv_features
from mnist_jax.networks.network import Network, conv, linear, outputs
from mnist_jax.objective import Plain
from mnist_jax.recipe import fading

FILTERS = 32, 64


class AlexNet(Network):
    """Convolutions and pools, then dense layers with dropout; 5 million operations an image.

    After Krizhevsky, Sutskever & Hinton, "ImageNet classification with deep convolutional neural networks", 2012, with
    two of its five convolutions and a narrower classifier.
    """

    best = replace(CONVOLUTIONAL, objective=Plain(losses.cross_entropy, masks=4), epochs=36)

    def __init__(self, rngs: nnx.Rngs):
        self.features = conv_features(self.shape[-1], rngs, *FILTERS)
        self.classifier = nnx.Sequential(
            nnx.Dropout(0.5),
            linear(outputs(self.features, self.shape), 120, rngs),
            nnx.relu,
            nnx.Dropout(0.5),
            linear(120, self.classes, rngs),
        )


class AlexNet_bn(Network):
    """`AlexNet` with batch normalization in place of its dropout."""

    best = replace(CONVOLUTIONAL, learning_rate=4e-3, epochs=36, strength=fading)

    def __init__(self, rngs: nnx.Rngs):
        first, second = FILTERS
        self.features = layers.Sequential(
            conv(self.shape[-1], first, 5, rngs),
            layers.max_pool,
            nnx.relu,
            layers.BatchNorm(first, rngs=rngs),
            conv(first, second, 3, rngs),
            layers.max_pool,
            nnx.relu,
            layers.BatchNorm(second, rngs=rngs),
        )
        self.classifier = nnx.Sequential(
            linear(outputs(self.features, self.shape), 120, rngs),
            nnx.relu,
            layers.BatchNorm(120, rngs=rngs),
            linear(120, self.classes, rngs),
        )
