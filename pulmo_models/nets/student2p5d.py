"""Stage 2: a 2.5D concept-bottleneck network that characterises one candidate.

Input ``(B, 7, 64, 64)`` float32 in [0, 1]: seven neighbouring axial slices around the candidate as channels, the
candidate at index (3, 32, 32). Output, all linear: ``detection`` (B, 2), ``concepts`` (B, 8), ``malignancy`` (B, 2),
``segmentation`` (B, 1, 64, 64) of the central slice. The malignancy head sees the eight concepts and nothing else
(Koh et al., Concept Bottleneck Models, ICML 2020). 4,761,773 parameters in 51 tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ResBlock2D(nn.Module):
    """Residual pair of 3x3 convolutions with instance norm; a 1x1 skip where the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm1 = nn.InstanceNorm2d(out_channels)
        self.act = nn.LeakyReLU(0.1, inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.InstanceNorm2d(out_channels)
        self.skip: nn.Module = (
            nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.act(y + self.skip(x))


class UNet2D(nn.Module):
    """Encoder and decoder of the student; returns the pooled bottom feature and the mask logits."""

    def __init__(self, in_channels: int, base: int = 24) -> None:
        super().__init__()
        widths = [base * 2**level for level in range(5)]

        def down(i: int, o: int) -> nn.Sequential:
            return nn.Sequential(nn.MaxPool2d(2), ResBlock2D(i, o))

        def up(i: int, o: int) -> nn.ConvTranspose2d:
            return nn.ConvTranspose2d(i, o, kernel_size=2, stride=2)

        self.stem = ResBlock2D(in_channels, widths[0])
        self.down1 = down(widths[0], widths[1])
        self.down2 = down(widths[1], widths[2])
        self.down3 = down(widths[2], widths[3])
        self.bottom = down(widths[3], widths[4])
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.up4 = up(widths[4], widths[3])
        self.dec4 = ResBlock2D(widths[4], widths[3])
        self.up3 = up(widths[3], widths[2])
        self.dec3 = ResBlock2D(widths[3], widths[2])
        self.up2 = up(widths[2], widths[1])
        self.dec2 = ResBlock2D(widths[2], widths[1])
        self.up1 = up(widths[1], widths[0])
        self.dec1 = ResBlock2D(widths[1], widths[0])
        self.final = nn.Conv2d(widths[0], 1, kernel_size=1)
        self.out_dim = widths[4]

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """The features of every level, the finest first."""
        s1 = self.stem(x)
        s2 = self.down1(s1)
        s3 = self.down2(s2)
        s4 = self.down3(s3)
        return s1, s2, s3, s4, self.bottom(s4)

    def pool(self, bottom: Tensor) -> Tensor:
        """The feature that the heads see."""
        return self.global_pool(bottom).flatten(1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s1, s2, s3, s4, bottom = self.encode(x)
        # Concatenation order is upsampled first, skip second: the published weights depend on it.
        y = self.dec4(torch.cat((self.up4(bottom), s4), dim=1))
        y = self.dec3(torch.cat((self.up3(y), s3), dim=1))
        y = self.dec2(torch.cat((self.up2(y), s2), dim=1))
        y = self.dec1(torch.cat((self.up1(y), s1), dim=1))
        return self.pool(bottom), self.final(y)


def head(in_features: int, out_features: int, dropout: float) -> nn.Sequential:
    """A head on the pooled feature; student and teacher have the same."""
    return nn.Sequential(
        nn.LayerNorm(in_features),
        nn.Linear(in_features, 256),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(256, out_features),
    )


class Student2p5D(nn.Module):
    """The characteriser: detection, eight concepts, malignancy through the concepts alone, and a 2D mask."""

    def __init__(self, n_slices: int = 7, n_concepts: int = 8, head_dropout: float = 0.1) -> None:
        super().__init__()
        self.cnn = UNet2D(n_slices)
        self.detection_head = head(self.cnn.out_dim, 2, head_dropout)
        self.concept_head = head(self.cnn.out_dim, n_concepts, 0.3)
        self.malignancy_head = nn.Linear(n_concepts, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        feature, segmentation = self.cnn(x)
        concepts = self.concept_head(feature)
        return {
            "detection": self.detection_head(feature),
            "concepts": concepts,
            "malignancy": self.malignancy_head(concepts),
            "segmentation": segmentation,
        }


class Detection2p5D(nn.Module):
    """The detection of a :class:`Student2p5D` alone, by its weights: about a third of its work."""

    def __init__(self, whole: Student2p5D) -> None:
        super().__init__()
        self.cnn = whole.cnn
        self.detection_head = whole.detection_head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"detection": self.detection_head(self.cnn.pool(self.cnn.encode(x)[-1]))}
