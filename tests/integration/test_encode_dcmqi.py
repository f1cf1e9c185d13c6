"""dcmqi's `tid1500reader` and `segimage2itkimage` read SR and SEG back: numbers, codes and masks are those found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK
from pydicom.sr.coding import Code

from pulmo_models.types import CONCEPT_NAMES, Findings, Volume
from pulmo_node.encode import EncodedObject, codes, encode_findings, findings_to_json
from pulmo_node.encode.identity import ResultOptions
from tests.conftest import data_folder
from tests.encode_factory import chest_datasets, make_context, make_findings, make_nodule, read_volume, write_volume
from tests.validators import read_by_segimage2itkimage, read_by_tid1500reader

Key = tuple[str, str, str]  # scheme, code value, value of the derivation


def _written(encoded: EncodedObject, folder: Path) -> Path:
    path = folder / f"{encoded.kind}.dcm"
    path.write_bytes(encoded.content)
    return path


def _key(code: Code, derivation: Code | None = None) -> Key:
    return code.scheme_designator, code.value, "" if derivation is None else derivation.value


def expected_numbers(nodule: dict[str, Any], bias: float) -> dict[Key, tuple[float, str]]:
    """Value and UCUM unit of every number that findings.json has of a nodule and the SR must have."""
    numbers = {
        _key(codes.LONG_AXIS): (nodule["long_axis_mm"], "mm"),
        _key(codes.SHORT_AXIS): (nodule["short_axis_mm"], "mm"),
        _key(codes.VOLUME): (nodule["volume_mm3"], "mm3"),
        _key(codes.ATTENUATION, codes.MEAN): (nodule["mean_hu"], "[hnsf'U]"),
        _key(codes.ATTENUATION, codes.MINIMUM): (nodule["min_hu"], "[hnsf'U]"),
        _key(codes.ATTENUATION, codes.MAXIMUM): (nodule["max_hu"], "[hnsf'U]"),
        _key(codes.PROBABILITY_OF_CANCER): (round(100 * nodule["malignancy_probability"], 2), "%"),
        _key(codes.DETECTION_PROBABILITY): (round(100 * nodule["detection_probability"], 2), "%"),
        _key(codes.CANDIDATE_SCORE): (nodule["candidate_score"], "1"),
        _key(codes.MALIGNANCY_BIAS): (bias, "1"),
    }
    if nodule["pleura_distance_mm"] is not None:
        numbers[_key(codes.DISTANCE_TO_PLEURA)] = nodule["pleura_distance_mm"], "mm"
    for name, concept in nodule["concepts"].items():
        numbers[_key(codes.CONCEPTS[name])] = concept["value"], "1"
        numbers[_key(codes.CONTRIBUTIONS[name])] = concept["contribution"], "1"
    return numbers


def _numbers(group: dict[str, Any]) -> dict[Key, tuple[float, str]]:
    found = {}
    for item in group["measurementItems"]:
        quantity, derivation = item["quantity"], item.get("derivationModifier", {})
        key = quantity["CodingSchemeDesignator"], quantity["CodeValue"], derivation.get("CodeValue", "")
        assert key not in found
        found[key] = float(item["value"]), item["units"]["CodeValue"]
    return found


def _mask(image: SimpleITK.Image, shape: tuple[int, ...], affine: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """The image's voxels on the grid of a volume, each at the voxel nearest to its place in the patient."""
    full = np.zeros(shape, dtype=bool)
    places = np.argwhere(SimpleITK.GetArrayFromImage(image))[:, ::-1]  # to (column, row, slice), as ITK counts
    lps = np.array([image.TransformIndexToPhysicalPoint([int(v) for v in place]) for place in places])
    index = (np.linalg.inv(affine) @ np.c_[lps, np.ones(len(lps))].T)[:3].T
    np.testing.assert_allclose(index, index.round(), atol=0.02)
    full[tuple(index.round().astype(int).T)] = True
    return full


