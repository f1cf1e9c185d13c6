"""Lung localisation, classical: where a detector should look, and whether a volume shows lungs at all.

Input: HU and voxel spacing. Output: a mask of the lungs with vessels, nodules and airways inside. Error:
:class:`Rejection` ``NO_LUNGS``. The work is done on a grid of about 2 mm; morphology uses distances in mm, so that
slices of 1 mm and of 8 mm are treated alike.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pulmo_models.codes import RejectionCode
from pulmo_models.ct.airways import large_airways
from pulmo_models.ct.morphology import (
    BlockMask,
    box_around,
    close,
    dilate,
    extent,
    fill_holes,
    labels_of,
    open_up,
    sections_of,
)
from pulmo_models.ct.sides import left_lung
from pulmo_models.pipeline import Rejection
from pulmo_models.types import BoolArray, Laterality, Mask, Volume

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

_THREADS = 2  # numpy holds no lock while it adds

_FloatVolume = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class LungRegion:
    """The lungs on the grid of their volume."""

    mask: BoolArray  # (slices, rows, columns)
    search: BoolArray  # where a nodule may lie: the mask closed further, so that a mass on the pleura is inside
    proper: BlockMask  # the lungs without trachea and main bronchi, each closed by itself
    left: BlockMask  # where the patient's left lung is, or is the nearer one
    box: tuple[slice, slice, slice]  # bounding box of the mask with a margin of 10 mm, cut at the border of the volume
    volume_ml: float

    def lungs(self) -> dict[Laterality, Mask]:
        """The left and the right lung, without trachea and main bronchi; one of them may be missing."""
        proper, left = self.proper.voxels, self.left.voxels
        sides: tuple[tuple[Laterality, BoolArray], ...] = (("left", proper & left), ("right", proper & ~left))
        return {side: replace(self.proper, voxels=part).tight() for side, part in sides if part.any()}


def localise_lungs(volume: Volume) -> LungRegion:
    """The lungs of a volume.

    Raises:
        Rejection: code ``NO_LUNGS``, where less than 0.3 litre (or more than 14 litres) looks like lung.
    """
    return _region(volume, _coarse_lungs(volume.hu, volume.spacing_mm))


def region_within(volume: Volume, inside: BoolArray) -> LungRegion:
    """The lungs of a volume of which it is known where they lie: ``inside`` is bool ``(slices, rows, columns)``.

    What is as thin as lung there and no air around the patient is lung; nothing is asked of its size or shape.

    Raises:
        Rejection: as :func:`localise_lungs`.
    """
    factors, spacing = _working_grid(volume.spacing_mm)
    hu = _block_mean(volume.hu, factors)
    air = hu < AIR_BELOW_HU
    parts = air & ~_outside_air(hu, air) & inside[tuple(slice(None, None, factor) for factor in factors)]
    lungs = fill_holes(close(parts, spacing, CLOSING_MM)) if parts.any() else parts
    coarse = _Coarse(lungs=lungs, unclosed=parts, hu=hu, spacing_mm=spacing, factors=factors, shape=volume.hu.shape)
    return _region(volume, coarse)


def _region(volume: Volume, coarse: _Coarse) -> LungRegion:
    """What is told of lungs on the working grid, or why they are none."""
    spacing = volume.spacing_mm
    mask = coarse.enlarged(coarse.lungs).whole()
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
    search = dilate(close(coarse.lungs, coarse.spacing_mm, SEARCH_CLOSING_MM), coarse.spacing_mm, SEARCH_MARGIN_MM)
    leftward_mm = _leftward_mm(volume, coarse)
    left = left_lung(coarse.unclosed, coarse.hu >= AIR_BELOW_HU, coarse.spacing_mm, leftward_mm)
    airways = large_airways(coarse.hu, coarse.unclosed, left, leftward_mm, coarse.spacing_mm)
    return LungRegion(
        mask=mask,
        search=coarse.enlarged(fill_holes(search)).whole(),
        proper=coarse.enlarged(_proper(coarse, left, airways)),
        left=coarse.enlarged(left),
        box=box_around(extent(mask), spacing, mask.shape, BOX_MARGIN_MM),
        volume_ml=lung_mm3 / 1e3,
    )


def segment_lungs(hu: _FloatVolume, spacing_mm: tuple[float, float, float]) -> BoolArray:
    """Mask of the lungs, bool ``(slices, rows, columns)``; all False where there are none.

    ``hu`` is float32 in Hounsfield units, ``spacing_mm`` along (slice, row, column). Padding outside the field of view
    (-2000, -3024) counts as air. Trachea and main bronchi may be included.
    """
    coarse = _coarse_lungs(hu, spacing_mm)
    return coarse.enlarged(coarse.lungs).whole()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Coarse:
    """The lungs on the working grid."""

    lungs: BoolArray
    unclosed: BoolArray  # without vessels and what lies on the pleura
    hu: _FloatVolume
    spacing_mm: tuple[float, ...]
    factors: tuple[int, ...]  # how many voxels of the volume one of this grid has along each axis
    shape: tuple[int, ...]  # of the volume

    def enlarged(self, mask: BoolArray) -> BlockMask:
        """A mask of this grid on that of the volume."""
        return BlockMask(voxels=mask, factors=self.factors, shape=self.shape)


def _working_grid(spacing_mm: tuple[float, float, float]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """How many voxels one of the working grid has along each axis, and its spacing."""
    factors = tuple(max(1, round(WORKING_SPACING_MM / step)) for step in spacing_mm)
    return factors, tuple(step * factor for step, factor in zip(spacing_mm, factors, strict=True))


def _coarse_lungs(hu: _FloatVolume, spacing_mm: tuple[float, float, float]) -> _Coarse:
    factors, spacing = _working_grid(spacing_mm)
    coarse = _block_mean(hu, factors)
    air = coarse < AIR_BELOW_HU
    inside = air & ~_outside_air(coarse, air) & _enclosed(air, spacing)
    parts = _lung_like_parts(coarse, inside, float(np.prod(spacing)))
    lungs = fill_holes(close(parts, spacing, CLOSING_MM)) if parts.any() else parts
    return _Coarse(lungs=lungs, unclosed=parts, hu=coarse, spacing_mm=spacing, factors=factors, shape=hu.shape)


def _proper(coarse: _Coarse, left: BoolArray, airways: BoolArray) -> BoolArray:
    """Each lung closed by itself, so that nothing between the two is taken in."""
    proper = np.zeros_like(left)
    for side in (left, ~left):
        lung = coarse.unclosed & side & ~airways
        if lung.any():
            box = box_around(extent(lung), coarse.spacing_mm, lung.shape, 2 * CLOSING_MM)
            closed = fill_holes(close(lung[box], coarse.spacing_mm, CLOSING_MM))
            proper[box] |= closed & side[box] & ~airways[box]
    return proper


def _leftward_mm(volume: Volume, coarse: _Coarse) -> _FloatVolume:
    """Position of the voxels of the working grid along the patient's right-to-left axis (x of LPS)."""
    steps = volume.affine[0, :3] * coarse.factors
    z, y, x = np.ogrid[tuple(slice(size) for size in coarse.lungs.shape)]
    leftward: _FloatVolume = (volume.affine[0, 3] + z * steps[0] + y * steps[1] + x * steps[2]).astype(np.float32)
    return leftward


