"""Where a network of torch runs, and what happens when memory runs out.

A :class:`Runner` takes a batch and gives float32 results: on the CPU when it is called, on its device from ``run``.
When the device runs out of memory it halves the batch, then moves to the CPU and says so in ``cautions``; only then
does it raise.

Errors: :class:`DeviceUnavailable`, :class:`DeviceOutOfMemory`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pulmo_models.codes import CautionCode
from pulmo_models.errors import DeviceOutOfMemory, DeviceUnavailable
from pulmo_models.types import Caution

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""``auto``: bfloat16 autocast, as published, where the device computes in it natively, otherwise float32."""

Arithmetic = Literal["fp32", "bf16", "fp16"]
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_AUTOCAST: dict[Arithmetic, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


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


def arithmetic_on(device: torch.device, precision: Precision) -> Arithmetic:
    """What ``auto`` means there; anything else is what was asked for."""
    if precision == "auto":
        return "bf16" if has_native_bf16(device) else "fp32"
    return precision


class Runner:
    """One network on one device for the length of one analysis."""

    name = "torch"

    def __init__(
        self, network: nn.Module, device: torch.device, precision: Precision = "auto", *, compiled: bool = False
    ) -> None:
        self._network = network
        self._asked = precision
        self._compiled = _compiled(network, device) if compiled else None
        if compiled:
            self.name = "compiled"
        self._limit: int | None = None  # largest batch that fitted, once one did not
        self.device = device
        self.cautions: list[Caution] = []

    @property
    def precision(self) -> Arithmetic:
        """In what it computes on the device where it is now."""
        return arithmetic_on(self.device, self._asked)

    def run(self, batch: Tensor) -> Tensor:
        """The output of a network that has one, as :meth:`__call__`, but where it was computed.

        Raises:
            DeviceOutOfMemory: one item alone does not fit into the memory of the CPU.
        """
        return self._in_parts(batch)["output"]

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        """Run the network on ``batch`` (first axis: items).

        A network that returns one tensor gives ``{"output": tensor}``.

        Raises:
            DeviceOutOfMemory: one item alone does not fit into the memory of the CPU.
        """
        return {key: value.cpu() for key, value in self._in_parts(batch).items()}

    def _in_parts(self, batch: Tensor) -> dict[str, Tensor]:
        while True:
            size = min(len(batch), self._limit or len(batch))
            try:
                parts = [self._forward(part) for part in batch.split(size)]
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as exc:
                if self._compiled is not None and _is_of_the_compiler(exc):
                    self._leave_compiled()
                    continue
                if not is_out_of_memory(exc):
                    raise
                error = exc.with_traceback(None)  # whose frames would keep what they had computed in memory
            else:
                return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
            self._shrink(size, error)

    def _forward(self, batch: Tensor) -> dict[str, Tensor]:
        network = self._placed()
        with torch.inference_mode(), self._arithmetic():
            output = network(batch.to(self.device))
        if isinstance(output, Tensor):
            output = {"output": output}
        # A CUDA graph writes its next output where its last one lies.
        own = self._compiled is not None
        return {key: value.float().clone() if own else value.float() for key, value in output.items()}

    def _placed(self) -> Callable[[Tensor], Any]:
        """The network where it is to run; on a GPU with its channels last, as tensor cores take them."""
        self._network.to(self.device)
        if self.device.type == "cuda":
            for parameter in self._network.parameters():
                if layout := _CHANNELS_LAST.get(parameter.dim()):
                    parameter.data = parameter.data.contiguous(memory_format=layout)
        return self._network if self._compiled is None else self._compiled

    def _arithmetic(self) -> contextlib.AbstractContextManager[object]:
        if self._asked == "fp32":  # else a GPU would convolve with the ten bits of TF32
            return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        dtype = _AUTOCAST.get(self.precision)
        return contextlib.nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def _leave_compiled(self) -> None:
        self._compiled, self.name = None, "torch"

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
            self._asked = "fp32" if self._asked == "fp32" else "auto"  # half precision was asked of the other device
            self._limit = None
            self._leave_compiled()
        else:
            name = type(self._network).__name__
            raise DeviceOutOfMemory(f"{name} does not fit into memory, even one item at a time") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Torch's CPU allocator has no error class of its own, only a text, which is another one on Linux."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(text in str(error) for text in _OUT_OF_MEMORY)


def _is_of_the_compiler(error: BaseException) -> bool:
    """Whether `torch.compile` itself failed: for want of a C++ compiler, say. The network runs without it."""
    from torch._dynamo.exc import TorchDynamoException  # noqa: PLC0415  # a second, where nothing is compiled

    return isinstance(error, TorchDynamoException)


def _compiled(network: nn.Module, device: torch.device) -> Callable[[Tensor], Any]:
    """The network by torch.compile: with CUDA graphs on a GPU. Compiled when it first runs, for each size of batch."""
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    return torch.compile(network, mode=mode, dynamic=False)
