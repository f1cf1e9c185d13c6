"""The PDF report, read by another library: its text, its pictures, what its object says of it."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage
from pypdf import PdfReader

from pulmo_models.types import Volume
from pulmo_node.encode import EncodedObject, ResultOptions, encode_findings
from tests.encode_factory import chest_datasets, make_context, make_findings, make_nodule, read_object, write_volume

PDF = ResultOptions(key_images=False, pdf_report=True)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return write_volume(chest_datasets(), tmp_path_factory.mktemp("ct"))


def _encoded(volume: Volume, count: int, caution: str = "Slices ≥ 3 mm & <thick>.") -> EncodedObject:
    nodules = [replace(make_nodule(volume, (3, 10, 12), seed=n), laterality="left") for n in range(count)]
    return encode_findings(make_findings(volume, nodules, (caution,)), volume, make_context(volume, options=PDF))[-1]


def _document(encapsulated: Dataset) -> PdfReader:
    content = encapsulated.EncapsulatedDocument
    assert len(content) == encapsulated.EncapsulatedDocumentLength + encapsulated.EncapsulatedDocumentLength % 2
    return PdfReader(BytesIO(content[: encapsulated.EncapsulatedDocumentLength]))


def _text(document: PdfReader) -> str:
    return "\n".join(page.extract_text() for page in document.pages)


def test_the_object(volume: Volume) -> None:
    encoded = _encoded(volume, 2)
    assert encoded.kind == "pdf"
    found = read_object(encoded)
    assert (found.SOPClassUID, found.Modality, found.SeriesNumber) == (EncapsulatedPDFStorage, "DOC", 9005)
    assert found.MIMETypeOfEncapsulatedDocument == "application/pdf"
    assert found.EncapsulatedDocument.startswith(b"%PDF-")
    assert found.BurnedInAnnotation == "NO"
    assert [item.ReferencedSOPInstanceUID for item in found.SourceInstanceSequence] == [
        frame.sop_instance_uid for frame in volume.frames
    ]


def test_the_numbers_can_be_read(volume: Volume) -> None:
    text = _text(_document(read_object(_encoded(volume, 2))))
    nodule = make_nodule(volume, (3, 10, 12))
    assert "2 lung nodules found" in text
    for words in (
        f"{nodule.long_axis.length_mm:.1f} x {nodule.short_axis.length_mm:.1f} mm",
        f"{nodule.volume_mm3:.0f} mm3",
        f"mean {nodule.mean_hu:.0f} HU",
        "left lung",
        "image 4",
    ):
        assert text.count(words) == 2, words
    assert "Caution: Slices >= 3 mm & <thick>. [THICK_SLICES]" in text
    assert "For research use only. Not for diagnosis." in text


def test_a_picture_of_each_nodule(volume: Volume) -> None:
    document = _document(read_object(_encoded(volume, 3)))
    assert sum(len(page.images) for page in document.pages) == 1 + 3


def test_no_findings(volume: Volume) -> None:
    document = _document(read_object(_encoded(volume, 0)))
    assert "No lung nodules were found." in _text(document)
    assert sum(len(page.images) for page in document.pages) == 1


def test_no_page_names_the_patient(tmp_path: Path) -> None:
    datasets = chest_datasets()
    for dataset in datasets:
        dataset.PatientName, dataset.PatientID = "Zweifel^Quentin", "QX-771"
    found = read_object(_encoded(write_volume(datasets, tmp_path), 1))
    document = _document(found)
    said = _text(document) + str(document.metadata)
    assert not [word for word in ("Zweifel", "Quentin", "QX-771") if word in said]
    assert found.PatientName == "Zweifel^Quentin"


def test_the_time_is_that_of_the_context(volume: Volume) -> None:
    metadata = _document(read_object(_encoded(volume, 1))).metadata
    assert metadata is not None
    assert metadata.creation_date == make_context(volume).content_datetime


def test_equal_findings_give_equal_bytes(volume: Volume) -> None:
    assert _encoded(volume, 2) == _encoded(volume, 2)
