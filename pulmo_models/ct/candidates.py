"""Stage 1: where in a CT volume a nodule may be.

Input: HU at native spacing. Output: candidates with scores, best first. The protocol is the published one of Pulmo's
`HeatmapUNet3D`: overlapping windows of 64 x 128 x 128 voxels, averaging, peaks of the heat map, suppression of peaks
closer than 6 mm. With a search mask, windows that do not touch it are skipped and peaks outside it are dropped. How the
windows are laid and blended is a :class:`WindowPlan`; its defaults are the published way, with which the result inside
a search mask is the same as without one. The pipeline's protocol ``published`` has no search mask.

Errors: :class:`DeviceOutOfMemory`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pulmo_models.ct.engine import Engine
from pulmo_models.ct.heat import AIR_HU, FloatVolume, ShareCallback, heat_slabs, normalise
from pulmo_models.ct.windows import Start, WindowPlan, lay_windows
from pulmo_models.geometry import crop
from pulmo_models.types import BoolArray

__all__ = [
    "AIR_HU",
    "Candidate",
    "CandidateSettings",
    "find_candidates",
    "heatmap",
    "normalise",
    "pick_peaks",
    "windows_of",
]


AT_ONCE = 2048  # voxels whose neighbourhoods are gathered together: 20 MB


@dataclass(frozen=True, kw_only=True)
class CandidateSettings(WindowPlan):
    """The published protocol; lengths in voxels are along (slice, row, column)."""

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


def find_candidates(
    hu: FloatVolume,
    spacing_mm: tuple[float, float, float],
    engine: Engine,
    settings: CandidateSettings,
    search: BoolArray | None = None,
    progress: ShareCallback = lambda share: None,
    windows: list[Start] | None = None,
) -> list[Candidate]:
    """The candidates of a volume, highest score first.

    ``engine`` runs the detector: ``(B, 1, *window)`` float32 in 0..1 to logits of that shape. The heat map is never
    held as a whole. ``windows`` are those of :func:`windows_of`, where the caller has them already.

    Raises:
        DeviceOutOfMemory: from the engine.
    """
    starts = windows_of(hu, settings, search) if windows is None else windows
    slabs = heat_slabs(hu, engine, settings, starts, settings.batch, progress)
    return _thinned(_peaks(slabs, hu.shape[0], settings), spacing_mm, settings, search)


def heatmap(
    hu: FloatVolume,
    engine: Engine,
    settings: CandidateSettings,
    search: BoolArray | None = None,
    progress: ShareCallback = lambda share: None,
) -> FloatVolume:
    """Probability that a voxel is the centre of a nodule: the mean over the windows that saw it, 0 where none did."""
    starts = windows_of(hu, settings, search)
    slabs = heat_slabs(hu, engine, settings, starts, settings.batch, progress)
    return torch.cat([slab.cpu() for slab in slabs]).numpy()


def windows_of(hu: FloatVolume, settings: CandidateSettings, search: BoolArray | None = None) -> list[Start]:
    """The first voxels of the windows that are computed, in ascending order; windows of air are not.

    A window that was laid for what it holds of the lungs is not air.
    """
    shape = [max(size, have) for size, have in zip(settings.window, hu.shape, strict=True)]
    starts = lay_windows(shape, settings, search)
    if settings.anchor == "lungs":
        return starts
    return [start for start in starts if _mean_hu(hu, start, settings) >= settings.skip_below_mean_hu]


def pick_peaks(
    heat: FloatVolume,
    spacing_mm: tuple[float, float, float],
    settings: CandidateSettings,
    search: BoolArray | None = None,
) -> list[Candidate]:
    """Local maxima of a heat map from the threshold up, greedily thinned by distance, highest score first."""
    peaks = _peaks([torch.from_numpy(np.ascontiguousarray(heat))], heat.shape[0], settings)
    return _thinned(peaks, spacing_mm, settings, search)


def _thinned(
    peaks: tuple[npt.NDArray[np.int64], FloatVolume],
    spacing_mm: tuple[float, float, float],
    settings: CandidateSettings,
    search: BoolArray | None,
) -> list[Candidate]:
    indices, scores = peaks
    if search is not None:
        inside = search[tuple(indices.T)]
        indices, scores = indices[inside], scores[inside]
    order = np.argsort(-scores, kind="stable")
    indices, scores = indices[order], scores[order]
    kept = _first_of_each_cluster(indices * np.asarray(spacing_mm), settings.cluster_mm)
    return [
        Candidate(index=(int(z), int(y), int(x)), score=float(score))
        for (z, y, x), score in zip(indices[kept], scores[kept], strict=True)
    ]


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


def _peaks(
    slabs: Iterable[Tensor], depth: int, settings: CandidateSettings
) -> tuple[npt.NDArray[np.int64], FloatVolume]:
    """Peaks as rows (slice, row, column) in ascending order, and their values, of a heat map that comes in pieces.

    A slice is decided once the slices that its maxima reach to have come; those and no more are kept.
    """
    reach = settings.peak_size[0] // 2
    found: list[Tensor] = [torch.empty((0, 3), dtype=torch.int64)]
    values: list[Tensor] = [torch.empty(0)]
    held: Tensor | None = None
    first = decided = 0  # the first slice that is held; the first that is not decided
    for slab in slabs:
        held = slab if held is None else torch.cat((held, slab))
        end = first + len(held)
        stop = depth if end == depth else max(decided, end - reach)
        peaks = _peak_indices(held, settings)
        peaks = peaks[(peaks[:, 0] >= decided - first) & (peaks[:, 0] < stop - first)]
        values.append(held[tuple(peaks.T)].cpu())
        found.append(peaks.cpu() + torch.tensor([first, 0, 0]))
        keep = max(first, stop - reach)
        held, first, decided = held[keep - first :], keep, stop
    return torch.cat(found).numpy(), torch.cat(values).numpy()


def _peak_indices(heat: Tensor, settings: CandidateSettings) -> Tensor:
    """Voxels from the threshold up that equal the maximum of their neighbourhood, as rows (slice, row, column).

    Computed where ``heat`` lies. Only the box around the voxels above the threshold is looked at, which changes
    nothing: what lies outside the box is smaller than the threshold.
    """
    above = (heat >= settings.peak_threshold) & (heat > 0)
    box = []
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        hits = torch.nonzero(above.any(dim=others[1]).any(dim=others[0]))
        if not len(hits):
            return torch.empty((0, 3), dtype=torch.int64, device=heat.device)
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
    part, candidates = heat[tuple(box)], torch.nonzero(above[tuple(box)])
    if len(candidates) * math.prod(settings.peak_size) < part.numel():  # as in every real heat map
        peaks = candidates[_are_highest(part, candidates, settings)]
    else:
        peaks = torch.nonzero((part == _highest_around(part, settings)) & above[tuple(box)])
    return peaks + torch.tensor([b.start for b in box], device=heat.device)


def _are_highest(heat: Tensor, places: Tensor, settings: CandidateSettings) -> Tensor:
    """Of a few voxels, which equal the maximum of their neighbourhood."""
    reaches = [torch.arange(size, device=heat.device) - size // 2 for size in settings.peak_size]
    offsets = torch.cartesian_prod(*reaches)
    last = torch.tensor(heat.shape, device=heat.device) - 1
    answers = [torch.empty(0, dtype=torch.bool, device=heat.device)]
    for some in places.split(AT_ONCE):
        around = (some[:, None] + offsets).clamp(min=0).minimum(last)  # the border itself, where there is no more
        highest = heat[tuple(around.unbind(-1))].amax(dim=1)
        answers.append(heat[tuple(some.T)] == highest)
    return torch.cat(answers)


def _highest_around(heat: Tensor, settings: CandidateSettings) -> Tensor:
    """The maximum of the neighbourhood of every voxel; a box maximum is a maximum along each axis in turn."""
    highest = heat[None, None]
    for axis, size in enumerate(settings.peak_size):
        kernel = [1, 1, 1]
        kernel[axis] = size
        highest = functional.max_pool3d(highest, kernel, stride=1, padding=[k // 2 for k in kernel])
    return highest[0, 0]


def _mean_hu(hu: FloatVolume, start: Start, settings: CandidateSettings) -> float:
    # The published mean is taken after clipping, so that padding of -3024 counts as air.
    return float(np.clip(crop(hu, start, settings.window, AIR_HU), -1000.0, 1000.0).mean(dtype=np.float64))
