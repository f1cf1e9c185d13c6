"""Training of the RetinaNet: figures and matching against MONAI (recorded), crops, and a whole tiny training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from typer.testing import CliRunner

from pulmo_models.ct.boxes import anchors
from pulmo_models.network_sets import read_networks
from pulmo_models.training.cli import app
from pulmo_models.training.detection import matching
from pulmo_models.training.detection.crops import augmented, crop_at, draw_crop, moved, rotation
from pulmo_models.training.detection.folds import on_grid, read_fold
from pulmo_models.training.detection.module import rate_factor
from pulmo_models.training.lidc.luna16 import CollectionInvalid
from pulmo_models.training.metrics.boxes import BoxFigures, ImageBoxes, box_figures
from tests.ct_factory import ct_datasets, write_datasets
from tests.models.retinanet_factory import MATCHED_GRID, REFERENCE, some_images, some_truth


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(REFERENCE.read_text(encoding="utf-8"))
    return found


def level_anchors() -> torch.Tensor:
    return torch.cat([anchors(level, (n, n, n)) for level, n in enumerate(MATCHED_GRID)])


def test_figures_are_those_of_monai(reference: dict[str, Any]) -> None:
    images = [
        ImageBoxes(boxes=boxes.double().numpy(), scores=scores.double().numpy(), truth=truth.double().numpy())
        for boxes, scores, truth in some_images()
    ]
    found = box_figures(images)
    assert found is not None
    said = reference["figures"]
    assert found.mean_precision == pytest.approx(said["mAP_IoU_0.10_0.50_0.05_MaxDet_100"], abs=1e-6)
    assert found.mean_recall == pytest.approx(said["mAR_IoU_0.10_0.50_0.05_MaxDet_100"], abs=1e-6)
    assert found.precision_at_10 == pytest.approx(said["AP_IoU_0.10_MaxDet_100"], abs=1e-6)
    assert found.recall_at_10 == pytest.approx(said["AR_IoU_0.10_MaxDet_100"], abs=1e-6)


def test_figures_of_a_perfect_a_blind_and_an_empty_case() -> None:
    truth = some_truth().double().numpy()
    perfect = ImageBoxes(boxes=truth, scores=np.linspace(0.9, 0.1, len(truth)), truth=truth)
    assert box_figures([perfect]) == BoxFigures(
        mean_precision=1.0, mean_recall=1.0, precision_at_10=1.0, recall_at_10=1.0
    )
    blind = ImageBoxes(boxes=np.zeros((0, 6)), scores=np.zeros(0), truth=truth)
    found = box_figures([blind])
    assert found is not None
    assert found.selection == 0.0
    assert box_figures([ImageBoxes(boxes=truth, scores=np.ones(len(truth)), truth=np.zeros((0, 6)))]) is None


def test_anchors_learn_the_boxes_that_monai_says(reference: dict[str, Any]) -> None:
    matches = matching.match(some_truth(), level_anchors(), [n**3 for n in MATCHED_GRID])
    learns = torch.nonzero(matches >= 0)[:, 0]
    assert learns.tolist() + matches[learns].tolist() == reference["matches"]
    nothing = matching.match(torch.zeros(0, 6), level_anchors(), [n**3 for n in MATCHED_GRID])
    assert (nothing == -1).all()


def test_the_hardest_negatives_are_drawn_in_the_recipe_s_numbers() -> None:
    matches = torch.full((5000,), -1)
    matches[:40] = 0
    logits = torch.arange(5000).float()
    positive, negative = matching.sample(matches, logits, torch.Generator().manual_seed(0))
    assert len(positive) == 19  # 30 % of 64
    assert len(negative) == int(19 * (1 / 0.3 - 1))
    assert set(positive.tolist()) <= set(range(40))
    assert negative.min() >= 5000 - 20 * len(negative)
    positive, negative = matching.sample(torch.full((5000,), -1), logits)
    assert (len(positive), len(negative)) == (0, 16)


def test_losses_are_small_where_the_network_is_right() -> None:
    every, truth = level_anchors(), some_truth()
    positions = [n**3 for n in MATCHED_GRID]
    matches = matching.match(truth, every, positions)
    codes = torch.zeros(len(every), 6)
    learns = matches >= 0
    codes[learns] = matching.encode(truth[matches[learns]], every[learns])
    right = torch.where(learns, 12.0, -12.0)
    classification, boxes = matching.losses([right], [codes], [truth], every, positions)
    assert float(classification) < 1e-4
    assert float(boxes) == 0.0
    wrong, far = matching.losses([-right], [codes + 1], [truth], every, positions)
    assert float(wrong) > 5
    assert float(far) == pytest.approx(1 - 0.5 / 9, abs=1e-4)  # smooth L1 with beta 1/9
    without, none = matching.losses([right], [codes], [torch.zeros(0, 6)], every, positions)
    assert float(none) == 0.0
    assert torch.isfinite(without)


def test_a_positive_crop_holds_its_box_and_a_crop_beyond_the_end_is_padded() -> None:
    image = np.zeros((90, 70, 40), dtype=np.float32)
    box = np.array([[60.0, 20.0, 10.0, 70.0, 30.0, 18.0]])
    image[60:70, 20:30, 10:18] = 1
    for seed in range(20):
        part, boxes = draw_crop(image, box, (48, 48, 24), True, np.random.default_rng(seed))
        assert part.shape == (48, 48, 24)
        assert len(boxes) == 1
        np.testing.assert_allclose(boxes[0, 3:] - boxes[0, :3], (10, 10, 8))
        low, high = boxes[0, :3].astype(int), boxes[0, 3:].astype(int)
        assert part[low[0] : high[0], low[1] : high[1], low[2] : high[2]].all()
        assert part.sum() == 800
    part, boxes = crop_at(image, box, (66, 0, 0), (48, 48, 48))
    assert part[24:].sum() == part[:, :, 40:].sum() == 0
    np.testing.assert_allclose(boxes, [[0, 20, 10, 4, 30, 18]])
    assert len(crop_at(image, box, (69, 0, 0), (48, 48, 24))[1]) == 1
    assert len(crop_at(image, box, (70, 0, 0), (16, 48, 24))[1]) == 0


def ball(shape: tuple[int, int, int], centre: tuple[float, ...], radius: float) -> np.ndarray:
    away = sum((axis - middle) ** 2 for axis, middle in zip(np.indices(shape), centre, strict=True))
    return (away <= radius**2).astype(np.float32)


def test_a_box_goes_with_its_nodule() -> None:
    image = ball((48, 48, 32), (28, 18, 14), 6)
    box = np.array([[22.0, 12.0, 8.0, 34.0, 24.0, 20.0]])
    turned, boxes = moved(image, box, 1.2 * rotation(np.array([0.3, -0.2, 0.5])))
    places = np.argwhere(turned > 0.5)
    np.testing.assert_allclose(boxes[0, :3], places.min(axis=0), atol=1.2)
    np.testing.assert_allclose(boxes[0, 3:], places.max(axis=0), atol=1.2)
    for seed in range(12):
        found, boxes = augmented(image, box, np.random.default_rng(seed))
        assert found.shape == image.shape
        middle = np.argwhere(found > 0.5 * (found.max() + found.min())).mean(axis=0)
        if len(boxes) and (boxes[0, 3:] - boxes[0, :3]).min() > 3:
            assert np.linalg.norm(middle - (boxes[0, :3] + boxes[0, 3:]) / 2) < 6


def test_the_rate_warms_up_and_falls() -> None:
    assert [rate_factor(epoch) for epoch in (0, 4, 9, 10, 169)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    assert rate_factor(170) == pytest.approx(0.1)


@pytest.fixture(scope="module")
def fold(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Three small scans with a ball each, as LUNA16 stores them, and their fold."""
    folder = tmp_path_factory.mktemp("luna")
    rows = []
    for number in range(3):
        hu = np.full((18, 40, 44), -850, dtype=np.int16)
        centre = (9, 20, 14 + 6 * number)
        away = (np.indices(hu.shape).T - centre) * (2.0, 0.8, 0.8)
        hu[(np.linalg.norm(away, axis=-1) <= 5).T] = 40
        image = sitk.GetImageFromArray(hu)
        image.SetSpacing((0.8, 0.8, 2.0))
        image.SetOrigin((-20.0, -30.0, 100.0))
        (folder / f"subset{number}").mkdir()
        sitk.WriteImage(image, str(folder / f"subset{number}" / f"1.2.{number}.mhd"))
        z, y, x = centre
        place = [-20.0 + 0.8 * x, -30.0 + 0.8 * y, 100.0 + 2.0 * z]
        rows.append({"image": f"1.2.{number}/1.2.{number}.nii.gz", "box": [[*place, 10.0, 10.0, 10.0]], "label": [0]})
    path = folder / "dataset_fold0.json"
    path.write_text(json.dumps({"training": rows[:2], "validation": rows[2:]}), encoding="utf-8")
    return path, folder


