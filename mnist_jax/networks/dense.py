"""The original project's MLP, MLP_d and MLP_bn: three dense layers."""

import math
from dataclasses import replace

from flax import nnx

from mnist_jax import layers, losses
from mnist_jax.distortion import MILD, STRONG
from mnist_jax.networks.convolutional import CONVOLUTIONAL
from mnist_jax.networks.network import Network, linear
from mnist_jax.objective import Plain

DENSE = replace(CONVOLUTIONAL, learning_rate=2e-3, epochs=90, batch_size=100, distortion=STRONG)


class MLP(Network):
    """Three dense layers with ReLU."""

    best = DENSE

    def __init__(self, rngs: nnx.Rngs):
        self.features = nnx.Sequential()
        self.classifier = nnx.Sequential(
            linear(math.prod(self.shape), 120, rngs),
            nnx.relu,
            linear(120, 120, rngs),
            nnx.relu,
            linear(120, self.classes, rngs),
        )


class MLP_d(Network):
    """`MLP` with dropout before each layer."""

    best = replace(
        DENSE,
        objective=Plain(losses.cross_entropy, masks=4),
        learning_rate=3e-3,
        epochs=60,
        batch_size=250,
        distortion=MILD,
        averaging=0.9995,
    )

    def __init__(self, rngs: nnx.Rngs):
        self.features = nnx.Sequential()
        self.classifier = nnx.Sequential(
            nnx.Dropout(0.5),
            linear(math.prod(self.shape), 120, rngs),
            nnx.relu,
            nnx.Dropout(0.5),
            linear(120, 120, rngs),
            nnx.relu,
            nnx.Dropout(0.5),
            linear(120, self.classes, rngs),
        )


class MLP_bn(Network):
    """`MLP` with batch normalization after each hidden layer."""

    best = DENSE

    def __init__(self, rngs: nnx.Rngs):
        self.features = nnx.Sequential()
        self.classifier = nnx.Sequential(
            linear(math.prod(self.shape), 120, rngs),
            nnx.relu,
            layers.BatchNorm(120, rngs=rngs),
            linear(120, 120, rngs),
            nnx.relu,
            layers.BatchNorm(120, rngs=rngs),
            linear(120, self.classes, rngs),
        )
