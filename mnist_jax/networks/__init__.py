"""The networks by name. Each module holds a family of networks, with the recipes that they are trained by."""

from mnist_jax.errors import unknown
from mnist_jax.networks.alexnet import AlexNet, AlexNet_bn
from mnist_jax.networks.capsules import CapsNet
from mnist_jax.networks.convolutional import CNN, CNN_bn, CNN_d
from mnist_jax.networks.dense import MLP, MLP_bn, MLP_d
from mnist_jax.networks.inception import Inception
from mnist_jax.networks.network import (
    CLASSES,
    IMAGE_SHAPE,
    Network,
    Weights,
    conv,
    features_shape,
    linear,
    outputs,
    shapes,
)
from mnist_jax.networks.resnet import ResNet
from mnist_jax.networks.strided import CNN5_bn, CNN7_bn
from mnist_jax.networks.vgg import VGG_bn

NETWORKS: dict[str, type[Network]] = {
    cls.__name__: cls
    for cls in (
        *(MLP, MLP_d, MLP_bn, CNN, CNN_d, CNN_bn),
        *(CNN5_bn, CNN7_bn),
        *(AlexNet, AlexNet_bn, VGG_bn, Inception, ResNet, CapsNet),
    )
}
ORIGINALS = ("MLP", "MLP_d", "MLP_bn", "CNN", "CNN_d", "CNN_bn")  # the original project's; shipped by both recipes

__all__ = [
    "CLASSES",
    "IMAGE_SHAPE",
    "NETWORKS",
    "ORIGINALS",
    "Network",
    "Weights",
    "by_name",
    "conv",
    "features_shape",
    "linear",
    "outputs",
    "shapes",
    *NETWORKS,
]


def by_name(name: str) -> type[Network]:
    """The network class of a name. Raises `InputError`, which suggests similar names, where there is none."""
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    return NETWORKS[name]
