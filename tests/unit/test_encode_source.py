"""What a result takes over from its source: patient, study, character sets, from any encoding, and never into a log."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from pulmo_models.types import SliceSource
from pulmo_node.encode import encode_findings, encode_rejection
from pulmo_node.encode.source import read_header
from pulmo_node.errors import Permanent
from tests.conftest import data_folder
from tests.ct_factory import write_datasets, write_part10
from tests.encode_factory import (
    chest_datasets,
    context_of,
    make_context,
    make_findings,
    make_nodule,
    read_object,
    read_volume,
    write_volume,
)

NAMES: list[tuple[str | list[str] | None, str, str]] = [
    ("ISO_IR 192", "Wang^XiaoDong=王^小东", "Łódź, 東京"),
    ("ISO_IR 100", "Müller^Jürgen", "Köln"),
    (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう", "Tokyo"),
    (["ISO 2022 IR 6", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동", "Seoul"),
    ("GB18030", "Wang^XiaoDong=王^小东", "北京"),
    (None, "Smith^Mary", "London"),
]


def _results(datasets: list[Dataset], folder: Path) -> list[Dataset]:
    """SR, SEG, empty SR and rejection of a series, read from their bytes."""
    volume = write_volume(datasets, folder)
    context = make_context(volume)
    findings = make_findings(volume, [make_nodule(volume, (5, 15, 20))], ("A caution in Łódź.",))
    paths = [Path(source.path) for source in volume.frames if source.path]
    objects = [
        *encode_findings(findings, volume, context),
        *encode_findings(make_findings(volume), volume, context),
        encode_rejection(paths, "NO_LUNGS", "Keine Lunge für die Analyse.", context),
    ]
    return [read_object(encoded) for encoded in objects]


def _with(attributes: dict[str, Any]) -> list[Dataset]:
    datasets = chest_datasets()
    for dataset in datasets:
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
    return datasets


@pytest.mark.parametrize(("character_set", "name", "place"), NAMES, ids=lambda value: str(value)[:24])
def test_names_survive_in_the_character_set_of_the_source(
    tmp_path: Path, character_set: str | list[str] | None, name: str, place: str
) -> None:
    datasets = _with({"PatientName": name, "InstitutionName": place, "StudyDescription": place})
    for dataset in datasets:
        if character_set is not None:
            dataset.SpecificCharacterSet = character_set
    source = dcmread(Path(str(_written(datasets, tmp_path / "ct"))))
    for result in _results(datasets, tmp_path / "results"):
        assert result.get("SpecificCharacterSet") == source.get("SpecificCharacterSet")
        assert str(result.PatientName) == str(source.PatientName) == name
        assert result.StudyDescription == place
        assert result.ContributingEquipmentSequence[0].InstitutionName == place


def _written(datasets: list[Dataset], folder: Path) -> str:
    volume = write_volume(datasets, folder)
    return volume.frames[0].path or ""


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        pytest.param("ISO_IR 192", "Wang^XiaoDong=王^小東".encode(), id="utf-8"),  # PS3.5 annex J
        pytest.param("GB18030", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab", id="gb18030"),
        pytest.param(  # PS3.5 H.3.1
            "\\ISO 2022 IR 87",
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
            id="japanese",
        ),
        pytest.param(  # PS3.5 H.3.2, katakana of one byte first
            "ISO 2022 IR 13\\ISO 2022 IR 87",
            b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
            id="katakana",
        ),
        pytest.param(  # PS3.5 annex I
            "\\ISO 2022 IR 149",
            b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
            id="korean",
        ),
        pytest.param("ISO_IR 144", b"\xbb\xee\xda^\xb0\xdd\xdd\xd0", id="cyrillic"),
        pytest.param("ISO_IR 100", b"Buc^J\xe9r\xf4me", id="latin-1"),
        pytest.param(None, b"M\xfcller^J\xfcrgen", id="latin-1-undeclared"),
        pytest.param("ISO_IR 999", b"M\xfcller^J\xfcrgen", id="unknown"),
    ],
)
def test_the_bytes_of_a_name_are_those_of_the_source(tmp_path: Path, character_set: str | None, name: bytes) -> None:
    """Written as a scanner would, not by pydicom; the node's own texts are ASCII, which all of these sets contain."""
    name += b" " * (len(name) % 2)
    stand_in, declared = "N" * len(name), "S" * (len(character_set or "") + len(character_set or "") % 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the stand-in for the character set, and of the unknown one
        datasets = _with({"PatientName": stand_in, "StudyDescription": "Thorax"})
        for dataset in datasets:
            if declared:
                dataset.SpecificCharacterSet = declared
        paths = write_datasets(datasets, tmp_path, seed=1)
        for path in paths:
            content = path.read_bytes().replace(stand_in.encode(), name)
            if declared:
                content = content.replace(declared.encode(), (character_set or "").ljust(len(declared)).encode())
            path.write_bytes(content)
        assert dcmread(paths[0]).get_item("PatientName").value == name
        volume = read_volume(paths)
        findings = make_findings(volume, [make_nodule(volume, (5, 15, 20))], ("A caution in Łódź.",))
        objects = [*encode_findings(findings, volume, make_context(volume))]
        objects.append(encode_rejection(paths, "NO_LUNGS", "Keine Lunge für die Analyse.", make_context(volume)))
        for encoded in objects:
            result = read_object(encoded)
            assert result.get_item("PatientName").value == name
            said = result.get("SpecificCharacterSet")
            assert "\\".join([said] if isinstance(said, str) else said or []) == (character_set or "")


def test_a_name_that_is_not_in_its_character_set_refuses_nothing(tmp_path: Path) -> None:
    datasets = _with({"PatientName": "M" + "N" * 5 + "ller", "SpecificCharacterSet": "ISO_IR 192"})
    paths = write_datasets(datasets, tmp_path, seed=1)
    for path in paths:
        path.write_bytes(path.read_bytes().replace(b"MNNNNNller", b"M\xfc\xfc\xfc\xfc\xfcller"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        volume = read_volume(paths)
        findings = make_findings(volume, [make_nodule(volume, (5, 15, 20))])
        for encoded in encode_findings(findings, volume, make_context(volume)):
            assert str(read_object(encoded).PatientName).endswith("ller")


def test_texts_of_the_node_are_ascii_whatever_the_source_says(tmp_path: Path) -> None:
    """Every text item, with a source in a set of many bytes whose description stands in the report too."""
    datasets = _with({"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "SeriesDescription": "胸部"})
    for report in _results(datasets, tmp_path):
        texts = list(_text_values(report))
        assert bool(texts) == (report.Modality == "SR")
        assert all(text.isascii() for text in texts)


def _text_values(item: Dataset) -> Iterator[str]:
    if "TextValue" in item:
        yield item.TextValue
    for child in item.get("ContentSequence", []):
        yield from _text_values(child)


def test_patient_and_study_attributes_are_copied(tmp_path: Path) -> None:
    other = Dataset()
    other.PatientID, other.IssuerOfPatientID = "77", "Elsewhere"
    attributes = {
        "PatientAge": "061Y",
        "PatientWeight": "70",
        "IssuerOfPatientID": "Here",
        "OtherPatientIDsSequence": [other],
        "PatientIdentityRemoved": "NO",
        "StudyDescription": "Thorax",
        "ClinicalTrialSubjectID": "S-1",
        "ClinicalTrialSponsorName": "Sponsor",
        "ClinicalTrialProtocolID": "P-1",
    }
    for result in _results(_with(attributes), tmp_path):
        assert (result.PatientName, result.PatientID, result.PatientSex) == ("Phantom^Peter", "PHANTOM-1", "O")
        assert (result.PatientBirthDate, result.AccessionNumber, result.StudyID) == ("19600101", "ACC1", "1")
        assert (result.StudyDate, result.StudyTime, result.ReferringPhysicianName) == (
            "20260101",
            "120000",
            "Referrer^Test",
        )
        for keyword, value in attributes.items():
            if isinstance(value, str):
                assert str(result[keyword].value) == value
        assert result.OtherPatientIDsSequence[0].PatientID == "77"


TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "StudyID",
    "ReferringPhysicianName",
)


def test_missing_attributes_become_empty(tmp_path: Path) -> None:
    datasets = chest_datasets()
    for dataset in datasets:
        for keyword in (*TYPE_2, "Manufacturer", "PositionReferenceIndicator"):
            if keyword in dataset:
                delattr(dataset, keyword)
    for result in _results(datasets, tmp_path):
        for keyword in TYPE_2:
            assert keyword in result
            assert not result[keyword].value


def test_odd_values_are_copied_and_refuse_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        datasets = _with({"PatientSex": "UNKNOWN", "PatientBirthDate": "unknown", "StudyTime": "noon"})
        for result in _results(datasets, tmp_path):
            assert result.PatientSex == "UNKNOWN"


def test_a_broken_study_reference_is_left_out(tmp_path: Path) -> None:
    broken, whole = Dataset(), Dataset()
    broken.ReferencedSOPInstanceUID = "1.2.3"
    whole.ReferencedSOPClassUID, whole.ReferencedSOPInstanceUID = "1.2.840.10008.3.1.2.1.1", "1.2.3"
    for result in _results(
        _with({"ReferencedStudySequence": [broken], "ReferencedPatientSequence": [whole]}), tmp_path
    ):
        assert "ReferencedStudySequence" not in result
        assert result.ReferencedPatientSequence[0].ReferencedSOPInstanceUID == "1.2.3"


def test_no_patient_name_in_logs_warnings_or_errors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    """highdicom warns about a name without a caret by quoting it."""
    caplog.set_level(logging.DEBUG)
    _results(_with({"PatientName": "Blabbermouth", "PatientID": "SECRET-77"}), tmp_path)
    said = caplog.text + "".join(str(warning.message) for warning in recwarn)
    assert "Blabbermouth" not in said
    assert "SECRET-77" not in said


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_sources_in_other_encodings(tmp_path: Path, syntax: str) -> None:
    """Elements are copied by value: a nested element of a big endian source must not keep its byte order."""
    issuer, code = Dataset(), Dataset()
    issuer.UniversalEntityID, issuer.UniversalEntityIDType = "1.2.3", "ISO"
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "A", "99X", "Nested"
    code.PregnancyStatus = 2
    paths = []
    for number, dataset in enumerate(_with({"PregnancyStatus": 4})):  # US: two bytes
        dataset.IssuerOfPatientIDQualifiersSequence = [issuer]
        dataset.ProcedureCodeSequence = [code]
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        paths.append(tmp_path / f"{number}.dcm")
        write_part10(dataset, paths[-1], syntax)
    volume = read_volume(paths)
    findings = make_findings(volume, [make_nodule(volume, (5, 15, 20))])
    for encoded in encode_findings(findings, volume, make_context(volume)):
        result = read_object(encoded)
        assert result.PregnancyStatus == 4
        assert result.IssuerOfPatientIDQualifiersSequence[0].UniversalEntityID == "1.2.3"
        assert result.ProcedureCodeSequence[0].CodeMeaning == "Nested"
        assert result.ProcedureCodeSequence[0].PregnancyStatus == 2


@pytest.mark.parametrize(
    "folder",
    [
        "ct_edge_cases/enhanced_ct",
        "ct_edge_cases/ct_chest_one_slice_all_syntaxes",
        "ct_edge_cases/secondary_capture",
        "ct_edge_cases/localizer",
        "cxr_dicom",
    ],
)
def test_rejection_of_real_odd_files(folder: str) -> None:
    paths = sorted(data_folder(folder).rglob("*.dcm"))
    assert paths
    for path in paths:
        source = dcmread(path, stop_before_pixels=True)
        context = context_of(str(source.SeriesInstanceUID))
        result = read_object(encode_rejection([path], "TOO_FEW_SLICES", "One file only.", context))
        assert str(result.PatientName) == str(source.get("PatientName") or "")
        assert result.StudyInstanceUID == source.StudyInstanceUID


def test_a_source_without_a_file_is_named() -> None:
    with pytest.raises(Permanent, match=r"instance 1\.2\.3 has no file"):
        read_header(SliceSource(sop_class_uid="1", sop_instance_uid="1.2.3"))
