"""What belongs to a report: the segmentations that it refers to, and the pictures that its program made with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from pulmo_node.assemble.files import READ_ERRORS
from pulmo_node.errors import Permanent
from pulmo_node.reading.report import Report, read_report
from pulmo_node.reading.segmentation import Segmentation, read_segmentation

_HEADER = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "InstanceNumber",
    "Manufacturer",
    "ManufacturerModelName",
    "ImageComments",
    "SourceImageSequence",
]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A secondary capture that the program of the report made."""

    path: Path
    caption: str
    number: int  # its place in the series


@dataclass(frozen=True, kw_only=True)
class ReadResult:
    """A report with what belongs to it."""

    report: Report
    segmentations: Mapping[str, Segmentation]  # by SOP Instance UID; only those that there are
    pictures: tuple[Picture, ...]


def read_result(path: Path, others: Iterable[Path] | None = None) -> ReadResult:
    """A report, and what belongs to it among the other files (those of its folder, where none are given).

    Files that are no DICOM are passed over, as is whatever belongs to no report.

    Raises:
        Permanent: the report, or a segmentation that it refers to, cannot be read.
    """
    report = read_report(path)
    wanted = {group.segment.sop_instance_uid for group in report.groups if group.segment is not None}
    segmentations: dict[str, Segmentation] = {}
    captures: list[tuple[Dataset, Path]] = []
    for other in sorted(_files_beside(path) if others is None else others):
        header = _header(other)
        uid = str(header.get("SOPInstanceUID", ""))
        if uid in wanted and uid not in segmentations:
            segmentations[uid] = read_segmentation(other)
        elif _is_picture(header, report):
            captures.append((header, other))
    return ReadResult(report=report, segmentations=segmentations, pictures=_pictures(captures, report))


def _pictures(captures: Sequence[tuple[Dataset, Path]], report: Report) -> tuple[Picture, ...]:
    """The captures in their order, less the series of them that show images on which the report does not rest."""
    evidence = {one.sop_instance_uid for one in report.evidence}
    foreign = {
        header.get("SeriesInstanceUID")
        for header, _ in captures
        for image in header.get("SourceImageSequence") or ()
        if evidence and image.get("ReferencedSOPInstanceUID") not in evidence
    }
    pictures = [
        Picture(
            path=path,
            caption=str(header.get("ImageComments") or ""),
            number=int(header.get("InstanceNumber") or 0),
        )
        for header, path in captures
        if header.get("SeriesInstanceUID") not in foreign
    ]
    return tuple(sorted(pictures, key=lambda picture: picture.number))


def _files_beside(path: Path) -> list[Path]:
    try:
        return [other for other in path.parent.iterdir() if other.is_file() and other != path]
    except OSError as exc:
        raise Permanent(f"{path.parent}: {exc.strerror}") from exc


def _header(path: Path) -> Dataset:
    """A few elements of a file; an empty data set where it is no DICOM file, or one of them cannot be read."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_HEADER)
        for _ in header.iterall():  # pydicom takes a value apart when it is asked for
            pass
        int(header.get("InstanceNumber") or 0)
    except READ_ERRORS:
        return Dataset()
    return header


def _is_picture(header: Dataset, report: Report) -> bool:
    """Whether a file is a secondary capture of the same study, by the program that the report names as its maker."""
    if header.get("SOPClassUID") != SecondaryCaptureImageStorage:
        return False
    made_by = tuple(str(header.get(keyword) or "") for keyword in ("Manufacturer", "ManufacturerModelName"))
    return header.get("StudyInstanceUID") == report.study_instance_uid and made_by == (
        report.manufacturer,
        report.model,
    )