def _block_mean(hu: _FloatVolume, factors: tuple[int, ...]) -> _FloatVolume:
    """Mean of blocks of voxels, clipped first; the last block of an axis may be smaller."""
    fz = factors[0]
    starts = [np.arange(0, size, factor) for size, factor in zip(hu.shape, factors, strict=True)]
    numbers = [np.minimum(size - first, factor) for size, first, factor in zip(hu.shape, starts, factors, strict=True)]
    counts = np.outer(numbers[1], numbers[2])

    def layer(start: int) -> _FloatVolume:
        slab = np.clip(hu[start : start + fz], -1024.0, 1000.0).sum(axis=0)
        sums = np.add.reduceat(np.add.reduceat(slab, starts[1], axis=0), starts[2], axis=1)
        mean: _FloatVolume = sums / (counts * numbers[0][start // fz])
        return mean

    with ThreadPoolExecutor(_THREADS) as pool:
        return np.stack(list(pool.map(layer, starts[0].tolist()))).astype(np.float32, copy=False)


def _outside_air(coarse: _FloatVolume, air: BoolArray) -> BoolArray:
    """Air around the patient: in each slice, what touches the border of the image and is as thin as air.

    The density decides too, because in a reconstruction with a small field of view a lung may touch the border.
    """
    labels = sections_of(air)
    sizes = np.bincount(labels.ravel())
    thin = np.bincount(labels[coarse < OUTSIDE_AIR_MEDIAN_BELOW_HU], minlength=sizes.size)
    outside = np.zeros(sizes.shape, dtype=bool)
    for label in np.unique(np.concatenate([labels[:, [0, -1]].ravel(), labels[:, :, [0, -1]].ravel()])):
        if 2 * thin[label] == sizes[label]:  # the median lies between the last thin voxel and the first other one
            outside[label] = np.median(coarse[labels == label]) < OUTSIDE_AIR_MEDIAN_BELOW_HU
        else:
            outside[label] = 2 * thin[label] > sizes[label]
    outside[0] = False
    return outside[labels]


def _enclosed(air: BoolArray, spacing_mm: tuple[float, ...]) -> BoolArray:
    """What has the patient on at least three of its four sides within the slice.

    It leaves out the table, foam and blankets, and keeps a lung that the edge of a small field of view cuts open.
    """
    labels = labels_of(open_up(~air, spacing_mm, TABLE_OPENING_MM))
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
    labels = labels_of(inside)
    sizes = np.bincount(labels.ravel())
    lung_like = (coarse > LUNG_LIKE_HU[0]) & (coarse < LUNG_LIKE_HU[1])
    similar = np.bincount(labels.ravel(), weights=lung_like.ravel(), minlength=sizes.size)
    keep = (sizes * voxel_mm3 >= SMALLEST_PART_MM3) & (similar >= LUNG_LIKE_SHARE * sizes)
    keep[0] = False
    keep &= sizes >= SMALLEST_PART_SHARE * np.max(sizes, initial=0, where=keep)
    return keep[labels]
