"""From 2D segmentations to one 3D mask per nodule.

The characteriser outlines the nodule on the central slice of its input only. It is therefore run again with the input
shifted slice by slice: from the candidate's slice up and down, as long as what it outlines overlaps what it outlined on
the slice before. Parts that do not overlap are dropped, so the mask is one connected piece.

Where the central outline is empty or more than 3 mm from the candidate, the mask is grown from HU: the voxels within
5 mm that are connected to the densest voxel within 2 mm and are brighter than half way between it and lung.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
_Labels = npt.NDArray[np.uint32]


Outline = Callable[[Sequence[Index]], BoolArray]  # places, at least one, to (B, 64, 64), the place at (32, 32)


def walk(
    shape: tuple[int, ...],
    spacing_mm: tuple[float, float, float],
    centres: Sequence[Index],
    first: BoolArray,
    outline: Outline,
    ahead: int = 1,
) -> list[Mask | None]:
    """The masks around places of a volume; None where the outline on the place's own slice is empty or too far away.

    ``first`` are those outlines, (B, 64, 64). All masks grow together, so that the network sees full batches, and at
    each of their ends by up to ``ahead`` slices a round; what that asks for in vain is thrown away.
    """
    parts = _labels(first & _inside(shape, centres))
    walks = [_Walk.begin(centre, labels, spacing_mm) for centre, labels in zip(centres, parts, strict=True)]
    while True:
        ends = [(w, *end) for w in walks if w is not None for end in w.next_slices(shape, spacing_mm, ahead)]
        places = [(z, *w.centre[1:]) for w, _, slices in ends for z in slices]
        if not places:
            return [None if w is None else w.mask() for w in walks]
        labels = iter(_labels(outline(places) & _inside(shape, places)))
        for w, direction, slices in ends:
            w.extend(direction, [(z, next(labels)) for z in slices])


@dataclass
class _Walk:
    """The growing mask of one candidate: a 64 x 64 layer for each slice that belongs to it."""

    centre: Index
    layers: dict[int, BoolArray]  # by slice index of the volume
    open_ends: tuple[int, ...] = (-1, 1)  # directions in which the mask may still grow

    @classmethod
    def begin(cls, centre: Index, labels: _Labels, spacing_mm: Sequence[float]) -> _Walk | None:
        """With the part under the candidate, or the nearest one within 3 mm of it; None where there is none."""
        rows, columns = np.nonzero(labels)
        distances_mm = np.hypot((rows - CENTRE) * spacing_mm[1], (columns - CENTRE) * spacing_mm[2])
        if not len(rows) or distances_mm.min() > NEAREST_PART_MM:
            return None
        nearest = int(np.argmin(distances_mm))
        return cls(centre, {centre[0]: labels == labels[rows[nearest], columns[nearest]]})

    def next_slices(
        self, shape: tuple[int, ...], spacing_mm: tuple[float, float, float], ahead: int
    ) -> list[tuple[int, list[int]]]:
        """For each direction in which outlines are wanted, on which slices; empty when the walk has ended."""
        wanted = []
        for direction in self.open_ends:
            last = min(self.layers) if direction < 0 else max(self.layers)
            slices = [last + direction * step for step in range(1, ahead + 1)]
            within = [z for z in slices if abs(z - self.centre[0]) * spacing_mm[0] <= LARGEST_HALF_EXTENT_MM]
            wanted.append((direction, [z for z in within if 0 <= z < shape[0]]))
        return wanted

    def extend(self, direction: int, outlines: Sequence[tuple[int, _Labels]]) -> None:
        """Add the parts that overlap the slice before; at the first slice without any it ends in that direction."""
        for z, labels in outlines:
            previous = self.layers[z - direction]
            layer = np.isin(labels, np.unique(labels[previous & (labels > 0)])) & (labels > 0)
            if not layer.any():
                self.open_ends = tuple(end for end in self.open_ends if end != direction)
                return
            self.layers[z] = layer

    def mask(self) -> Mask:
        """The mask on the grid of the volume."""
        _, y, x = self.centre
        low, high = min(self.layers), max(self.layers)
        stack = np.stack([self.layers[k] for k in range(low, high + 1)])
        return tight_mask((low, y - CENTRE, x - CENTRE), stack)


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


def _inside(shape: tuple[int, ...], centres: Sequence[Index]) -> BoolArray:
    """Which pixels of the 64 x 64 inputs around some places lie inside the image."""
    reach = np.arange(ROWS_COLUMNS) - CENTRE
    rows, columns = (np.array([c[axis] for c in centres])[:, None] + reach for axis in (1, 2))
    inside: BoolArray = ((rows >= 0) & (rows < shape[1]))[:, :, None] & ((columns >= 0) & (columns < shape[2]))[:, None]
    return inside


def _labels(outlines: BoolArray) -> _Labels:
    """The connected parts of each outline, numbered from 1 on without repetition; 0 outside.

    They are found in one image, one below the other with an empty row between: a call for each would cost far more.
    """
    apart = np.pad(outlines, ((0, 0), (0, 1), (0, 0)))
    labels = labels_of(apart.reshape(-1, ROWS_COLUMNS))
    return labels.reshape(apart.shape)[:, :ROWS_COLUMNS]
