"""`pulmo-node inspect`: every volume of a series with its geometry, what is set aside, refusals, and the picture."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import generate_uid
from typer.testing import CliRunner

from pulmo_models.training.material.phantoms import make_phantom
from pulmo_node.app import SystemClock
from pulmo_node.cli import app
from pulmo_node.store import SqlStore
from tests.conftest import data_folder
from tests.ct_factory import write_ct_series, write_datasets
from tests.encode_factory import chest_datasets
from tests.integration.store_scene import instance

runner = CliRunner()


def two_kernels(folder: Path) -> list[Path]:
    """One series with two reconstructions, the sharp one thinner, and a localizer."""
    soft, sharp = chest_datasets((12, 40, 48)), chest_datasets((25, 40, 48), spacing_mm=(1.2, 0.8, 0.7))
    for dataset in sharp:
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = soft[0].SeriesInstanceUID, soft[0].StudyInstanceUID
        dataset.FrameOfReferenceUID, dataset.ConvolutionKernel = soft[0].FrameOfReferenceUID, "B80f"
    scout = chest_datasets((1, 40, 48))[0]
    scout.SeriesInstanceUID, scout.StudyInstanceUID = soft[0].SeriesInstanceUID, soft[0].StudyInstanceUID
    scout.ImageType, scout.SOPInstanceUID = ["ORIGINAL", "PRIMARY", "LOCALIZER"], generate_uid()
    return write_datasets([*soft, *sharp, scout], folder)


def inspected(*arguments: str) -> dict[str, object]:
    """By the headers: the pixels of these series show no lungs."""
    result = runner.invoke(app, ["inspect", *arguments, "--headers", "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.output)
    return found


def test_two_kernels_are_two_volumes(tmp_path: Path) -> None:
    two_kernels(tmp_path / "ct")
    (tmp_path / "ct" / "notes.txt").write_text("not DICOM", encoding="utf-8")
    found = inspected(str(tmp_path / "ct"))
    assert [item["file"] for item in found["set_aside"]] == ["notes.txt"]  # type: ignore[attr-defined]
    (series,) = found["series"]  # type: ignore[misc]
    assert (series["modality"], series["files"], series["rejection"]) == ("CT", 38, None)
    assert [(item["file"], item["reason"]) for item in series["set_aside"]] == [("IM0037.dcm", "a localizer")]
    chosen, other = series["volumes"]
    assert (chosen["chosen"], chosen["kernel"], chosen["images"]) == (True, "B50f", 12)
    assert (other["chosen"], other["kernel"], other["images"]) == (False, "B80f", 25)
    assert chosen["reason"]
    assert other["reason"]
    assert chosen["shape"] == [12, 40, 48]
    assert chosen["spacing_mm"] == pytest.approx([2.5, 0.8, 0.7])
    assert chosen["origin_lps_mm"] == pytest.approx([-120, -110, -300])
    assert chosen["directions"] == ["H", "P", "L"]
    assert chosen["native"] is True
    assert chosen["extent_mm"] == pytest.approx(27.5)
    assert (chosen["gaps_mm"], chosen["normal_lps"]) == (pytest.approx([2.5, 2.5, 2.5]), pytest.approx([0, 0, 1]))


def test_pixels_are_looked_at_too(tmp_path: Path) -> None:
    """No lungs, a cut pair of lungs, pixels that cannot be decoded: headers alone tell none of it."""
    write_datasets(chest_datasets((12, 40, 48)), tmp_path / "nothing")
    result = runner.invoke(app, ["inspect", str(tmp_path / "nothing"), "--json"])
    (series,) = json.loads(result.output)["series"]
    assert series["rejection"]["code"] == "NO_LUNGS"
    assert series["volumes"][0]["chosen"] is True
    table = runner.invoke(app, ["inspect", str(tmp_path / "nothing")]).output
    assert "chosen, then refused" in table

    phantom = make_phantom(3, shape=(60, 96, 96), spacing_mm=(3.0, 3.6, 3.6))
    write_ct_series(tmp_path / "cut", np.rint(phantom.hu[10:40]), spacing_mm=(3.0, 3.6, 3.6))
    (series,) = json.loads(runner.invoke(app, ["inspect", str(tmp_path / "cut"), "--json"]).output)["series"]
    assert series["rejection"] is None
    assert [caution["code"] for caution in series["cautions"]] == ["PARTIAL_LUNGS"]
    assert "caution: PARTIAL_LUNGS: " in runner.invoke(app, ["inspect", str(tmp_path / "cut")]).output


def test_a_refused_stack_shows_its_geometry(tmp_path: Path) -> None:
    datasets = chest_datasets((14, 40, 48))
    write_datasets([dataset for k, dataset in enumerate(datasets) if k not in (5, 6, 7)], tmp_path)
    (series,) = inspected(str(tmp_path))["series"]  # type: ignore[misc]
    (volume,) = series["volumes"]
    assert series["rejection"]["code"] == "MISSING_SLICE"
    assert (volume["shape"], volume["rows"], volume["columns"]) == (None, 40, 48)
    assert (volume["pixel_spacing_mm"], volume["gaps_mm"]) == ([0.8, 0.7], pytest.approx([2.5, 2.5, 10.0]))


def test_the_table_says_the_same(tmp_path: Path) -> None:
    two_kernels(tmp_path / "ct")
    result = runner.invoke(app, ["inspect", str(tmp_path / "ct"), "--headers"])
    assert result.exit_code == 0
    words = re.sub(r"[\s│]+", " ", result.output)
    for expected in (
        "volume 1: analysed",
        "volume 2: not analysed",
        "grid 12 x 40 x 48 (slices, rows, columns)",
        "spacing 2.5000 x 0.8000 x 0.7000 mm",
        "directions slices to H, rows to P, columns to L",
        "kernel B80f (sharp)",
        "set aside: IM0037.dcm: a localizer",
    ):
        assert expected in words


def test_a_filled_gap_is_told(tmp_path: Path) -> None:
    datasets = chest_datasets((14, 40, 48))
    write_datasets([dataset for k, dataset in enumerate(datasets) if k != 6], tmp_path)
    (series,) = inspected(str(tmp_path))["series"]  # type: ignore[misc]
    (volume,) = series["volumes"]
    assert (volume["native"], volume["interpolated_slices"], volume["shape"][0]) == (False, [7], 14)
    assert [caution["code"] for caution in volume["cautions"]] == ["GAP_FILLED"]
    output = re.sub(r"[\s│]+", " ", runner.invoke(app, ["inspect", str(tmp_path)]).output)
    assert "interpolated slice 7" in output
    assert "caution: GAP_FILLED: " in output


def test_a_refused_series_says_why(tmp_path: Path) -> None:
    write_datasets(chest_datasets((5, 40, 48)), tmp_path)
    (series,) = inspected(str(tmp_path))["series"]  # type: ignore[misc]
    assert series["rejection"]["code"] == "TOO_FEW_SLICES"
    result = runner.invoke(app, ["inspect", str(tmp_path), "--png", str(tmp_path / "planes.png")])
    assert "refused: TOO_FEW_SLICES: " in result.output
    assert result.exit_code == 1
    assert not (tmp_path / "planes.png").exists()


def test_several_patients_are_refused_without_their_names(tmp_path: Path) -> None:
    datasets = chest_datasets()
    datasets[3].PatientID = "SOMEBODY-ELSE"
    write_datasets(datasets, tmp_path)
    result = runner.invoke(app, ["inspect", str(tmp_path)])
    assert "refused: PATIENT_CONFLICT: " in result.output
    assert "SOMEBODY" not in result.output
    assert "PHANTOM-1" not in result.output


def test_a_series_that_the_node_received(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text('[node]\nstorage = "var"\n', encoding="utf-8")
    datasets = chest_datasets()
    paths = write_datasets(datasets, tmp_path / "var" / "instances")
    with SqlStore(f"sqlite:///{tmp_path / 'var' / 'pulmo.sqlite'}", SystemClock()) as store:
        for dataset, path in zip(datasets, paths, strict=True):
            store.record_instance(
                replace(
                    instance(study=dataset.StudyInstanceUID, series=dataset.SeriesInstanceUID),
                    sop_instance_uid=dataset.SOPInstanceUID,
                    path=str(path.relative_to(tmp_path / "var")),
                )
            )
    (series,) = inspected(datasets[0].SeriesInstanceUID, "-c", str(config))["series"]  # type: ignore[misc]
    assert [volume["images"] for volume in series["volumes"]] == [12]
    assert runner.invoke(app, ["inspect", "1.2.3.99", "-c", str(config)]).exit_code == 1
    assert runner.invoke(app, ["inspect", str(tmp_path / "nowhere"), "-c", str(config)]).exit_code == 1


def test_the_picture_has_a_row_for_each_series(tmp_path: Path) -> None:
    for number in range(2):
        write_datasets(chest_datasets(), tmp_path / "ct" / str(number))
    result = runner.invoke(app, ["inspect", str(tmp_path / "ct"), "--png", str(tmp_path / "planes.png")])
    assert result.exit_code == 0
    pixels = np.asarray(Image.open(tmp_path / "planes.png"))
    one = pixels.shape[0] // 2
    assert pixels.shape == (2 * one, 1200, 3)
    np.testing.assert_array_equal(pixels[: one - 26], pixels[one : 2 * one - 26])


def test_radiographs_are_named(tmp_path: Path) -> None:
    for name in ("siim_jpegbaseline", "siim_FAKE_monochrome1", "monochrome1_440_gdcm"):
        for path in data_folder("cxr_dicom").glob(f"cr_*{name}.dcm"):
            shutil.copy(path, tmp_path)
    output = runner.invoke(app, ["inspect", str(tmp_path)]).output
    assert output.count("radiographs") == 2  # two series: the trap is in that of the image it was made of


def test_another_patient_in_the_study(tmp_path: Path) -> None:
    """The node refuses such a study as a whole, so inspect does."""
    first, second = chest_datasets(), chest_datasets()
    for dataset in second:
        dataset.StudyInstanceUID, dataset.PatientID = first[0].StudyInstanceUID, "SOMEBODY-ELSE"
    write_datasets(first, tmp_path / "first")
    write_datasets(second, tmp_path / "second")
    found = inspected(str(tmp_path))["series"]
    assert [series["rejection"]["code"] for series in found] == ["PATIENT_CONFLICT"] * 2  # type: ignore[attr-defined]