def test_a_fold_is_read_and_its_boxes_lie_on_the_nodules(fold: tuple[Path, Path], tmp_path: Path) -> None:
    scans = read_fold(*fold)
    assert {key: len(rows) for key, rows in scans.items()} == {"fit": 1, "choose": 1, "test": 1}
    assert scans["fit"][0].name != scans["choose"][0].name
    grid = on_grid(scans["test"][0])
    (box,) = grid.boxes
    np.testing.assert_allclose(box[3:] - box[:3], np.array([10.0, 10.0, 10.0]) / (0.703125, 0.703125, 1.25))
    bright = np.argwhere(grid.image > 0.6)
    np.testing.assert_allclose(bright.mean(axis=0), (box[:3] + box[3:]) / 2, atol=0.6)
    with pytest.raises(CollectionInvalid, match=r"1\.2\.\d is not below the folder of images"):
        read_fold(fold[0], tmp_path)
    (tmp_path / "no.json").write_text('{"training": []}', encoding="utf-8")
    with pytest.raises(CollectionInvalid, match="no fold of LUNA16"):
        read_fold(tmp_path / "no.json", fold[1])


def test_a_scan_may_be_a_folder_of_dicom_files(tmp_path: Path) -> None:
    hu = np.full((20, 40, 44), -850, dtype=np.int16)
    hu[8:12, 16:24, 20:30] = 40
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((0.8, 0.75, 2.0))
    image.SetOrigin((-20.0, -30.0, 100.0))
    sitk.WriteImage(image, str(tmp_path / "plain.mhd"))
    ct = ct_datasets(hu.astype(float), spacing_mm=(2.0, 0.75, 0.8), origin_lps_mm=(-20.0, -30.0, 100.0))
    write_datasets(ct, tmp_path / "series" / "dicom", seed=3)
    box = [[-4.0 + 0.4, -15.0, 119.0, 8.0, 6.0, 8.0]]
    rows = [{"image": f"{name}.nii.gz", "box": box, "label": [0]} for name in ("plain", "series")]
    (tmp_path / "fold.json").write_text(json.dumps({"training": rows[:1], "validation": rows}), encoding="utf-8")
    plain, series = (on_grid(scan) for scan in read_fold(tmp_path / "fold.json", tmp_path)["test"])
    np.testing.assert_allclose(series.image, plain.image, atol=1e-5)
    np.testing.assert_allclose(series.boxes, plain.boxes, atol=1e-5)


