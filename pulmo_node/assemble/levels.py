"""Where along the normal the slices of a regular grid lie: the spacing, a slice that is missing, uneven distances.

Input: frames in ascending order and their distances along the normal in mm. Output: `Levels`, or why there are none.
Rules and limits are told, with their reasons, in docs/assembly.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from pulmo_models.codes import CautionCode, RejectionCode
from pulmo_models.types import Caution
from pulmo_node.assemble.frames import Frame
from pulmo_node.errors import Rejected

Float64Array = npt.NDArray[np.float64]

POSITION_TOLERANCE_MM = 0.1  # from the fitted line; positions rounded to one decimal are off by up to 0.05 per axis
MAX_FILLED_GAP_MM = 10.0  # around one missing slice
MAX_UNEVEN_GAP_MM = 6.0
MAX_HOLE = 1.5  # times the usual gap and both neighbouring ones: beyond, something is missing
SMALLEST_GAP = 0.25  # of the usual gap: below, two scans are mixed
_MOST_STEPS = 1_000_000  # keeps absurd positions within whole numbers
SPACING_RUN = 8  # equal gaps in a row are a spacing that was chosen, not slices that went missing

POSITION_TAG = "(0020,0032) ImagePositionPatient"


@dataclass(frozen=True, kw_only=True, eq=False)
class Levels:
    """The slices of the grid along the normal; ``at`` as in `pulmo_node.assemble.geometry.Grid`."""

    start_mm: float
    spacing_mm: float
    at: Float64Array
    interpolated: tuple[int, ...] = ()
    repairs: tuple[Caution, ...] = ()


def find_levels(frames: Sequence[Frame], distance: Float64Array) -> Levels:
    """Lay regular levels through ascending distances (mm) of at least two frames.

    Raises:
        Rejected: MISSING_SLICE or IRREGULAR_SPACING.
    """
    gaps = np.diff(distance)
    steps = np.clip(np.rint(gaps / _usual_gap(gaps)), 1, _MOST_STEPS).astype(np.int64)
    number = np.concatenate([[0], np.cumsum(steps)])
    spacing, start = np.polyfit(number, distance, 1)
    tolerance = min(POSITION_TOLERANCE_MM, float(spacing) / 4) + 1e-6
    on_grid = np.abs(distance - (start + spacing * number)).max() <= tolerance
    missing = int(number[-1]) + 1 - len(distance)
    if on_grid and missing == 0:
        return Levels(start_mm=float(start), spacing_mm=float(spacing), at=np.arange(len(distance), dtype=np.float64))
    if on_grid and not _chosen(steps):
        if missing > 1 or gaps.max() > MAX_FILLED_GAP_MM + POSITION_TOLERANCE_MM:
            raise _missing(frames, gaps, steps)
        return _filled(frames, number, float(start), float(spacing))
    return _evened(frames, distance)


def _usual_gap(gaps: Float64Array) -> float:
    """The mean of the gaps near their lower median (of 5 and 10 mm, 5 is usual): rounded positions average out."""
    median = np.sort(gaps)[(len(gaps) - 1) // 2]
    return float(gaps[np.abs(gaps - median) < 0.5 * median].mean())


def _chosen(steps: npt.NDArray[np.int64]) -> bool:
    """Whether every wide gap belongs to a long run of equal ones."""
    return all(step == 1 or len(list(run)) >= SPACING_RUN for step, run in groupby(steps.tolist()))


def _missing(frames: Sequence[Frame], gaps: Float64Array, steps: npt.NDArray[np.int64]) -> Rejected:
    missing = int((steps - 1).sum())
    what = f"{missing} slice{'s are' if missing > 1 else ' is'} missing"
    return _at_gap(RejectionCode.MISSING_SLICE, what, frames, gaps, int(steps.argmax()))


def _filled(frames: Sequence[Frame], number: npt.NDArray[np.int64], start: float, spacing: float) -> Levels:
    levels = np.arange(number[-1] + 1)
    (hole,) = np.setdiff1d(levels, number)
    caution = Caution(
        code=CautionCode.GAP_FILLED,
        sentence=f"One slice is missing between {frames[hole - 1].label} and {frames[hole].label}; slice {hole + 1} of "
        f"{len(levels)} was interpolated from its neighbours {spacing:.2f} mm away.",
    )
    return Levels(
        start_mm=start,
        spacing_mm=spacing,
        at=np.interp(levels, number, np.arange(len(number))),
        interpolated=(int(hole),),
        repairs=(caution,),
    )


def _evened(frames: Sequence[Frame], distance: Float64Array) -> Levels:
    """Regular levels at the smallest distance that occurs, from the first to the last slice."""
    gaps = np.diff(distance)
    usual = _usual_gap(gaps)
    beside = np.pad(gaps, 1)
    hole = gaps > MAX_HOLE * np.maximum.reduce([beside[:-2], beside[2:], np.full_like(gaps, usual)])
    bad = np.where(hole | (gaps > MAX_UNEVEN_GAP_MM + POSITION_TOLERANCE_MM), gaps, 0.0)
    if gaps.min() < SMALLEST_GAP * usual:
        raise _irregular(frames, gaps, int(gaps.argmin()))
    if bad.any():
        raise _irregular(frames, gaps, int(bad.argmax()))
    length = float(distance[-1] - distance[0])
    count = int(np.ceil(length / gaps.min() - 1e-6))
    spacing = length / count
    caution = Caution(
        code=CautionCode.RESAMPLED,
        sentence=f"The distances between the slices vary from {gaps.min():.2f} to {gaps.max():.2f} mm; the volume was "
        f"resampled to slices {spacing:.2f} mm apart.",
    )
    at = np.interp(distance[0] + spacing * np.arange(count + 1), distance, np.arange(len(distance)))
    return Levels(start_mm=float(distance[0]), spacing_mm=spacing, at=at, repairs=(caution,))


def _irregular(frames: Sequence[Frame], gaps: Float64Array, at: int) -> Rejected:
    return _at_gap(RejectionCode.IRREGULAR_SPACING, "the slices are not evenly spaced", frames, gaps, at)


def _at_gap(code: RejectionCode, what: str, frames: Sequence[Frame], gaps: Float64Array, at: int) -> Rejected:
    """A refusal that names the gap it is for."""
    return Rejected(
        code,
        f"{what}: {gaps[at]:.2f} mm between {frames[at].label} and {frames[at + 1].label} where "
        f"{_usual_gap(gaps):.2f} mm is usual",
        file=frames[at + 1].path.name,
        tag=POSITION_TAG,
    )
