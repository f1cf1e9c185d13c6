"""What lies in a folder or a list of files: series by UID, and what a selection rule asks of each (headers only)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import MediaStorageDirectoryStorage

from pulmo_models.codes import RejectionCode
from pulmo_models.types import SeriesDescription
from pulmo_node.assemble.files import read_header, text, texts, translated
from pulmo_node.assemble.frames import SetAside
from pulmo_node.assemble.headers import DESCRIPTION_KEYWORDS, SeriesFiles
from pulmo_node.errors import Rejected


@dataclass(frozen=True, kw_only=True)
class FoundSeries:
    """The files of one series in a folder, sorted by path."""

    description: SeriesDescription
    paths: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class FoundFolder:
    """Every series below a folder, ordered by UID, and the files that belong to none."""

    series: tuple[FoundSeries, ...]
    set_aside: tuple[SetAside, ...]  # ``file`` is the path relative to the folder

    def of_study(self, study_instance_uid: str) -> tuple[Path, ...]:
        """The first file of every series of a study."""
        return tuple(s.paths[0] for s in self.series if s.description.study_instance_uid == study_instance_uid)


def describe(paths: Sequence[Path], calling_ae_title: str = "", files: SeriesFiles | None = None) -> SeriesDescription:
    """Describe the files of one series from their headers. Files that cannot be read are passed over.

    `files` is for who goes on to assemble them: their headers are then read once.

    Raises:
        Rejected: UNREADABLE where no file can be read, SEVERAL_SERIES where they are not of one series.
    """
    headers: list[Dataset] = []
    problem: Rejected | None = None
    for path in paths:
        try:
            headers.append(_header(path, files))
        except Rejected as rejected:
            problem = problem or rejected
    if not headers:
        raise problem or Rejected(RejectionCode.NO_IMAGES, "there are no files")
    uids = {text(header, "SeriesInstanceUID") for header in headers}
    if len(uids) > 1:
        raise Rejected(RejectionCode.SEVERAL_SERIES, f"the files belong to {len(uids)} series, not one")
    return _description(headers, len(paths), calling_ae_title)


def find_series(folder: Path) -> FoundFolder:
    """Walk a folder and group its DICOM files by series; every other file is named with the reason.

    Links to folders are not followed. Media directories (DICOMDIR) are set aside, since the files lie beside them.

    Raises:
        Rejected: UNREADABLE where the folder itself cannot be listed.
    """
    aside: list[SetAside] = []

    def refused(error: OSError) -> None:
        where = Path(error.filename)
        if where == folder:
            raise error
        reason = f"a folder that cannot be listed: {error.strerror}"
        aside.append(SetAside(file=str(where.relative_to(folder)), reason=reason))

    with translated(folder):
        if not folder.is_dir():
            raise NotADirectoryError("not a folder")
        files = files_below(folder, refused)
    grouped: dict[str, list[tuple[Path, Dataset]]] = {}
    for path in files:
        name = str(path.relative_to(folder))
        try:
            header = _header(path)
        except Rejected as rejected:
            aside.append(SetAside(file=name, reason=rejected.sentence))
            continue
        uid = text(header, "SeriesInstanceUID")
        if text(header.file_meta, "MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
            aside.append(SetAside(file=name, reason="a media directory (DICOMDIR)"))
        elif not uid:
            aside.append(SetAside(file=name, reason="no Series Instance UID (0020,000E)"))
        else:
            grouped.setdefault(uid, []).append((path, header))
    series = tuple(
        FoundSeries(
            description=_description([header for _, header in members], len(members), ""),
            paths=tuple(path for path, _ in members),
        )
        for _, members in sorted(grouped.items())
    )
    return FoundFolder(series=series, set_aside=tuple(aside))


def files_below(folder: Path, refused: Callable[[OSError], None]) -> list[Path]:
    """Every file of a folder and of those in it; `refused` is told of each folder that cannot be listed."""
    found = (Path(where) / name for where, _, names in os.walk(folder, onerror=refused) for name in names)
    return sorted(path for path in found if path.is_file())


def _header(path: Path, files: SeriesFiles | None = None) -> Dataset:
    """The header with every value converted, so that later looks cannot fail."""
    header = read_header(path, DESCRIPTION_KEYWORDS)[0] if files is None else files.header(path).dataset
    with translated(path):
        for keyword in DESCRIPTION_KEYWORDS:
            text(header, keyword)
    return header


def _description(headers: Sequence[Dataset], number_of_instances: int, calling_ae_title: str) -> SeriesDescription:
    images = [header for header in headers if "LOCALIZER" not in texts(header, "ImageType")] or list(headers)

    def first(keyword: str) -> str:
        return next((value for header in images if (value := text(header, keyword))), "")

    return SeriesDescription(
        study_instance_uid=first("StudyInstanceUID"),
        series_instance_uid=first("SeriesInstanceUID"),
        modality=first("Modality"),
        sop_class_uids=tuple(sorted({text(header, "SOPClassUID") for header in headers})),
        calling_ae_title=calling_ae_title,
        body_part_examined=first("BodyPartExamined"),
        series_description=first("SeriesDescription"),
        view_position=first("ViewPosition"),
        image_type=tuple(first("ImageType").split("\\")) if first("ImageType") else (),
        number_of_instances=number_of_instances,
    )
