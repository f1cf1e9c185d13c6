"""A structured report as a value: who made it of what, its measurement groups, and all its other sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.sr.codedict import codes as dictionary
from pydicom.sr.coding import Code

from pulmo_node.assemble.files import READ_ERRORS
from pulmo_node.errors import Permanent
from pulmo_node.reading.groups import Group, read_group
from pulmo_node.reading.items import children, is_named, name_of, text_of, time_text

DCM = dictionary.DCM
_UNDEFINED_LENGTH = 0xFFFFFFFF
_IDENTIFYING = (DCM.SubjectName, DCM.SubjectID, DCM.SubjectBirthDate)


@dataclass(frozen=True, kw_only=True)
class Patient:
    """Whom a report is on."""

    name: str
    identifier: str
    birth_date: str
    sex: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a report that holds no measurement: its heading, and (name, value) of each item."""

    heading: str
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Equipment:
    """A program or device that the report names as having had a part in it (0018,A001)."""

    purpose: str
    manufacturer: str
    model: str
    version: str


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """An instance that the report rests on."""

    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """A structured report."""

    sop_instance_uid: str
    study_instance_uid: str
    title: Code | None
    template: str  # "1500" for measurements
    made_at: str
    flags: tuple[str, ...]  # completion, verification, preliminary or final
    manufacturer: str
    model: str
    patient: Patient
    equipment: tuple[Equipment, ...]
    context: tuple[tuple[str, str], ...]  # language, observer, procedure: name and value
    groups: tuple[Group, ...]
    sections: tuple[Section, ...]
    library_images: int  # in the image library
    evidence: tuple[Evidence, ...]
    predecessors: tuple[str, ...]  # SOP Instance UIDs of the reports that this one replaces


def read_report(path: Path) -> Report:
    """The report in a Part 10 file.

    Raises:
        Permanent: it cannot be read, or is no structured report.
    """
    dataset = read_dataset(path)
    if dataset.get("ValueType") != "CONTAINER" or "ContentSequence" not in dataset:
        raise Permanent(f"{path} is no structured report: it has no content tree (0040,A730)")
    try:
        return _report(dataset)
    except READ_ERRORS as exc:
        raise Permanent(f"{path} holds a content item that cannot be read ({type(exc).__name__})") from exc


def read_dataset(path: Path) -> Dataset:
    """The data set of a Part 10 file, which must be whole. Raises `Permanent`."""
    try:
        dataset = pydicom.dcmread(path)
    except InvalidDicomError as exc:
        raise Permanent(f"{path} is no DICOM file") from exc
    except READ_ERRORS as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else type(exc).__name__
        raise Permanent(f"{path} cannot be read: {reason}") from exc
    for tag in list(dataset.keys())[-1:]:  # pydicom reads a file that ends too early as if nothing were missing
        last = dataset.get_item(tag)
        if isinstance(last, RawDataElement) and len(last.value or b"") < last.length < _UNDEFINED_LENGTH:
            raise Permanent(f"{path} is cut off: it ends within element {last.tag}")
    return dataset


def _report(dataset: Dataset) -> Report:
    templates = dataset.get("ContentTemplateSequence") or ()
    items = children(dataset)
    measured = [item for item in items if is_named(item, DCM.ImagingMeasurements)]
    libraries = [item for item in items if is_named(item, DCM.ImageLibrary)]
    spoken = [item for item in items if item not in measured and item not in libraries]
    groups = [item for container in measured for item in children(container)]
    return Report(
        sop_instance_uid=str(dataset.get("SOPInstanceUID", "")),
        study_instance_uid=str(dataset.get("StudyInstanceUID", "")),
        title=name_of(dataset),
        template=str(templates[0].get("TemplateIdentifier", "")) if templates else "",
        made_at=_made_at(dataset),
        flags=tuple(
            str(dataset[keyword].value)
            for keyword in ("CompletionFlag", "VerificationFlag", "PreliminaryFlag")
            if dataset.get(keyword)
        ),
        manufacturer=str(dataset.get("Manufacturer") or ""),
        model=str(dataset.get("ManufacturerModelName") or ""),
        patient=Patient(
            name=str(dataset.get("PatientName") or ""),
            identifier=str(dataset.get("PatientID") or ""),
            birth_date=time_text(str(dataset.get("PatientBirthDate") or "")),
            sex=str(dataset.get("PatientSex") or ""),
        ),
        equipment=tuple(_equipment(item) for item in dataset.get("ContributingEquipmentSequence") or ()),
        context=tuple(line for item in spoken if not _is_content(item) for line in _lines(item)),
        groups=tuple(read_group(item) for item in groups if is_named(item, DCM.MeasurementGroup)),
        sections=tuple(_sections(dataset, [*spoken, *(g for g in groups if not is_named(g, DCM.MeasurementGroup))])),
        library_images=sum(_images(library) for library in libraries),
        evidence=tuple(_evidence(dataset, "CurrentRequestedProcedureEvidenceSequence")),
        predecessors=tuple(one.sop_instance_uid for one in _evidence(dataset, "PredecessorDocumentsSequence")),
    )


def _made_at(dataset: Dataset) -> str:
    time = str(dataset.get("ContentTime") or "")
    zone = str(dataset.get("TimezoneOffsetFromUTC") or "") if time else ""
    return time_text(f"{dataset.get('ContentDate') or ''}{time}{zone}")


def _is_content(item: Dataset) -> bool:
    return bool(item.get("RelationshipType") == "CONTAINS")


def _sections(root: Dataset, items: Sequence[Dataset]) -> Iterator[Section]:
    """A section for each container, at any depth, and one for what stands directly below the root."""
    loose = [
        line for item in items if _is_content(item) and item.get("ValueType") != "CONTAINER" for line in _lines(item)
    ]
    if loose:
        title = name_of(root)
        yield Section(heading="" if title is None else title.meaning, lines=tuple(loose))
    for item in items:
        if item.get("ValueType") != "CONTAINER":
            continue
        yield from _sections(item, children(item))


def _lines(item: Dataset) -> Iterator[tuple[str, str]]:
    """Name and value of an item and of all below it; containers below it have sections of their own.

    Who the patient is stands in `Report.patient` alone, which is shown only where it is asked for.
    """
    if is_named(item, *_IDENTIFYING):
        return
    name = name_of(item)
    yield "" if name is None else name.meaning, text_of(item)
    for child in children(item):
        if child.get("ValueType") != "CONTAINER":
            yield from _lines(child)


def _images(item: Dataset) -> int:
    return sum((child.get("ValueType") == "IMAGE") + _images(child) for child in children(item))


def _equipment(item: Dataset) -> Equipment:
    purposes = item.get("PurposeOfReferenceCodeSequence") or ()
    versions = item.get("SoftwareVersions") or ""
    return Equipment(
        purpose=str(purposes[0].get("CodeMeaning", "")) if purposes else "",
        manufacturer=str(item.get("Manufacturer") or ""),
        model=str(item.get("ManufacturerModelName") or ""),
        version=versions if isinstance(versions, str) else ", ".join(versions),
    )


def _evidence(dataset: Dataset, keyword: str) -> Iterator[Evidence]:
    for study in dataset.get(keyword) or ():
        for series in study.get("ReferencedSeriesSequence") or ():
            for instance in series.get("ReferencedSOPSequence") or ():
                yield Evidence(
                    series_instance_uid=str(series.get("SeriesInstanceUID", "")),
                    sop_class_uid=str(instance.get("ReferencedSOPClassUID", "")),
                    sop_instance_uid=str(instance.get("ReferencedSOPInstanceUID", "")),
                )
