"""Nodules as voxels, from the contours of LIDC-IDRI's readers: masks on the scan's slices, shapes on any grid.

A contour's points are the first pixels outside of the nodule (LIDC-IDRI's protocol), so a voxel belongs to it where
its centre is strictly inside the polygon; the rim of a hole does not belong to it either. pylidc does the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt
from skimage.measure import grid_points_in_poly

from pulmo_models.training.lidc.database import Annotation, Nodule
from pulmo_models.types import Mask

AGREEMENT = 0.5
"""Share of the readers who must include a voxel, as in LUNA16's and the published recipe."""

_INSIDE, _OUTSIDE = 1, 0  # labels of grid_points_in_poly; 2 and 3 are vertices and edges


def outline(annotation: Annotation, slice_zs_mm: npt.NDArray[np.float64] | None = None) -> Mask | None:
    """One reader's mask, bool (slices, rows, columns), as the box that holds it.

    `slice_zs_mm` are the z positions of the slices of the volume that the mask is for, in the volume's order; without
    them slices are those of the scan, ascending. A contour farther than half a slice distance from each slice is left
    out. None where no voxel is inside, as with the smallest of contours.
    """
    zs = annotation.slice_zs_mm if slice_zs_mm is None else np.asarray(slice_zs_mm, dtype=np.float64)
    reach = float(np.median(np.abs(np.diff(zs)))) / 2 + 1e-3 if len(zs) > 1 else np.inf
    nearest = [int(np.argmin(np.abs(zs - contour.z_mm))) for contour in annotation.contours]
    drawn = [
        (index, contour)
        for index, contour in zip(nearest, annotation.contours, strict=True)
        if abs(zs[index] - contour.z_mm) <= reach
    ]
    if not drawn:
        return None
    points = np.concatenate([contour.points for _, contour in drawn])
    top, left = points.min(axis=0)
    height, width = points.max(axis=0) + 1 - (top, left)
    first = min(index for index, _ in drawn)
    voxels = np.zeros((max(index for index, _ in drawn) + 1 - first, height, width), dtype=bool)
    for index, contour in sorted(drawn, key=lambda item: not item[1].inclusion):
        labels = grid_points_in_poly((height, width), contour.points - (top, left), binarize=False)
        if contour.inclusion:
            voxels[index - first] |= labels == _INSIDE
        else:
            voxels[index - first] &= labels == _OUTSIDE
    return _tight((first, int(top), int(left)), voxels)


def consensus(
    nodule: Nodule, slice_zs_mm: npt.NDArray[np.float64] | None = None, agreement: float = AGREEMENT
) -> Mask | None:
    """The voxels that at least this share of the readers included; None where there are none.

    See `outline` for `slice_zs_mm` and the grid. ``Mask.slices`` is the half-open bounding box.
    """
    outlines = [outline(annotation, slice_zs_mm) for annotation in nodule.annotations]
    drawn = [mask for mask in outlines if mask is not None]
    if not drawn:
        return None
    low = np.min([mask.origin for mask in drawn], axis=0)
    high = np.max([np.add(mask.origin, mask.voxels.shape) for mask in drawn], axis=0)
    count = np.zeros(high - low, dtype=np.uint8)
    for mask in drawn:
        z, y, x = mask.origin - low
        depth, height, width = mask.voxels.shape
        count[z : z + depth, y : y + height, x : x + width] += mask.voxels
    return _tight((int(low[0]), int(low[1]), int(low[2])), count >= agreement * nodule.readers)


