"""Stage 1: where in a CT volume a nodule may be.

Input: HU at native spacing. Output: candidates with scores, best first. The protocol is the published one of Pulmo's
`HeatmapUNet3D`: overlapping windows of 64 x 128 x 128 voxels, uniform averaging, peaks of the heat map, suppression of
peaks closer than 6 mm. With a search mask, windows that do not touch it are skipped and peaks outside it are dropped;
that is the only departure, and inside the mask a window's result is the same. The pipeline's protocol ``published`` has
no search mask.

Errors: :class:`DeviceOutOfMemory`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from pulmo_models.device import Runner
from pulmo_models.types import BoolArray

FloatVolume = npt.NDArray[np.float32]
ShareCallback = Callable[[float], None]

AIR_HU = -1000.0


@dataclass(frozen=True, kw_only=True)
class CandidateSettings:
    """The published protocol; lengths in voxels are along (slice, row, column)."""

    window: tuple[int, int, int] = (64, 128, 128)
    stride: tuple[int, int, int] = (32, 64, 64)
    skip_below_mean_hu: float = -980.0
    peak_size: tuple[int, int, int] = (5, 9, 9)
    peak_threshold: float = 0.3
    cluster_mm: float = 6.0
    batch: int = 4


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A peak of the heat map."""

    index: tuple[int, int, int]  # (slice, row, column)
    score: float


def normalise(hu: FloatVolume) -> FloatVolume:
    """HU clipped to -1000..1000 and mapped to 0..1, as both networks were trained."""
    return (np.clip(hu, -1000.0, 1000.0) + np.float32(1000.0)) / np.float32(2000.0)


def find_candidates(
    hu: FloatVolume,
    spacing_mm: tuple[float, float, float],
    runner: Runner,
    settings: CandidateSettings,
    search: BoolArray | None = None,
    progress: ShareCallback = lambda share: None,
) -> list[Candidate]:
    """The candidates of a volume, highest score first.

    ``runner`` wraps the detector: ``(B, 1, *window)`` float32 in 0..1 to logits of that shape.

    Raises:
        DeviceOutOfMemory: from the runner.
    """
    heat = heatmap(hu, runner, settings, search, progress)
    return pick_peaks(heat, spacing_mm, settings, search)


def heatmap(
    hu: FloatVolume,
    runner: Runner,
    settings: CandidateSettings,
    search: BoolArray | None = None,
    progress: ShareCallback = lambda share: None,
) -> FloatVolume:
    """Probability that a voxel is the centre of a nodule: the mean over the windows that saw it, 0 where none did."""
    shape = hu.shape
    padding = [(0, max(0, size - have)) for size, have in zip(settings.window, shape, strict=True)]
    if any(after for _, after in padding):
        hu = np.pad(hu, padding, constant_values=AIR_HU)
        search = None if search is None else np.pad(search, padding)
    total = np.zeros(hu.shape, dtype=np.float32)
    count = np.zeros(hu.shape, dtype=np.uint8)
    windows = [w for w in _windows(hu.shape, settings) if _worth_a_look(hu[w], search, w, settings)]
    for start in range(0, len(windows), settings.batch):
        chunk = windows[start : start + settings.batch]
        stack = torch.from_numpy(np.stack([normalise(hu[w]) for w in chunk])[:, None])
        probability = torch.sigmoid(runner(stack)["output"]).numpy()
        for window, values in zip(chunk, probability[:, 0], strict=True):
            total[window] += values
            count[window] += 1
        progress((start + len(chunk)) / len(windows))
    np.divide(total, count, out=total, where=count > 0)
    return total[tuple(slice(0, size) for size in shape)]


def pick_peaks(
    heat: FloatVolume,
    spacing_mm: tuple[float, float, float],
    settings: CandidateSettings,
    search: BoolArray | None = None,
) -> list[Candidate]:
    """Local maxima of a heat map from the threshold up, greedily thinned by distance, highest score first."""
    indices = _peak_indices(heat, settings)
    if search is not None:
        indices = indices[search[tuple(indices.T)]]
    scores = heat[tuple(indices.T)]
    indices = indices[np.argsort(-scores, kind="stable")]
    kept = indices[_first_of_each_cluster(indices * np.asarray(spacing_mm), settings.cluster_mm)]
    return [Candidate(index=(int(z), int(y), int(x)), score=float(heat[z, y, x])) for z, y, x in kept]


def _first_of_each_cluster(points_mm: npt.NDArray[np.float64], cluster_mm: float) -> list[int]:
    """Indices of the points that no earlier kept point lies closer to than ``cluster_mm``.

    Kept points are filed by cubes of that edge, since a plateau of the heat map is a very large number of peaks.
    """
    if cluster_mm <= 0:
        return list(range(len(points_mm)))
    filed: dict[tuple[int, ...], list[tuple[float, ...]]] = {}
    kept = []
    cubes = np.floor(points_mm / cluster_mm).astype(np.int64).tolist()
    for i, (point, (u, v, w)) in enumerate(zip(points_mm.tolist(), cubes, strict=True)):
        around = product((u - 1, u, u + 1), (v - 1, v, v + 1), (w - 1, w, w + 1))
        if all(math.dist(point, other) >= cluster_mm for cube in around for other in filed.get(cube, ())):
            kept.append(i)
            filed.setdefault((u, v, w), []).append(tuple(point))
    return kept


def _peak_indices(heat: FloatVolume, settings: CandidateSettings) -> npt.NDArray[np.int64]:
    """Voxels from the threshold up that equal the maximum of their neighbourhood, as rows (slice, row, column).

    Only the box around the voxels above the threshold is filtered, which changes nothing: what lies outside the box is
    smaller than the threshold.
    """
    above = (heat >= settings.peak_threshold) & (heat > 0)
    if not above.any():
        return np.empty((0, 3), dtype=np.int64)
    box = []
    for axis in range(3):
        hits = np.flatnonzero(above.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
    part = torch.from_numpy(np.ascontiguousarray(heat[tuple(box)]))[None, None]
    for axis, size in enumerate(settings.peak_size):  # a box maximum is a maximum along each axis in turn
        kernel = [1, 1, 1]
        kernel[axis] = size
        part = functional.max_pool3d(part, kernel, stride=1, padding=[k // 2 for k in kernel])
    peaks = (heat[tuple(box)] == part[0, 0].numpy()) & above[tuple(box)]
    return np.argwhere(peaks) + np.array([b.start for b in box])


def _windows(shape: Sequence[int], settings: CandidateSettings) -> Iterator[tuple[slice, slice, slice]]:
    starts = []
    for size, length, stride in zip(shape, settings.window, settings.stride, strict=True):
        axis = list(range(0, size - length + 1, stride))
        if axis[-1] != size - length:
            axis.append(size - length)  # flush with the far border
        starts.append(axis)
    for z, y, x in product(*starts):
        d, h, w = settings.window
        yield slice(z, z + d), slice(y, y + h), slice(x, x + w)


def _worth_a_look(
    hu: FloatVolume, search: BoolArray | None, window: tuple[slice, slice, slice], settings: CandidateSettings
) -> bool:
    if search is not None and not search[window].any():
        return False
    # The published mean is taken after clipping, so that padding of -3024 counts as air.
    return float(np.clip(hu, -1000.0, 1000.0).mean(dtype=np.float64)) >= settings.skip_below_mean_hu
