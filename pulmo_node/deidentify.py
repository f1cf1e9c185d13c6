"""De-identification of results on their way to a destination: Basic Application Level Confidentiality Profile of DICOM
PS3.15 annex E, with the Retain UIDs and Clean Structured Content Options, on request with Retain Longitudinal Temporal
Information with Full Dates.

Input: a result object of this node. Output: a copy without the patient, at every depth of its sequences. What is done
to which attribute comes from table E.1-1 of DICOM 2026c as dicom-anonymizer has it, dummy values are that library's; it
looks at the top level only and gives UIDs at random, so going down and keeping UIDs is done here.

UIDs stay: report and segmentation refer to images that somebody else sends, and to each other. Only kinds of objects
whose content is known to the node go out. Pictures, and documents of pages, cannot be judged and are left out.

Errors: `LeftOut` for these; `Permanent` where a value cannot be read; `Transient` where the disk refuses.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from dicomanonymizer.simpledicomanonymizer import initialize_actions, replace_element
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    SegmentationStorage,
)

from pulmo_node.domain.deliveries import Peer, ResultObject
from pulmo_node.durable import disk_refusal
from pulmo_node.encode import codes
from pulmo_node.errors import LeftOut, Permanent
from pulmo_node.ports import ResultLink, ResultSender

_TABLE = "dicomfields_2026c"
_REPORTS = frozenset({BasicTextSRStorage, EnhancedSRStorage, ComprehensiveSRStorage, Comprehensive3DSRStorage})
_DRAWINGS = frozenset({GrayscaleSoftcopyPresentationStateStorage})
_KNOWN = _REPORTS | _DRAWINGS | {SegmentationStorage, UID("1.2.840.10008.5.1.4.1.1.66.7")}  # Label Map Segmentation

# Codes of PS3.16 CID 7050.
_BASIC = ("113100", "Basic Application Confidentiality Profile")
_CLEAN_GRAPHICS = ("113103", "Clean Graphics Option")
_CLEAN_CONTENT = ("113104", "Clean Structured Content Option")
_FULL_DATES = ("113106", "Retain Longitudinal Temporal Information Full Dates Option")
_RETAIN_UIDS = ("113110", "Retain UIDs Option")

_GONE, _EMPTY, _DUMMY, _REFERENCES = "gone", "empty", "dummy", "references"
_FATES = {
    "delete": _GONE,
    "empty": _EMPTY,
    "delete_or_empty": _EMPTY,
    "replace": _DUMMY,
    "empty_or_replace": _DUMMY,
    "delete_or_replace": _DUMMY,
    "delete_or_empty_or_replace": _DUMMY,
    "replace_UID": _REFERENCES,
    "delete_or_empty_or_replace_UID": _REFERENCES,
}
# Cleaned item by item instead (options Clean Structured Content and Clean Graphics), and what is no identity at all.
_CLEANED = {Tag("ContentSequence"), Tag("GraphicAnnotationSequence"), Tag("ReferencedPerformedProcedureStepSequence")}
_TYPE_1 = {Tag("PresentationCreationDate"), Tag("PresentationCreationTime")}  # by the table: removed
_SITE_CODES = {Tag("ProcedureCodeSequence")}  # the table leaves them; their meaning is any text of the site
# What this program says in words, in graphics and text items.
_OWN_WORDS = {Tag("UnformattedTextValue")}
_TEMPORAL = frozenset({"DA", "TM", "DT"})
# The library's year 1 is no valid date to others.
_DUMMY_TIMES = {"DA": "19000101", "TM": "000000", "DT": "19000101000000"}
_PATIENT_GROUP = 0x0010
_SERIES = "Series: "


class DeidentifyingSender:
    """De-identifies what goes to the peers that want it so (port `ResultSender`)."""

    def __init__(self, inner: ResultSender) -> None:
        self._inner = inner

    @contextmanager
    def open(self, peer: Peer) -> Iterator[ResultLink]:
        """A connection of the sender behind. Raises `Transient`."""
        with self._inner.open(peer) as link:
            yield link if peer.deidentify is None else _DeidentifyingLink(link, peer.deidentify == "keep_dates")

    def echo(self, peer: Peer) -> float:
        """Seconds to its answer. Raises `Transient`."""
        return self._inner.echo(peer)


class _DeidentifyingLink:
    """A connection on which every object is a de-identified copy (port `ResultLink`)."""

    def __init__(self, inner: ResultLink, keep_dates: bool) -> None:
        self._inner = inner
        self._keep_dates = keep_dates

    @property
    def commits(self) -> bool:
        return self._inner.commits

    def request_commitment(self, transaction_uid: str, instances: Sequence[tuple[str, str]]) -> None:
        self._inner.request_commitment(transaction_uid, instances)

    def store(self, file: Path, result: ResultObject) -> str:
        with (
            disk_refusal(f"de-identifying {file.name}"),
            tempfile.TemporaryDirectory(prefix="pulmo-") as folder,
        ):
            copy = Path(folder) / file.name
            write_deidentified(file, copy, keep_dates=self._keep_dates)
            return self._inner.store(copy, result)


def write_deidentified(source: Path, target: Path, *, keep_dates: bool) -> None:
    """Write a de-identified copy of a result object, under the same UIDs.

    Raises:
        LeftOut: its kind cannot be de-identified.
        Permanent: it cannot be read.
        OSError: the disk refuses.
    """
    try:
        dataset = dcmread(source)
        sop_class = dataset.SOPClassUID
    except (FileNotFoundError, InvalidDicomError, ValueError, AttributeError, EOFError) as exc:
        raise Permanent(f"{source.name} cannot be read: {type(exc).__name__}") from exc
    if sop_class not in _KNOWN:
        raise LeftOut(f"{sop_class.name} cannot be de-identified")
    try:
        deidentify(dataset, keep_dates=keep_dates)
        dataset.file_meta = _meta_without_sender(dataset.file_meta)
    except (ValueError, TypeError, NotImplementedError, AttributeError, LookupError) as exc:  # of a value's decoding
        raise Permanent(f"{source.name} cannot be de-identified: {type(exc).__name__}") from exc
    dataset.preamble = b"\0" * 128
    dataset.save_as(target, enforce_file_format=True)


def _meta_without_sender(found: FileMetaDataset) -> FileMetaDataset:
    meta = FileMetaDataset()
    for keyword in (
        "MediaStorageSOPClassUID",
        "MediaStorageSOPInstanceUID",
        "TransferSyntaxUID",
        "ImplementationClassUID",
        "ImplementationVersionName",
    ):
        if keyword in found:
            meta[keyword] = found[keyword]
    return meta


def deidentify(dataset: Dataset, *, keep_dates: bool) -> None:
    """Take the patient out of a report, a segmentation or a presentation state of this node, in place.

    With `keep_dates` dates and times stay, but for those of the patient.
    """
    _clean(dataset, keep_dates)
    options = [_BASIC, _RETAIN_UIDS]
    if dataset.SOPClassUID in _REPORTS:
        options.append(_CLEAN_CONTENT)
    if dataset.SOPClassUID in _DRAWINGS:
        options.append(_CLEAN_GRAPHICS)
    if keep_dates:
        options.append(_FULL_DATES)
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = [meaning[:64] for _, meaning in options]
    dataset.DeidentificationMethodCodeSequence = DicomSequence([_code(value, "DCM", said) for value, said in options])
    dataset.LongitudinalTemporalInformationModified = "UNMODIFIED" if keep_dates else "REMOVED"


def _clean(dataset: Dataset, keep_dates: bool) -> None:
    """One level, and those below what stays of it."""
    for tag in sorted(dataset.keys()):
        if tag.is_private:
            del dataset[tag]
            continue
        element = dataset[tag]
        fate = _fate(tag)
        if element.VR == "UI" or tag in _OWN_WORDS:
            continue
        if tag in _SITE_CODES:
            del dataset[tag]
            continue
        if keep_dates and tag.group != _PATIENT_GROUP and (element.VR in _TEMPORAL or tag.element == 0x0201):
            continue
        if element.VR == "SQ" and (fate in (None, _REFERENCES) or tag in _CLEANED):
            if tag == Tag("ContentSequence"):
                element.value = [item for item in element.value if _stays(item, keep_dates)]
            for item in element.value:
                _clean(item, keep_dates)
        elif fate == _GONE and tag not in _TYPE_1:
            del dataset[tag]
        elif fate == _EMPTY:
            element.value = [] if element.VR == "SQ" else None
        elif fate is not None:
            _replace(element)


def _stays(item: Dataset, keep_dates: bool) -> bool:
    """Whether a content item may stay, once its words and codes of the site are replaced."""
    kind = item.get("ValueType")
    if kind == "PNAME" or (kind in ("DATE", "TIME", "DATETIME") and not keep_dates):
        return False
    names = item.get("ConceptNameCodeSequence") or [Dataset()]
    name = names[0].get("CodeValue")
    if kind == "CODE" and name == codes.PROCEDURE_REPORTED.value:  # which may be a code of the site
        item.ConceptCodeSequence = DicomSequence([_code(*codes.CT_CHEST_REPORT[:3])])
    if kind == "TEXT" and name == codes.PROCEDURE_DESCRIPTION.value and str(item.TextValue).startswith(_SERIES):
        item.TextValue = _SERIES + str(item.TextValue).rsplit(" ", 1)[-1]  # without its description
    return True


def _replace(element: DataElement) -> None:
    """A dummy value; in a sequence in every element but UIDs, which stay."""
    if element.VR in _DUMMY_TIMES:
        element.value = _DUMMY_TIMES[element.VR]
        return
    if element.VR != "SQ":
        if not element.is_empty:
            replace_element(element)
        return
    for item in element.value:
        for tag in sorted(item.keys()):
            if tag.is_private:
                del item[tag]
            elif item[tag].VR != "UI":
                _replace(item[tag])


@cache
def _table() -> tuple[dict[int, str], tuple[tuple[int, int, int, int], ...]]:
    """What becomes of each attribute, by tag; and the repeating groups (group, element and their masks)."""
    actions: dict[tuple[int, ...], Callable[..., Any]] = initialize_actions(_TABLE)
    single = {(key[0] << 16) | key[1]: _FATES[action.__name__] for key, action in actions.items() if len(key) == 2}
    repeating = tuple((key[0], key[1], key[2], key[3]) for key in actions if len(key) == 4)
    return single, repeating


def _fate(tag: BaseTag) -> str | None:
    single, repeating = _table()
    for group, number, group_mask, number_mask in repeating:  # curves and overlays: removed
        if tag.group & group_mask == group & group_mask and tag.element & number_mask == number & number_mask:
            return _GONE
    return single.get(int(tag))


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning[:64]
    return item
