"""The networks of `mnist_jax.networks` in PyTorch, as its users would write them, for comparisons of training times.

They return logits. Layers have the same names as in `mnist_jax.networks`, so that state_dicts of
`mnist_jax.storage.pytorch` can be loaded.
"""

import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from mnist_jax.networks import alexnet, capsules, inception, resnet, vgg


class Network(nn.Module):
    def __init__(self, features: Iterable[nn.Module], classifier: Iterable[nn.Module]):
        super().__init__()
        self.features, self.classifier = nn.Sequential(*features), nn.Sequential(*classifier)

    def forward(self, images: Any) -> Any:
        return self.classifier(self.features(images).flatten(1))

    def loss(self, images: Any, labels: Any) -> Any:
        """The loss of the original project: a cross-entropy on softmax outputs instead of logits."""
        return nn.functional.cross_entropy(self(images).softmax(1), labels)


def network(name: str) -> nn.Module:
    """The network of that name, with fresh weights."""
    kind, _, variant = name.partition("_")
    if kind in ("MLP", "CNN", "AlexNet"):
        return of_the_original(kind, variant)
    return {"VGG": vgg_bn, "Inception": inception_net, "ResNet": residual, "CapsNet": CapsNet}[kind]()


def of_the_original(kind: str, variant: str) -> Network:
    """The networks of the original project, and AlexNet, which has the same layers as CNN with more filters."""
    dropout = [nn.Dropout(0.5)] if variant == "d" or (kind, variant) == ("AlexNet", "") else []
    norm, norm2 = ([nn.BatchNorm1d(120)] if variant == "bn" else [] for _ in range(2))
    end = [*dropout, nn.Linear(120, 10)]
    if kind == "MLP":
        start = [*dropout, nn.Linear(784, 120), nn.ReLU(), *norm, *dropout]
        return Network([], [*start, nn.Linear(120, 120), nn.ReLU(), *norm2, *end])
    first, second = alexnet.AlexNet.filters if kind == "AlexNet" else (20, 40)
    norms = [[nn.BatchNorm2d(channels)] if variant == "bn" else [] for channels in (first, second)]
    features = [nn.Conv2d(1, first, 5), nn.ReLU(), nn.MaxPool2d(2), *norms[0]]
    features += [nn.Conv2d(first, second, 3), nn.ReLU(), nn.MaxPool2d(2), *norms[1]]
    return Network(features, [*dropout, nn.Linear(25 * second, 120), nn.ReLU(), *norm, *end])


def vgg_bn() -> Network:
    features: list[nn.Module] = []
    inputs = 1
    for block in vgg.BLOCKS:
        for filters in block:
            features += [nn.Conv2d(inputs, filters, 3, padding=1), nn.BatchNorm2d(filters), nn.ReLU()]
            inputs = filters
        features.append(nn.MaxPool2d(2))
    return Network(features, [nn.Linear(9 * inputs, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10)])


class Mean(nn.Module):
    """The mean of each channel over all pixels."""

    def forward(self, x: Any) -> Any:
        return x.mean((2, 3))


def conv_norm(inputs: int, outputs: int, size: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, size, padding=size // 2), nn.BatchNorm2d(outputs), nn.ReLU()]


class Module(nn.Module):
    """An Inception module: convolutions of sizes 1, 3 and 5 and a pooled branch, concatenated."""

    def __init__(self, inputs: int, widths: tuple[int, ...]):
        super().__init__()
        one, before_three, three, before_five, five, pooled = widths
        self.one = nn.Sequential(*conv_norm(inputs, one, 1))
        self.three = nn.Sequential(*conv_norm(inputs, before_three, 1), *conv_norm(before_three, three, 3))
        self.five = nn.Sequential(*conv_norm(inputs, before_five, 1), *conv_norm(before_five, five, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), *conv_norm(inputs, pooled, 1))
        self.outputs = one + three + five + pooled

    def forward(self, x: Any) -> Any:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], 1)


def inception_net() -> Network:
    first = Module(inception.STEM, inception.WIDTHS[0])
    second = Module(first.outputs, inception.WIDTHS[1])
    stem = [nn.Conv2d(1, inception.STEM, 5), nn.MaxPool2d(2), nn.BatchNorm2d(inception.STEM), nn.ReLU()]
    return Network([*stem, first, nn.MaxPool2d(2), second, Mean()], [nn.Linear(second.outputs, 10)])


class Block(nn.Module):
    """A residual block with batch normalization before each convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = None if (inputs, stride) == (outputs, 1) else nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, x: Any) -> Any:
        y = self.norm1(x).relu()
        short = x if self.shortcut is None else self.shortcut(y)
        return short + self.conv2(self.norm2(self.conv1(y)).relu())


def residual() -> Network:
    blocks, inputs = [], resnet.STEM
    for filters, stride in resnet.BLOCKS:
        blocks.append(Block(inputs, filters, stride))
        inputs = filters
    stem, end = nn.Conv2d(1, resnet.STEM, 3, padding=1), [nn.BatchNorm2d(inputs), nn.ReLU(), Mean()]
    return Network([stem, *blocks, *end], [nn.Linear(inputs, 10)])


class CapsNet(nn.Module):
    """The capsule network, with routing by agreement and a decoder."""

    def __init__(self) -> None:
        super().__init__()
        primary = capsules.PRIMARY * capsules.KINDS
        self.features = nn.Sequential(
            nn.Conv2d(1, capsules.FILTERS, 9, stride=2), nn.ReLU(), nn.Conv2d(capsules.FILTERS, primary, 5)
        )
        shape = (36 * capsules.KINDS, capsules.PRIMARY, 10, capsules.DIGIT)
        self.kernel = nn.Parameter((2 * torch.rand(shape) - 1) / math.sqrt(capsules.PRIMARY))
        widths = (10 * capsules.DIGIT, *capsules.DECODER, 784)
        steps = [s for a, b in itertools.pairwise(widths) for s in (nn.Linear(a, b), nn.ReLU())]
        self.decoder = nn.Sequential(*steps[:-1], nn.Sigmoid())

    def digits(self, images: Any) -> Any:
        x = self.features(images).permute(0, 2, 3, 1).reshape(len(images), -1, capsules.PRIMARY)
        votes = torch.einsum("ikcd,bik->bcid", self.kernel, squash(x))
        agreement = torch.zeros(votes.shape[:3])
        for _ in range(capsules.ROUNDS - 1):
            total = torch.einsum("bci,bcid->bcd", agreement.softmax(1), votes)
            agreement = agreement + torch.einsum("bcid,bcd->bci", votes, squash(total))
        return squash(torch.einsum("bci,bcid->bcd", agreement.softmax(1), votes))

    def forward(self, images: Any) -> Any:
        return self.digits(images).norm(dim=-1)

    def loss(self, images: Any, labels: Any) -> Any:
        digits = self.digits(images)
        lengths, own = digits.norm(dim=-1), nn.functional.one_hot(labels, 10)
        margin = own * (0.9 - lengths).relu() ** 2 + 0.5 * (1 - own) * (lengths - 0.1).relu() ** 2
        shown = self.decoder((digits * own[..., None]).flatten(1))
        return (margin.sum(1) + 0.0005 * ((shown - images.flatten(1)) ** 2).sum(1)).mean()


def squash(vectors: Any) -> Any:
    norm = vectors.norm(dim=-1, keepdim=True)
    return vectors * norm / (1 + norm**2)
