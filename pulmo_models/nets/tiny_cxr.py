"""The small convolutional regressor of CXR-Lung-Risk.

Input ``(B, 3, 224, 224)`` float32, output ``(B, 1)``. Keys ``mdl.Conv0`` .. ``mdl.Conv3``, ``mdl.BN0`` .. ``mdl.BN3``,
``mdl.Linear1``, ``mdl.BN_Linear1``, ``mdl.Last_Linear``; 4,324,993 parameters in 37 tensors. The batch norm of the
linear layer follows its ReLU, not the other way round.
"""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)


class TinyCXR(nn.Module):
    """Four times convolution 5x5 without padding, batch norm, ReLU, maximum; then two linear layers."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.mdl = nn.Sequential()
        channels = 3
        for number, width in enumerate(WIDTHS):
            self.mdl.add_module(f"Conv{number}", nn.Conv2d(channels, width, kernel_size=5))
            self.mdl.add_module(f"BN{number}", nn.BatchNorm2d(width))
            self.mdl.add_module(f"ReLU{number}", nn.ReLU(inplace=True))
            self.mdl.add_module(f"MaxPool{number}", nn.MaxPool2d(kernel_size=3, stride=2))
            channels = width
        self.mdl.add_module("AvgPool", nn.AvgPool2d(kernel_size=9))
        self.mdl.add_module("Flatten", nn.Flatten())
        self.mdl.add_module("Linear1", nn.Linear(channels, 32))
        self.mdl.add_module("ReLU_Linear1", nn.ReLU(inplace=True))
        self.mdl.add_module("BN_Linear1", nn.BatchNorm1d(32))
        self.mdl.add_module("Dropout", nn.Dropout(0.25))
        self.mdl.add_module("Last_Linear", nn.Linear(32, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.mdl(x)
