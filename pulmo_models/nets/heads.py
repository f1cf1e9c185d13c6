"""Last layers of the 2D backbones; a backbone is given a function from its number of features to its head.

The form of the head decides its keys: torchvision's classifiers end in one linear layer (``fc.weight``) or in dropout
and a linear layer (``classifier.1.weight``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Head = Callable[[int], nn.Module]
"""From the number of features to the layer on them."""


def linear(outputs: int) -> Head:
    """One linear layer: keys ``weight`` and ``bias``."""
    return lambda features: nn.Linear(features, outputs)


def dropout_linear(outputs: int, dropout: float) -> Head:
    """Dropout, then a linear layer: keys ``1.weight`` and ``1.bias``."""
    return lambda features: nn.Sequential(nn.Dropout(dropout), nn.Linear(features, outputs))


class ConcatPool(nn.Module):
    """Global maximum first, then global average: (B, C, H, W) to (B, 2C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((nn.functional.adaptive_max_pool2d(x, 1), nn.functional.adaptive_avg_pool2d(x, 1)), dim=1)


def fastai_head(features: int, outputs: int = 1) -> nn.Sequential:
    """The head that fastai 2.7 puts on a convolutional body of so many channels.

    Keys ``2`` (BatchNorm of twice the features), ``4.weight``, ``6`` (BatchNorm of 512), ``8.weight``; neither linear
    layer has a bias.
    """
    return nn.Sequential(
        ConcatPool(),
        nn.Flatten(),
        nn.BatchNorm1d(2 * features),
        nn.Dropout(0.25),
        nn.Linear(2 * features, 512, bias=False),
        nn.ReLU(inplace=True),
        nn.BatchNorm1d(512),
        nn.Dropout(0.5),
        nn.Linear(512, outputs, bias=False),
    )
