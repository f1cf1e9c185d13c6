"""The 3D RetinaNet of MONAI's bundle ``lung_nodule_ct_detection``: two levels of a ResNet-50, a pyramid, two heads.

Input ``(B, 1, X, Y, Z)`` float32 in 0..1, X and Y divisible by 16, Z by 8. Output: maps of class logits ``(B, 3, ...)``
and of box codes ``(B, 18, ...)``, channel ``6 * anchor + code``, at the strides (4, 4, 2), (8, 8, 4) and (16, 16, 8).
Keys, shapes and order are those of the published ``model.pt``: 20,902,741 parameters in 190 tensors.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

ANCHORS = 3
LEVELS = 3
STRIDES = ((4, 4, 2), (8, 8, 4), (16, 16, 8))
DIVISIBLE_BY = STRIDES[-1]
PARAMETERS, TENSORS = 20_902_741, 190

_CHANNELS = 256
_PRIOR = 0.01  # probability that an anchor holds a nodule, before training


class Bottleneck(nn.Module):
    """1x1x1, 3x3x3 and 1x1x1 convolution around a shortcut; where the shortcut is a convolution, it has a bias."""

    def __init__(self, in_channels: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, planes, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm3d(planes)
        self.conv2 = nn.Conv3d(planes, planes, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(planes)
        self.conv3 = nn.Conv3d(planes, 4 * planes, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm3d(4 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != 4 * planes:
            shortcut = nn.Conv3d(in_channels, 4 * planes, kernel_size=1, stride=stride)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm3d(4 * planes))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


class Body(nn.Sequential):
    """The first two stages of a 3D ResNet-50; stage 1 at stride (4, 4, 2), stage 2 at (8, 8, 4)."""

    def __init__(self) -> None:
        super().__init__(
            OrderedDict(
                conv1=nn.Conv3d(1, 64, kernel_size=7, stride=(2, 2, 1), padding=3, bias=False),
                bn1=nn.BatchNorm3d(64),
                act=nn.ReLU(inplace=True),
                maxpool=nn.MaxPool3d(kernel_size=3, stride=2, padding=1),
                layer1=nn.Sequential(*(Bottleneck(64 if n == 0 else 256, 64) for n in range(3))),
                layer2=nn.Sequential(*(Bottleneck(512 if n else 256, 128, stride=1 if n else 2) for n in range(4))),
            )
        )

    def stages(self, x: Tensor) -> list[Tensor]:
        """The outputs of both stages, the finer one first."""
        *stem, layer1, layer2 = self
        for module in stem:
            x = module(x)
        fine = layer1(x)
        return [fine, layer2(fine)]


class FeaturePyramid(nn.Module):
    """Lin et al., Feature Pyramid Networks, 2017: the coarse level is added to the fine one; a third by pooling."""

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.inner_blocks = nn.ModuleList(nn.Conv3d(count, channels, kernel_size=1) for count in in_channels)
        self.layer_blocks = nn.ModuleList(nn.Conv3d(channels, channels, 3, padding=1) for _ in in_channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        fine, coarse = (block(level) for block, level in zip(self.inner_blocks, maps, strict=True))
        fine = fine + functional.interpolate(coarse, size=fine.shape[-3:], mode="nearest")
        fine, coarse = (block(level) for block, level in zip(self.layer_blocks, (fine, coarse), strict=True))
        return [fine, coarse, functional.max_pool3d(coarse, kernel_size=1, stride=2)]


class FeatureExtractor(nn.Module):
    """ResNet and pyramid: three maps of 256 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.fpn = FeaturePyramid((256, 512), _CHANNELS)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.fpn(self.body.stages(x))


def _tower() -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(4):
        convolution = nn.Conv3d(_CHANNELS, _CHANNELS, kernel_size=3, padding=1)
        layers += [convolution, nn.GroupNorm(8, _CHANNELS), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class ClassificationHead(nn.Module):
    """Four convolutions and the logit of each anchor; shared by all levels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _tower()
        self.cls_logits = nn.Conv3d(_CHANNELS, ANCHORS, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.cls_logits(self.conv(x))


class RegressionHead(nn.Module):
    """Four convolutions and the six box codes of each anchor; shared by all levels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _tower()
        self.bbox_reg = nn.Conv3d(_CHANNELS, 6 * ANCHORS, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.bbox_reg(self.conv(x))


class RetinaNet3D(nn.Module):
    """The detector: ``{"logits_0": (B, 3, ...), ..., "codes_2": (B, 18, ...)}``, logits of all levels before codes."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_extractor = FeatureExtractor()
        self.classification_head = ClassificationHead()
        self.regression_head = RegressionHead()
        for head in (self.classification_head, self.regression_head):
            for module in head.modules():
                if isinstance(module, nn.Conv3d) and module.bias is not None:
                    nn.init.normal_(module.weight, std=0.01)
                    nn.init.zeros_(module.bias)
        bias = self.classification_head.cls_logits.bias
        if bias is not None:
            nn.init.constant_(bias, -math.log((1 - _PRIOR) / _PRIOR))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.feature_extractor(x)
        logits = {f"logits_{level}": self.classification_head(features) for level, features in enumerate(maps)}
        codes = {f"codes_{level}": self.regression_head(features) for level, features in enumerate(maps)}
        return {**logits, **codes}


class ListOutput(nn.Module):
    """The same network with its six maps as a tuple, as the published ONNX export has it: logits, then codes."""

    def __init__(self, network: RetinaNet3D) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network(x).values())
