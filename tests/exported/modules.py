"""The PyTorch modules that tests import, and of which the ONNX files here are made."""

import torch
from torch import nn


class CNN(nn.Module):
    """In torchvision's style: features, an adaptive mean, a classifier."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
            nn.Conv2d(4, 6, 3, groups=2),
            nn.LeakyReLU(0.1),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(6, 10))

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class MLP(nn.Module):
    """Pixels in a row, as many tutorials have them, of a smaller image."""

    def __init__(self):
        super().__init__()
        self.hidden, self.last = nn.Linear(7 * 7, 12), nn.Linear(12, 10)

    def forward(self, x):
        x = nn.functional.avg_pool2d(x, 4)
        return self.last(torch.tanh(self.hidden(x.view(x.size(0), -1))))


def made(kind, seed=0):
    """A module with weights by the seed, and running statistics that are not those of a new one."""
    torch.manual_seed(seed)
    module = kind()
    with torch.no_grad():
        for _ in range(3):
            module(torch.rand(16, 1, 28, 28))
        *_, weight, bias = module.parameters()
        weight *= 10  # so that the image says more than the bias
        bias /= 10
    return module
