"""The heat map of stage 1, made slab by slab on the device of the engine.

Windows are computed in ascending order of their first slice, so the slices above the lowest window that is still to
come are done: they are handed on and forgotten. Memory is that of one volume, one slab and a batch of windows, however
many slices there are. On a GPU the slices of the next windows are copied from pinned memory while it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pulmo_models.ct.engine import Engine
from pulmo_models.ct.windows import Start, WindowPlan, box_at, depths_of, weights_of
from pulmo_models.device import is_out_of_memory
from pulmo_models.geometry import crop

FloatVolume = npt.NDArray[np.float32]
ShareCallback = Callable[[float], None]

AIR_HU = -1000.0
STAGED_SLICES = 16  # of one copy to the GPU


def normalise(hu: FloatVolume) -> FloatVolume:
    """HU clipped to -1000..1000 and mapped to 0..1, as both networks were trained."""
    return (np.clip(hu, -1000.0, 1000.0) + np.float32(1000.0)) / np.float32(2000.0)


class HostWindows:
    """Windows cut from a volume in the memory of the CPU; what lies outside the volume is air."""

    def __init__(self, hu: FloatVolume, window: tuple[int, int, int]) -> None:
        self._hu = hu
        self._window = window

    def prepare(self, layer: int) -> None:
        """Nothing to do: everything is there."""

    def cut(self, starts: Sequence[Start], depth: int = 0) -> Tensor:
        """``(B, 1, *window)`` in 0..1; with a depth, so many slices of each."""
        window = (depth or self._window[0], *self._window[1:])
        return torch.from_numpy(np.stack([normalise(crop(self._hu, s, window, AIR_HU)) for s in starts])[:, None])


class StagedWindows:
    """Windows cut from a volume that is copied to a device piece by piece, through two pinned buffers in turn.

    While the device computes on the slices that it has, the next ones are copied on a stream of their own.
    """

    def __init__(self, hu: FloatVolume, window: tuple[int, int, int], device: torch.device) -> None:
        self._hu = hu
        self._window = window
        self._there = 0  # slices that were sent
        padded = [max(size, length) for size, length in zip(hu.shape, window, strict=True)]
        self._volume = torch.zeros(padded, dtype=torch.float32, device=device)  # 0 is air
        shape = (STAGED_SLICES, *hu.shape[1:])
        self._cuda = device.type == "cuda"
        self._buffers = [torch.empty(shape, dtype=torch.float32, pin_memory=self._cuda) for _ in range(2)]
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        self._copied: list[torch.cuda.Event | None] = [None, None]
        if self._stream is not None:  # the zeros must be written before the first copy
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def prepare(self, layer: int) -> None:
        """Send the slices of the windows that begin at that slice."""
        _, rows, columns = self._hu.shape
        while self._there < min(layer + self._window[0], len(self._hu)):
            turn, first = (self._there // STAGED_SLICES) % 2, self._there
            last = min(first + STAGED_SLICES, len(self._hu))
            if (copied := self._copied[turn]) is not None:
                copied.synchronize()  # or the buffer would be overwritten on its way
            piece = self._buffers[turn][: last - first]
            piece.copy_(torch.from_numpy(normalise(self._hu[first:last])))
            with self._on_stream():
                self._volume[first:last, :rows, :columns].copy_(piece, non_blocking=True)
                if self._stream is not None:
                    self._copied[turn] = self._stream.record_event()
            self._there = last

    def cut(self, starts: Sequence[Start], depth: int = 0) -> Tensor:
        """``(B, 1, *window)`` in 0..1 on the device, of layers that were prepared; with a depth, so many slices."""
        window = (depth or self._window[0], *self._window[1:])
        if self._cuda:
            for copied in self._copied:
                if copied is not None:
                    torch.cuda.current_stream(self._volume.device).wait_event(copied)
        return torch.stack([self._volume[box_at(start, window)] for start in starts])[:, None]

    def _on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def heat_slabs(
    hu: FloatVolume,
    engine: Engine,
    plan: WindowPlan,
    starts: Sequence[Start],
    batch: int,
    progress: ShareCallback,
) -> Iterator[Tensor]:
    """The heat map of a volume in pieces of whole slices, in order; float32, on the engine's device if it has room.

    A voxel is the weighted mean of the probabilities of the windows that saw it, 0 where none did. ``starts`` are in
    ascending order.

    Raises:
        DeviceOutOfMemory: from the engine.
    """
    depth, rows, columns = hu.shape
    padded = tuple(max(size, length) for size, length in zip(hu.shape[1:], plan.window[1:], strict=True))
    source = _source(hu, plan.window, engine.device)
    slab = _slab((plan.window[0], *padded), engine.device)
    layers = [(z, list(layer)) for z, layer in groupby(starts, key=lambda start: start[0])]
    depths = depths_of(len(layers), plan)
    first = done = 0
    if layers:
        source.prepare(layers[0][0])
    for number, (z, layer) in enumerate(layers):
        deep = depths[number]
        weights = weights_of(replace(plan, window=(deep, *plan.window[1:])))
        while first < z:
            piece = slab.finished(min(z - first, plan.window[0]))
            first += len(piece)
            yield piece[:, :rows, :columns]
        for at in range(0, len(layer), batch):
            chunk = layer[at : at + batch]
            probability = torch.sigmoid(engine.run(source.cut(chunk, deep)))
            if at == 0 and number + 1 < len(layers):  # a GPU is now at work
                source.prepare(layers[number + 1][0])
            slab.add(chunk, probability[:, 0], weights)
            done += len(chunk)
            progress(done / len(starts))
    while first < depth:
        piece = slab.finished(min(depth - first, plan.window[0]))
        first += len(piece)
        yield piece[:, :rows, :columns]


def _source(hu: FloatVolume, window: tuple[int, int, int], device: torch.device) -> HostWindows | StagedWindows:
    if device.type == "cpu":
        return HostWindows(hu, window)
    try:
        return StagedWindows(hu, window, device)
    except RuntimeError as exc:
        if not is_out_of_memory(exc):
            raise
        return HostWindows(hu, window)  # the engine then has no room for much either, and says so


def _slab(shape: tuple[int, ...], device: torch.device) -> _Slab:
    """On the device, or on the CPU where the device is full."""
    try:
        return _Slab(shape, device)
    except RuntimeError as exc:
        if device.type == "cpu" or not is_out_of_memory(exc):
            raise
        return _Slab(shape, torch.device("cpu"))


class _Slab:
    """Sums over as many slices as a window is deep; the first is the next to be finished."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self._total = torch.zeros(shape, dtype=torch.float32, device=device)
        self._weight = torch.zeros_like(self._total)

    def add(self, starts: Sequence[Start], values: Tensor, weights: npt.NDArray[np.float32] | None) -> None:
        """Windows whose first slice is the slab's first one, with what each of their voxels counts."""
        values = values.to(self._total.device)
        each = None if weights is None else torch.from_numpy(weights).to(values.device)
        for (_, y, x), heat in zip(starts, values, strict=True):
            box = box_at((0, y, x), heat.shape)
            self._total[box] += heat if each is None else heat * each
            self._weight[box] += 1.0 if each is None else each

    def finished(self, count: int) -> Tensor:
        """The means of that many slices, after which the slab begins behind them."""
        mean = self._total[:count] / self._weight[:count].clamp(min=1e-6)
        for sums in (self._total, self._weight):
            sums[: -count or None] = sums[count:].clone()
            sums[len(sums) - count :] = 0.0
        return mean
