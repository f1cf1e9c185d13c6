"""Reports without measurements: nothing found, and series that were not analysed."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import highdicom as hd
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage

from pulmo_models.types import PipelineInfo, Volume
from pulmo_node.encode import encode_findings, encode_rejection
from pulmo_node.encode.identity import ResultOptions
from pulmo_node.errors import Permanent
from tests.ct_factory import write_datasets
from tests.encode_factory import (
    INFO,
    WEIGHTS,
    chest_datasets,
    items_named,
    make_context,
    make_findings,
    make_nodule,
    measurement_groups,
    read_object,
    read_volume,
)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_datasets(chest_datasets(), tmp_path_factory.mktemp("ct"))


@pytest.fixture(scope="module")
def volume(paths: list[Path]) -> Volume:
    return read_volume(paths)


def _texts(item: Dataset) -> list[str]:
    own = [item.TextValue] if item.ValueType == "TEXT" else []
    return own + [text for child in item.get("ContentSequence", []) for text in _texts(child)]


def _status(report: Dataset) -> str:
    (section,) = items_named(report, "Findings")
    (item,) = items_named(section, "CAD Processing and Findings Summary")
    return str(item.ConceptCodeSequence[0].CodeValue)


def _assert_shown_as_text(report: Dataset) -> None:
    """OHIF fails on a report with root 126000 that has no coordinates, and shows any other root as text."""
    assert report.SOPClassUID == Comprehensive3DSRStorage
    root = report.ConceptNameCodeSequence[0]
    assert (root.CodeValue, root.CodingSchemeDesignator) == ("18748-4", "LN")
    assert (report.VerificationFlag, report.CompletionFlag) == ("UNVERIFIED", "COMPLETE")
    assert "For research use only. Not for diagnosis." in _texts(report)


def test_no_findings_gives_a_report_and_no_segmentation(volume: Volume) -> None:
    (encoded,) = encode_findings(make_findings(volume, (), ("A caution.",)), volume, make_context(volume))
    assert encoded.kind == "sr"
    report = read_object(encoded)
    _assert_shown_as_text(report)
    assert _status(report) == "111241"
    texts = _texts(report)
    assert "No lung nodules were found." in texts
    assert "A caution. [THICK_SLICES]" in texts
    assert f"weights_sha256={WEIGHTS}" in texts
    assert "stage1_peak_threshold=0.3" in texts
    assert f"Algorithm: {INFO.name} {INFO.version} (Pulmo Node)" in texts
    (series,) = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert len(series.ReferencedSOPSequence) == len(volume.frames)


def test_rejection_says_why(paths: list[Path], volume: Volume) -> None:
    encoded = encode_rejection(paths, "NO_LUNGS", "There are no lungs in it.", make_context(volume))
    report = read_object(encoded)
    _assert_shown_as_text(report)
    assert _status(report) == "111245"
    assert "The series was not analysed: There are no lungs in it. [NO_LUNGS]" in _texts(report)
    assert f"Series: phantom, {volume.series.series_instance_uid}" in _texts(report)
    assert (report.PatientID, report.AccessionNumber) == ("PHANTOM-1", "ACC1")
    assert report.StudyInstanceUID == volume.series.study_instance_uid
    (series,) = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert len(series.ReferencedSOPSequence) == len(paths)


def test_rejection_names_the_pipeline_where_it_is_known(paths: list[Path], volume: Volume) -> None:
    report = read_object(encode_rejection(paths, "NO_LUNGS", "No lungs.", make_context(volume), INFO))
    assert f"weights_sha256={WEIGHTS}" in _texts(report)
    assert report.ManufacturerModelName == INFO.name


AIR = ResultOptions(negative_report="air", key_images=False)


def _status_by_tid_1500(report: Dataset) -> str:
    """The coded status, which stands at two places."""
    (evaluations,) = items_named(report, "Qualitative Evaluations")
    (group,) = measurement_groups(report)
    (own,), (of_group,) = (
        items_named(item, "CAD Processing and Findings Summary")[0].ConceptCodeSequence for item in (evaluations, group)
    )
    assert own == of_group
    assert own.CodingSchemeDesignator == "DCM"
    return str(own.CodeValue)


def _assert_measurement_report_without_numbers(report: Dataset) -> None:
    assert report.SOPClassUID == Comprehensive3DSRStorage
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert report.ConceptNameCodeSequence[0].CodeValue == "126000"
    (group,) = measurement_groups(report)
    assert items_named(group, "Tracking Unique Identifier")[0].UID
    assert items_named(group, "Finding Site")[0].ConceptCodeSequence[0].CodeValue == "39607008"
    assert not items_named(group, "Finding")
    assert not [item for item in group.ContentSequence if item.ValueType in ("NUM", "SCOORD")]
    (evaluations,) = items_named(report, "Qualitative Evaluations")
    assert items_named(evaluations, "Comment")[-1].TextValue == "For research use only. Not for diagnosis."


def test_no_findings_by_tid_1500(volume: Volume) -> None:
    context = make_context(volume, options=AIR)
    (encoded,) = encode_findings(make_findings(volume, (), ("A caution.",)), volume, context)
    report = read_object(encoded)
    _assert_measurement_report_without_numbers(report)
    assert _status_by_tid_1500(report) == "111241"
    texts = _texts(report)
    assert "No lung nodules were found." in texts
    assert "A caution. [THICK_SLICES]" in texts
    assert f"weights_sha256={WEIGHTS}" in texts
    (series,) = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert len(series.ReferencedSOPSequence) == len(volume.frames)


@pytest.mark.parametrize("info", [None, INFO], ids=["no-pipeline", "pipeline"])
def test_rejection_by_tid_1500(paths: list[Path], volume: Volume, info: PipelineInfo | None) -> None:
    context = make_context(volume, options=AIR)
    report = read_object(encode_rejection(paths, "NO_LUNGS", "There are no lungs in it.", context, info))
    _assert_measurement_report_without_numbers(report)
    assert _status_by_tid_1500(report) == "111245"
    assert "The series was not analysed: There are no lungs in it. [NO_LUNGS]" in _texts(report)
    name = "ct-nodules" if info is None else info.name
    assert items_named(measurement_groups(report)[0], "Algorithm Name")[0].TextValue == name


def test_both_forms_have_their_own_uids_and_equal_bytes(paths: list[Path], volume: Volume) -> None:
    contexts = [make_context(volume, options=options) for options in (ResultOptions(key_images=False), AIR)]
    made = [encode_rejection(paths, "A", "B.", context) for context in contexts]
    made += [encode_findings(make_findings(volume), volume, context)[0] for context in contexts]
    assert len({encoded.sop_instance_uid for encoded in made}) == 4
    assert made[1] == encode_rejection(paths, "A", "B.", contexts[1])
    assert made[3] == encode_findings(make_findings(volume), volume, contexts[1])[0]


def test_the_form_concerns_only_reports_without_findings(volume: Volume) -> None:
    """A report with findings is the same in both forms, but for its UIDs: the options are part of them."""
    findings = make_findings(volume, [make_nodule(volume, (5, 15, 20))])
    safe, air = (
        read_object(encode_findings(findings, volume, make_context(volume, options=options))[0])
        for options in (ResultOptions(key_images=False), AIR)
    )
    assert [len(measurement_groups(report)) for report in (safe, air)] == [1, 1]
    assert _texts(safe) == _texts(air)


def test_rejection_of_a_series_with_broken_files(tmp_path: Path, volume: Volume) -> None:
    paths = write_datasets(chest_datasets(), tmp_path)
    paths[0].write_bytes(b"no DICOM at all")
    paths[1].write_bytes(paths[1].read_bytes()[:100])
    paths[2].unlink()
    report = read_object(encode_rejection(paths, "UNREADABLE", "Three files are broken.", make_context(volume)))
    (series,) = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert len(series.ReferencedSOPSequence) == len(paths) - 3
    assert report.PatientID == "PHANTOM-1"


def test_rejection_without_any_readable_file(tmp_path: Path, volume: Volume) -> None:
    (tmp_path / "a.dcm").write_bytes(b"nothing")
    with pytest.raises(Permanent, match=f"no file of series {volume.series.series_instance_uid} can be read"):
        encode_rejection([tmp_path / "a.dcm"], "UNREADABLE", "Broken.", make_context(volume))


def test_every_outcome_has_its_own_uids(paths: list[Path], volume: Volume) -> None:
    """A job that failed and is run again must not write other bytes under the same UID."""
    context = make_context(volume)
    objects = [
        encode_rejection(paths, "NO_LUNGS", "No lungs.", context),
        encode_rejection(paths, "NO_LUNGS", "Still no lungs.", context),
        encode_rejection(paths, "ANALYSIS_FAILED", "No lungs.", context),
        *encode_findings(make_findings(volume), volume, context),
    ]
    assert len({item.sop_instance_uid for item in objects}) == len({item.series_instance_uid for item in objects}) == 4


def test_equal_calls_give_equal_bytes(paths: list[Path], volume: Volume) -> None:
    context = make_context(volume)
    assert encode_rejection(paths, "A", "B.", context) == encode_rejection(paths, "A", "B.", context)
    findings = make_findings(volume)
    assert encode_findings(findings, volume, context) == encode_findings(findings, volume, context)


def test_findings_and_no_findings_are_both_readable(paths: list[Path], volume: Volume) -> None:
    context = make_context(volume)
    for encoded in (
        encode_rejection(paths, "A", "B.", context),
        *encode_findings(make_findings(volume), volume, context),
        *encode_findings(make_findings(volume), volume, make_context(volume, options=AIR)),
        encode_findings(make_findings(volume, [make_nodule(volume, (5, 15, 20))]), volume, context)[0],
    ):
        parsed = hd.sr.srread(BytesIO(encoded.content))
        assert parsed.SOPInstanceUID == encoded.sop_instance_uid
        assert parsed.SeriesInstanceUID == encoded.series_instance_uid
