"""EfficientNet-B0 with torchvision's key names (Tan and Le, ICML 2019).

Input ``(B, in_channels, H, W)`` float32, output that of the head: ``classifier.*``. With three channels and five linear
outputs 4,013,953 parameters in 360 tensors. ``features.8`` has a 32nd of the resolution.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pulmo_models.nets.heads import Head

FEATURES = 1280

# expansion, kernel, stride, input channels, output channels, blocks: table 1 of the paper
STAGES = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)
LARGEST_DROP = 0.2  # share of residual branches left out in the last block while training


def _conv_norm(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, activation: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    if activation:
        layers.append(nn.SiLU(inplace=True))
    return nn.Sequential(*layers)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a number from 0 to 1 that depends on the averages of all."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, kernel_size=1)
        self.fc2 = nn.Conv2d(squeezed, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        scale = nn.functional.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.fc2(nn.functional.silu(self.fc1(scale))))


class MBConv(nn.Module):
    """Inverted bottleneck: expand, depthwise, squeeze and excite, project; a shortcut where the shapes allow it."""

    def __init__(self, stage: tuple[int, int, int, int, int, int], first: bool, drop: float) -> None:
        super().__init__()
        expansion, kernel, stride, in_channels, out_channels, _ = stage
        if not first:
            in_channels, stride = out_channels, 1
        expanded = in_channels * expansion
        layers: list[nn.Module] = [_conv_norm(in_channels, expanded)] if expansion != 1 else []
        layers += [
            _conv_norm(expanded, expanded, kernel, stride, expanded),
            SqueezeExcitation(expanded, in_channels // 4),
            _conv_norm(expanded, out_channels, activation=False),
        ]
        self.block = nn.Sequential(*layers)
        self.shortcut = stride == 1 and in_channels == out_channels
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return y if not self.shortcut else x + self._stochastic(y)

    def _stochastic(self, y: Tensor) -> Tensor:
        """Stochastic depth (Huang et al., ECCV 2016): while training, the branch is left out for some items."""
        if not self.training or self.drop == 0:
            return y
        kept = torch.empty((len(y), 1, 1, 1), dtype=y.dtype, device=y.device).bernoulli_(1 - self.drop)
        return y * kept / (1 - self.drop)


class EfficientNetB0(nn.Module):
    """Stem, seven stages, 1x1 convolution to 1280 channels, average, head."""

    def __init__(self, head: Head, in_channels: int = 3) -> None:
        super().__init__()
        blocks = sum(stage[-1] for stage in STAGES)
        layers: list[nn.Module] = [_conv_norm(in_channels, 32, 3, 2)]
        number = 0
        for stage in STAGES:
            row = []
            for index in range(stage[-1]):
                row.append(MBConv(stage, index == 0, LARGEST_DROP * number / blocks))
                number += 1
            layers.append(nn.Sequential(*row))
        layers.append(_conv_norm(320, FEATURES))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = head(FEATURES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.out_features)
                nn.init.uniform_(module.weight, -bound, bound)
                nn.init.zeros_(module.bias)

    def body(self, x: Tensor) -> Tensor:
        """The activations of ``features.8``."""
        return self.features(x)

    def classify(self, activations: Tensor) -> Tensor:
        """From those activations to the output of the head."""
        return self.classifier(self.avgpool(activations).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.body(x))