def _check(findings: Findings, volume: Volume, folder: Path, **options: Any) -> None:
    context = make_context(volume, options=ResultOptions(key_images=False, **options))
    sr, seg = (_written(encoded, folder) for encoded in encode_findings(findings, volume, context)[:2])
    plain = findings_to_json(findings, volume, context)

    report = read_by_tid1500reader(sr, folder)
    assert len(report["Measurements"]) == len(plain["nodules"])
    for group, nodule in zip(report["Measurements"], plain["nodules"], strict=True):
        found = _numbers(group)
        assert found == expected_numbers(nodule, plain["malignancy_bias"])  # these and no others
        assert group["TrackingUniqueIdentifier"] == nodule["tracking_uid"]
        assert group["ReferencedSegment"] == nodule["segment_number"]
        assert group["Finding"]["CodeValue"] == codes.NODULE.value
        assert group["FindingSite"]["CodeValue"] == codes.LUNG.value
        rated = {i["conceptCode"]["CodeValue"]: i["conceptValue"] for i in group["qualitativeEvaluations"]}
        for name, concept in zip(CONCEPT_NAMES, findings.nodules[nodule["segment_number"] - 1].concepts, strict=True):
            assert rated[codes.CONCEPTS[name].value]["CodeValue"] == codes.RATINGS[name][concept.rating].value

    segments = read_by_segimage2itkimage(seg, folder)
    assert len(segments) == len(findings.nodules)
    for segment, nodule, plain_nodule in zip(segments, findings.nodules, plain["nodules"], strict=True):
        assert segment.attributes["TrackingUniqueIdentifier"] == plain_nodule["tracking_uid"]
        assert segment.attributes["SegmentLabel"] == f"Nodule {plain_nodule['segment_number']}"
        np.testing.assert_array_equal(
            _mask(segment.image, volume.hu.shape, volume.affine), nodule.mask.to_volume(volume.hu.shape)
        )


@pytest.mark.parametrize("segmentation", ["binary", "labelmap"])
def test_dcmqi_reads_numbers_and_masks(tmp_path: Path, segmentation: str) -> None:
    volume = write_volume(chest_datasets(), tmp_path / "ct")
    nodules = [
        replace(make_nodule(volume, (3, 10, 12)), laterality="right", pleura_distance_mm=4.25),
        make_nodule(volume, (8, 28, 33), radius_mm=7.0, malignancy=0.123456, value=7.2, seed=2),
    ]
    _check(make_findings(volume, nodules), volume, tmp_path, segmentation=segmentation)


def test_dcmqi_reads_a_tilted_view(tmp_path: Path) -> None:
    """Rows and columns that run along no axis of the patient."""
    turn = np.deg2rad(20.0)
    datasets = chest_datasets()
    for dataset in datasets:
        dataset.ImageOrientationPatient = [np.cos(turn), np.sin(turn), 0, -np.sin(turn), np.cos(turn), 0]
    volume = write_volume(datasets, tmp_path / "ct")
    _check(make_findings(volume, [make_nodule(volume, (3, 10, 12))]), volume, tmp_path)


def test_dcmqi_reads_a_report_without_nodules(tmp_path: Path) -> None:
    volume = write_volume(chest_datasets(), tmp_path / "ct")
    (sr,) = encode_findings(make_findings(volume), volume, make_context(volume))
    report = read_by_tid1500reader(_written(sr, tmp_path), tmp_path)
    assert report["Measurements"] == []
    assert report["observerContext"]["DeviceObserverManufacturer"] == "Pulmo Node"


@pytest.mark.parametrize(
    ("folder", "centre"),
    [
        pytest.param("ct_lungdx_a0002_thick8mm", (15, 200, 150), id="lungdx-8mm"),
        pytest.param("ct_cptac_c3n-00247", (33, 168, 106), id="cptac", marks=pytest.mark.slow),
        pytest.param("ct_lidc_idri_0063", (66, 333, 187), id="lidc", marks=pytest.mark.slow),
        pytest.param("ct_lungdx_a0001", (30, 200, 150), id="lungdx", marks=pytest.mark.slow),
        pytest.param("ct_qin_lsc_0055", (60, 200, 150), id="qin", marks=pytest.mark.slow),
        pytest.param("ct_lungfcp_0001_slab", (40, 200, 150), id="lungfcp", marks=pytest.mark.slow),
    ],
)
def test_dcmqi_reads_a_real_series(tmp_path: Path, folder: str, centre: tuple[int, int, int]) -> None:
    volume = read_volume(sorted(data_folder(f"{folder}/dicom").glob("*.dcm")))
    _check(make_findings(volume, [make_nodule(volume, centre, radius_mm=9.0)]), volume, tmp_path)
