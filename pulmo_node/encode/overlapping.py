"""Segments that overlap, in a BINARY segmentation (PS3.3 C.8.20.2).

highdicom takes them as one channel of whole images for each segment, empty or not: a gigabyte for thirty nodules in 300
slices. So it is shown tokens, a label map in which each segment has one pixel on each image that it lies on. That gives
the frames of the object, which then get their true pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from pulmo_models.mapping import FrameMask
from pulmo_models.types import BoolArray, SourceFrame

Labels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]  # (images, rows, columns): segment numbers, 0 where none is
Pieces = Mapping[tuple[int, int], tuple[tuple[slice, slice], BoolArray]]
"""What segment n has on image k, by (k, n): a part of the image, and its pixels."""


def pieces_of(
    nodules: Sequence[Sequence[FrameMask]],
    lungs: Sequence[Sequence[FrameMask]],
    labels: Labels,
    plane_of: Mapping[int, int],
) -> Pieces:
    """The nodules whole, and of the lungs, which are the last segments, what `labels` leaves them."""
    pieces = {
        (plane_of[mask.frame], number): (mask.region, mask.pixels)
        for number, found in enumerate(nodules, start=1)
        for mask in found
    }
    for number, found in enumerate(lungs, start=len(nodules) + 1):
        for mask in found:
            plane = plane_of[mask.frame]
            left = labels[plane][mask.region] == number
            if left.any():
                pieces[plane, number] = (mask.region, left)
    return pieces


def tokens_of(pieces: Pieces, labels: Labels) -> Labels:
    """A label map with the frames of `pieces`, and of the shape and type of `labels`."""
    tokens = np.zeros_like(labels)
    for plane, number in pieces:
        tokens[plane].flat[number - 1] = number
    return tokens


def set_pixels(built: hd.seg.Segmentation, pieces: Pieces, sources: Sequence[SourceFrame]) -> None:
    """Give the frames of an object that was built from tokens their pixels; `sources` are its images.

    Frames follow each other bit by bit, the first pixel in the lowest bit of a byte (PS3.5 8.1.1).
    """
    places = np.array([source.origin_lps_mm for source in sources])
    shape = (int(built.Rows), int(built.Columns))
    bits = shape[0] * shape[1]
    packed = np.zeros(-(-bits * len(built.PerFrameFunctionalGroupsSequence) // 16) * 2, dtype=np.uint8)
    for frame, groups in enumerate(built.PerFrameFunctionalGroupsSequence):
        number = int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        found = pieces.get((nearest_place(groups, places), number))
        if found is None:
            continue  # a frame without pixels
        image = np.zeros(shape, dtype=bool)
        image[found[0]] = found[1]
        first, shift = divmod(frame * bits, 8)
        own = np.packbits(np.pad(image.ravel(), (shift, 0)), bitorder="little")
        packed[first : first + own.size] |= own
    built.PixelData = packed.tobytes()
    built.SegmentsOverlap = "YES"


def nearest_place(groups: Dataset, places: npt.NDArray[np.float64]) -> int:
    """Index of the place, LPS mm, that a frame lies nearest to by its functional groups."""
    place = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, dtype=np.float64)
    return int(np.linalg.norm(places - place, axis=1).argmin())
