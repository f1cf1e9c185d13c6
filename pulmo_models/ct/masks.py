"""From 2D segmentations to one 3D mask per nodule.

The characteriser outlines the nodule on the central slice of its input only. It is therefore run again with the input
shifted slice by slice: from the candidate's slice up and down, as long as what it outlines overlaps what it outlined on
the slice before. Parts that do not overlap are dropped, so the mask is one connected piece.

Where the central outline is empty or more than 3 mm from the candidate, the mask is grown from HU: the voxels within
5 mm that are connected to the densest voxel within 2 mm and are brighter than half way between it and lung.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pulmo_models.ct.morphology import labels_of, tight_mask
from pulmo_models.geometry import crop
from pulmo_models.types import BoolArray, Mask

ROWS_COLUMNS = 64
CENTRE = 32  # of rows and columns of the input, where the candidate lies

NEAREST_PART_MM = 3.0
GROW_SEED_MM = 2.0
GROW_RADIUS_MM = 5.0
LUNG_HU = -850.0
LARGEST_HALF_EXTENT_MM = 35.0

Index = tuple[int, int, int]
_FloatVolume = npt.NDArray[np.float32]


@dataclass
class MaskWalk:
    """The growing mask of one candidate: a 64 x 64 layer for each slice that belongs to it."""

    centre: Index
    layers: dict[int, BoolArray] = field(default_factory=dict)  # by slice index of the volume
    open_ends: tuple[int, ...] = (-1, 1)  # directions in which the mask may still grow

    def mask(self) -> Mask:
        """The mask on the grid of the volume; the walk has at least one layer."""
        _, y, x = self.centre
        low, high = min(self.layers), max(self.layers)
        stack = np.stack([self.layers[k] for k in range(low, high + 1)])
        return tight_mask((low, y - CENTRE, x - CENTRE), stack)


def start_walk(
    hu: _FloatVolume, spacing_mm: tuple[float, float, float], centre: Index, outline: BoolArray
) -> MaskWalk | Mask:
    """Begin a mask with the outline on the candidate's own slice, or grow the whole mask from HU where it is empty.

    ``outline`` is bool (64, 64) with the candidate at (32, 32).
    """
    layer = _part_nearest_to_centre(outline & _inside(hu.shape, centre), spacing_mm)
    if layer is None:
        return grow_from_hu(hu, spacing_mm, centre)
    return MaskWalk(centre=centre, layers={centre[0]: layer})


def next_slices(
    walk: MaskWalk, shape: tuple[int, ...], spacing_mm: tuple[float, float, float]
) -> list[tuple[int, int]]:
    """The (direction, slice index) pairs on which the walk wants an outline; empty when it has ended."""
    wanted = []
    for direction in walk.open_ends:
        z = (min(walk.layers) if direction < 0 else max(walk.layers)) + direction
        if 0 <= z < shape[0] and abs(z - walk.centre[0]) * spacing_mm[0] <= LARGEST_HALF_EXTENT_MM:
            wanted.append((direction, z))
    return wanted


def extend(walk: MaskWalk, direction: int, z: int, outline: BoolArray, shape: tuple[int, ...]) -> None:
    """Add the parts of an outline that overlap the slice before; without any, the walk ends in that direction."""
    layer = _parts_touching(outline & _inside(shape, walk.centre), walk.layers[z - direction])
    if layer.any():
        walk.layers[z] = layer
    else:
        walk.open_ends = tuple(end for end in walk.open_ends if end != direction)


def grow_from_hu(hu: _FloatVolume, spacing_mm: tuple[float, float, float], centre: Index) -> Mask:
    """The mask by density alone (see the head of this module); never empty."""
    half = tuple(int(GROW_RADIUS_MM / step) for step in spacing_mm)
    origin = tuple(c - h for c, h in zip(centre, half, strict=True))
    box = crop(hu, origin, tuple(2 * h + 1 for h in half), fill=-np.inf)
    offsets = np.indices(box.shape) - np.reshape(half, (3, 1, 1, 1))
    distance_mm = np.sqrt(sum((o * s) ** 2 for o, s in zip(offsets, spacing_mm, strict=True)))
    near = np.where(distance_mm <= GROW_SEED_MM, box, -np.inf)
    seed = np.unravel_index(int(np.argmax(near)), near.shape)
    threshold = min((float(box[seed]) + LUNG_HU) / 2, float(box[seed]))
    labels = labels_of((box >= threshold) & (distance_mm <= GROW_RADIUS_MM))
    return tight_mask((origin[0], origin[1], origin[2]), labels == labels[seed])


def overlap_share(a: Mask, b: Mask) -> float:
    """Voxels that two masks share, over the voxels of the smaller one."""
    low = np.maximum(a.origin, b.origin)
    high = np.minimum(np.add(a.origin, a.voxels.shape), np.add(b.origin, b.voxels.shape))
    if (low >= high).any():
        return 0.0

    def part(mask: Mask) -> BoolArray:
        return mask.voxels[tuple(slice(lo - o, hi - o) for lo, hi, o in zip(low, high, mask.origin, strict=True))]

    return float((part(a) & part(b)).sum()) / float(min(a.voxels.sum(), b.voxels.sum()))


def _inside(shape: tuple[int, ...], centre: Index) -> BoolArray:
    """Which pixels of a 64 x 64 input lie inside the image."""
    rows = np.arange(ROWS_COLUMNS) + centre[1] - CENTRE
    columns = np.arange(ROWS_COLUMNS) + centre[2] - CENTRE
    return np.outer((rows >= 0) & (rows < shape[1]), (columns >= 0) & (columns < shape[2]))


def _part_nearest_to_centre(outline: BoolArray, spacing_mm: Sequence[float]) -> BoolArray | None:
    """The connected part under the candidate, or the nearest one within 3 mm of it."""
    if not outline.any():
        return None
    rows, columns = np.nonzero(outline)
    distances_mm = np.hypot((rows - CENTRE) * spacing_mm[1], (columns - CENTRE) * spacing_mm[2])
    nearest = int(np.argmin(distances_mm))
    if distances_mm[nearest] > NEAREST_PART_MM:
        return None
    labels = labels_of(outline)
    return labels == labels[rows[nearest], columns[nearest]]


def _parts_touching(outline: BoolArray, previous: BoolArray) -> BoolArray:
    labels = labels_of(outline)
    touching = np.unique(labels[previous & outline])
    return np.isin(labels, touching) & outline
