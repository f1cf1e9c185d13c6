"""Stage 1: a 3D U-Net that draws a heat map of nodule centres.

Input ``(B, 1, D, H, W)`` float32 in [0, 1] (HU clipped to [-1000, 1000], plus 1000, over 2000), each of D, H, W
divisible by 16; output ``(B, 1, D, H, W)`` logits. The published network sees windows of 64 x 128 x 128 voxels at
native spacing. 5,643,441 parameters in 28 tensors; the instance norms carry none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvBlock3D(nn.Module):
    """Two (3x3x3 convolution, instance norm, leaky ReLU) in a row."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.c1 = nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.n1 = nn.InstanceNorm3d(out_channels)
        self.c2 = nn.Conv3d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.n2 = nn.InstanceNorm3d(out_channels)
        self.a = nn.LeakyReLU(0.1, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.n1(self.c1(x)))
        return self.a(self.n2(self.c2(x)))


class HeatmapUNet3D(nn.Module):
    """Four-level 3D U-Net with one output channel: the logit that a voxel is the centre of a nodule."""

    def __init__(self, base: int = 16) -> None:
        super().__init__()
        self.e1 = ConvBlock3D(1, base)
        self.e2 = ConvBlock3D(base, 2 * base)
        self.e3 = ConvBlock3D(2 * base, 4 * base)
        self.e4 = ConvBlock3D(4 * base, 8 * base)
        self.pool = nn.MaxPool3d(2)
        self.bott = ConvBlock3D(8 * base, 16 * base)
        self.u4 = nn.ConvTranspose3d(16 * base, 8 * base, kernel_size=2, stride=2)
        self.d4 = ConvBlock3D(16 * base, 8 * base)
        self.u3 = nn.ConvTranspose3d(8 * base, 4 * base, kernel_size=2, stride=2)
        self.d3 = ConvBlock3D(8 * base, 4 * base)
        self.u2 = nn.ConvTranspose3d(4 * base, 2 * base, kernel_size=2, stride=2)
        self.d2 = ConvBlock3D(4 * base, 2 * base)
        self.u1 = nn.ConvTranspose3d(2 * base, base, kernel_size=2, stride=2)
        self.d1 = ConvBlock3D(2 * base, base)
        self.out = nn.Conv3d(base, 1, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        e1 = self.e1(x)
        e2 = self.e2(self.pool(e1))
        e3 = self.e3(self.pool(e2))
        e4 = self.e4(self.pool(e3))
        x = self.bott(self.pool(e4))
        # Concatenation order is upsampled first, encoder second: the published weights depend on it.
        x = self.d4(torch.cat((self.u4(x), e4), dim=1))
        x = self.d3(torch.cat((self.u3(x), e3), dim=1))
        x = self.d2(torch.cat((self.u2(x), e2), dim=1))
        x = self.d1(torch.cat((self.u1(x), e1), dim=1))
        # Half as many bits leave a few hundred different logits, and every peak of the heat map would be a plateau.
        with torch.autocast(x.device.type, enabled=False):
            return self.out(x.to(self.out.weight.dtype))
