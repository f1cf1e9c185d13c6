"""From the voxels of a volume to the pixels of the images that were acquired, and back.

Input: a `Volume` and an index, a pixel or a mask. Output: acquired images by their number in ``Volume.frames``, with
pixel indices. Where the volume is native this is the identity. Where it was resampled, resheared or has a gap filled,
the way leads through the patient position (LPS mm), which is exact in both directions; only a mask is sampled, at the
centres of the pixels of each image.

Voxel indices are ``(slice, row, column)``, pixel indices ``(row, column)``; both are 0 at the centre of the first one.
PS3.3 C.7.6.2.1.1 has the equation from a pixel to its position.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pulmo_models.geometry import index_to_lps, lps_to_index
from pulmo_models.types import BoolArray, Mask, SourceFrame, Volume

EVEN_WITHIN_MM = 0.1  # positions rounded in the file are off by less

_Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class FramePoint:
    """A point of the volume on the acquired image that lies nearest to it."""

    frame: int  # index in Volume.frames
    row: float  # not rounded, and not confined to the image
    column: float
    off_plane_mm: float  # of the point from the plane of the image, positive along the normal


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameMask:
    """The pixels of one acquired image that a mask covers: at least one."""

    frame: int  # index in Volume.frames
    origin: tuple[int, int]  # row and column of the first pixel
    pixels: BoolArray  # (rows, columns)

    @property
    def region(self) -> tuple[slice, slice]:
        """Index of the pixels on their image."""
        (row, column), (rows, columns) = self.origin, self.pixels.shape
        return slice(row, row + rows), slice(column, column + columns)


def frames_of_grid(affine: _Float64Array, shape: Sequence[int]) -> tuple[SourceFrame, ...]:
    """One image a slice at the places that the affine tells, for a volume that was not read from DICOM.

    ``shape`` is (slices, rows, columns). The images have no SOP class; their number stands for the instance UID.
    """
    slices, rows, columns = shape
    row_step, column_step = _triple(affine[:3, 1]), _triple(affine[:3, 2])
    return tuple(
        SourceFrame(
            sop_class_uid="",
            sop_instance_uid=str(k),
            rows=rows,
            columns=columns,
            origin_lps_mm=index_to_lps(affine, (k, 0, 0)),
            row_step_lps_mm=row_step,
            column_step_lps_mm=column_step,
        )
        for k in range(slices)
    )


def on_frame(volume: Volume, index: Sequence[float], among: Collection[int] | None = None) -> FramePoint:
    """The pixel that shows a voxel index, which may be fractional, on the image nearest to it along the normal.

    ``among`` confines the choice to these frames.
    """
    frames = sorted(range(len(volume.frames)) if among is None else among)
    if volume.native:
        nearest = min(frames, key=lambda k: abs(index[0] - k))
        off_plane_mm = (index[0] - nearest) * volume.spacing_mm[0]
        return FramePoint(frame=nearest, row=float(index[1]), column=float(index[2]), off_plane_mm=off_plane_mm)
    point = np.asarray(index_to_lps(volume.affine, index))
    origins = np.array([volume.frames[k].origin_lps_mm for k in frames])
    distance_mm = (point - origins) @ _normal(volume)
    at = int(np.abs(distance_mm).argmin())
    row, column = _pixel(volume.frames[frames[at]], point)
    return FramePoint(frame=frames[at], row=row, column=column, off_plane_mm=float(distance_mm[at]))


def frame_to_index(volume: Volume, frame: int, row: float, column: float) -> tuple[float, float, float]:
    """The voxel index, mostly fractional, of a pixel of an acquired image."""
    if volume.native:
        return float(frame), float(row), float(column)
    image = volume.frames[frame]
    position = (
        np.asarray(image.origin_lps_mm)
        + row * np.asarray(image.row_step_lps_mm)
        + column * np.asarray(image.column_step_lps_mm)
    )
    return lps_to_index(volume.affine, position.tolist())


def mask_on_frames(volume: Volume, mask: Mask) -> tuple[FrameMask, ...]:
    """A mask on the acquired images, in their order; at least one image.

    In a native volume these are the slices of the mask. Otherwise an image takes the slice of the mask that its plane
    lies nearest to, each of its pixels the voxel nearest to the pixel's centre. A mask that lies between the images
    is put on the nearest of them, so none is lost; that image shows the nodule although it does not cut it.
    """
    layers = np.flatnonzero(mask.voxels.any(axis=(1, 2)))
    if volume.native:
        origin = mask.origin[1:]
        return tuple(
            FrameMask(frame=mask.origin[0] + int(z), origin=origin, pixels=mask.voxels[int(z)]) for z in layers
        )
    at = _slice_of_frames(volume)
    found = []
    for frame in np.flatnonzero(np.isin(np.rint(at) - mask.origin[0], layers)):
        layer = mask.voxels[int(np.rint(at[frame])) - mask.origin[0]]
        sampled = _sample(volume, int(frame), layer, mask.origin[1:])
        if sampled is not None:
            found.append(sampled)
    return tuple(found) or (_nearest(volume, mask, at, layers),)


def mask_from_frames(volume: Volume, planes: Mapping[int, BoolArray]) -> BoolArray:
    """The way back: a mask drawn on acquired images, bool ``(rows, columns)`` by frame, on the grid of the volume.

    Each slice takes what is drawn on the image nearest to it, each voxel the pixel nearest to its centre.
    """
    full = np.zeros(volume.hu.shape, dtype=bool)
    for k, layer in enumerate(full):
        middle = (k, (layer.shape[0] - 1) / 2, (layer.shape[1] - 1) / 2)
        frame = on_frame(volume, middle).frame
        plane = planes.get(frame)
        if plane is None or not plane.any():
            continue
        start, *units = (on_frame(volume, (k, *at), among=(frame,)) for at in ((0, 0), (1, 0), (0, 1)))
        step = np.array([[unit.row - start.row, unit.column - start.column] for unit in units])
        grid = np.moveaxis(np.indices(layer.shape), 0, -1)
        pixel = np.rint(grid @ step + (start.row, start.column)).astype(np.int64)
        inside = ((pixel >= 0) & (pixel < plane.shape)).all(axis=-1)
        layer[inside] = plane[tuple(pixel[inside].T)]
    return full


def frame_spacing_mm(volume: Volume) -> float | None:
    """Distance between neighbouring acquired images; None where they lie unevenly (by more than 0.1 mm)."""
    if volume.native:
        return volume.spacing_mm[0]
    distance_mm = np.array([frame.origin_lps_mm for frame in volume.frames]) @ _normal(volume)
    even_mm = np.linspace(distance_mm[0], distance_mm[-1], len(distance_mm))
    if len(distance_mm) < 2 or np.abs(distance_mm - even_mm).max() > EVEN_WITHIN_MM:
        return None
    return float(even_mm[1] - even_mm[0])


def _nearest(volume: Volume, mask: Mask, at: _Float64Array, layers: npt.NDArray[np.intp]) -> FrameMask:
    """The layer of the mask that lies nearest to an image, on this image; what lies beside it goes to its border."""
    distance = np.abs(at[:, None] - (layers + mask.origin[0])[None, :])
    frame, layer = (int(n) for n in np.unravel_index(int(distance.argmin()), distance.shape))
    z = int(layers[layer])
    slice_index = mask.origin[0] + z
    image = volume.frames[frame]
    points = [
        _pixel(image, np.array(index_to_lps(volume.affine, (slice_index, row, column)), dtype=np.float64))
        for row, column in np.argwhere(mask.voxels[z]) + mask.origin[1:]
    ]
    pixels = np.clip(np.rint(points).astype(np.int64), 0, (image.rows - 1, image.columns - 1))
    low, high = pixels.min(axis=0), pixels.max(axis=0) + 1
    drawn = np.zeros(high - low, dtype=bool)
    drawn[tuple((pixels - low).T)] = True
    return FrameMask(frame=frame, origin=(int(low[0]), int(low[1])), pixels=drawn)


def _sample(volume: Volume, frame: int, layer: BoolArray, origin: tuple[int, int]) -> FrameMask | None:
    """A layer of a mask at the centres of the pixels of an image; None where it covers none of them."""
    image = volume.frames[frame]
    start = np.array(frame_to_index(volume, frame, 0, 0))[1:]
    step = np.stack(
        [np.array(frame_to_index(volume, frame, *unit))[1:] - start for unit in ((1, 0), (0, 1))], axis=1
    )  # voxel rows and columns per pixel row and pixel column
    corners = np.array([(r, c) for r in (-1, layer.shape[0]) for c in (-1, layer.shape[1])]) + origin
    reach = np.linalg.solve(step, (corners - start).T)
    low = np.maximum(np.floor(reach.min(axis=1)).astype(np.int64), 0)
    high = np.minimum(np.ceil(reach.max(axis=1)).astype(np.int64) + 1, (image.rows, image.columns))
    if (low >= high).any():
        return None
    grid = np.moveaxis(np.mgrid[low[0] : high[0], low[1] : high[1]], 0, -1)
    voxel = np.rint(grid @ step.T + start - origin).astype(np.int64)
    inside = ((voxel >= 0) & (voxel < layer.shape)).all(axis=-1)
    pixels = np.zeros(inside.shape, dtype=bool)
    pixels[inside] = layer[tuple(voxel[inside].T)]
    return FrameMask(frame=frame, origin=(int(low[0]), int(low[1])), pixels=pixels) if pixels.any() else None


def _slice_of_frames(volume: Volume) -> _Float64Array:
    """Where each image cuts the slice axis, as a fractional slice index, rounded so that noise decides no tie.

    Taken at the middle of the image: its plane may be turned against the grid within the tolerance of assembly.
    """
    middles = [
        frame_to_index(volume, k, (image.rows - 1) / 2, (image.columns - 1) / 2)[0]
        for k, image in enumerate(volume.frames)
    ]
    return np.round(np.array(middles), 6)


def _pixel(image: SourceFrame, point_lps_mm: _Float64Array) -> tuple[float, float]:
    """Row and column of a position projected onto the plane of an image."""
    steps = np.array([image.row_step_lps_mm, image.column_step_lps_mm]).T
    (row, column), *_ = np.linalg.lstsq(steps, point_lps_mm - np.asarray(image.origin_lps_mm), rcond=None)
    return float(row), float(column)


def _normal(volume: Volume) -> _Float64Array:
    """Unit vector perpendicular to the planes of the volume, in the sense of growing slice indices."""
    normal = np.cross(volume.affine[:3, 2], volume.affine[:3, 1])
    normal /= np.linalg.norm(normal)
    return normal * np.sign(normal @ volume.affine[:3, 0])


def _triple(vector: _Float64Array) -> tuple[float, float, float]:
    x, y, z = vector.tolist()
    return x, y, z
