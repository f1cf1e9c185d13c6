"""bfloat16 training on a CPU: around a fault of its kernels.

On CPUs with AVX512-BF16 the gradient of a 3 x 3 x 3 convolution's weights is wrong where its input is two slices deep
(torch 2.13: memory that was never written is added to it, up to 1e37). Such a layer is the bottom of a window of 32
slices. Deeper and shallower inputs, 1 x 1 x 1 and transposed convolutions are right.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

FAULTY_DEPTH = 2


class SafeConv3d(nn.Conv3d):
    """A convolution that computes in float32 where the CPU's bfloat16 kernel is at fault."""

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Conv3d``."""
        if input.device.type != "cpu" or input.shape[2] != FAULTY_DEPTH:
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float())


def make_safe(network: nn.Module) -> nn.Module:
    """Turn the 3D convolutions of a network into safe ones, in place; keys and weights stay."""
    for layer in network.modules():
        if type(layer) is nn.Conv3d:
            layer.__class__ = SafeConv3d
    return network
