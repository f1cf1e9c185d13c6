"""findings.json: exactly the promised keys, rounded numbers, nothing that JSON cannot hold."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from pulmo_models.types import CONCEPT_NAMES, Acquisition, Caution, Concept, Volume
from pulmo_node.encode import findings_to_json
from pulmo_node.encode.report import acquisition_text, nodule_record, percent, tracking_uid
from pulmo_node.errors import Permanent
from tests.encode_factory import WEIGHTS, chest_datasets, make_context, make_findings, make_nodule, write_volume


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return write_volume(chest_datasets(), tmp_path_factory.mktemp("ct"))


def test_keys_and_values(volume: Volume) -> None:
    nodules = [
        replace(make_nodule(volume, (3, 10, 12)), laterality="right", pleura_distance_mm=1.23456, min_hu=-812.26),
        make_nodule(volume, (8, 28, 33), seed=2),
    ]
    context = make_context(volume)
    uid = volume.series.series_instance_uid
    made = Acquisition(kernel="B50f", slice_thickness_mm=3.0, image_type=("ORIGINAL", "PRIMARY"))
    volume = replace(volume, acquisition=made)
    found = make_findings(volume, nodules, ("A caution in Łódź.",))
    found = replace(found, computation={"engine": "torch", "windows": "12"})
    plain = findings_to_json(found, volume, context)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert list(plain) == [
        "schema_version",
        "pipeline",
        "weights_sha256",
        "series_instance_uid",
        "acquisition",
        "computation",
        "malignancy_bias",
        "cautions",
        "conclusions",
        "nodules",
        "images",
    ]
    assert (plain["schema_version"], plain["pipeline"], plain["weights_sha256"]) == (4, "ct-nodules", WEIGHTS)
    assert (plain["series_instance_uid"], plain["malignancy_bias"]) == (uid, -1.2346)
    assert plain["cautions"] == [{"code": "THICK_SLICES", "sentence": "A caution in Łódź."}]
    assert plain["computation"] == {"device": found.device, "engine": "torch", "windows": "12"}
    assert plain["acquisition"] == {
        "kernel": "B50f",
        "contrast_agent": "",
        "slice_thickness_mm": 3.0,
        "reconstruction_diameter_mm": None,
        "patient_position": "",
        "image_type": ["ORIGINAL", "PRIMARY"],
        "number": "",
        "slice_spacing_mm": 2.5,
    }
    for number, (record, nodule) in enumerate(zip(plain["nodules"], nodules, strict=True), start=1):
        assert list(record) == [
            "tracking_uid",
            "centre_lps_mm",
            "long_axis_mm",
            "short_axis_mm",
            "box_lps_mm",
            "volume_mm3",
            "mean_hu",
            "min_hu",
            "max_hu",
            "laterality",
            "pleura_distance_mm",
            "candidate_score",
            "detection_probability",
            "malignancy_probability",
            "concepts",
            "segment_number",
            "cautions",
        ]
        assert record["cautions"] == []
        assert record["segment_number"] == number
        assert record["centre_lps_mm"] == [round(v, 2) for v in nodule.centre_lps_mm]
        assert record["long_axis_mm"] == round(nodule.long_axis.length_mm, 2)
        assert record["short_axis_mm"] == round(nodule.short_axis.length_mm, 2)
        assert record["volume_mm3"] == round(nodule.volume_mm3, 1)
        assert record["mean_hu"] == round(nodule.mean_hu, 1)
        assert (record["min_hu"], record["max_hu"]) == (round(nodule.min_hu, 1), round(nodule.max_hu, 1))
        assert record["min_hu"] < record["mean_hu"] < record["max_hu"]
        assert record["detection_probability"] == round(nodule.detection_probability, 4)
        assert list(record["concepts"]) == list(CONCEPT_NAMES)
        for concept in nodule.concepts:
            assert record["concepts"][concept.name] == {
                "value": round(concept.value, 2),
                "contribution": round(concept.contribution, 4),
            }

    assert plain["nodules"][0]["min_hu"] == -812.3
    assert [(record["laterality"], record["pleura_distance_mm"]) for record in plain["nodules"]] == [
        ("right", 1.23),
        (None, None),
    ]


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (Acquisition(), "Acquisition: no contrast agent recorded, slice spacing 2.5 mm."),
        (
            Acquisition(kernel="Br59d 3", contrast_agent="APPLIED", slice_thickness_mm=0.75),
            "Acquisition: kernel Br59d 3, contrast agent APPLIED, slice thickness 0.75 mm, slice spacing 2.5 mm.",
        ),
    ],
)
def test_how_the_images_were_made(volume: Volume, made: Acquisition, text: str) -> None:
    assert acquisition_text(replace(volume, acquisition=made)) == text


def test_no_findings(volume: Volume) -> None:
    assert findings_to_json(make_findings(volume), volume, make_context(volume))["nodules"] == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "field",
    [
        "mean_hu",
        "min_hu",
        "max_hu",
        "volume_mm3",
        "malignancy_probability",
        "candidate_score",
        "pleura_distance_mm",
    ],
)
def test_numbers_that_are_none_are_refused(volume: Volume, field: str, bad: float) -> None:
    nodule = replace(make_nodule(volume, (3, 10, 12)), **{field: bad})
    with pytest.raises(Permanent, match=r"of nodule 1 in series .* is not a finite number"):
        findings_to_json(make_findings(volume, [nodule]), volume, make_context(volume))


def test_a_contribution_that_is_none_is_refused(volume: Volume) -> None:
    concepts = (Concept(name="margin", value=3.0, contribution=math.nan),)
    nodule = replace(make_nodule(volume, (3, 10, 12)), concepts=concepts)
    with pytest.raises(Permanent, match="contribution of margin"):
        findings_to_json(make_findings(volume, [nodule]), volume, make_context(volume))


def test_tracking_uid_follows_number_and_centre(volume: Volume) -> None:
    nodule, context = make_nodule(volume, (3, 10, 12)), make_context(volume)
    first = tracking_uid(nodule, 1, WEIGHTS, context)
    assert first == tracking_uid(replace(nodule, mean_hu=1.0), 1, WEIGHTS, context)
    assert first != tracking_uid(nodule, 2, WEIGHTS, context)
    moved = replace(nodule, centre_lps_mm=(1.0, 2.0, 3.0))
    assert first != tracking_uid(moved, 1, WEIGHTS, context)


@pytest.mark.parametrize(
    ("probability", "volume_mm3", "long_axis_mm", "comment"),
    [
        (0.554, 1432.0, 13.6, "Nodule 2: malignancy 55 %, 14 mm, 1.4 cm3"),
        (0.996, 999.4, 12.4, "Nodule 2: malignancy 100 %, 12 mm, 999 mm3"),
        (0.0, 12.0, 3.0, "Nodule 2: malignancy 0 %, 3 mm, 12 mm3"),
    ],
)
def test_comment(volume: Volume, probability: float, volume_mm3: float, long_axis_mm: float, comment: str) -> None:
    nodule = make_nodule(volume, (3, 10, 12))
    nodule = replace(
        nodule,
        malignancy_probability=probability,
        volume_mm3=volume_mm3,
        long_axis=replace(nodule.long_axis, length_mm=long_axis_mm),
    )
    assert nodule_record(nodule, 2, WEIGHTS, make_context(volume)).comment == comment


def test_a_caution_on_a_nodule_reaches_the_comment_and_the_file(volume: Volume) -> None:
    caution = Caution(code="TOUCHES_INTERPOLATED", sentence="One slice was interpolated.")
    nodule = replace(make_nodule(volume, (3, 10, 12)), cautions=(caution,))
    record = nodule_record(nodule, 1, WEIGHTS, make_context(volume))
    assert record.comment.startswith("Nodule 1: malignancy 55 %")
    assert record.comment.endswith("mm3. One slice was interpolated. [TOUCHES_INTERPOLATED]")
    plain = findings_to_json(make_findings(volume, [nodule]), volume, make_context(volume))
    assert plain["nodules"][0]["cautions"] == [
        {"code": "TOUCHES_INTERPOLATED", "sentence": "One slice was interpolated."}
    ]


@pytest.mark.parametrize(("probability", "expected"), [(0.55, 55.0), (0.1235, 12.35), (0.2899, 28.99), (1.0, 100.0)])
def test_percent_has_no_binary_tail(probability: float, expected: float) -> None:
    assert str(percent(probability)) == str(expected)
