"""Where a network runs, and what happens when memory runs out.

A :class:`Runner` takes a batch on the CPU and gives float32 results on the CPU. When the device runs out of memory it
halves the batch, then moves to the CPU and says so in ``cautions``; only then does it raise.

Errors: :class:`DeviceUnavailable`, :class:`DeviceOutOfMemory`.
"""

from __future__ import annotations

import contextlib
from typing import Literal

import torch
from torch import Tensor, nn

from pulmo_models.codes import CautionCode
from pulmo_models.errors import DeviceOutOfMemory, DeviceUnavailable
from pulmo_models.types import Caution

Precision = Literal["auto", "fp32", "bf16"]
"""``auto``: bfloat16 autocast, as published, where the device computes in it natively, otherwise float32.

On a CPU with AVX512-BF16 it is about three times as fast; in one window of a real CT, with an earlier state of the
shipped detector, the largest difference of the heat map was 0.007.
"""


def resolve_device(device: str) -> torch.device:
    """The torch device of ``auto``, ``cuda`` or ``cpu``; ``auto`` is CUDA where there is a usable one.

    Raises:
        DeviceUnavailable: ``cuda`` without a usable CUDA device.
        ValueError: another name.
    """
    if device not in ("auto", "cuda", "cpu"):
        raise ValueError(f'device must be "auto", "cuda" or "cpu", not {device!r}')
    available = device != "cpu" and torch.cuda.is_available()
    if device == "cuda" and not available:
        raise DeviceUnavailable('device = "cuda", but torch finds no usable CUDA device; use "auto" or "cpu"')
    return torch.device("cuda" if available else "cpu")


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device is made for bfloat16; every CUDA device of the last years is."""
    if device.type != "cpu":
        return device.type == "cuda"
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


class Runner:
    """One network on one device for the length of one analysis."""

    def __init__(self, network: nn.Module, device: torch.device, precision: Precision = "auto") -> None:
        self._network = network
        self._precision = precision
        self._limit: int | None = None  # largest batch that fitted, once one did not
        self.device = device
        self.cautions: list[Caution] = []

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        """Run the network on ``batch`` (first axis: items).

        A network that returns one tensor gives ``{"output": tensor}``.

        Raises:
            DeviceOutOfMemory: one item alone does not fit into the memory of the CPU.
        """
        while True:
            size = min(len(batch), self._limit or len(batch))
            try:
                parts = [self._forward(part) for part in batch.split(size)]
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as exc:
                if not _is_out_of_memory(exc):
                    raise
                error = exc
            else:
                return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
            self._shrink(size, error)

    def _forward(self, batch: Tensor) -> dict[str, Tensor]:
        self._network.to(self.device)
        with torch.inference_mode(), self._arithmetic():
            output = self._network(batch.to(self.device))
        if isinstance(output, Tensor):
            output = {"output": output}
        return {key: value.float().cpu() for key, value in output.items()}

    def _arithmetic(self) -> contextlib.AbstractContextManager[object]:
        if self._precision == "fp32":  # else a GPU would convolve with the ten bits of TF32
            return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        use_bf16 = self._precision == "bf16" or (self._precision == "auto" and has_native_bf16(self.device))
        return torch.autocast(self.device.type, torch.bfloat16) if use_bf16 else contextlib.nullcontext()

    def _shrink(self, size: int, error: BaseException) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if size > 1:
            self._limit = size // 2
        elif self.device.type != "cpu":
            name = type(self._network).__name__
            sentence = f"{name} ran on the CPU: the memory of the {self.device.type} device was not enough."
            self.cautions.append(Caution(code=CautionCode.CPU_FALLBACK, sentence=sentence))
            self.device = torch.device("cpu")
            self._limit = None
        else:
            name = type(self._network).__name__
            raise DeviceOutOfMemory(f"{name} does not fit into memory, even one item at a time") from error


def _is_out_of_memory(error: BaseException) -> bool:
    """Torch's CPU allocator has no error class of its own, only this text."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error)
