"""dcmjs and the adapters of Cornerstone3D, which OHIF uses, make measurements of every group of the SR."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pulmo_models.types import Volume
from pulmo_node.encode import encode_findings, findings_to_json
from tests.encode_factory import chest_datasets, make_context, make_findings, make_nodule, write_volume
from tests.integration.test_encode_dcmqi import expected_numbers
from tests.viewer import tools


def _planes(volume: Volume) -> dict[str, Any]:
    """Where each image of the volume lies, by its SOP Instance UID."""
    planes = {}
    for source in volume.frames:
        row_step, column_step = np.array(source.row_step_lps_mm), np.array(source.column_step_lps_mm)
        between_rows_mm, between_columns_mm = np.linalg.norm(row_step), np.linalg.norm(column_step)
        planes[source.sop_instance_uid] = {
            "origin": list(source.origin_lps_mm),
            "row_cosines": (column_step / between_columns_mm).tolist(),  # DICOM: along a row
            "column_cosines": (row_step / between_rows_mm).tolist(),
            "spacing": [between_rows_mm, between_columns_mm],
            "frame_of_reference": volume.frame_of_reference_uid,
        }
    return planes


def _read(sr: bytes, volume: Volume, folder: Path) -> dict[str, Any]:
    try:
        node, modules = tools.node(), tools.node_modules()
    except tools.ToolMissing as missing:
        pytest.skip(str(missing))
    (folder / "sr.dcm").write_bytes(sr)
    (folder / "planes.json").write_text(json.dumps(_planes(volume)), encoding="utf-8")
    command = [node, str(tools.HERE / "adapters.mjs"), "--modules", str(modules)]
    command += ["--sr", str(folder / "sr.dcm"), "--planes", str(folder / "planes.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_group_becomes_a_measurement_in_its_place(tmp_path: Path) -> None:
    """Title, numbers, label, and the ends of both axes where they lie in the patient, on a tilted grid.

    Its pixels are square: Cornerstone3D 5.6 takes the spacing of rows for that of columns (`imageToWorldCoords`).
    """
    turn = np.deg2rad(20.0)
    datasets = chest_datasets(spacing_mm=(2.5, 0.7, 0.7))
    for dataset in datasets:
        dataset.ImageOrientationPatient = [np.cos(turn), np.sin(turn), 0, -np.sin(turn), np.cos(turn), 0]
    volume = write_volume(datasets, tmp_path / "ct")
    nodules = [
        replace(make_nodule(volume, (3, 10, 12)), laterality="right", pleura_distance_mm=4.25),
        make_nodule(volume, (8, 28, 33), radius_mm=7.0, malignancy=0.123456, value=7.2, seed=2),
    ]
    findings, context = make_findings(volume, nodules), make_context(volume)
    plain = findings_to_json(findings, volume, context)
    read = _read(encode_findings(findings, volume, context)[0].content, volume, tmp_path)

    assert read["title"] == "126000"
    assert read["warnings"] == []
    assert len(read["groups"]) == len(read["measurements"]) == len(nodules)
    for group, written in zip(read["groups"], plain["nodules"], strict=True):
        found = {(n["scheme"], n["code"], n["derivation"]): (n["value"], n["unit"]) for n in group["numbers"]}
        assert found == expected_numbers(written, plain["malignancy_bias"])
    for measurement, written, nodule in zip(read["measurements"], plain["nodules"], nodules, strict=True):
        assert measurement["tool"] == "Bidirectional"
        assert measurement["tracking_uid"] == written["tracking_uid"]
        assert measurement["label"].startswith(f"Nodule {written['segment_number']}: malignancy ")
        assert measurement["finding"] == "Nodule"
        assert "Lung" in measurement["sites"][0]
        statistics = measurement["statistics"]
        assert (statistics["length"], statistics["unit"]) == (written["long_axis_mm"], "mm")
        assert (statistics["width"], statistics["widthUnit"]) == (written["short_axis_mm"], "mm")
        assert measurement["image"] == volume.frames[round(nodule.long_axis.start[0])].sop_instance_uid
        ends = [nodule.long_axis.start, nodule.long_axis.end, nodule.short_axis.start, nodule.short_axis.end]
        true_lps_mm = [(volume.affine @ np.array([*end, 1.0]))[:3] for end in ends]
        np.testing.assert_allclose(measurement["points_lps_mm"], true_lps_mm, atol=0.01)
