"""The RetinaNet of a set of weights as ONNX, for an engine of TensorRT or another runtime.

Input ``image`` ``(1, 1, X, Y, Z)``, outputs ``output_0`` to ``output_5``: logits of the three levels, then box codes,
the names and order of the published export. The package `onnx` is needed and comes with the extra ``onnx``.
"""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path

import torch

from pulmo_models.checkpoints import load_network
from pulmo_models.ct.box_nodules import LABEL, NETWORK
from pulmo_models.errors import ModelError
from pulmo_models.nets.retinanet3d import DIVISIBLE_BY, LEVELS, ListOutput, RetinaNet3D
from pulmo_models.network_sets import load_networks

INPUT = "image"
OUTPUTS = tuple(f"output_{number}" for number in range(2 * LEVELS))
TRACED = (64, 64, 32)
OPSET = 17


class ExportImpossible(ModelError):
    """The network cannot be exported: what is missing, or which size it cannot have."""


def export_onnx(
    weights: str, out: Path, *, window: tuple[int, int, int] | None = None, folder: Path | None = None
) -> Path:
    """Write the detector of a set for :data:`LABEL` to ``out``.

    With ``window`` the input has that size (512, 512, 192 is the published one, and takes as much memory as a run of
    the network does); otherwise any size that the network can divide.

    Raises:
        WeightsMissing, WeightsCorrupt: of the set.
        ExportImpossible: the package `onnx` is missing, or the network cannot divide the window.
    """
    try:
        importlib.import_module("onnx")
    except ImportError as exc:
        raise ExportImpossible("an export needs the package onnx: pip install 'pulmo-node[onnx]'") from exc
    if window is not None and any(size % by for size, by in zip(window, DIVISIBLE_BY, strict=True)):
        raise ExportImpossible(f"a window must be divisible by {DIVISIBLE_BY}, which {window} is not")
    network = RetinaNet3D()
    load_network(load_networks(weights, LABEL, folder).networks[NETWORK], network)
    free = {name: {2: f"{name}_x", 3: f"{name}_y", 4: f"{name}_z"} for name in (INPUT, *OUTPUTS)}
    out.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracing, about the exporter that is used on purpose
        torch.onnx.export(
            ListOutput(network).eval(),
            (torch.zeros(1, 1, *(window or TRACED)),),
            str(out),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_axes=None if window else free,
            opset_version=OPSET,
            dynamo=False,  # by tracing, as the bundle does it; the other exporter needs a further package
        )
    return out
