"""What both stages compute with: torch, torch compiled, or OpenVINO, behind one interface, and how one is chosen.

``auto`` takes what measured best (docs/performance.md): on a CUDA device torch; on an x86-64 CPU OpenVINO where it is
installed, otherwise torch, and a sentence says so. The arithmetic of ``auto`` is bfloat16 where the processor has
instructions for it (AVX512-BF16 or AMX by `torch.cpu.get_capabilities`) and on CUDA devices, otherwise float32.

Errors: :class:`DeviceUnavailable` where what was asked for is not there.
"""

from __future__ import annotations

import math
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from pulmo_models.ct.device import Arithmetic, Precision, Runner, arithmetic_on
from pulmo_models.ct.openvino_engine import Drawn, OpenVinoEngine, installed
from pulmo_models.errors import DeviceUnavailable
from pulmo_models.types import Caution

EngineName = Literal["auto", "torch", "compiled", "openvino"]

_X86_64 = ("x86_64", "AMD64")
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class Engine(Protocol):
    """A network that is ready to run. :class:`Runner` and :class:`OpenVinoEngine` are such."""

    name: str
    device: torch.device  # where the logits are; may change to the CPU when a GPU's memory is not enough
    cautions: list[Caution]

    @property
    def precision(self) -> Arithmetic:
        """In what it computes."""
        ...

    def run(self, batch: Tensor) -> Tensor:
        """Of the detector: ``(B, 1, D, H, W)`` float32 in 0..1 to logits of that shape, float32, on ``device``.

        Raises:
            DeviceOutOfMemory: one window does not fit into memory.
        """
        ...

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        """Of the characteriser: ``(B, 7, 64, 64)`` float32 in 0..1 to its outputs by name, float32, on the CPU.

        Raises:
            DeviceOutOfMemory: a batch of one does not fit into memory.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """An engine by name, before it is made."""

    name: Literal["torch", "compiled", "openvino"]
    precision: Arithmetic
    reason: str = ""  # a sentence, where `auto` could not take what measured best

    def make(self, network: nn.Module, device: torch.device, threads: int) -> Engine:
        """The engine; ``threads`` is for the CPU.

        Raises:
            DeviceUnavailable: OpenVINO is there and cannot be loaded.
        """
        if self.name == "openvino" and self.precision != "fp16" and isinstance(network, Drawn):
            return OpenVinoEngine(network, self.precision, threads)
        return Runner(network, device, self.precision, compiled=self.name == "compiled")


def choose_engine(network: nn.Module, device: torch.device, name: EngineName, precision: Precision) -> EngineChoice:
    """What to take for a network on a device.

    Raises:
        DeviceUnavailable: OpenVINO was asked for and is not installed, or is not for this device or arithmetic.
    """
    arithmetic = arithmetic_on(device, precision)
    if name in ("torch", "compiled"):
        return EngineChoice(name=name, precision=arithmetic)
    fault = _not_by_openvino(network, device, arithmetic)
    if fault is None and (name == "openvino" or platform.machine() in _X86_64):
        return EngineChoice(name="openvino", precision=arithmetic)
    if name == "openvino":
        raise DeviceUnavailable(f'engine = "openvino", but {fault}; use "auto" or "torch"')
    reason = f"Computed by torch: {fault}." if fault and device.type == "cpu" else ""
    return EngineChoice(name="torch", precision=arithmetic, reason=reason)


def set_threads(asked: int = 0) -> int:
    """Set and tell how many threads compute on the CPU: as asked, or torch's own count within a container's quota."""
    threads = asked or min(torch.get_num_threads(), _quota())
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    return threads


def _quota() -> int:
    """Processors that the control group of a container leaves; torch and OpenVINO count those of the machine."""
    try:
        quota, period = _CPU_QUOTA.read_text(encoding="ascii").split()[:2]
    except (OSError, ValueError):
        return sys.maxsize
    return sys.maxsize if quota == "max" else max(1, math.ceil(int(quota) / int(period)))


def _not_by_openvino(network: nn.Module, device: torch.device, precision: Arithmetic) -> str | None:
    if device.type != "cpu":
        return f"OpenVINO is not for the {device.type} device"
    if precision == "fp16":
        return "OpenVINO does not compute in fp16 on a CPU"
    if not isinstance(network, Drawn):
        return f"{type(network).__name__} is no network that is written down for OpenVINO"
    return None if installed() else "the package openvino is not installed"
