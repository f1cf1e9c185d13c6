"""Which windows of a volume stage 1 looks at, and how much each of their voxels counts.

Two ways to lay them: over the ``volume``, as published, at fixed steps with one more window flush with the far border;
or over the ``lungs``, anchored at the box of the search mask and spread evenly, no further apart than the stride. The
detector has instance norms, so what it says of a voxel depends on the window around it; `docs/performance.md` has what
that does to the findings. Voxels are indexed (slice, row, column).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement, groupby, product
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from pulmo_models.types import BoolArray

Start = tuple[int, int, int]

LARGEST_WEIGHT_RATIO = 16.0

MULTIPLE = 16
"""Every length of a window is one of it: the detector halves them four times."""

FARTHEST_FIT = 0.25
"""How far a fitted window may differ from that of the plan, as a share of each length."""

NEW_SIZE_VOXELS = 786_432
"""So many voxels could be computed in the time in which a size of window is compiled for (OpenVINO, two cores)."""

_CELL = 8  # rows and columns that are looked at together where only the number of windows matters


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """How windows are laid and blended; lengths in voxels along (slice, row, column).

    ``blend`` ``uniform`` is the mean over the windows that saw a voxel; ``centred`` counts a window the less the nearer
    the voxel lies to its border, where the network sees zeros instead of the patient.
    """

    window: tuple[int, int, int] = (64, 128, 128)
    stride: tuple[int, int, int] = (32, 64, 64)
    anchor: Literal["volume", "lungs"] = "volume"
    margin: tuple[int, int, int] = (0, 0, 0)  # around the lungs, where the volume has it
    blend: Literal["uniform", "centred"] = "uniform"
    last_depth: int = 0  # slices of the windows of the last layer, where there are several; 0: as of the others


Plan = TypeVar("Plan", bound=WindowPlan)


def lay_windows(shape: Sequence[int], plan: WindowPlan, search: BoolArray | None = None) -> list[Start]:
    """The first voxels of the windows in ascending order; with a search mask, of those alone that touch it.

    ``shape`` is at least as large as the window on every axis; a mask may be smaller. Without one the whole volume is
    the search region.
    """
    if plan.anchor == "volume":
        axes = zip(shape, plan.window, plan.stride, strict=True)
        slices, rows, columns = (_at_fixed_steps(size, length, stride) for size, length, stride in axes)
        found = product(slices, rows, columns)
        return [start for start in found if search is None or search[box_at(start, plan.window)].any()]
    if search is None:
        search = np.ones(shape, dtype=np.bool_)
    return _over_lungs(search, plan)


def depths_of(layers: int, plan: WindowPlan) -> list[int]:
    """How many slices the windows of each layer are deep."""
    depth = plan.window[0]
    return [depth] * (layers - 1) + [plan.last_depth or depth if layers > 1 else depth][:layers]


def sizes_of(starts: Sequence[Start], plan: WindowPlan) -> dict[tuple[int, int, int], int]:
    """How many windows of each size there are; of what :func:`lay_windows` gave for that plan."""
    layers = [len(list(layer)) for _, layer in groupby(starts, key=lambda start: start[0])]
    numbers: Counter[tuple[int, int, int]] = Counter()
    for number, depth in zip(layers, depths_of(len(layers), plan), strict=True):
        numbers[(depth, plan.window[1], plan.window[2])] += number
    return dict(numbers)


def fit_windows(plan: Plan, search: BoolArray) -> Plan:
    """The plan over the lungs with windows of another size, near its own, that cover them with the least computing.

    Neighbours overlap by as many voxels as in the plan. All windows have one size but for the depth of the last layer,
    since each size has to be compiled for.
    """
    coarse = _coarse(search)
    overlap = tuple(length - stride for length, stride in zip(plan.window, plan.stride, strict=True))
    best, least = plan, (math.inf, math.inf)
    near = [_near(length) for length in plan.window]
    for depth, last in combinations_with_replacement(reversed(near[0]), 2):
        layers = _layers(_any(coarse, (1, 2)), _resized(plan, (depth, *plan.window[1:]), overlap, last))
        if last < depth and len(layers) == 1:
            continue
        flat = [(_any(coarse[z : z + deep], 0), deep) for z, deep in layers]
        for height, width in product(*near[1:]):
            fitted = _resized(plan, (depth, height, width), overlap, last)
            cells = _in_cells(fitted)
            voxels = sum(len(_in_layer(layer, cells)) * deep for layer, deep in flat) * height * width
            voxels += NEW_SIZE_VOXELS * len({(deep, height, width) for _, deep in flat} - {plan.window})
            change = sum(abs(math.log(a / b)) for a, b in zip(fitted.window, plan.window, strict=True))
            if (voxels, change) < least:
                best, least = fitted, (voxels, change)
    return best


def box_at(start: Start, window: Sequence[int]) -> tuple[slice, slice, slice]:
    """The index of a window in its volume."""
    (z, y, x), (d, h, w) = start, window
    return slice(z, z + d), slice(y, y + h), slice(x, x + w)


def weights_of(plan: WindowPlan) -> npt.NDArray[np.float32] | None:
    """What each voxel of a window counts, float32 of the window's shape; None where all count the same."""
    if plan.blend == "uniform":
        return None
    ramps = []
    for length in plan.window:
        from_border = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
        ramps.append(np.clip(from_border / (length / 4), 1 / LARGEST_WEIGHT_RATIO, 1.0))
    depth, height, width = ramps
    weights: npt.NDArray[np.float32] = (depth[:, None, None] * height[:, None] * width).astype(np.float32)
    return weights


