"""An engine of TensorRT in the place of the RetinaNet, as the bundle exports one: TorchScript with the engine inside.

It takes one window of 512 x 512 x 192 voxels and gives six maps, logits before codes.
Errors: :class:`DeviceUnavailable`, :class:`WeightsMissing`, one sentence that says what is missing.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import Tensor, nn

from pulmo_models.errors import DeviceUnavailable, WeightsMissing
from pulmo_models.nets.retinanet3d import LEVELS

PACKAGE = "torch_tensorrt"


class Engine(nn.Module):
    """A network that gives its maps as a list, as one that names them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The six maps by name."""
        names = [f"{kind}_{level}" for kind in ("logits", "codes") for level in range(LEVELS)]
        return dict(zip(names, self.network(x), strict=True))


def load_engine(path: str, device: torch.device) -> Engine:
    """The engine of a file, on a CUDA device.

    Raises:
        DeviceUnavailable: there is no CUDA device, or no TensorRT for torch.
        WeightsMissing: there is no such file, or it is none.
    """
    if device.type != "cuda":
        raise DeviceUnavailable(
            f'tensorrt = "{path}" needs a CUDA device, and the analysis runs on the {device.type}; leave the key empty'
        )
    try:
        importlib.import_module(PACKAGE)
    except ImportError as exc:
        raise DeviceUnavailable(
            f'tensorrt = "{path}" needs the package {PACKAGE}, built for this torch: pip install torch-tensorrt'
        ) from exc
    if not Path(path).is_file():
        raise WeightsMissing(f"the TensorRT engine {path} does not exist; docs/pipelines.md tells how one is made")
    try:
        return Engine(torch.jit.load(path, map_location=device))
    except RuntimeError as exc:
        reason = str(exc).splitlines()[0]
        raise WeightsMissing(f"{path} is no TensorRT engine that this torch can run: {reason}") from exc
