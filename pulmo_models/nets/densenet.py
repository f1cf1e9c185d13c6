"""DenseNet-121 with torchvision's key names (Huang et al., CVPR 2017).

Input ``(B, in_channels, H, W)`` float32, output that of the head: ``classifier.*``. With three channels and five linear
outputs 6,958,981 parameters in 727 tensors. ``features.norm5`` has a 32nd of the resolution; a ReLU follows it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pulmo_models.nets.heads import Head

GROWTH = 32
BOTTLENECK = 4
DEPTHS = (6, 12, 24, 16)
FEATURES = 1024


class DenseLayer(nn.Module):
    """Adds GROWTH channels to what it is given."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, BOTTLENECK * GROWTH, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(BOTTLENECK * GROWTH)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(BOTTLENECK * GROWTH, GROWTH, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(self.relu2(self.norm2(self.conv1(self.relu1(self.norm1(x))))))
        return torch.cat((x, new), dim=1)


class Transition(nn.Sequential):
    """Halves the channels and the resolution."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(in_channels, in_channels // 2, kernel_size=1, bias=False)
        self.pool = nn.AvgPool2d(kernel_size=2, stride=2)


class DenseNet121(nn.Module):
    """Stem, four dense blocks with transitions between them, norm, ReLU, average, head."""

    def __init__(self, head: Head, in_channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False))
        self.features.add_module("norm0", nn.BatchNorm2d(64))
        self.features.add_module("relu0", nn.ReLU(inplace=True))
        self.features.add_module("pool0", nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
        channels = 64
        for number, depth in enumerate(DEPTHS, start=1):
            block = nn.Sequential()
            for layer in range(depth):
                block.add_module(f"denselayer{layer + 1}", DenseLayer(channels))
                channels += GROWTH
            self.features.add_module(f"denseblock{number}", block)
            if number < len(DEPTHS):
                self.features.add_module(f"transition{number}", Transition(channels))
                channels //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.classifier = head(channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def body(self, x: Tensor) -> Tensor:
        """The activations of ``norm5``, before the ReLU."""
        return self.features(x)

    def classify(self, activations: Tensor) -> Tensor:
        """From those activations to the output of the head."""
        return self.classifier(nn.functional.adaptive_avg_pool2d(torch.relu(activations), 1).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.body(x))