def _near(length: int) -> list[int]:
    reach = int(length * FARTHEST_FIT) // MULTIPLE * MULTIPLE
    return list(range(length - reach, length + reach + 1, MULTIPLE))


def _resized(plan: Plan, window: tuple[int, int, int], overlap: tuple[int, ...], last_depth: int) -> Plan:
    depth, height, width = (max(1, length - common) for length, common in zip(window, overlap, strict=True))
    last = 0 if last_depth == window[0] else last_depth
    return replace(plan, window=window, stride=(depth, height, width), last_depth=last)


def _in_cells(plan: Plan) -> Plan:
    """The same along rows and columns, in cells."""
    (depth, height, width), (stride, down, right), (margin, rows, columns) = plan.window, plan.stride, plan.margin
    return replace(
        plan,
        window=(depth, height // _CELL, width // _CELL),
        stride=(stride, max(1, down // _CELL), max(1, right // _CELL)),
        margin=(margin, -(-rows // _CELL), -(-columns // _CELL)),
    )


def _coarse(search: BoolArray) -> BoolArray:
    """A mask of cells of one slice and `_CELL` rows and columns; what is True in any of its voxels is True."""
    depth, height, width = search.shape
    rows, columns = (-(-size // _CELL) for size in (height, width))
    padded = np.zeros((depth, rows * _CELL, columns * _CELL), dtype=np.bool_)
    padded[:, :height, :width] = search
    return _any(padded.reshape(depth, rows, _CELL, columns, _CELL), (2, 4))


def _any(mask: BoolArray, axes: int | tuple[int, ...]) -> BoolArray:
    """What is True anywhere along some axes."""
    found: BoolArray = np.logical_or.reduce(mask, axis=axes)
    return found


def _at_fixed_steps(size: int, length: int, stride: int) -> list[int]:
    starts = list(range(0, size - length + 1, stride))
    if starts[-1] != size - length:
        starts.append(size - length)  # flush with the far border
    return starts


def _over_lungs(search: BoolArray, plan: WindowPlan) -> list[Start]:
    """Layer by layer and row by row, so that each row of windows is no wider than the lungs are there."""
    layers = _layers(_any(search, (1, 2)), plan)
    return [(z, y, x) for z, deep in layers for y, x in _in_layer(_any(search[z : z + deep], 0), plan)]


def _layers(profile: npt.NDArray[np.bool_], plan: WindowPlan) -> list[tuple[int, int]]:
    """First slice and depth of each layer."""
    starts = _spread(profile, plan, 0)
    return list(zip(starts, depths_of(len(starts), plan), strict=True))


def _in_layer(layer: npt.NDArray[np.bool_], plan: WindowPlan) -> list[tuple[int, int]]:
    """First row and column of its windows."""
    rows = _spread(_any(layer, 1), plan, 1)
    return [(y, x) for y in rows for x in _spread(_any(layer[y : y + plan.window[1]], 0), plan, 2)]


def _spread(profile: npt.NDArray[np.bool_], plan: WindowPlan, axis: int) -> list[int]:
    """Windows along one axis over everything that is True, as few as the stride allows and evenly apart."""
    hits = np.flatnonzero(profile)
    if not hits.size:
        return []
    length, margin = plan.window[axis], plan.margin[axis]
    size = max(profile.size, length)
    low, high = max(0, int(hits[0]) - margin), min(size, int(hits[-1]) + 1 + margin)
    if high - low <= length:  # one window, the lungs in its middle as far as the border of the volume allows
        return [min(max(0, (low + high - length) // 2), size - length)]
    spare = high - low - (length if axis else plan.last_depth or length)
    steps = -(-spare // plan.stride[axis])
    return [low + round(step * spare / steps) for step in range(steps + 1)]
