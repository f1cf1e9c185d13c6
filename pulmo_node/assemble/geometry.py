"""Where the slices lie: one orientation, one straight path along its normal, one regular spacing; or why not.

Input: frames. Output: `Grid`, the frames in order with their common grid. All in float64, LPS mm.
The spacing comes from ImagePositionPatient alone; SliceThickness and GantryDetectorTilt are never read
(docs/assembly.md tells why). PS3.3 C.7.6.2.1.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pulmo_models.codes import RejectionCode
from pulmo_node.assemble.frames import Frame
from pulmo_node.errors import Rejected

Float64Array = npt.NDArray[np.float64]

SAME_POSITION_MM = 0.01  # closer than this along the normal, two slices are at one position
POSITION_TOLERANCE_MM = 0.1  # from the fitted line; positions rounded to one decimal are off by up to 0.05 per axis
UNIT_TOLERANCE = 1e-3  # of direction cosines from unit length and right angle, where they come with three decimals
COSINE_TOLERANCE = 1e-4  # of direction cosines between slices
SHIFT_TOLERANCE_MM = 0.15  # across the path, from end to end: positions rounded to one decimal differ by 0.1
TILT_FLOOR_DEGREES = 0.02  # a drift that cosines with four decimals explain is no tilt
MAX_ANGLE_FROM_AXIAL_DEGREES = 35.0  # a CT gantry tilts by 30 degrees at most

_POSITION_TAG = "(0020,0032) ImagePositionPatient"
_ORIENTATION_TAG = "(0020,0037) ImageOrientationPatient"


@dataclass(frozen=True, kw_only=True, eq=False)
class Axes:
    """The orthonormal axes of a stack in LPS; ``normal`` = ``row`` x ``column``."""

    row: Float64Array  # direction in which the column index grows
    column: Float64Array  # direction in which the row index grows
    normal: Float64Array  # direction in which the slice index grows


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """Frames in ascending order along the normal and the affine (slice, row, column, 1) -> LPS mm they share."""

    frames: tuple[Frame, ...]
    affine: Float64Array
    spacing_mm: float  # between slices


def common_axes(frames: Sequence[Frame]) -> Axes:
    """The one orientation of all frames, made orthonormal.

    Raises:
        Rejected: BAD_ORIENTATION, SEVERAL_ORIENTATIONS or NOT_AXIAL.
    """
    cosines = np.array([frame.row_and_column_cosines for frame in frames])
    row, column = cosines[:, :3], cosines[:, 3:]
    bad = np.maximum.reduce(
        [
            np.abs(np.linalg.norm(row, axis=1) - 1),
            np.abs(np.linalg.norm(column, axis=1) - 1),
            np.abs((row * column).sum(axis=1)),
        ]
    )
    if bad.max() > UNIT_TOLERANCE:
        worst = frames[int(bad.argmax())]
        raise Rejected(
            RejectionCode.BAD_ORIENTATION,
            f"the direction cosines of {worst.label} are not two perpendicular unit vectors",
            file=worst.path.name,
            tag=_ORIENTATION_TAG,
        )
    reference = np.median(cosines, axis=0)
    deviation = np.abs(cosines - reference).max(axis=1)
    if deviation.max() > COSINE_TOLERANCE:
        worst = frames[int(deviation.argmax())]
        raise Rejected(
            RejectionCode.SEVERAL_ORIENTATIONS,
            f"the images of the series do not have one orientation: {worst.label} differs from most others",
            file=worst.path.name,
            tag=_ORIENTATION_TAG,
        )
    axes = _orthonormal(cosines.mean(axis=0))
    angle = float(np.degrees(np.arccos(min(1.0, abs(axes.normal[2])))))
    if angle > MAX_ANGLE_FROM_AXIAL_DEGREES:
        raise Rejected(
            RejectionCode.NOT_AXIAL,
            f"the image plane is {angle:.0f} degrees from axial (a coronal, sagittal or steep oblique reformat)",
            file=frames[0].path.name,
            tag=_ORIENTATION_TAG,
        )
    return axes


def _orthonormal(cosines: Float64Array) -> Axes:
    """The orthonormal pair nearest to the two cosines (symmetric orthogonalisation by SVD)."""
    left, _, right = np.linalg.svd(cosines.reshape(2, 3), full_matrices=False)
    row, column = left @ right
    return Axes(row=row, column=column, normal=np.cross(row, column))


def along_normal_mm(frames: Sequence[Frame], axes: Axes) -> Float64Array:
    """Signed distance of each frame from the origin of the patient system along the normal."""
    return np.array([frame.position_lps_mm @ axes.normal for frame in frames])


def regular_grid(frames: Sequence[Frame], axes: Axes) -> Grid:
    """Order frames that lie at different positions and fit one grid to them.

    Raises:
        Rejected: TOO_FEW_SLICES (fewer than two), GANTRY_TILT, SHIFTED_SLICES, MISSING_SLICE or IRREGULAR_SPACING.
    """
    if len(frames) < 2:
        raise Rejected(
            RejectionCode.TOO_FEW_SLICES, "one slice alone is not a volume", file=frames[0].path.name, tag=_POSITION_TAG
        )
    distance = along_normal_mm(frames, axes)
    order = np.argsort(distance, kind="stable")
    ordered, distance = [frames[k] for k in order], distance[order]
    positions = np.array([frame.position_lps_mm for frame in ordered])
    in_plane = np.stack([positions @ axes.column, positions @ axes.row], axis=1)
    _check_straight(ordered, distance, in_plane)
    _check_gaps(ordered, distance)

    spacing, start = np.polyfit(np.arange(len(ordered)), distance, 1)
    first_column_mm, first_row_mm = in_plane.mean(axis=0)
    between_rows_mm, between_columns_mm = ordered[0].pixel_spacing_mm
    affine = np.eye(4)
    affine[:3, 0] = axes.normal * spacing
    affine[:3, 1] = axes.column * between_rows_mm
    affine[:3, 2] = axes.row * between_columns_mm
    affine[:3, 3] = axes.normal * start + axes.column * first_column_mm + axes.row * first_row_mm
    return Grid(frames=tuple(ordered), affine=affine, spacing_mm=float(spacing))


def _check_straight(frames: Sequence[Frame], distance: Float64Array, in_plane: Float64Array) -> None:
    """Refuse a stack whose slices do not lie exactly behind one another."""
    length = float(distance[-1] - distance[0])
    shift = in_plane - in_plane.mean(axis=0)
    allowed_mm = SHIFT_TOLERANCE_MM + length * float(np.tan(np.radians(TILT_FLOOR_DEGREES)))
    if float(np.ptp(in_plane, axis=0).max()) <= allowed_mm:
        return
    centred = distance - distance.mean()
    slope = (centred @ shift) / (centred @ centred)
    residual = np.linalg.norm(shift - np.outer(centred, slope), axis=1)
    if residual.max() <= allowed_mm:
        angle = float(np.degrees(np.arctan(np.linalg.norm(slope))))
        raise Rejected(
            RejectionCode.GANTRY_TILT,
            f"the slices are sheared by a gantry tilt of {angle:.1f} degrees (from their positions, not from a tag)",
            file=frames[0].path.name,
            tag=_POSITION_TAG,
        )
    worst = frames[int(residual.argmax())]
    raise Rejected(
        RejectionCode.SHIFTED_SLICES,
        f"{worst.label} is shifted by {residual.max():.1f} mm within its plane against the other slices",
        file=worst.path.name,
        tag=_POSITION_TAG,
    )


def _check_gaps(frames: Sequence[Frame], distance: Float64Array) -> None:
    """Refuse gaps: the distances must lie on one line over the slice number, up to rounding in the file."""
    number = np.arange(len(distance))
    spacing, start = np.polyfit(number, distance, 1)
    tolerance = min(POSITION_TOLERANCE_MM, float(spacing) / 4) + 1e-6
    if np.abs(distance - (start + spacing * number)).max() <= tolerance:
        return
    gaps = np.diff(distance)
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])  # lower median: of 5 and 10 mm, 5 is usual
    steps = np.rint(gaps / usual)
    whole = np.abs(gaps - steps * usual) <= np.maximum(2 * tolerance, 0.02 * gaps)
    if whole.all() and (steps >= 1).all() and (steps > 1).any():
        at = int(steps.argmax())
        missing = int((steps - 1).sum())
        raise Rejected(
            RejectionCode.MISSING_SLICE,
            f"{missing} slice{'s are' if missing > 1 else ' is'} missing: {gaps[at]:.2f} mm between "
            f"{frames[at].label} and {frames[at + 1].label} where {usual:.2f} mm is usual",
            file=frames[at + 1].path.name,
            tag=_POSITION_TAG,
        )
    at = int(np.abs(gaps - usual).argmax())
    raise Rejected(
        RejectionCode.IRREGULAR_SPACING,
        f"the slices are not evenly spaced: {gaps[at]:.2f} mm between {frames[at].label} and "
        f"{frames[at + 1].label} where {usual:.2f} mm is usual",
        file=frames[at + 1].path.name,
        tag=_POSITION_TAG,
    )
