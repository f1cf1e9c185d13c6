"""Results of a detector of boxes: a report without segmentation, lines for the sides, nothing that it cannot know."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import ImageChops
from pydicom.dataset import Dataset

from pulmo_models.geometry import index_to_lps
from pulmo_models.types import Axis, Box, Findings, Mask, Nodule, Volume
from pulmo_node.domain.findings import findings_of
from pulmo_node.encode import encode_findings, findings_to_json
from pulmo_node.encode.identity import ResultOptions
from pulmo_node.encode.keyimage import AXIS_RGB
from pulmo_node.encode.pictures import VIEW_PIXELS, nodule_pictures, summary_page
from pulmo_node.encode.report import nodule_records
from tests.encode_factory import (
    INFO,
    chest_datasets,
    items_named,
    make_context,
    make_nodule,
    measurement_groups,
    read_object,
    write_volume,
)

RETINANET = replace(INFO, label="ct-retinanet", name="RetinaNet", stages=INFO.stages[:1], subject="RetinaNet nodules")
LOW, HIGH = (2.25, 8.5, 10.0), (4.75, 13.5, 20.0)


def boxed(volume: Volume, low: tuple[float, float, float] = LOW, high: tuple[float, float, float] = HIGH) -> Nodule:
    """A nodule as a box; its longer side runs along the row."""
    z, y, x = ((a + b) / 2 for a, b in zip(low, high, strict=True))
    _, row_mm, column_mm = volume.spacing_mm
    k = float(round(z))
    return Nodule(
        centre_lps_mm=index_to_lps(volume.affine, (z, y, x)),
        centre_index=(round(z), round(y), round(x)),
        box=Box(
            low=low, high=high, corners_lps_mm=(index_to_lps(volume.affine, low), index_to_lps(volume.affine, high))
        ),
        candidate_score=0.87654321,
        detection_probability=0.87654321,
        long_axis=Axis(length_mm=(high[2] - low[2]) * column_mm, start=(k, y, low[2]), end=(k, y, high[2])),
        short_axis=Axis(length_mm=(high[1] - low[1]) * row_mm, start=(k, low[1], x), end=(k, high[1], x)),
        laterality="left",
    )


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return write_volume(chest_datasets(), tmp_path_factory.mktemp("ct"))


@pytest.fixture(scope="module")
def findings(volume: Volume) -> Findings:
    nodules = (boxed(volume), boxed(volume, (8.0, 20.0, 20.0), (9.5, 26.0, 36.0)))
    return Findings(pipeline=RETINANET, nodules=nodules, malignancy_bias=None)


@pytest.fixture(scope="module")
def report(volume: Volume, findings: Findings) -> Dataset:
    (only,) = encode_findings(findings, volume, make_context(volume, pipeline="ct-retinanet"))
    return read_object(only)


def test_there_is_a_report_and_no_segmentation(report: Dataset, volume: Volume, findings: Findings) -> None:
    assert report.SeriesDescription == "Pulmo RetinaNet nodules SR"
    everything = ResultOptions(key_images=True, presentation_states=True, pdf_report=True, lung_segments=True)
    objects = encode_findings(findings, volume, make_context(volume, options=everything))
    assert [each.kind for each in objects] == ["sr", "key-image", "key-image", "key-image", "gsps", "gsps", "pdf"]
    assert {read_object(each).SeriesDescription for each in objects} == {
        f"Pulmo RetinaNet nodules {kind}" for kind in ("SR", "key images", "GSPS", "PDF")
    }


def test_a_group_has_its_sides_as_lines_and_only_what_is_known(
    report: Dataset, volume: Volume, findings: Findings
) -> None:
    plain = findings_to_json(findings, volume, make_context(volume, pipeline="ct-retinanet"))
    groups = measurement_groups(report)
    assert len(groups) == 2
    for group, record, nodule in zip(groups, plain["nodules"], findings.nodules, strict=True):
        numbers = [item for item in group.ContentSequence if item.ValueType == "NUM"]
        values = {item.ConceptNameCodeSequence[0].CodeMeaning: item for item in numbers}
        assert list(values) == ["Long Axis", "Short Axis", "Nodule detection probability", "Nodule candidate score"]
        assert float(values["Long Axis"].MeasuredValueSequence[0].NumericValue) == record["long_axis_mm"]
        assert float(values["Short Axis"].MeasuredValueSequence[0].NumericValue) == record["short_axis_mm"]
        assert not any(item.ValueType == "IMAGE" for item in group.ContentSequence)
        for name, axis in (("Long Axis", nodule.long_axis), ("Short Axis", nodule.short_axis)):
            (line,) = [item for item in values[name].ContentSequence if item.ValueType == "SCOORD"]
            ends = np.reshape(line.GraphicData, (2, 2))
            expected = [(axis.start[2] + 0.5, axis.start[1] + 0.5), (axis.end[2] + 0.5, axis.end[1] + 0.5)]
            np.testing.assert_allclose(ends, expected, atol=1e-5)
            (image,) = [child for child in line.ContentSequence if child.ValueType == "IMAGE"]
            shown = volume.frames[nodule.centre_index[0]].sop_instance_uid
            assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == shown
        (tracking,) = items_named(group, "Tracking Unique Identifier")
        assert record["tracking_uid"] == tracking.UID
        (comment,) = items_named(group, "Comment")
        size = f"{record['long_axis_mm']:.0f} mm, sides of a box"
        assert comment.TextValue == f"Nodule {record['segment_number']}: detection 88 %, {size}"


def test_two_detectors_on_one_series_give_reports_of_their_own(volume: Volume, findings: Findings) -> None:
    """Same series, same nodules: other series, other numbers, another program; nothing in common but the images."""
    other = replace(findings, pipeline=replace(RETINANET, series_base=9010))
    first = Findings(pipeline=INFO, nodules=(make_nodule(volume, (3, 10, 12)),), malignancy_bias=-1.0)
    ours = [read_object(each) for each in encode_findings(first, volume, make_context(volume))]
    theirs = [
        read_object(each) for each in encode_findings(other, volume, make_context(volume, pipeline="ct-retinanet"))
    ]
    for keyword in ("SeriesInstanceUID", "SOPInstanceUID", "SeriesNumber", "SeriesDescription"):
        assert not {each[keyword].value for each in ours} & {each[keyword].value for each in theirs}
    assert {each.StudyInstanceUID for each in (*ours, *theirs)} == {volume.series.study_instance_uid}
    observers = [
        {item.TextValue for item in each.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "121015"}
        for each in (ours[0], theirs[0])
    ]
    assert observers == [{"Pulmo CT nodules"}, {"RetinaNet"}]


def test_findings_json_and_the_store_say_what_is_not_known(volume: Volume, findings: Findings) -> None:
    plain = findings_to_json(findings, volume, make_context(volume, pipeline="ct-retinanet"))
    first, _ = plain["nodules"]
    unknown = ("volume_mm3", "mean_hu", "min_hu", "max_hu", "malignancy_probability", "pleura_distance_mm")
    assert [first[key] for key in unknown] == [None] * len(unknown)
    assert (first["concepts"], plain["malignancy_bias"]) == ({}, None)
    assert first["candidate_score"] == first["detection_probability"] == 0.8765
    for corner, index in zip(first["box_lps_mm"], (LOW, HIGH), strict=True):
        np.testing.assert_allclose(corner, index_to_lps(volume.affine, index), atol=0.005)
    kept, _ = findings_of(json.dumps(plain))
    assert (kept.volume_mm3, kept.malignancy_probability, kept.malignancy_bias) == (None, None, None)
    assert kept.box_lps_mm == first["box_lps_mm"]


def test_the_picture_frames_the_box(volume: Volume, findings: Findings) -> None:
    records = nodule_records(findings, make_context(volume))
    with_box, other = nodule_pictures(findings, records, volume)
    assert with_box.size == other.size
    assert ImageChops.difference(with_box, other).getbbox() is not None


def test_the_picture_shows_the_image_that_the_report_draws_on(volume: Volume, findings: Findings) -> None:
    """All slices of a box have one area: it is not the first of them, where the nodule only begins."""
    context = make_context(volume)
    for nodule in findings.nodules:
        one = replace(findings, nodules=(nodule,))
        hu = np.full_like(volume.hu, -2000.0)
        hu[round(nodule.long_axis.start[0])] = 1000.0
        (picture,) = nodule_pictures(one, nodule_records(one, context), replace(volume, hu=hu))
        shown = np.asarray(picture)
        assert (shown[:, VIEW_PIXELS:] == AXIS_RGB).all(axis=-1).sum() > 50
        assert (shown[:, :VIEW_PIXELS] == 255).all(axis=-1).sum() > VIEW_PIXELS**2 / 2
        page = np.asarray(summary_page(one, nodule_records(one, context), replace(volume, hu=hu), context))
        assert (page[-220:, :120] == 255).all(axis=-1).sum() > 2000  # its small picture


def test_the_voxels_of_a_box_lie_in_the_volume() -> None:
    def box(low: tuple[float, float, float], high: tuple[float, float, float]) -> Mask:
        return Box(low=low, high=high, corners_lps_mm=((0, 0, 0), (0, 0, 0))).voxels((6, 10, 10))

    found = box((0.6, 2.0, 3.5), (3.2, 4.0, 3.9))
    assert (found.origin, found.voxels.shape) == ((1, 2, 4), (3, 3, 1))  # the thin side still has one voxel
    found = box((-0.5, 8.0, -3.0), (5.5, 12.0, 1.0))
    assert (found.origin, found.voxels.shape) == ((0, 8, 0), (6, 2, 2))


def test_masks_and_boxes_are_not_mixed(volume: Volume) -> None:
    with pytest.raises(ValueError, match="others have none"):
        Findings(pipeline=RETINANET, nodules=(boxed(volume), make_nodule(volume, (3, 10, 12))))
    with pytest.raises(ValueError, match="a mask or a box"):
        replace(make_nodule(volume, (3, 10, 12)), mask=None)
