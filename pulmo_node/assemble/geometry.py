"""Where the slices of one stack lie, and the one regular, orthogonal grid that holds them; or why there is none.

Input: frames of one orientation at different positions. Output: `Grid`. All in float64, LPS mm. The geometry comes from
ImagePositionPatient and ImageOrientationPatient alone (PS3.3 C.7.6.2.1.1); SliceThickness and GantryDetectorTilt are
never read. Rules and tolerances are told, with their reasons, in docs/assembly.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pulmo_models.codes import CautionCode, RejectionCode
from pulmo_models.types import Caution
from pulmo_node.assemble.frames import Frame
from pulmo_node.assemble.levels import POSITION_TAG, find_levels
from pulmo_node.errors import Rejected

Float64Array = npt.NDArray[np.float64]

UNIT_TOLERANCE = 1e-3  # of direction cosines from unit length and right angle, where they come with three decimals
SHIFT_TOLERANCE_MM = 0.15  # across the path, from end to end: positions rounded to one decimal differ by 0.1
TILT_FLOOR_DEGREES = 0.02  # a drift that cosines with four decimals explain is no tilt
ORIENTATION_TAG = "(0020,0037) ImageOrientationPatient"
MAX_ANGLE_DEGREES = 35.0  # of the image plane from axial, and of the path from the normal: a gantry tilts by 30 at most


@dataclass(frozen=True, kw_only=True, eq=False)
class Axes:
    """The orthonormal axes of a stack in LPS; ``normal`` = ``row`` x ``column``."""

    row: Float64Array  # direction in which the column index grows
    column: Float64Array  # direction in which the row index grows
    normal: Float64Array  # direction in which the slice index grows


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """A regular, orthogonal grid and how the frames fill it.

    ``affine`` maps (slice, row, column, 1) to LPS mm. Slice ``k`` lies at ``at[k]``, counted in frames: whole where an
    image was acquired, between two frames where it is interpolated. Pixel (0, 0) of frame ``i`` lies at row and column
    ``offsets[i]`` of the grid.
    """

    frames: tuple[Frame, ...]  # ascending along the normal
    axes: Axes
    affine: Float64Array
    shape: tuple[int, int, int]
    at: Float64Array
    offsets: Float64Array
    interpolated: tuple[int, ...] = ()  # slices that fill a gap
    repairs: tuple[Caution, ...] = ()

    @property
    def native(self) -> bool:
        """Whether every voxel is a pixel of a frame."""
        return not self.repairs

    @property
    def spacing_mm(self) -> float:
        """Distance between neighbouring slices."""
        return float(np.linalg.norm(self.affine[:3, 0]))


def common_axes(frames: Sequence[Frame]) -> Axes:
    """The one orientation of frames that are nearly parallel, made orthonormal.

    Raises:
        Rejected: BAD_ORIENTATION or NOT_AXIAL.
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
            tag=ORIENTATION_TAG,
        )
    axes = _orthonormal(cosines.mean(axis=0))
    angle = float(np.degrees(np.arccos(min(1.0, abs(axes.normal[2])))))
    if angle > MAX_ANGLE_DEGREES:
        raise Rejected(
            RejectionCode.NOT_AXIAL,
            f"the image plane is {angle:.0f} degrees from axial (a coronal, sagittal or steep oblique reformat)",
            file=frames[0].path.name,
            tag=ORIENTATION_TAG,
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


def in_plane_mm(frames: Sequence[Frame], axes: Axes) -> Float64Array:
    """Where pixel (0, 0) of each frame lies within its plane, ``(frames, 2)``: along ``column``, along ``row``."""
    positions = np.array([frame.position_lps_mm for frame in frames])
    return np.stack([positions @ axes.column, positions @ axes.row], axis=1)


def regular_grid(frames: Sequence[Frame], axes: Axes) -> Grid:
    """Order frames that lie at different positions and lay one grid through them, with the repairs that it takes.

    Raises:
        Rejected: TOO_FEW_SLICES (fewer than two), SHIFTED_SLICES, MISSING_SLICE or IRREGULAR_SPACING.
    """
    if len(frames) < 2:
        raise Rejected(
            RejectionCode.TOO_FEW_SLICES, "one slice alone is not a volume", file=frames[0].path.name, tag=POSITION_TAG
        )
    distance = along_normal_mm(frames, axes)
    order = np.argsort(distance, kind="stable")
    ordered, distance = tuple(frames[k] for k in order), distance[order]
    in_plane = _straight_path(ordered, distance, in_plane_mm(ordered, axes))
    levels = find_levels(ordered, distance)

    step_mm = np.array(ordered[0].pixel_spacing_mm)
    corner_mm = in_plane.min(axis=0)
    offsets = (in_plane - corner_mm) / step_mm
    extra = np.ceil(offsets.max(axis=0) - 1e-6).astype(int)
    repairs = levels.repairs
    if extra.any():
        repairs = (_tilt_caution(distance, in_plane), *repairs)
    affine = np.eye(4)
    affine[:3, 0] = axes.normal * levels.spacing_mm
    affine[:3, 1] = axes.column * step_mm[0]
    affine[:3, 2] = axes.row * step_mm[1]
    affine[:3, 3] = axes.normal * levels.start_mm + axes.column * corner_mm[0] + axes.row * corner_mm[1]
    return Grid(
        frames=ordered,
        axes=axes,
        affine=affine,
        shape=(len(levels.at), ordered[0].rows + int(extra[0]), ordered[0].columns + int(extra[1])),
        at=levels.at,
        offsets=offsets,
        interpolated=levels.interpolated,
        repairs=repairs,
    )


def _straight_path(frames: Sequence[Frame], distance: Float64Array, in_plane: Float64Array) -> Float64Array:
    """In-plane position of each frame on the straight line that they follow: constant, or drifting by a gantry tilt."""
    length = float(distance[-1] - distance[0])
    allowed_mm = SHIFT_TOLERANCE_MM + length * float(np.tan(np.radians(TILT_FLOOR_DEGREES)))
    shift = in_plane - in_plane.mean(axis=0)
    centred = distance - distance.mean()
    slope = centred @ shift / (centred @ centred)
    tilted = (np.ptp(in_plane, axis=0) > allowed_mm) & (np.abs(slope) * length > allowed_mm / 2)
    slope = np.where(tilted, slope, 0.0)
    residual = shift - np.outer(centred, slope)
    if (np.ptp(residual, axis=0) > np.where(tilted, 2 * allowed_mm, allowed_mm)).any():
        off = np.linalg.norm(residual, axis=1)
        worst = frames[int(off.argmax())]
        raise Rejected(
            RejectionCode.SHIFTED_SLICES,
            f"{worst.label} is shifted by {off.max():.1f} mm within its plane against the other slices",
            file=worst.path.name,
            tag=POSITION_TAG,
        )
    angle = _angle_degrees(slope)
    if angle > MAX_ANGLE_DEGREES:
        raise Rejected(
            RejectionCode.SHIFTED_SLICES,
            f"the slices follow a path {angle:.0f} degrees off their normal, more than a gantry tilts",
            file=frames[0].path.name,
            tag=POSITION_TAG,
        )
    path: Float64Array = in_plane.mean(axis=0) + np.outer(centred, slope)
    return path


def _angle_degrees(slope: Float64Array) -> float:
    return float(np.degrees(np.arctan(np.linalg.norm(slope))))


def _tilt_caution(distance: Float64Array, in_plane: Float64Array) -> Caution:
    angle = _angle_degrees((in_plane[-1] - in_plane[0]) / (distance[-1] - distance[0]))
    return Caution(
        code=CautionCode.RESHEARED,
        sentence=f"The slices are sheared by a gantry tilt of {angle:.1f} degrees (from their positions); they were "
        "shifted onto an orthogonal grid.",
    )
