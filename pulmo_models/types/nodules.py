"""Nodules in a volume, and what describes them. Frames and units: `pulmo_models.types`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pulmo_models.types.images import BoolArray, Caution, Laterality

CONCEPT_NAMES = (
    "subtlety",
    "internalStructure",
    "calcification",
    "sphericity",
    "margin",
    "lobulation",
    "spiculation",
    "texture",
)
"""The eight LIDC-IDRI ratings in the order of the characteriser's outputs."""

CONCEPT_RANGES: Mapping[str, tuple[int, int]] = {
    "subtlety": (1, 5),
    "internalStructure": (1, 4),
    "calcification": (1, 6),
    "sphericity": (1, 5),
    "margin": (1, 5),
    "lobulation": (1, 5),
    "spiculation": (1, 5),
    "texture": (1, 5),
}
"""Smallest and largest rating that the LIDC-IDRI protocol allows for each concept."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mask:
    """A binary mask on the grid of its volume, stored as the box that holds it.

    ``voxels`` is bool ``(slices, rows, columns)`` of the box; ``origin`` is the volume index of its first voxel.
    """

    origin: tuple[int, int, int]
    voxels: BoolArray

    def __post_init__(self) -> None:
        if self.voxels.ndim != 3 or self.voxels.dtype != np.bool_:
            raise ValueError("mask voxels must be a 3D bool array")
        if not self.voxels.any():
            raise ValueError("an empty mask is not a mask")

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of the box in the volume."""
        z, y, x = self.origin
        d, h, w = self.voxels.shape
        return slice(z, z + d), slice(y, y + h), slice(x, x + w)

    def to_volume(self, shape: tuple[int, ...]) -> BoolArray:
        """The mask on the whole grid of a volume of that shape."""
        full = np.zeros(shape, dtype=bool)
        full[self.slices] = self.voxels
        return full


@dataclass(frozen=True, kw_only=True)
class Box:
    """A box along the axes of its volume: its corners as voxel indices (slice, row, column), not rounded.

    An index is that of a voxel's centre.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    corners_lps_mm: tuple[tuple[float, float, float], tuple[float, float, float]]  # of `low` and `high`

    def voxels(self, shape: tuple[int, ...]) -> Mask:
        """The voxels of a volume of that shape whose centres lie in the box, at least one in each direction."""
        first, count = [], []
        for low, high, size in zip(self.low, self.high, shape, strict=True):
            middle = min(max(round((low + high) / 2), 0), size - 1)
            begin, end = max(0, min(math.ceil(low), middle)), min(size - 1, max(math.floor(high), middle))
            first.append(begin)
            count.append(end - begin + 1)
        z, y, x = first
        return Mask(origin=(z, y, x), voxels=np.ones(count, dtype=bool))


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An in-plane diameter: its length and the two end points as voxel indices (slice, row, column), not rounded.

    An index is that of a voxel's centre, so 0.0 is the centre of the first row or column.
    """

    length_mm: float
    start: tuple[float, float, float]
    end: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One radiological concept of the bottleneck, as the LIDC-IDRI readers rated it."""

    name: str  # one of CONCEPT_NAMES
    value: float  # on the LIDC scale, unrounded and not clipped
    contribution: float  # weight difference x network output: summand of the malignancy logit

    @property
    def rating(self) -> int:
        """The nearest rating that the LIDC protocol allows."""
        low, high = CONCEPT_RANGES[self.name]
        return int(min(max(round(self.value), low), high))


@dataclass(frozen=True, kw_only=True, eq=False)
class Nodule:
    """One finding. Probabilities are 0..1.

    A pipeline that outlines nodules gives ``mask`` and what is measured on it; one that draws boxes gives ``box``,
    whose sides in the plane are the two axes. What a pipeline does not tell is None.
    """

    centre_lps_mm: tuple[float, float, float]  # centroid of the mask, or middle of the box
    centre_index: tuple[int, int, int]  # candidate voxel (slice, row, column)
    mask: Mask | None = None
    box: Box | None = None
    candidate_score: float  # of the first network: peak of the heat map, or score of the box
    detection_probability: float  # of the last network that judges whether it is a nodule
    malignancy_probability: float | None = None
    concepts: tuple[Concept, ...] = ()
    long_axis: Axis  # longest in-plane diameter on the slice of largest area; of a box its longer side
    short_axis: Axis  # longest diameter perpendicular to it on the same slice
    volume_mm3: float | None = None
    mean_hu: float | None = None
    min_hu: float | None = None
    max_hu: float | None = None
    laterality: Laterality | None = None  # of the lung that holds it; None where the lungs were not looked for
    pleura_distance_mm: float | None = None  # from the mask to the surface of the lung; 0 where it touches
    cautions: tuple[Caution, ...] = ()  # on this nodule alone

    def __post_init__(self) -> None:
        if self.mask is None and self.box is None:
            raise ValueError("a nodule has a mask or a box")

    def extent(self, shape: tuple[int, ...]) -> Mask:
        """Where it lies in a volume of that shape: its mask, or the voxels of its box."""
        if self.mask is not None:
            return self.mask
        if self.box is None:
            raise ValueError("a nodule has a mask or a box")
        return self.box.voxels(shape)

    def top_concepts(self, count: int = 3) -> tuple[Concept, ...]:
        """The concepts with the largest contribution by magnitude, largest first."""
        return tuple(sorted(self.concepts, key=lambda c: -abs(c.contribution))[:count])
