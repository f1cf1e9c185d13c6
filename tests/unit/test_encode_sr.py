"""The measurement report, read again from its bytes: numbers, references, viewer rules, determinism."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage

from pulmo_models.types import CONCEPT_NAMES, Axis, Findings, Volume
from pulmo_node.encode import codes, encode_findings, findings_to_json
from pulmo_node.encode.group import axis_line
from pulmo_node.encode.identity import Predecessor, ResultOptions
from pulmo_node.errors import Permanent
from tests.ct_factory import enhanced_from, write_part10
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
    write_volume,
)

CAUTIONS = ("The slices are 2.5 mm apart.", "Slice 3 × repaired, ≥ 2 µm.")


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    datasets = chest_datasets()
    for dataset in datasets:
        dataset.ContrastBolusAgent = "Omnipaque"
    return write_volume(datasets, tmp_path_factory.mktemp("ct"))


@pytest.fixture(scope="module")
def findings(volume: Volume) -> Findings:
    nodules = [
        replace(make_nodule(volume, (3, 10, 12)), laterality="right", pleura_distance_mm=12.3456),
        make_nodule(volume, (8, 28, 33), radius_mm=7.0, malignancy=0.123456, value=7.2, seed=2),
    ]
    return make_findings(volume, nodules, CAUTIONS)


@pytest.fixture(scope="module")
def report(volume: Volume, findings: Findings) -> Dataset:
    return read_object(encode_findings(findings, volume, make_context(volume))[0])


def _number(item: Dataset) -> tuple[float, str]:
    measured = item.MeasuredValueSequence[0]
    assert float(measured.NumericValue) == measured.FloatingPointValue
    return float(measured.NumericValue), measured.MeasurementUnitsCodeSequence[0].CodeValue


def _by_code(group: Dataset, value_type: str) -> dict[str, Dataset]:
    """Direct children by the code of their name; with that of the derivation behind a slash where there is one."""
    found = {}
    for item in group.ContentSequence:
        if item.ValueType == value_type:
            derivations = [child.ConceptCodeSequence[0].CodeValue for child in items_named(item, "Derivation")]
            key = "/".join([item.ConceptNameCodeSequence[0].CodeValue, *derivations])
            assert key not in found
            found[key] = item
    return found


def test_every_number_equals_findings_json(volume: Volume, findings: Findings, report: Dataset) -> None:
    plain = findings_to_json(findings, volume, make_context(volume))
    groups = measurement_groups(report)
    assert len(groups) == len(plain["nodules"]) == 2
    for group, nodule in zip(groups, plain["nodules"], strict=True):
        expected: dict[str, tuple[float, str]] = {
            "103339001": (nodule["long_axis_mm"], "mm"),
            "103340004": (nodule["short_axis_mm"], "mm"),
            "118565006": (nodule["volume_mm3"], "mm3"),
            "112031/373098007": (nodule["mean_hu"], "[hnsf'U]"),
            "112031/255605001": (nodule["min_hu"], "[hnsf'U]"),
            "112031/56851009": (nodule["max_hu"], "[hnsf'U]"),
            "111047": (round(nodule["malignancy_probability"] * 100, 2), "%"),
            codes.DETECTION_PROBABILITY.value: (round(nodule["detection_probability"] * 100, 2), "%"),
            codes.CANDIDATE_SCORE.value: (nodule["candidate_score"], "1"),
            codes.MALIGNANCY_BIAS.value: (plain["malignancy_bias"], "1"),
        }
        if nodule["pleura_distance_mm"] is not None:
            expected[codes.DISTANCE_TO_PLEURA.value] = (nodule["pleura_distance_mm"], "mm")
        for name, concept in nodule["concepts"].items():
            expected[codes.CONCEPTS[name].value] = (concept["value"], "1")
            expected[codes.CONTRIBUTIONS[name].value] = (concept["contribution"], "1")
        numbers = {value: _number(item) for value, item in _by_code(group, "NUM").items()}
        assert numbers == expected
        assert nodule["tracking_uid"] == items_named(group, "Tracking Unique Identifier")[0].UID
        assert all(len(str(i.MeasuredValueSequence[0].NumericValue)) <= 9 for i in _by_code(group, "NUM").values())
    assert [nodule["pleura_distance_mm"] for nodule in plain["nodules"]] == [12.35, None]


def test_site_names_the_side_of_the_patient_where_it_is_known(report: Dataset) -> None:
    sites = [items_named(group, "Finding Site") for group in measurement_groups(report)]
    assert [[item.ConceptCodeSequence[0].CodeValue for item in site] for site in sites] == [["39607008"]] * 2
    (side,) = sites[0][0].ContentSequence
    assert (side.ValueType, side.RelationshipType) == ("CODE", "HAS CONCEPT MOD")
    assert side.ConceptNameCodeSequence[0].CodeValue == "272741003"
    assert (side.ConceptCodeSequence[0].CodeValue, side.ConceptCodeSequence[0].CodeMeaning) == ("24028007", "Right")
    assert "ContentSequence" not in sites[1][0]


def test_left_is_left(volume: Volume) -> None:
    nodule = replace(make_nodule(volume, (3, 10, 12)), laterality="left")
    sr = read_object(encode_findings(make_findings(volume, [nodule]), volume, make_context(volume))[0])
    (site,) = items_named(measurement_groups(sr)[0], "Finding Site")
    assert site.ContentSequence[0].ConceptCodeSequence[0].CodeValue == "7771000"


def test_numbers_name_the_network_they_come_from(report: Dataset) -> None:
    """TID 4019 below a number: the first stage proposes, the last characterises; the rest is measured on the mask."""
    by_stage: dict[str, set[str]] = {}
    for item in _by_code(measurement_groups(report)[0], "NUM").values():
        name = [child.TextValue for child in items_named(item, "Algorithm Name")]
        by_stage.setdefault("".join(name), set()).add(item.ConceptNameCodeSequence[0].CodeValue)
        versions = [child.TextValue for child in items_named(item, "Algorithm Version")]
        assert versions == [stage.version for stage in INFO.stages if [stage.name] == name]
    assert by_stage == {
        "": {"103339001", "103340004", "118565006", "112031", "102"},
        "HeatmapUNet3D": {"100"},
        "Student2p5D": {"111047", "101", "110"}
        | {codes.CONCEPTS[name].value for name in CONCEPT_NAMES}
        | {codes.CONTRIBUTIONS[name].value for name in CONCEPT_NAMES},
    }


def test_a_pipeline_of_one_stage_or_none(volume: Volume, findings: Findings) -> None:
    for stages, expected in ((INFO.stages[:1], ["HeatmapUNet3D"]), ((), [])):
        changed = replace(findings, pipeline=replace(INFO, stages=stages))
        sr = read_object(encode_findings(changed, volume, make_context(volume))[0])
        numbers = _by_code(measurement_groups(sr)[0], "NUM")
        for value in ("100", "111047"):
            assert [item.TextValue for item in items_named(numbers[value], "Algorithm Name")] == expected
        assert len([i for i in sr.ContributingEquipmentSequence if i.get("DeviceUID")]) == 1 + len(stages)


def test_concepts_are_coded_with_the_clipped_rating(findings: Findings, report: Dataset) -> None:
    for group, nodule in zip(measurement_groups(report), findings.nodules, strict=True):
        evaluations = _by_code(group, "CODE")
        for concept in nodule.concepts:
            value = evaluations[codes.CONCEPTS[concept.name].value].ConceptCodeSequence[0]
            expected = codes.RATINGS[concept.name][concept.rating]
            assert (value.CodeValue, value.CodingSchemeDesignator) == (expected.value, expected.scheme_designator)
    last = _by_code(measurement_groups(report)[1], "CODE")
    assert last[codes.CONCEPTS["texture"].value].ConceptCodeSequence[0].CodeValue == "RID50151"  # 8.06 -> 5
    assert len(CONCEPT_NAMES) == 8


def test_axes_carry_their_line_on_the_key_slice(volume: Volume, findings: Findings, report: Dataset) -> None:
    for group, nodule in zip(measurement_groups(report), findings.nodules, strict=True):
        for meaning, axis in (("Long Axis", nodule.long_axis), ("Short Axis", nodule.short_axis)):
            (item,) = items_named(group, meaning)
            (line,) = item.ContentSequence
            assert (line.ValueType, line.GraphicType, line.RelationshipType) == ("SCOORD", "POLYLINE", "INFERRED FROM")
            expected = [v for _, row, column in (axis.start, axis.end) for v in (column + 0.5, row + 0.5)]
            np.testing.assert_allclose(line.GraphicData, expected, atol=1e-4)
            (image,) = line.ContentSequence
            assert (image.ValueType, image.RelationshipType) == ("IMAGE", "SELECTED FROM")
            source = volume.frames[int(axis.start[0])]
            assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.sop_instance_uid
            assert "ReferencedFrameNumber" not in image.ReferencedSOPSequence[0]


def test_what_ohif_needs(report: Dataset) -> None:
    """The rules of OHIF 3.13 for a measurement report that is drawn and hydrated without an error."""
    assert report.SOPClassUID == Comprehensive3DSRStorage
    assert report.ConceptNameCodeSequence[0].CodeValue == "126000"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert all(item.ConceptNameCodeSequence for item in report.ContentSequence)
    uids = []
    for number, group in enumerate(measurement_groups(report), start=1):
        assert all(item.ConceptNameCodeSequence for item in group.ContentSequence)
        (identifier,) = items_named(group, "Tracking Identifier")
        assert identifier.TextValue == f"Cornerstone3DTools@^0.1.0:Bidirectional:Nodule {number}"
        uids.append(items_named(group, "Tracking Unique Identifier")[0].UID)
        numbers = [item for item in group.ContentSequence if item.ValueType == "NUM"]
        assert [n.ConceptNameCodeSequence[0].CodeMeaning for n in numbers[:2]] == ["Long Axis", "Short Axis"]
        assert all(n.ContentSequence[0].ValueType == "SCOORD" for n in numbers[:2])
        assert all(n.MeasuredValueSequence for n in numbers)
        assert not [item for item in group.ContentSequence if item.ValueType.startswith("SCOORD")]
        assert items_named(group, "Comment")[0].TextValue.startswith(f"Nodule {number}: malignancy ")
        assert items_named(group, "Finding")[0].ConceptCodeSequence[0].CodeValue == "27925004"
        assert items_named(group, "Finding Site")[0].ConceptCodeSequence[0].CodeValue == "39607008"
    assert len(set(uids)) == len(uids)
    assert not items_named(report, "Image Library")


def test_comment_reads_well(report: Dataset) -> None:
    comments = [items_named(group, "Comment")[0].TextValue for group in measurement_groups(report)]
    assert comments == ["Nodule 1: malignancy 55 %, 8 mm, 267 mm3", "Nodule 2: malignancy 12 %, 15 mm, 1.5 cm3"]


def test_references_segment_and_evidence(volume: Volume, findings: Findings, report: Dataset) -> None:
    seg = encode_findings(findings, volume, make_context(volume))[1]
    analysed = volume.series.series_instance_uid
    for number, group in enumerate(measurement_groups(report), start=1):
        (reference,) = items_named(group, "Referenced Segment")
        item = reference.ReferencedSOPSequence[0]
        assert (item.ReferencedSOPInstanceUID, item.ReferencedSegmentNumber) == (seg.sop_instance_uid, number)
        assert [item.UID for item in items_named(group, "Source Series for Segmentation")] == [analysed]
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == volume.series.study_instance_uid
    by_series = {
        series.SeriesInstanceUID: [item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence]
        for series in study.ReferencedSeriesSequence
    }
    assert sorted(by_series[analysed]) == sorted(s.sop_instance_uid for s in volume.frames)
    assert by_series[seg.series_instance_uid] == [seg.sop_instance_uid]
    assert "PertinentOtherEvidenceSequence" not in report


def _referenced(item: Dataset) -> set[str]:
    """Every instance that a content tree refers to."""
    own = {reference.ReferencedSOPInstanceUID for reference in item.get("ReferencedSOPSequence", [])}
    return own.union(*(_referenced(child) for child in item.get("ContentSequence", [])))


@pytest.mark.parametrize("options", [ResultOptions(), ResultOptions(image_library=True)], ids=["plain", "library"])
def test_every_instance_in_the_tree_is_in_the_evidence(
    volume: Volume, findings: Findings, options: ResultOptions
) -> None:
    sr = read_object(encode_findings(findings, volume, make_context(volume, options=options))[0])
    (study,) = sr.CurrentRequestedProcedureEvidenceSequence
    evidence = {
        item.ReferencedSOPInstanceUID for s in study.ReferencedSeriesSequence for item in s.ReferencedSOPSequence
    }
    assert len(evidence) == len(volume.frames) + 1
    assert _referenced(sr) <= evidence
    assert len(_referenced(sr)) == (len(evidence) if options.image_library else 3)


def test_image_library_by_option(volume: Volume, findings: Findings) -> None:
    """TID 1600: every image of the volume with position, spacing and size."""
    context = make_context(volume, options=ResultOptions(image_library=True))
    sr = read_object(encode_findings(findings, volume, context)[0])
    (library,) = items_named(sr, "Image Library")
    (group,) = items_named(library, "Image Library Group")
    images = [item for item in group.ContentSequence if item.ValueType == "IMAGE"]
    for image, frame in zip(images, volume.frames, strict=True):
        reference = image.ReferencedSOPSequence[0]
        assert (reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID) == (
            frame.sop_class_uid,
            frame.sop_instance_uid,
        )
        assert items_named(image, "Modality")[0].ConceptCodeSequence[0].CodeValue == "CT"
        assert items_named(image, "Pixel Data Rows")[0].MeasuredValueSequence[0].NumericValue == 40
        assert _number(items_named(image, "Horizontal Pixel Spacing")[0]) == (0.7, "mm")
        places = [_number(items_named(image, f"Image Position (Patient) {axis}")[0])[0] for axis in "XYZ"]
        np.testing.assert_allclose(places, frame.origin_lps_mm, atol=1e-6)
    assert hd.sr.srread(BytesIO(encode_findings(findings, volume, context)[0].content))


def test_image_library_of_a_multi_frame_source(tmp_path: Path) -> None:
    """The positions of its frames are no positions of the object."""
    path = tmp_path / "enhanced.dcm"
    write_part10(enhanced_from(chest_datasets()), path)
    volume = read_volume([path])
    context = make_context(volume, options=ResultOptions(image_library=True))
    findings = make_findings(volume, [make_nodule(volume, (3, 10, 12))])
    (library,) = items_named(read_object(encode_findings(findings, volume, context)[0]), "Image Library")
    (image,) = [item for item in library.ContentSequence[0].ContentSequence if item.ValueType == "IMAGE"]
    assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == volume.frames[0].sop_instance_uid
    assert items_named(image, "Pixel Data Rows")[0].MeasuredValueSequence[0].NumericValue == 40
    assert not items_named(image, "Image Position (Patient) X")


def test_predecessors_are_named(volume: Volume, findings: Findings, report: Dataset) -> None:
    assert "PredecessorDocumentsSequence" not in report
    earlier = (
        Predecessor(sop_class_uid=Comprehensive3DSRStorage, sop_instance_uid="1.2.3.4", series_instance_uid="1.2.3"),
        Predecessor(sop_class_uid=Comprehensive3DSRStorage, sop_instance_uid="1.2.5.6", series_instance_uid="1.2.5"),
    )
    context = make_context(volume, predecessors=earlier)
    for encoded in (
        encode_findings(findings, volume, context)[0],
        *encode_findings(make_findings(volume), volume, context),
    ):
        sr = read_object(encoded)
        assert sr.SOPInstanceUID != report.SOPInstanceUID
        (study,) = sr.PredecessorDocumentsSequence
        assert study.StudyInstanceUID == volume.series.study_instance_uid
        named = [
            (series.SeriesInstanceUID, item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID)
            for series in study.ReferencedSeriesSequence
            for item in series.ReferencedSOPSequence
        ]
        assert named == [(e.series_instance_uid, e.sop_class_uid, e.sop_instance_uid) for e in earlier]


def test_algorithm_and_equipment_have_equal_values(volume: Volume, findings: Findings, report: Dataset) -> None:
    """IHE AI Results, table 6.5.3.1-1, in SR and SEG."""
    seg = read_object(encode_findings(findings, volume, make_context(volume))[1])
    observer = {item.ConceptNameCodeSequence[0].CodeValue: item for item in report.ContentSequence}
    device_uid = observer["121012"].UID
    ours = [[i for i in dataset.ContributingEquipmentSequence if i.get("DeviceUID")] for dataset in (report, seg)]
    assert ours[0] == ours[1]
    for item, algorithm in zip(ours[0], (INFO, *INFO.stages), strict=True):
        assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        assert (item.Manufacturer, item.ManufacturerModelName) == ("Pulmo Node", algorithm.name)
        assert item.SoftwareVersions == algorithm.version
        assert item.DeviceSerialNumber == algorithm.weights_sha256[:16]
    assert ours[0][0].DeviceUID == device_uid
    assert len({item.DeviceUID for item in ours[0]}) == 3
    for dataset in (report, seg):
        assert (dataset.Manufacturer, dataset.ManufacturerModelName) == ("Pulmo Node", INFO.name)
        assert dataset.DeviceSerialNumber
        assert dataset.ContributingEquipmentSequence[0].ManufacturerModelName == "Scanner"
    assert (observer["121014"].TextValue, observer["121015"].TextValue) == ("Pulmo Node", INFO.name)
    for group in measurement_groups(report):
        assert items_named(group, "Algorithm Name")[0].TextValue == INFO.name
        assert items_named(group, "Algorithm Version")[0].TextValue == INFO.version
        parameters = [item.TextValue for item in items_named(group, "Algorithm Parameters")]
        assert parameters == [
            "weights=first",
            f"weights_sha256={WEIGHTS}",
            "stage1=HeatmapUNet3D 1",
            f"stage1_weights_sha256={'cd' * 32}",
            "stage1_peak_threshold=0.3",
            "stage2=Student2p5D 1",
            f"stage2_weights_sha256={'ef' * 32}",
        ]
    for segment in seg.SegmentSequence:
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (INFO.name, INFO.version)
        assert algorithm.AlgorithmSource == "Pulmo Node"
        assert algorithm.AlgorithmFamilyCodeSequence[0].CodeValue == "123110"
        assert f"weights_sha256={WEIGHTS}" in algorithm.AlgorithmParameters


def test_cautions_and_status(report: Dataset) -> None:
    (general,) = items_named(report, "Qualitative Evaluations")
    assert items_named(general, "CAD Processing and Findings Summary")[0].ConceptCodeSequence[0].CodeValue == "111242"
    assert [item.TextValue for item in items_named(general, "Comment")] == [
        "The slices are 2.5 mm apart. [THICK_SLICES]",
        "Slice 3 x repaired, >= 2 ?m. [THICK_SLICES]",
        "Acquisition: kernel B50f, contrast agent Omnipaque, slice thickness 2.5 mm, slice spacing 2.5 mm.",
        "For research use only. Not for diagnosis.",
    ]
    assert (report.VerificationFlag, report.CompletionFlag) == ("UNVERIFIED", "COMPLETE")


def test_procedure_is_copied_from_the_source(tmp_path: Path, report: Dataset) -> None:
    assert items_named(report, "Procedure reported")[0].ConceptCodeSequence[0].CodeValue == "24627-2"
    datasets = chest_datasets()
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "CTTHO", "99KIS", "CT Thorax"
    for dataset in datasets:
        dataset.ProcedureCodeSequence = [code]
    volume = write_volume(datasets, tmp_path)
    sr = read_object(
        encode_findings(make_findings(volume, [make_nodule(volume, (5, 15, 20))]), volume, make_context(volume))[0]
    )
    (item,) = items_named(sr, "Procedure reported")
    assert item.ConceptCodeSequence[0].CodeValue == "CTTHO"
    assert sr.ProcedureCodeSequence[0].CodeMeaning == "CT Thorax"


def test_highdicom_reads_it_back(volume: Volume, findings: Findings) -> None:
    encoded = encode_findings(findings, volume, make_context(volume))[0]
    parsed = hd.sr.srread(BytesIO(encoded.content))
    groups = parsed.content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in groups] == [
        f"Cornerstone3DTools@^0.1.0:Bidirectional:Nodule {n}" for n in (1, 2)
    ]
    assert [group.finding_type.value for group in groups] == ["27925004", "27925004"]
    assert [len(group.get_measurements()) for group in groups] == [27, 26]
    assert groups[0].finding_sites[0].laterality == codes.SIDES["right"]


def test_same_findings_and_context_give_equal_bytes(volume: Volume, findings: Findings) -> None:
    context = make_context(volume)
    first, second = encode_findings(findings, volume, context), encode_findings(findings, volume, context)
    assert [item.content for item in first] == [item.content for item in second]


@pytest.mark.parametrize(
    "changes",
    [
        {"revision": 2},
        {"settings_sha256": "34" * 32},
        {"code_version": "9"},
        {"pipeline": "other"},
        {"options": ResultOptions(image_library=True, key_images=False)},
    ],
)
def test_another_context_gives_other_uids(volume: Volume, findings: Findings, changes: dict[str, Any]) -> None:
    first = encode_findings(findings, volume, make_context(volume))
    second = encode_findings(findings, volume, make_context(volume, **changes))
    for one, other in zip(first, second, strict=True):
        assert one.sop_instance_uid != other.sop_instance_uid
        assert one.series_instance_uid != other.series_instance_uid


def test_new_weights_give_other_uids_and_another_device(volume: Volume, findings: Findings) -> None:
    other = replace(findings, pipeline=replace(INFO, weights_sha256="99" * 32))
    one, two = (read_object(encode_findings(f, volume, make_context(volume))[0]) for f in (findings, other))
    assert one.SOPInstanceUID != two.SOPInstanceUID
    devices = [items_named(sr, "Device Observer UID")[0].UID for sr in (one, two)]
    assert devices[0] != devices[1]


@pytest.fixture
def time_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets the time zone of the machine for a test."""

    def choose(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield choose
    monkeypatch.undo()
    time.tzset()


def test_dates_come_from_the_context(volume: Volume, findings: Findings, time_zone: Callable[[str], None]) -> None:
    time_zone("UTC0")
    for encoded in encode_findings(findings, volume, make_context(volume)):
        dataset = read_object(encoded)
        for stem in ("InstanceCreation", "Content", "Series"):
            assert (dataset[f"{stem}Date"].value, dataset[f"{stem}Time"].value) == ("20260304", "050607")
        times = [str(item.get("ContributionDateTime", "")) for item in dataset.ContributingEquipmentSequence]
        assert len(times) > 2
        assert set(times[1:]) == {"20260304050607+0000"}
        assert "TimezoneOffsetFromUTC" not in dataset


def test_dates_are_those_of_the_place_where_the_source_tells_no_time_zone(
    volume: Volume, findings: Findings, time_zone: Callable[[str], None]
) -> None:
    """Times without (0008,0201) are local ones: in Tokyo no report may be older than its study."""
    time_zone("JST-9")
    for encoded in encode_findings(findings, volume, make_context(volume)):
        dataset = read_object(encoded)
        for stem in ("InstanceCreation", "Content", "Series"):
            assert (dataset[f"{stem}Date"].value, dataset[f"{stem}Time"].value) == ("20260304", "140607")
        assert "TimezoneOffsetFromUTC" not in dataset


def test_dates_follow_the_time_zone_of_the_source(tmp_path: Path) -> None:
    datasets = chest_datasets()
    for dataset in datasets:
        dataset.TimezoneOffsetFromUTC = "-0530"
    volume = write_volume(datasets, tmp_path)
    findings = make_findings(volume, [make_nodule(volume, (5, 15, 20))])
    for encoded in encode_findings(findings, volume, make_context(volume)):
        dataset = read_object(encoded)
        assert dataset.TimezoneOffsetFromUTC == "-0530"
        assert (dataset.ContentDate, dataset.ContentTime) == ("20260303", "233607")


def test_a_naive_time_is_refused(volume: Volume) -> None:
    naive = make_context(volume).content_datetime.replace(tzinfo=None) + timedelta(0)
    with pytest.raises(ValueError, match="aware"):
        make_context(volume, content_datetime=naive)


def test_frame_numbers_of_a_multi_frame_source(tmp_path: Path) -> None:
    path = tmp_path / "enhanced.dcm"
    write_part10(enhanced_from(list(reversed(chest_datasets()))), path)
    volume = read_volume([path])
    nodule = make_nodule(volume, (3, 10, 12))
    sr = read_object(encode_findings(make_findings(volume, [nodule]), volume, make_context(volume))[0])
    image = items_named(measurement_groups(sr)[0], "Long Axis")[0].ContentSequence[0].ContentSequence[0]
    assert image.ReferencedSOPSequence[0].ReferencedFrameNumber == volume.frames[3].frame_number == 9
    (series,) = [
        series
        for series in sr.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        if series.SeriesInstanceUID == volume.series.series_instance_uid
    ]
    assert len(series.ReferencedSOPSequence) == 1


def test_an_axis_that_leaves_its_slice_is_refused(volume: Volume) -> None:
    with pytest.raises(Permanent, match="does not lie on one of its slices"):
        axis_line(Axis(length_mm=3.0, start=(2, 1, 1), end=(3, 1, 1)), volume)
    with pytest.raises(Permanent, match="does not lie on one of its slices"):
        axis_line(Axis(length_mm=3.0, start=(99, 1, 1), end=(99, 1, 4)), volume)
