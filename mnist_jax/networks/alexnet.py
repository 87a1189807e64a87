"""AlexNet reduced to images of digits: the layout of `CNN_d`, two convolutions and two dense layers, but wider."""

from dataclasses import replace

from mnist_jax.networks.convolutional import CNN_bn, CNN_d


class AlexNet(CNN_d):
    """Two convolutions with pools, then dense layers with dropout; 5 million operations per image.

    After Krizhevsky, Sutskever & Hinton, "ImageNet classification with deep convolutional neural networks", 2012, with
    two of its five convolutions and a narrower classifier.
    """

    filters = 32, 64


class AlexNet_bn(CNN_bn):
    """`AlexNet` with batch normalization in place of its dropout."""

    filters = AlexNet.filters
    best = replace(CNN_bn.best, epochs=36)
