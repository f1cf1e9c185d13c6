"""Teacher of stage 2: the 3D counterpart of the student, with the same heads.

Input ``(B, 1, D, H, W)`` float32 in [0, 1], each of D, H, W divisible by 16, the candidate at index D // 2, H // 2,
W // 2; the published network sees 64 x 64 x 64 voxels at native spacing. Output, all linear: ``detection`` (B, 2),
``concepts`` (B, 8), ``malignancy`` (B, 2), ``segmentation`` (B, 1, D, H, W). 23,187,869 parameters in 51 tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pulmo_models.nets.student2p5d import head


class ResBlock3D(nn.Module):
    """Residual pair of 3x3x3 convolutions with instance norm; a 1x1x1 skip where the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm1 = nn.InstanceNorm3d(out_channels)
        self.act = nn.LeakyReLU(0.1, inplace=True)
        self.conv2 = nn.Conv3d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.InstanceNorm3d(out_channels)
        self.skip: nn.Module = (
            nn.Identity() if in_channels == out_channels else nn.Conv3d(in_channels, out_channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.act(y + self.skip(x))


class UNet3D(nn.Module):
    """Encoder and decoder of the teacher; returns the pooled bottom feature and the mask logits."""

    def __init__(self, in_channels: int = 1, base: int = 32) -> None:
        super().__init__()
        widths = [base * 2**level for level in range(5)]

        def down(i: int, o: int) -> nn.Sequential:
            return nn.Sequential(nn.MaxPool3d(2), ResBlock3D(i, o))

        def up(i: int, o: int) -> nn.ConvTranspose3d:
            return nn.ConvTranspose3d(i, o, kernel_size=2, stride=2)

        self.stem = ResBlock3D(in_channels, widths[0])
        self.down1 = down(widths[0], widths[1])
        self.down2 = down(widths[1], widths[2])
        self.down3 = down(widths[2], widths[3])
        self.bottom = down(widths[3], widths[4])
        self.global_pool = nn.AdaptiveAvgPool3d(1)
        self.up4 = up(widths[4], widths[3])
        self.dec4 = ResBlock3D(widths[4], widths[3])
        self.up3 = up(widths[3], widths[2])
        self.dec3 = ResBlock3D(widths[3], widths[2])
        self.up2 = up(widths[2], widths[1])
        self.dec2 = ResBlock3D(widths[2], widths[1])
        self.up1 = up(widths[1], widths[0])
        self.dec1 = ResBlock3D(widths[1], widths[0])
        self.final = nn.Conv3d(widths[0], 1, kernel_size=1)
        self.out_dim = widths[4]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s1 = self.stem(x)
        s2 = self.down1(s1)
        s3 = self.down2(s2)
        s4 = self.down3(s3)
        bottom = self.bottom(s4)
        feature = self.global_pool(bottom).flatten(1)
        # Concatenation order is upsampled first, skip second, as in the student.
        y = self.dec4(torch.cat((self.up4(bottom), s4), dim=1))
        y = self.dec3(torch.cat((self.up3(y), s3), dim=1))
        y = self.dec2(torch.cat((self.up2(y), s2), dim=1))
        y = self.dec1(torch.cat((self.up1(y), s1), dim=1))
        return feature, self.final(y)


class HybridMultiTaskCBM(nn.Module):
    """The published teacher: detection, eight concepts, malignancy through the concepts alone, and a 3D mask."""

    def __init__(self, n_concepts: int = 8, head_dropout: float = 0.1) -> None:
        super().__init__()
        self.cnn = UNet3D()
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
