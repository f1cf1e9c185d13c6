"""What a segmentation holds: its segments, their size, the images that they lie on (PS3.3 A.51, C.8.20)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.utils import iter_pixels

from pulmo_node.assemble.files import READ_ERRORS
from pulmo_node.errors import Permanent
from pulmo_node.reading.items import code_in
from pulmo_node.reading.report import read_dataset


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment."""

    number: int
    label: str
    tracking_uid: str
    kind: str  # what it shows, in words
    algorithm: str  # who drew it: AUTOMATIC, MANUAL, and the name of the algorithm
    voxels: int
    volume_mm3: float | None  # None where the object does not tell the spacing
    images: int  # that it lies on


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """A segmentation object."""

    sop_instance_uid: str
    kind: str  # BINARY, LABELMAP or FRACTIONAL
    segments: tuple[Segment, ...]

    def segment(self, number: int | None) -> Segment | None:
        """The segment of a number."""
        return next((segment for segment in self.segments if segment.number == number), None)


def read_segmentation(path: Path) -> Segmentation:
    """The segmentation in a Part 10 file, its pixels counted frame by frame.

    A voxel of a FRACTIONAL segmentation counts where it is not 0.

    Raises:
        Permanent: it cannot be read, or is no segmentation.
    """
    dataset = read_dataset(path)
    if "SegmentSequence" not in dataset:
        raise Permanent(f"{path} is no segmentation: it has no segments (0062,0002)")
    try:
        counts = _counts(dataset)
        voxel_mm3 = _voxel_mm3(dataset)
        return Segmentation(
            sop_instance_uid=str(dataset.get("SOPInstanceUID", "")),
            kind=str(dataset.get("SegmentationType", "")),
            segments=tuple(_segment(item, counts, voxel_mm3) for item in dataset.SegmentSequence),
        )
    except READ_ERRORS as exc:
        raise Permanent(f"{path} holds a segmentation that cannot be read ({type(exc).__name__})") from exc


def _counts(dataset: Dataset) -> dict[int, list[int]]:
    """Voxels of each segment on each image that shows it."""
    counts: dict[int, list[int]] = {}
    label_map = dataset.SegmentationType == "LABELMAP"
    frames = dataset.PerFrameFunctionalGroupsSequence
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for groups, frame in zip(frames, iter_pixels(dataset), strict=True):
        if label_map:
            found = np.bincount(np.asarray(frame).ravel())
            numbers = {number: int(found[number]) for number in np.flatnonzero(found).tolist()}
        else:
            identification = groups.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence
            numbers = {int(identification[0].ReferencedSegmentNumber): int(np.count_nonzero(frame))}
        for number, voxels in numbers.items():
            if voxels:
                counts.setdefault(number, []).append(voxels)
    return counts


def _voxel_mm3(dataset: Dataset) -> float | None:
    shared = dataset.SharedFunctionalGroupsSequence[0].get("PixelMeasuresSequence") or ()
    if not shared or "SpacingBetweenSlices" not in shared[0]:
        return None
    between_rows_mm, between_columns_mm = (float(value) for value in shared[0].PixelSpacing)
    return between_rows_mm * between_columns_mm * float(shared[0].SpacingBetweenSlices)


def _segment(item: Dataset, counts: dict[int, list[int]], voxel_mm3: float | None) -> Segment:
    number = int(item.SegmentNumber)
    on_images = counts.get(number, [])
    kind = code_in(item, "SegmentedPropertyTypeCodeSequence")
    algorithm = (str(item.get("SegmentAlgorithmType", "")), str(item.get("SegmentAlgorithmName") or ""))
    return Segment(
        number=number,
        label=str(item.get("SegmentLabel", "")),
        tracking_uid=str(item.get("TrackingUID", "")),
        kind="" if kind is None else kind.meaning,
        algorithm=", ".join(part for part in algorithm if part),
        voxels=sum(on_images),
        volume_mm3=None if voxel_mm3 is None else sum(on_images) * voxel_mm3,
        images=len(on_images),
    )