def test_scans_without_a_nodule_choose_no_model(fold: tuple[Path, Path], tmp_path: Path) -> None:
    rows = json.loads(fold[0].read_text(encoding="utf-8"))
    empty = [{**row, "box": [], "label": []} for row in rows["training"]]
    (tmp_path / "fold.json").write_text(json.dumps({**rows, "training": empty}), encoding="utf-8")
    arguments = ["retinanet", str(tmp_path / "fold.json"), str(fold[1]), "--work", str(tmp_path / "runs")]
    result = CliRunner().invoke(app, [*arguments, "--epochs", "1", "--every", "1", "--device", "cpu"])
    assert result.exit_code == 1
    assert "none of the scans that choose the model has a nodule" in " ".join(result.output.split())
    assert not (tmp_path / "runs").exists()


def test_training_and_evaluation_end_to_end(fold: tuple[Path, Path], tmp_path: Path) -> None:
    """One step of one epoch; the set loads, the figures are there, and a second call trains nothing."""
    arguments = [
        "retinanet", str(fold[0]), str(fold[1]), "--work", str(tmp_path / "runs"), "--out", str(tmp_path / "sets"),
        "--name", "tiny", "--epochs", "1", "--every", "1", "--crops", "2", "--crop", "32,32,16", "--window", "64,64,32",
        "--device", "cpu", "--max-steps", "1",
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    manifest = tmp_path / "sets" / "tiny.toml"
    assert read_networks(manifest, "ct-retinanet").networks["detector"].architecture == "RetinaNet3D"
    report = json.loads((tmp_path / "runs" / "retinanet" / "evaluation.json").read_text(encoding="utf-8"))
    assert (report["scans"], report["nodules"]) == (1, 1)
    assert set(report["coco"]) == {"mean_precision", "mean_recall", "precision_at_10", "recall_at_10", "selection"}
    assert 0 <= report["froc"]["cpm"] <= 1
    assert "no list of excluded findings: candidates on them count as false" in report["froc"]["protocol"]
    best = tmp_path / "runs" / "retinanet" / "best.ckpt"
    before = best.stat().st_mtime_ns
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert best.stat().st_mtime_ns == before
    rows = json.loads(fold[0].read_text(encoding="utf-8"))
    turned = {"training": rows["validation"] + rows["training"][:1], "validation": rows["training"][1:]}
    (tmp_path / fold[0].name).write_text(json.dumps(turned), encoding="utf-8")
    other = CliRunner().invoke(app, [arguments[0], str(tmp_path / fold[0].name), *arguments[2:]])
    assert other.exit_code == 1, "trained on what another fold of that name is judged by"
    assert "holds another training: fold is" in " ".join(other.output.split())
    out = tmp_path / "again.json"
    result = CliRunner().invoke(
        app,
        [
            "evaluate-boxes",
            str(manifest),
            str(fold[0]),
            str(fold[1]),
            "--out",
            str(out),
            "--window",
            "64,64,32",
            "--device",
            "cpu",
        ],
    )
    assert result.exit_code == 0, result.output
    again = json.loads(out.read_text(encoding="utf-8"))
    assert (again["coco"], again["froc"]["cpm"]) == (report["coco"], report["froc"]["cpm"])
