"""Both networks on a CPU by OpenVINO, several times as fast as torch, in fp32 and in bf16 (docs/performance.md).

`openvino` is imported when an engine is made and not before. Errors: :class:`DeviceUnavailable` without the package,
:class:`DeviceOutOfMemory`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any, Literal

import torch
from torch import Tensor

from pulmo_models.ct.openvino_graphs import OUTPUTS, detection_graph, stage1_graph, stage2_graph
from pulmo_models.errors import DeviceOutOfMemory, DeviceUnavailable
from pulmo_models.nets.heatmap_unet3d import HeatmapUNet3D
from pulmo_models.nets.student2p5d import Detection2p5D, Student2p5D
from pulmo_models.types import Caution

Drawn = HeatmapUNet3D | Student2p5D | Detection2p5D
"""The networks that are written down as graphs."""

_KEPT_SHAPES = 3
_HINTS = {"fp32": "f32", "bf16": "bf16"}


def installed() -> bool:
    """Whether there is an `openvino` to import; does not import it."""
    return "openvino" in sys.modules or importlib.util.find_spec("openvino") is not None


class OpenVinoEngine:
    """One network on the CPU. Compiled for each shape of input; keep it for one analysis after another.

    What is compiled for a window takes up to 300 MB, so those used last are kept: windows are fitted to each pair of
    lungs, in two sizes at most, and those of the published protocol have a third.

    Raises:
        DeviceUnavailable: `openvino` is not installed or cannot be loaded.
    """

    name = "openvino"
    device = torch.device("cpu")

    def __init__(self, network: Drawn, precision: Literal["fp32", "bf16"], threads: int) -> None:
        self._openvino = _import()
        self._core = self._openvino.Core()
        self._network = network
        self._requests: dict[tuple[int, ...], Any] = {}
        self.precision = precision
        self.threads = threads
        self.cautions: list[Caution] = []

    def run(self, batch: Tensor) -> Tensor:
        """Logits ``(B, 1, D, H, W)`` of windows of that shape in 0..1, float32, one window after the other.

        Raises:
            DeviceOutOfMemory: one window does not fit into memory.
        """
        windows = [self._infer((1, *batch.shape[1:]), window[None])["output"] for window in batch]
        return torch.cat(windows)

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        """The outputs of a characteriser by name, float32, for the whole batch at once.

        Raises:
            DeviceOutOfMemory: the batch does not fit into memory.
        """
        return self._infer((-1, *batch.shape[1:]), batch)

    def _infer(self, shape: tuple[int, ...], batch: Tensor) -> dict[str, Tensor]:
        try:
            request = self._request(shape)
            request.infer([batch.contiguous().numpy()], share_inputs=True)
            names = OUTPUTS[type(self._network)]
            return {name: torch.from_numpy(request.get_output_tensor(i).data.copy()) for i, name in enumerate(names)}
        except (MemoryError, RuntimeError) as exc:
            if not isinstance(exc, MemoryError) and "alloc" not in str(exc):
                raise
            raise DeviceOutOfMemory(f"{type(self._network).__name__} does not fit into memory") from exc

    def _request(self, shape: tuple[int, ...]) -> Any:
        if shape in self._requests:
            self._requests[shape] = self._requests.pop(shape)
        else:
            while len(self._requests) >= _KEPT_SHAPES:
                del self._requests[next(iter(self._requests))]
            hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": self.threads}
            hints["INFERENCE_PRECISION_HINT"] = _HINTS[self.precision]
            self._requests[shape] = self._core.compile_model(self._graph(shape), "CPU", hints).create_infer_request()
        return self._requests[shape]

    def _graph(self, shape: tuple[int, ...]) -> Any:
        if isinstance(self._network, HeatmapUNet3D):
            return stage1_graph(self._openvino, self._network, shape)
        if isinstance(self._network, Student2p5D):
            return stage2_graph(self._openvino, self._network, shape)
        return detection_graph(self._openvino, self._network, shape)


def _import() -> Any:
    """The package, without the one by which it reports each import to its makers: a node in a hospital does not."""
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # so that its import fails
    try:
        return importlib.import_module("openvino")
    except ImportError as exc:
        raise DeviceUnavailable(f'engine = "openvino", but the package openvino cannot be loaded: {exc}') from exc
