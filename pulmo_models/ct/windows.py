"""Which windows of a volume stage 1 looks at, and how much each of their voxels counts.

Two ways to lay them: over the ``volume``, as published, at fixed steps with one more window flush with the far border;
or over the ``lungs``, anchored at the box of the search mask and spread evenly, no further apart than the stride. The
detector has instance norms, so what it says of a voxel depends on the window around it; `docs/performance.md` has what
that does to the findings. Voxels are indexed (slice, row, column).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import numpy.typing as npt

from pulmo_models.types import BoolArray

Start = tuple[int, int, int]

LARGEST_WEIGHT_RATIO = 16.0


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


def lay_windows(shape: Sequence[int], plan: WindowPlan, search: BoolArray | None = None) -> list[Start]:
    """The first voxels of the windows in ascending order; with a search mask, of those alone that touch it.

    ``shape`` is at least as large as the window on every axis; a mask may be smaller. Without one the whole volume is
    the search region.
    """
    if plan.anchor == "volume":
        axes = zip(shape, plan.window, plan.stride, strict=True)
        found = list(product(*(_at_fixed_steps(size, length, stride) for size, length, stride in axes)))
        return [start for start in found if search is None or search[box_at(start, plan.window)].any()]
    if search is None:
        search = np.ones(shape, dtype=np.bool_)
    return _over_lungs(search, plan)


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


def _at_fixed_steps(size: int, length: int, stride: int) -> list[int]:
    starts = list(range(0, size - length + 1, stride))
    if starts[-1] != size - length:
        starts.append(size - length)  # flush with the far border
    return starts


def _over_lungs(search: BoolArray, plan: WindowPlan) -> list[Start]:
    """Layer by layer and row by row, so that each row of windows is no wider than the lungs are there."""
    (d, h, _), found = plan.window, []
    for z in _spread(search.any(axis=(1, 2)), plan, 0):
        layer = search[z : z + d].any(axis=0)
        for y in _spread(layer.any(axis=1), plan, 1):
            for x in _spread(layer[y : y + h].any(axis=0), plan, 2):
                found.append((z, y, x))
    return found


def _spread(profile: npt.NDArray[np.bool_], plan: WindowPlan, axis: int) -> list[int]:
    """Windows along one axis over everything that is True, as few as the stride allows and evenly apart."""
    hits = np.flatnonzero(profile)
    if not hits.size:
        return []
    length, margin = plan.window[axis], plan.margin[axis]
    size = max(profile.size, length)
    low, high = max(0, int(hits[0]) - margin), min(size, int(hits[-1]) + 1 + margin)
    spare = high - low - length
    if spare <= 0:  # one window, the lungs in its middle as far as the border of the volume allows
        return [min(max(0, (low + high - length) // 2), size - length)]
    steps = -(-spare // plan.stride[axis])
    return [low + round(step * spare / steps) for step in range(steps + 1)]
