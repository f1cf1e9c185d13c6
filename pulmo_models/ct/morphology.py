"""Binary morphology on voxel grids by SimpleITK, with distances in mm, so that thin and thick slices are treated alike.

Masks are bool ``(slices, rows, columns)``; spacings are mm along the same axes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from pulmo_models.types import BoolArray, Mask

_FloatVolume = npt.NDArray[np.float32]


def labels_of(mask: BoolArray) -> npt.NDArray[np.int64]:
    """The connected parts of a mask of two or three dimensions, numbered from 1; 0 outside."""
    return sitk.GetArrayFromImage(sitk.ConnectedComponent(_image(mask))).astype(np.int64)


def depth_mm(mask: BoolArray, spacing_mm: tuple[float, ...]) -> _FloatVolume:
    """Distance of each voxel inside the mask to the nearest one outside, negative outside; between voxel centres."""
    distance = sitk.SignedMaurerDistanceMap(
        _image(~mask, spacing_mm), insideIsPositive=False, squaredDistance=False, useImageSpacing=True
    )
    return sitk.GetArrayFromImage(distance)


def distance_mm(mask: BoolArray, spacing_mm: tuple[float, ...]) -> _FloatVolume:
    """Distance of each voxel to the mask, which is not empty: 0 inside; between voxel centres."""
    distance = sitk.SignedMaurerDistanceMap(_image(mask, spacing_mm), squaredDistance=False, useImageSpacing=True)
    outside: _FloatVolume = np.maximum(sitk.GetArrayFromImage(distance), 0.0)
    return outside


def dilate(mask: BoolArray, spacing_mm: tuple[float, ...], radius_mm: float) -> BoolArray:
    """The mask and everything within ``radius_mm`` of it, measured between voxel centres."""
    return distance_mm(mask, spacing_mm) <= radius_mm if mask.any() else mask.copy()


def erode(mask: BoolArray, spacing_mm: tuple[float, ...], radius_mm: float) -> BoolArray:
    """The mask without what lies within ``radius_mm`` of its outside."""
    return ~dilate(~mask, spacing_mm, radius_mm)


def close(mask: BoolArray, spacing_mm: tuple[float, ...], radius_mm: float) -> BoolArray:
    """The mask with its gaps of up to twice the radius filled."""
    return erode(dilate(mask, spacing_mm, radius_mm), spacing_mm, radius_mm) | mask


def open_up(mask: BoolArray, spacing_mm: tuple[float, ...], radius_mm: float) -> BoolArray:
    """The mask without its parts that are thinner than twice the radius."""
    return dilate(erode(mask, spacing_mm, radius_mm), spacing_mm, radius_mm) & mask


def fill_holes(mask: BoolArray) -> BoolArray:
    """The mask with what it encloses in all dimensions."""
    return sitk.GetArrayFromImage(sitk.BinaryFillhole(_image(mask))).astype(bool)


def flood(markers: npt.NDArray[np.uint8], height: _FloatVolume) -> npt.NDArray[np.uint8]:
    """A marker for every voxel: basins grow from the markers, the lowest voxel first, and meet on the ridges."""
    flooded = sitk.MorphologicalWatershedFromMarkers(
        sitk.GetImageFromArray(height), sitk.GetImageFromArray(markers), markWatershedLine=False
    )
    return sitk.GetArrayFromImage(flooded)


def enlarge(mask: BoolArray, factors: tuple[int, ...], shape: tuple[int, ...]) -> BoolArray:
    """A mask of blocks of ``factors`` voxels on the grid of the voxels themselves, cut to ``shape``."""
    for axis, (factor, size) in enumerate(zip(factors, shape, strict=True)):
        mask = np.repeat(mask, factor, axis=axis).take(range(size), axis=axis)
    return mask


def extent(mask: BoolArray) -> tuple[slice, ...]:
    """Smallest box around the True voxels of a mask that is not empty."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return tuple(box)


def box_around(
    box: tuple[slice, ...], spacing_mm: tuple[float, ...], shape: tuple[int, ...], margin_mm: float
) -> tuple[slice, slice, slice]:
    """A box of three dimensions with a margin, cut at the border of the grid."""
    wide = []
    for found, step, size in zip(box, spacing_mm, shape, strict=True):
        margin = int(np.ceil(margin_mm / step))
        wide.append(slice(max(0, found.start - margin), min(size, found.stop + margin)))
    return wide[0], wide[1], wide[2]


def tight_mask(origin: tuple[int, int, int], voxels: BoolArray) -> Mask:
    """A mask, of voxels of which the first lies at ``origin``, cut to the box of those that are True."""
    box = extent(voxels)
    z, y, x = (first + found.start for first, found in zip(origin, box, strict=True))
    return Mask(origin=(z, y, x), voxels=voxels[box].copy())


def _image(mask: BoolArray, spacing_mm: tuple[float, ...] | None = None) -> sitk.Image:
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    if spacing_mm is not None:
        image.SetSpacing([float(step) for step in reversed(spacing_mm)])
    return image
