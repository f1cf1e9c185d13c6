"""Inception-v4 features (Szegedy et al., AAAI 2017) with the key names of Cadene's port, as a fastai regressor.

Input ``(B, 3, H, W)`` float32, H and W of 75 at least; ``InceptionV4Features`` gives ``(B, 1536, h, w)``. Every
convolution is followed by a batch norm with eps 1e-3 and a ReLU. Keys of the regressor: ``0.0.<n>.*`` for the body,
``1.2``, ``1.4``, ``1.6``, ``1.8`` for the head; 42,723,360 parameters in 906 tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pulmo_models.nets.heads import fastai_head

Kernel = int | tuple[int, int]


class ConvUnit(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Kernel, stride: int = 1, *, same: bool = False
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if same else 0
        self.conv = nn.Conv2d(in_channels, out_channels, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


def _pooled(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False), ConvUnit(in_channels, out_channels, 1)
    )


class Mixed3a(nn.Module):
    """Maximum and strided convolution, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.maxpool = nn.MaxPool2d(3, stride=2)
        self.conv = ConvUnit(64, 96, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.maxpool(x), self.conv(x)), dim=1)


class Mixed5a(nn.Module):
    """Strided convolution and maximum, side by side: the other order than Mixed3a."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = ConvUnit(192, 192, 3, 2)
        self.maxpool = nn.MaxPool2d(3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.conv(x), self.maxpool(x)), dim=1)


class Branches(nn.Module):
    """``branch0``, ``branch1``, ... of one input, concatenated in that order."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        for number, branch in enumerate(branches):
            self.add_module(f"branch{number}", branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.children()], dim=1)


def _mixed_4a() -> Branches:
    return Branches(
        nn.Sequential(ConvUnit(160, 64, 1), ConvUnit(64, 96, 3)),
        nn.Sequential(
            ConvUnit(160, 64, 1),
            ConvUnit(64, 64, (1, 7), same=True),
            ConvUnit(64, 64, (7, 1), same=True),
            ConvUnit(64, 96, 3),
        ),
    )


def _inception_a() -> Branches:
    return Branches(
        ConvUnit(384, 96, 1),
        nn.Sequential(ConvUnit(384, 64, 1), ConvUnit(64, 96, 3, same=True)),
        nn.Sequential(ConvUnit(384, 64, 1), ConvUnit(64, 96, 3, same=True), ConvUnit(96, 96, 3, same=True)),
        _pooled(384, 96),
    )


def _reduction_a() -> Branches:
    return Branches(
        ConvUnit(384, 384, 3, 2),
        nn.Sequential(ConvUnit(384, 192, 1), ConvUnit(192, 224, 3, same=True), ConvUnit(224, 256, 3, 2)),
        nn.MaxPool2d(3, stride=2),
    )


def _inception_b() -> Branches:
    return Branches(
        ConvUnit(1024, 384, 1),
        nn.Sequential(
            ConvUnit(1024, 192, 1), ConvUnit(192, 224, (1, 7), same=True), ConvUnit(224, 256, (7, 1), same=True)
        ),
        nn.Sequential(
            ConvUnit(1024, 192, 1),
            ConvUnit(192, 192, (7, 1), same=True),
            ConvUnit(192, 224, (1, 7), same=True),
            ConvUnit(224, 224, (7, 1), same=True),
            ConvUnit(224, 256, (1, 7), same=True),
        ),
        _pooled(1024, 128),
    )


def _reduction_b() -> Branches:
    return Branches(
        nn.Sequential(ConvUnit(1024, 192, 1), ConvUnit(192, 192, 3, 2)),
        nn.Sequential(
            ConvUnit(1024, 256, 1),
            ConvUnit(256, 256, (1, 7), same=True),
            ConvUnit(256, 320, (7, 1), same=True),
            ConvUnit(320, 320, 3, 2),
        ),
        nn.MaxPool2d(3, stride=2),
    )


class InceptionC(nn.Module):
    """Four branches, two of which fork once more at their end."""

    def __init__(self) -> None:
        super().__init__()
        self.branch0 = ConvUnit(1536, 256, 1)
        self.branch1_0 = ConvUnit(1536, 384, 1)
        self.branch1_1a = ConvUnit(384, 256, (1, 3), same=True)
        self.branch1_1b = ConvUnit(384, 256, (3, 1), same=True)
        self.branch2_0 = ConvUnit(1536, 384, 1)
        self.branch2_1 = ConvUnit(384, 448, (3, 1), same=True)
        self.branch2_2 = ConvUnit(448, 512, (1, 3), same=True)
        self.branch2_3a = ConvUnit(512, 256, (1, 3), same=True)
        self.branch2_3b = ConvUnit(512, 256, (3, 1), same=True)
        self.branch3 = _pooled(1536, 256)

    def forward(self, x: Tensor) -> Tensor:
        one = self.branch1_0(x)
        two = self.branch2_2(self.branch2_1(self.branch2_0(x)))
        parts = (
            self.branch0(x),
            self.branch1_1a(one),
            self.branch1_1b(one),
            self.branch2_3a(two),
            self.branch2_3b(two),
            self.branch3(x),
        )
        return torch.cat(parts, dim=1)


class InceptionV4Features(nn.Sequential):
    """Twenty-two modules ``0`` .. ``21`` from three channels to 1536."""

    def __init__(self) -> None:
        super().__init__(
            ConvUnit(3, 32, 3, 2),
            ConvUnit(32, 32, 3),
            ConvUnit(32, 64, 3, same=True),
            Mixed3a(),
            _mixed_4a(),
            Mixed5a(),
            *(_inception_a() for _ in range(4)),
            _reduction_a(),
            *(_inception_b() for _ in range(7)),
            _reduction_b(),
            *(InceptionC() for _ in range(3)),
        )


def inceptionv4_regressor() -> nn.Sequential:
    """One output per image, as fastai's ``cnn_learner`` makes it."""
    return nn.Sequential(nn.Sequential(InceptionV4Features()), fastai_head(1536))
