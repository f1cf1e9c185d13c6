"""Binary morphology on voxel grids, with distances in mm, so that thin and thick slices are treated alike.

Masks are bool ``(slices, rows, columns)``; spacings are mm along the same axes. Balls are laid over masks of one bit a
voxel, 64 of a row at once; what needs distances, parts or basins comes from SimpleITK.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from pulmo_models.types import BoolArray, Mask

_FloatVolume = npt.NDArray[np.float32]


_Bits = npt.NDArray[np.uint64]  # (slices, rows, words): 64 voxels of a row each, the first in the lowest bit


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockMask:
    """A mask of blocks of voxels: what is known on a coarser grid is enlarged where it is asked for."""

    voxels: BoolArray  # one for each block
    factors: tuple[int, ...]  # size of a block along each axis, in voxels
    shape: tuple[int, ...]  # of the grid of the voxels; the last blocks may reach beyond it

    def __getitem__(self, box: tuple[slice, ...]) -> BoolArray:
        """The mask in a box of voxels; the box has no steps."""
        bounds = [found.indices(size)[:2] for found, size in zip(box, self.shape, strict=True)]
        places = [np.arange(start, stop) // factor for (start, stop), factor in zip(bounds, self.factors, strict=True)]
        enlarged = np.empty([len(place) for place in places], dtype=bool)
        for block, voxels in enumerate(self.voxels):
            first, stop = np.searchsorted(places[0], (block, block + 1))
            if stop > first:
                enlarged[first:stop] = voxels.take(places[2], axis=1).take(places[1], axis=0)
        return enlarged

    def whole(self) -> BoolArray:
        """The mask on the whole grid."""
        return self[tuple(slice(size) for size in self.shape)]

    def tight(self) -> Mask:
        """The mask, which is not empty, cut to the box of its True voxels."""
        found = zip(extent(self.voxels), self.factors, self.shape, strict=True)
        z, y, x = (slice(box.start * factor, min(box.stop * factor, size)) for box, factor, size in found)
        return Mask(origin=(z.start, y.start, x.start), voxels=self[z, y, x])


def labels_of(mask: BoolArray) -> npt.NDArray[np.uint32]:
    """The connected parts of a mask of two or three dimensions, numbered from 1; 0 outside."""
    return sitk.GetArrayFromImage(sitk.ConnectedComponent(_image(mask)))


def sections_of(mask: BoolArray) -> npt.NDArray[np.uint32]:
    """The parts of a mask that are connected within their slice, numbered from 1 through all slices; 0 outside."""
    slices, rows, columns = mask.shape
    below_each_other = np.zeros((slices, rows + 1, columns), dtype=bool)  # an empty row between two slices
    below_each_other[:, :rows] = mask
    return labels_of(below_each_other.reshape(-1, columns)).reshape(below_each_other.shape)[:, :rows]


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
    dilated = np.zeros_like(mask)
    if mask.any():
        box = box_around(extent(mask), spacing_mm, mask.shape, radius_mm)
        dilated[box] = _dilated(mask[box], spacing_mm, radius_mm)
    return dilated


def erode(mask: BoolArray, spacing_mm: tuple[float, ...], radius_mm: float) -> BoolArray:
    """The mask without what lies within ``radius_mm`` of its outside."""
    eroded = np.zeros_like(mask)
    if mask.any():
        # One voxel more on each side: of all that is outside, the nearest lies in that box.
        box = box_around(extent(mask), (1.0,) * mask.ndim, mask.shape, 1.0)
        eroded[box] = ~_dilated(~mask[box], spacing_mm, radius_mm)
    return eroded


def close(mask: BoolArray, spacing_mm: tuple[float, ...], radius_mm: float) -> BoolArray:
    """The mask with its gaps of up to twice the radius filled."""
    return erode(dilate(mask, spacing_mm, radius_mm), spacing_mm, radius_mm) | mask


def open_up(mask: BoolArray, spacing_mm: tuple[float, ...], radius_mm: float) -> BoolArray:
    """The mask without its parts that are thinner than twice the radius."""
    return dilate(erode(mask, spacing_mm, radius_mm), spacing_mm, radius_mm) & mask


def fill_holes(mask: BoolArray) -> BoolArray:
    """The mask with what it encloses in all dimensions."""
    filled = mask.copy()
    if mask.any():
        box = extent(mask)
        outside = np.pad(~mask[box], 1, constant_values=True)
        inner = (slice(1, -1),) * mask.ndim
        filled[box] = (labels_of(outside) != 1)[inner]  # the part of the first voxel is number 1
    return filled


def flood(markers: npt.NDArray[np.uint8], height: _FloatVolume) -> npt.NDArray[np.uint8]:
    """A marker for every voxel: basins grow from the markers, the lowest voxel first, and meet on the ridges."""
    flooded = sitk.MorphologicalWatershedFromMarkers(
        sitk.GetImageFromArray(height), sitk.GetImageFromArray(markers), markWatershedLine=False
    )
    return sitk.GetArrayFromImage(flooded)


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


def _dilated(mask: BoolArray, spacing_mm: tuple[float, ...], radius_mm: float) -> BoolArray:
    """As `dilate`, without looking where the mask is."""
    reach = _reach(mask.shape, spacing_mm, radius_mm)
    rows = [_to_bits(mask)]  # dilated along the row by 0, 1, 2 ... voxels
    for _ in range(int(reach.max())):
        rows.append(_wider(rows[-1]))
    ball = np.zeros_like(rows[0])
    for across, widths in enumerate(reach):
        disc = np.zeros_like(ball)
        for down, width in enumerate(widths[widths >= 0]):
            _lay(disc.swapaxes(0, 1), rows[width].swapaxes(0, 1), down)
        _lay(ball, disc, across)
    return _from_bits(ball, mask.shape[2])


def _reach(shape: tuple[int, ...], spacing_mm: tuple[float, ...], radius_mm: float) -> npt.NDArray[np.int64]:
    """How many columns a ball reaches, by slices and rows from its middle, as far as the grid goes; -1 where none.

    Distances are rounded to float32 before they are compared: the spacings are not exact either.
    """
    steps = [
        np.arange(min(size, int(radius_mm / step) + 2)) * step for size, step in zip(shape, spacing_mm, strict=True)
    ]
    z, y, x = np.ix_(*steps)
    inside = np.sqrt(z * z + y * y + x * x).astype(np.float32) <= np.float32(radius_mm)
    reach: npt.NDArray[np.int64] = inside.sum(axis=2) - 1
    return reach[: int((reach[:, 0] >= 0).sum())]


def _lay(target: _Bits, layer: _Bits, distance: int) -> None:
    """Lay a mask over another one, shifted by that many voxels to both sides along the first axis."""
    if distance == 0:
        target |= layer
    else:
        target[distance:] |= layer[:-distance]
        target[:-distance] |= layer[distance:]


def _wider(bits: _Bits) -> _Bits:
    """The mask and the voxels beside it in the row."""
    one, last = np.uint64(1), np.uint64(63)
    wider = bits | (bits << one)
    wider |= bits >> one
    wider[..., 1:] |= bits[..., :-1] >> last
    wider[..., :-1] |= bits[..., 1:] << last
    return wider


def _to_bits(mask: BoolArray) -> _Bits:
    packed = np.packbits(mask, axis=-1, bitorder="little")
    filled = np.zeros((*packed.shape[:-1], -(-packed.shape[-1] // 8) * 8), dtype=np.uint8)
    filled[..., : packed.shape[-1]] = packed
    return filled.view("<u8")


def _from_bits(bits: _Bits, columns: int) -> BoolArray:
    return np.unpackbits(bits.view(np.uint8), axis=-1, count=columns, bitorder="little").view(bool)


def _image(mask: BoolArray, spacing_mm: tuple[float, ...] | None = None) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(mask).view(np.uint8))
    if spacing_mm is not None:
        image.SetSpacing([float(step) for step in reversed(spacing_mm)])
    return image
