"""AlexNet's layout at the size of a digit: the wider of the networks with two convolutions and two dense layers."""

from dataclasses import replace

from mnist_jax.networks.convolutional import CNN_bn, CNN_d


class AlexNet(CNN_d):
    """Convolutions and pools, then dense layers with dropout; 5 million operations an image.

    After Krizhevsky, Sutskever & Hinton, "ImageNet classification with deep convolutional neural networks", 2012, with
    two of its five convolutions and a narrower classifier.
    """

    filters = 32, 64


class AlexNet_bn(CNN_bn):
    """`AlexNet` with batch normalization in place of its dropout."""

    filters = AlexNet.filters
    best = replace(CNN_bn.best, epochs=36)
