"""Two regressors of the box around the lungs in an axial slice: ResNet-50 and EfficientNet-B0 of one channel.

Input ``(B, 1, H, W)`` float32, output ``(B, 4)``: four numbers, read as :mod:`pulmo_models.ct.lung_boxes` says. The
ResNet's head is the published one: 2048 to 1024, ReLU, dropout 0.2, to 4; keys ``fc.0.*`` and ``fc.3.*``; 25,604,036
parameters in 322 tensors. The EfficientNet, of which nothing was published, has the same head on 1280 features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from pulmo_models.nets.efficientnet import EfficientNetB0
from pulmo_models.nets.resnet import resnet50

HIDDEN = 1024
OUTPUTS = 4


def box_head(features: int) -> nn.Sequential:
    """Two linear layers; keys ``0`` and ``3``."""
    return nn.Sequential(
        nn.Linear(features, HIDDEN), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(HIDDEN, OUTPUTS)
    )


def lung_resnet50() -> nn.Module:
    """The published regressor."""
    return _steady(resnet50(box_head, in_channels=1))


def lung_efficientnet_b0() -> nn.Module:
    """The second member of the ensemble."""
    return _steady(EfficientNetB0(box_head, in_channels=1))


def _steady(network: nn.Module) -> nn.Module:
    """Begin with small outputs: a sigmoid that is at its end from the start has no gradient to leave it by."""
    *_, first, last = (module for module in network.modules() if isinstance(module, nn.Linear))
    nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
    nn.init.normal_(last.weight, std=0.01)
    for layer in (first, last):
        nn.init.zeros_(layer.bias)
    return network


ARCHITECTURES: Mapping[str, Callable[[], nn.Module]] = {
    "resnet50": lung_resnet50,
    "efficientnet_b0": lung_efficientnet_b0,
}
