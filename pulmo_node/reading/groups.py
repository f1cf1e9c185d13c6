"""A measurement group of a TID 1500 report: planar (TID 1410), volumetric (TID 1411) or without a region (TID 1501)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes as dictionary
from pydicom.sr.coding import Code

from pulmo_node.reading.items import (
    children,
    code_in,
    first_text,
    is_named,
    measured,
    name_of,
    named,
    points_of,
    text_of,
)

DCM, SCT = dictionary.DCM, dictionary.SCT

_OF_ALGORITHM = (
    DCM.AlgorithmName,
    DCM.AlgorithmVersion,
    DCM.AlgorithmManufacturer,
    DCM.AlgorithmParameters,
    DCM.AlgorithmFamily,
)
_OF_GROUP = (
    DCM.TrackingIdentifier,
    DCM.TrackingUniqueIdentifier,
    DCM.Finding,
    DCM.Comment,
    SCT.FindingSite,
    SCT.FindingsCategoryType,
)
_SEGMENT = (DCM.ReferencedSegment, DCM.ReferencedSegmentationFrame)


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """What made a group or a number (TID 4019)."""

    name: str
    version: str
    manufacturer: str
    family: str
    parameters: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()


@dataclass(frozen=True, kw_only=True)
class Region:
    """Coordinates on one image (SCOORD: column, row in pixels) or in the patient (SCOORD3D: x, y, z in mm)."""

    graphic: str
    points: tuple[tuple[float, ...], ...]
    sop_instance_uid: str  # "" for SCOORD3D
    frame_number: int | None


@dataclass(frozen=True, kw_only=True)
class Number:
    """A measurement (TID 300)."""

    name: Code
    value: float | None  # None where the report gives none
    unit: Code | None
    derivation: Code | None  # mean, maximum
    algorithm: Algorithm | None  # where it is not that of the group
    regions: tuple[Region, ...]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A coded qualitative evaluation."""

    name: Code
    value: Code


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where in the body."""

    location: Code
    laterality: Code | None

    def __str__(self) -> str:
        return (
            self.location.meaning if self.laterality is None else f"{self.location.meaning}, {self.laterality.meaning}"
        )


@dataclass(frozen=True, kw_only=True)
class SegmentReference:
    """A segment of a segmentation object."""

    sop_instance_uid: str
    number: int | None


@dataclass(frozen=True, kw_only=True)
class Group:
    """One finding with all that is said of it."""

    tracking_identifier: str
    tracking_uid: str
    category: Code | None
    finding: Code | None
    sites: tuple[Site, ...]
    numbers: tuple[Number, ...]
    evaluations: tuple[Evaluation, ...]
    segment: SegmentReference | None
    regions: tuple[Region, ...]  # of the group itself
    algorithm: Algorithm | None
    comments: tuple[str, ...]
    others: tuple[tuple[str, str], ...]  # name and value of every item that none of the above is

    def number(self, name: Code, derivation: Code | None = None) -> Number | None:
        """The first number of that name and derivation."""
        return next((n for n in self.numbers if n.name == name and n.derivation == derivation), None)


def read_group(item: Dataset) -> Group:
    """A container of name (125007, DCM) as a value. What is missing is None, "" or ()."""
    items = children(item)
    rest = [
        i
        for i in items
        if i.get("ValueType") not in ("NUM", "SCOORD", "SCOORD3D") and not is_named(i, *_OF_GROUP, *_OF_ALGORITHM)
    ]
    segments = named(rest, *_SEGMENT)
    evaluations = [i for i in rest if i.get("ValueType") == "CODE" and i.get("RelationshipType") == "CONTAINS"]
    return Group(
        tracking_identifier=first_text(items, DCM.TrackingIdentifier),
        tracking_uid=first_text(items, DCM.TrackingUniqueIdentifier),
        category=_value(items, SCT.FindingsCategoryType),
        finding=_value(items, DCM.Finding),
        sites=tuple(site for i in named(items, SCT.FindingSite) for site in _site(i)),
        numbers=tuple(number for i in items if i.get("ValueType") == "NUM" for number in _number(i)),
        evaluations=tuple(evaluation for i in evaluations for evaluation in _evaluation(i)),
        segment=_segment(segments[0]) if segments else None,
        regions=_regions(items),
        algorithm=_algorithm(items),
        comments=tuple(text_of(i) for i in named(items, DCM.Comment)),
        others=tuple(_other(i) for i in rest if i not in evaluations and i not in segments),
    )


def _value(items: Sequence[Dataset], name: Code) -> Code | None:
    found = named(items, name)
    return code_in(found[0], "ConceptCodeSequence") if found else None


def _site(item: Dataset) -> Iterator[Site]:
    location = code_in(item, "ConceptCodeSequence")
    if location is not None:
        yield Site(location=location, laterality=_value(children(item), SCT.Laterality))


def _number(item: Dataset) -> Iterator[Number]:
    name = name_of(item)
    if name is None:
        return
    value, unit = measured(item)
    below = children(item)
    yield Number(
        name=name,
        value=value,
        unit=unit,
        derivation=_value(below, DCM.Derivation),
        algorithm=_algorithm(below),
        regions=_regions(below),
    )


def _evaluation(item: Dataset) -> Iterator[Evaluation]:
    name, value = name_of(item), code_in(item, "ConceptCodeSequence")
    if name is not None and value is not None:
        yield Evaluation(name=name, value=value)


def _segment(item: Dataset) -> SegmentReference | None:
    references = item.get("ReferencedSOPSequence") or ()
    if not references:
        return None
    numbers = references[0].get("ReferencedSegmentNumber")
    number = numbers[0] if isinstance(numbers, Sequence) else numbers
    uid = str(references[0].get("ReferencedSOPInstanceUID", ""))
    return SegmentReference(sop_instance_uid=uid, number=None if number is None else int(number))


def _regions(items: Sequence[Dataset]) -> tuple[Region, ...]:
    """The coordinates among the items, each with the image that it was selected from."""
    found = []
    for item in items:
        if item.get("ValueType") not in ("SCOORD", "SCOORD3D"):
            continue
        graphic, points = points_of(item)
        images = [image for below in children(item) for image in below.get("ReferencedSOPSequence") or ()]
        frame = images[0].get("ReferencedFrameNumber") if images else None
        frame = frame[0] if isinstance(frame, Sequence) else frame
        found.append(
            Region(
                graphic=graphic,
                points=points,
                sop_instance_uid=str(images[0].get("ReferencedSOPInstanceUID", "")) if images else "",
                frame_number=None if frame is None else int(frame),
            )
        )
    return tuple(found)


def _algorithm(items: Sequence[Dataset]) -> Algorithm | None:
    if not named(items, DCM.AlgorithmName):
        return None
    return Algorithm(
        name=first_text(items, DCM.AlgorithmName),
        version=first_text(items, DCM.AlgorithmVersion),
        manufacturer=first_text(items, DCM.AlgorithmManufacturer),
        family=first_text(items, DCM.AlgorithmFamily),
        parameters=tuple(text_of(item) for item in named(items, DCM.AlgorithmParameters)),
    )


def _other(item: Dataset) -> tuple[str, str]:
    name = name_of(item)
    return ("" if name is None else name.meaning, text_of(item))
