"""The headers of a series, each read once for all that is asked of it.

Input: Part 10 files. Output: `Header` values: the elements that description, geometry and decoding need, and where the
pixel data lie. Every stage of assembly asks the same `SeriesFiles`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.tag import Tag

from pulmo_node.assemble.files import FileIdentity, check_meta, parsed, translated

DESCRIPTION_KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "BodyPartExamined",
    "SeriesDescription", "ViewPosition", "ImageType",
)  # fmt: skip
"""What a selection rule may ask."""

IMAGE_KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "PatientID", "Modality", "ImageType", "AcquisitionNumber",
    "ConvolutionKernel", "FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "RescaleIntercept", "RescaleSlope", "RescaleType",
    "ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "SliceThickness",
    "ReconstructionDiameter", "ContrastBolusAgent", "ContrastBolusAgentSequence", "PatientPosition", "InstanceNumber",
    "TemporalPositionIdentifier", "NominalPercentageOfCardiacPhase", "TriggerTime", "AcquisitionDateTime",
    "AcquisitionDate", "AcquisitionTime",
)  # fmt: skip
"""What places a CT image."""

PIXEL_KEYWORDS = (
    "SOPClassUID", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns",
    "NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "RescaleSlope", "RescaleIntercept",
    "RescaleType", "ModalityLUTSequence",
)  # fmt: skip
"""What decoding needs besides the pixel data."""

_TAGS = tuple(Tag(keyword) for keyword in sorted({*DESCRIPTION_KEYWORDS, *IMAGE_KEYWORDS, *PIXEL_KEYWORDS}))


@dataclass(frozen=True, kw_only=True, eq=False)
class Header:
    """One file without its pixels."""

    path: Path
    identity: FileIdentity  # of the file that was read
    dataset: Dataset  # the elements of the three lists above, as far as the file has them
    has_pixels: bool  # whether pixel data follow
    pixels_at: int | None  # offset of their element; None without pixels and in deflated files


class SeriesFiles:
    """Reads headers and keeps them, and stored values that were decoded before. Threads may share it."""

    def __init__(self) -> None:
        self._headers: dict[Path, Header] = {}
        self._stored: dict[Path, npt.NDArray[np.integer]] = {}
        self._lock = Lock()

    def add(self, header: Header, stored: npt.NDArray[np.integer] | None) -> None:
        """What was read of a file before; `stored` where it was decoded too."""
        with self._lock:
            self._headers[header.path] = header
            if stored is not None:
                self._stored[header.path] = stored

    def take_stored(self, path: Path) -> npt.NDArray[np.integer] | None:
        """The stored values of a file where they are there; once, so that they do not lie beside the volume."""
        with self._lock:
            return self._stored.pop(path, None)

    def header(self, path: Path) -> Header:
        """The header of a file, as it was when it was first asked for.

        Raises:
            Rejected: UNREADABLE.
        """
        with self._lock:
            found = self._headers.get(path)
        if found is None:
            found = read_whole_header(path)
            with self._lock:
                self._headers[path] = found
        return found


def read_whole_header(path: Path) -> Header:
    """All that assembly asks of a header, in one reading.

    Raises:
        Rejected: UNREADABLE.
    """
    with translated(path):
        found = parsed(path, _TAGS, stop_before_pixels=True)
        check_meta(found.dataset)
        return Header(
            path=path,
            identity=found.identity,
            dataset=found.dataset,
            has_pixels=found.ended_at < found.size_bytes,
            pixels_at=found.ended_at if found.ended_at < found.size_bytes and not found.inflated else None,
        )