def occupancy(nodule: Nodule, spacing_mm: Sequence[float], subsamples: int = 3) -> npt.NDArray[np.float32]:
    """The readers' shape on a grid of any spacing: for each voxel the share inside, averaged over the readers.

    Float32 0..1, (slices, rows, columns), with an empty border; the shape's centre of mass is at index size // 2 of
    each axis, where the sizes are odd. Between slices the shape is interpolated by the signed distance to its surface
    (Raya and Udupa, IEEE Trans Med Imaging 9:32, 1990), cut at the distance where a reader's shape keeps the volume
    of his or her voxels; each voxel is sampled at `subsamples` points an axis. Zeros of (1, 1, 1) where no reader's
    contour holds a voxel.
    """
    drawn = [mask for mask in map(outline, nodule.annotations) if mask is not None]
    if not drawn:
        return np.zeros((1, 1, 1), np.float32)
    first = nodule.annotations[0]
    own = np.array([_slice_step(first), first.pixel_spacing_mm, first.pixel_spacing_mm])
    low = np.min([mask.origin for mask in drawn], axis=0) - 2
    shape = np.max([np.add(mask.origin, mask.voxels.shape) for mask in drawn], axis=0) + 2 - low
    depths = [_depth_mm(mask, low, shape, own) for mask in drawn]
    inside = np.mean([depth > 0 for depth in depths], axis=0)
    centre = np.array([np.average(places, weights=inside.ravel()) for places in np.indices(shape).reshape(3, -1)])
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    half = np.ceil(np.maximum(centre, shape - 1 - centre) * own / spacing).astype(int)
    weights = [
        _linear(centre[axis] + _fine_offsets(int(half[axis]), subsamples) * spacing[axis] / own[axis], shape[axis])
        for axis in range(3)
    ]
    total = np.zeros([len(weight) for weight in weights], np.float32)
    sample_mm3 = float(np.prod(spacing)) / subsamples**3
    for mask, depth in zip(drawn, depths, strict=True):
        fine = np.einsum("az,by,cx,zyx->abc", *weights, depth, optimize=True)
        samples = min(round(mask.voxels.sum() * np.prod(own) / sample_mm3), fine.size - 1)
        total += fine > np.partition(fine, -samples - 1, axis=None)[-samples - 1]
    blocks = [value for size in 2 * half + 1 for value in (size, subsamples)]
    return np.asarray(total.reshape(blocks).mean(axis=(1, 3, 5)) / nodule.readers, dtype=np.float32)


def _slice_step(annotation: Annotation) -> float:
    if len(annotation.slice_zs_mm) < 2:
        return annotation.slice_thickness_mm
    steps = np.diff(annotation.slice_zs_mm)
    return float(np.median(steps[steps > 0]))  # some scans name a slice position twice


def _depth_mm(
    mask: Mask, low: npt.NDArray[np.int64], shape: npt.NDArray[np.int64], spacing_mm: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """Distance to the nearest voxel of the other kind, positive inside: zero lies halfway between the two."""
    full = Mask(origin=tuple(int(v) for v in mask.origin - low), voxels=mask.voxels).to_volume(tuple(shape))  # type: ignore[arg-type]
    inwards = distance_transform_edt(full, sampling=spacing_mm)
    outwards = distance_transform_edt(~full, sampling=spacing_mm)
    return np.asarray(inwards - outwards, dtype=np.float32)


def _fine_offsets(half: int, subsamples: int) -> npt.NDArray[np.float64]:
    """Sampling points in voxels from the middle voxel's centre, `subsamples` in each of ``2 * half + 1`` voxels."""
    count = (2 * half + 1) * subsamples
    return (np.arange(count) + 0.5) / subsamples - (half + 0.5)


def _linear(places: npt.NDArray[np.float64], length: int) -> npt.NDArray[np.float32]:
    """(places, length): weights of linear interpolation between the voxels of an axis; its ends go on beyond it."""
    inside = np.clip(places, 0, length - 1)
    return np.asarray(np.clip(1 - np.abs(inside[:, None] - np.arange(length)), 0, None), dtype=np.float32)


def _tight(origin: tuple[int, int, int], voxels: npt.NDArray[np.bool_]) -> Mask | None:
    filled = np.argwhere(voxels)
    if not len(filled):
        return None
    low, high = filled.min(axis=0), filled.max(axis=0) + 1
    z, y, x = (int(value) for value in np.add(origin, low))
    return Mask(origin=(z, y, x), voxels=voxels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))])
