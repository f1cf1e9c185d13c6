"""Cuts a piece of a host at a chosen spacing, and varies it as another scanner would."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pulmo_models.training.material.hosts import Host
from pulmo_models.training.material.insertion import host_noise, slice_weights

AIR_HU = -1000
_CUBIC = -0.5  # Catmull and Rom's
_AVERAGE_FROM = 1.2  # times the host's spacing: from there on voxels are means over their size


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """A part of a host on a grid of its own, (slices, rows, columns)."""

    hu: npt.NDArray[np.float32]
    lung: npt.NDArray[np.bool_]
    spacing_mm: npt.NDArray[np.float64]
    around: npt.NDArray[np.float64]  # index of the host that is at size // 2 of the piece
    step: npt.NDArray[np.float64]  # voxels of the host per voxel

    def index_of(self, host_index: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """An index of the host as index of the piece; it may lie outside."""
        middle = np.array(self.hu.shape) // 2
        return np.asarray((np.asarray(host_index, dtype=np.float64) - self.around) / self.step + middle)

    def contains(self, index: npt.ArrayLike) -> bool:
        """Whether an index of the piece is one of its voxels."""
        rounded = np.round(np.asarray(index, dtype=np.float64))
        return bool((rounded >= 0).all() and (rounded < self.hu.shape).all())


def cut(host: Host, shape: tuple[int, int, int], spacing_mm: npt.ArrayLike, around: npt.ArrayLike) -> Piece:
    """The part of a host with its index `around` at size // 2 of each axis; beyond the host is air.

    At the host's own spacing, with a whole index, voxels are those of the host.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    place = np.asarray(around, dtype=np.float64)
    step = spacing / host.spacing_mm
    positions = [place[a] + (np.arange(shape[a]) - shape[a] // 2) * step[a] for a in range(3)]
    reach = np.ceil(np.maximum(step, 1)).astype(int) + 1
    low = [int(np.floor(positions[a][0])) - int(reach[a]) for a in range(3)]
    high = [int(np.ceil(positions[a][-1])) + int(reach[a]) + 1 for a in range(3)]
    hu = _padded(host.hu, low, high).astype(np.float32)
    for axis in range(3):
        local = positions[axis] - low[axis]
        if step[axis] == 1 and np.array_equal(local, np.round(local)):
            hu = np.take(hu, local.astype(int), axis=axis)
        else:
            weights = _weights(hu.shape[axis], local, float(step[axis]), cubic=axis > 0).astype(np.float32)
            hu = np.moveaxis(np.tensordot(weights, hu, (1, axis)), 0, axis)
    nearest = [np.round(positions[a]).astype(int) - low[a] for a in range(3)]
    lung = _padded(host.lung, low, high)[np.ix_(*nearest)]
    return Piece(hu=np.ascontiguousarray(hu), lung=lung, spacing_mm=spacing, around=place, step=step)


def _padded(values: npt.NDArray[Any], low: list[int], high: list[int]) -> npt.NDArray[Any]:
    box = tuple(slice(min(max(0, a), n), max(0, min(b, n))) for a, b, n in zip(low, high, values.shape, strict=True))
    padding = [(min(max(0, -a), b - a), max(0, b - max(a, n))) for a, b, n in zip(low, high, values.shape, strict=True)]
    if not any(before or after for before, after in padding):
        return values[box]
    return np.pad(values[box], padding, constant_values=AIR_HU if values.dtype != np.bool_ else False)


def _weights(count: int, positions: npt.NDArray[np.float64], step: float, cubic: bool) -> npt.NDArray[np.float64]:
    """(positions, count): means where the step is long, else cubic or linear interpolation."""
    if step >= _AVERAGE_FROM:
        return slice_weights(np.arange(count, dtype=np.float64), 1.0, positions, step)
    t = np.abs(positions[:, None] - np.arange(count)[None, :])
    if not cubic:
        return np.clip(1 - t, 0, None)
    a = _CUBIC
    near = ((a + 2) * t - (a + 3)) * t**2 + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.asarray(np.where(t <= 1, near, np.where(t < 2, far, 0.0)))


def scanner(random: np.random.Generator, hu: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Another kernel, another dose, another calibration; nothing of it half of the time."""
    if random.random() < 0.5:
        return hu
    kind = random.random()
    if kind < 0.35:
        hu = hu + float(random.uniform(0.2, 1.0)) * (hu - ndimage.gaussian_filter(hu, (0, 1, 1)))
    elif kind < 0.65:
        sigma = float(random.uniform(0.4, 0.8))
        hu = ndimage.gaussian_filter(hu, (0, sigma, sigma))
    if random.random() < 0.5:
        hu = hu + float(random.uniform(5, 30)) * host_noise(random, hu.shape)
    return (hu + float(random.uniform(-15, 15))).astype(np.float32)


def as_stored(hu: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int16]:
    """HU as a scanner stores them."""
    return np.asarray(np.rint(np.clip(hu, -1024, 3071)), dtype=np.int16)
