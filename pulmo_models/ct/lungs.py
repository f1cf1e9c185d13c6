"""Lung localisation, classical: where a detector should look, and whether a volume shows lungs at all.

Input: HU and voxel spacing. Output: a mask of the lungs with vessels, nodules and airways inside. Error:
:class:`Rejection` ``NO_LUNGS``. The work is done on a grid of about 2 mm; morphology uses distances in mm, so that
slices of 1 mm and of 8 mm are treated alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from pulmo_models.codes import RejectionCode
from pulmo_models.pipeline import Rejection
from pulmo_models.types import BoolArray, Volume

WORKING_SPACING_MM = 2.0
AIR_BELOW_HU = -320.0
OUTSIDE_AIR_MEDIAN_BELOW_HU = -930.0
LUNG_LIKE_HU = (-960.0, -400.0)
LUNG_LIKE_SHARE = 0.4
SMALLEST_PART_MM3 = 30_000.0
SMALLEST_PART_SHARE = 0.05  # of the largest part
SMALLEST_LUNGS_MM3 = 300_000.0
LARGEST_LUNGS_MM3 = 14_000_000.0
CLOSING_MM = 12.0
SEARCH_CLOSING_MM = 30.0  # takes in the tumours of 4 to 7 cm on the pleura of two Lung-PET-CT-Dx patients
SEARCH_MARGIN_MM = 4.0
TABLE_OPENING_MM = 4.0
BOX_MARGIN_MM = 10.0

_FloatVolume = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class LungRegion:
    """The lungs on the grid of their volume."""

    mask: BoolArray  # (slices, rows, columns)
    search: BoolArray  # where a nodule may lie: the mask closed further, so that a mass on the pleura is inside
    box: tuple[slice, slice, slice]  # bounding box of the mask with a margin of 10 mm, cut at the border of the volume
    volume_ml: float


def localise_lungs(volume: Volume) -> LungRegion:
    """The lungs of a volume.

    Raises:
        Rejection: code ``NO_LUNGS``, where less than 0.3 litre (or more than 14 litres) looks like lung.
    """
    spacing = volume.spacing_mm
    coarse, coarse_spacing, factors = _coarse_lungs(volume.hu, spacing)
    mask = _enlarge(coarse, factors, volume.hu.shape)
    lung_mm3 = float(mask.sum()) * float(np.prod(spacing))
    if lung_mm3 < SMALLEST_LUNGS_MM3:
        raise Rejection(
            RejectionCode.NO_LUNGS,
            f"only {lung_mm3 / 1e6:.2f} litre of the volume looks like lung, at least "
            f"{SMALLEST_LUNGS_MM3 / 1e6:.1f} litre is needed",
        )
    if lung_mm3 > LARGEST_LUNGS_MM3:
        raise Rejection(
            RejectionCode.NO_LUNGS,
            f"{lung_mm3 / 1e6:.1f} litres of the volume look like lung, which no chest holds",
        )
    search = dilate(_close(coarse, coarse_spacing, SEARCH_CLOSING_MM), coarse_spacing, SEARCH_MARGIN_MM)
    return LungRegion(
        mask=mask,
        search=_enlarge(_fill_holes(search), factors, volume.hu.shape),
        box=_bounding_box(mask, spacing),
        volume_ml=lung_mm3 / 1e3,
    )


def segment_lungs(hu: _FloatVolume, spacing_mm: tuple[float, float, float]) -> BoolArray:
    """Mask of the lungs, bool ``(slices, rows, columns)``; all False where there are none.

    ``hu`` is float32 in Hounsfield units, ``spacing_mm`` along (slice, row, column). Padding outside the field of view
    (-2000, -3024) counts as air. Trachea and main bronchi may be included.
    """
    coarse, _, factors = _coarse_lungs(hu, spacing_mm)
    return _enlarge(coarse, factors, hu.shape)


def _coarse_lungs(
    hu: _FloatVolume, spacing_mm: tuple[float, float, float]
) -> tuple[BoolArray, tuple[float, ...], tuple[int, ...]]:
    """The lungs on the working grid, the spacing of that grid, and how many voxels of the volume one of its has."""
    factors = tuple(max(1, round(WORKING_SPACING_MM / step)) for step in spacing_mm)
    spacing = tuple(step * factor for step, factor in zip(spacing_mm, factors, strict=True))
    coarse = _block_mean(hu, factors)
    air = coarse < AIR_BELOW_HU
    inside = air & ~_outside_air(coarse, air) & _enclosed(air, spacing)
    lungs = _lung_like_parts(coarse, inside, float(np.prod(spacing)))
    if lungs.any():
        lungs = _fill_holes(_close(lungs, spacing, CLOSING_MM))
    return lungs, spacing, factors


def _block_mean(hu: _FloatVolume, factors: tuple[int, ...]) -> _FloatVolume:
    """Mean of blocks of voxels, clipped first; the last block of an axis may be smaller."""
    fz, fy, fx = factors
    starts_y = np.arange(0, hu.shape[1], fy)
    starts_x = np.arange(0, hu.shape[2], fx)
    counts = np.outer(
        np.diff(np.append(starts_y, hu.shape[1])),
        np.diff(np.append(starts_x, hu.shape[2])),
    )
    layers = []
    for z in range(0, hu.shape[0], fz):
        slab = np.clip(hu[z : z + fz], -1024.0, 1000.0).mean(axis=0)
        sums = np.add.reduceat(np.add.reduceat(slab, starts_x, axis=1), starts_y, axis=0)
        layers.append(sums / counts)
    return np.stack(layers).astype(np.float32)


def _outside_air(coarse: _FloatVolume, air: BoolArray) -> BoolArray:
    """Air around the patient: in each slice, what touches the border of the image and is as thin as air.

    The density decides too, because in a reconstruction with a small field of view a lung may touch the border.
    """
    outside = np.zeros_like(air)
    for z, layer in enumerate(air):
        labels = _labels(layer)
        border = np.concatenate((labels[0], labels[-1], labels[:, 0], labels[:, -1]))
        for label in np.unique(border[border > 0]):
            part = labels == label
            if np.median(coarse[z][part]) < OUTSIDE_AIR_MEDIAN_BELOW_HU:
                outside[z] |= part
    return outside


def _enclosed(air: BoolArray, spacing_mm: tuple[float, ...]) -> BoolArray:
    """What has the patient on at least three of its four sides within the slice.

    It leaves out the table, foam and blankets, and keeps a lung that the edge of a small field of view cuts open.
    """
    labels = _labels(_open(~air, spacing_mm, TABLE_OPENING_MM))
    sizes = np.bincount(labels.ravel())
    if sizes.size < 2:
        return np.zeros_like(air)
    body = labels == int(np.argmax(sizes[1:])) + 1
    sides = np.zeros(air.shape, dtype=np.uint8)
    for axis in (1, 2):
        sides += np.logical_or.accumulate(body, axis=axis)
        sides += np.flip(np.logical_or.accumulate(np.flip(body, axis), axis=axis), axis)
    return sides >= 3


def _lung_like_parts(coarse: _FloatVolume, inside: BoolArray, voxel_mm3: float) -> BoolArray:
    """The parts that are large enough and mostly denser than gas: neither bowel gas nor an isolated trachea.

    Bowel gas is blurred by its surroundings to the density of lung where there is little of it, hence the size in
    relation to the largest part.
    """
    labels = _labels(inside)
    sizes = np.bincount(labels.ravel())
    lung_like = (coarse > LUNG_LIKE_HU[0]) & (coarse < LUNG_LIKE_HU[1])
    similar = np.bincount(labels.ravel(), weights=lung_like.ravel(), minlength=sizes.size)
    keep = (sizes * voxel_mm3 >= SMALLEST_PART_MM3) & (similar >= LUNG_LIKE_SHARE * sizes)
    keep[0] = False
    keep &= sizes >= SMALLEST_PART_SHARE * np.max(sizes, initial=0, where=keep)
    return keep[labels]


def _labels(mask: BoolArray) -> npt.NDArray[np.int64]:
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    return sitk.GetArrayFromImage(sitk.ConnectedComponent(image)).astype(np.int64)


def _distance_mm(mask: BoolArray, spacing_mm: tuple[float, ...]) -> _FloatVolume:
    """Distance of each voxel to the mask: 0 inside."""
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(spacing_mm[::-1])
    distance = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    outside: _FloatVolume = np.maximum(sitk.GetArrayFromImage(distance), 0.0)
    return outside


def dilate(mask: BoolArray, spacing_mm: tuple[float, ...], radius_mm: float) -> BoolArray:
    """The mask and everything within ``radius_mm`` of it, measured between voxel centres."""
    return _distance_mm(mask, spacing_mm) <= radius_mm if mask.any() else mask.copy()


def _erode(mask: BoolArray, spacing_mm: tuple[float, ...], radius_mm: float) -> BoolArray:
    return ~dilate(~mask, spacing_mm, radius_mm)


def _close(mask: BoolArray, spacing_mm: tuple[float, ...], radius_mm: float) -> BoolArray:
    return _erode(dilate(mask, spacing_mm, radius_mm), spacing_mm, radius_mm) | mask


def _open(mask: BoolArray, spacing_mm: tuple[float, ...], radius_mm: float) -> BoolArray:
    return dilate(_erode(mask, spacing_mm, radius_mm), spacing_mm, radius_mm) & mask


def _fill_holes(mask: BoolArray) -> BoolArray:
    """Fill what the lungs enclose in three dimensions: a mass in the middle of a lobe."""
    filled = sitk.BinaryFillhole(sitk.GetImageFromArray(mask.astype(np.uint8)))
    return sitk.GetArrayFromImage(filled).astype(bool)


def _enlarge(mask: BoolArray, factors: tuple[int, ...], shape: tuple[int, ...]) -> BoolArray:
    for axis, (factor, size) in enumerate(zip(factors, shape, strict=True)):
        mask = np.repeat(mask, factor, axis=axis).take(range(size), axis=axis)
    return mask


def _extent(mask: BoolArray) -> tuple[slice, ...]:
    """Smallest box around the True voxels of a mask that is not empty."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return tuple(box)


def _bounding_box(mask: BoolArray, spacing_mm: tuple[float, ...]) -> tuple[slice, slice, slice]:
    box = []
    for found, step, size in zip(_extent(mask), spacing_mm, mask.shape, strict=True):
        margin = int(np.ceil(BOX_MARGIN_MM / step))
        box.append(slice(max(0, found.start - margin), min(size, found.stop + margin)))
    return box[0], box[1], box[2]
