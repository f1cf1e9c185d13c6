"""Reports of random networks on tiny data: figures agree with a direct computation, the page stands alone."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner

from pulmo_models.checkpoints import write_set
from pulmo_models.ct.characterise import MalignancyHead
from pulmo_models.ct.settings import NoduleSettings
from pulmo_models.device import Runner
from pulmo_models.errors import WeightsCorrupt, WeightsMissing
from pulmo_models.geometry import index_to_lps, lps_to_index
from pulmo_models.mapping import frames_of_grid
from pulmo_models.nets.heatmap_unet3d import HeatmapUNet3D
from pulmo_models.nets.student2p5d import Student2p5D
from pulmo_models.pipeline import Rejection
from pulmo_models.training.commands import evaluate as cli_evaluate
from pulmo_models.training.evaluation import report as whole
from pulmo_models.training.evaluation import sections, series, stage1
from pulmo_models.training.evaluation.analysis import Analyst
from pulmo_models.training.evaluation.characterisers import student, teacher_box
from pulmo_models.training.evaluation.compare import comparison, markdown
from pulmo_models.training.evaluation.report import Evaluation, Plan, evaluate, write
from pulmo_models.training.evaluation.scans import Scan, insert_nodules, luna16_scans
from pulmo_models.training.evaluation.stage1 import Rates, scan_figures, scan_images, score
from pulmo_models.training.evaluation.stage2 import predict, stage2_figures
from pulmo_models.training.evaluation.truth import TrueNodule, own_places, true_nodules
from pulmo_models.training.evaluation.windows import window_figures
from pulmo_models.training.fitting.networks import Networks, load_networks
from pulmo_models.training.fitting.rows import StoreUnfit
from pulmo_models.training.lidc.luna16 import CollectionInvalid, split_of_series
from pulmo_models.training.material.nodules import RealNodule
from pulmo_models.training.material.phantoms import NoduleSpec, make_phantom
from pulmo_models.training.metrics.froc import Places
from pulmo_models.training.store import Patch, PatchStore, StoreWriter, Window
from pulmo_models.types import CONCEPT_NAMES, SeriesDescription, Volume
from tests.ct_factory import grid_volume

PATCH, WINDOW = (9, 66, 66), (16, 32, 32)


def ball(shape: tuple[int, ...], radius: float, centre: tuple[float, ...] | None = None) -> np.ndarray:
    middle = np.array(centre if centre is not None else [size // 2 for size in shape])
    return np.linalg.norm(np.indices(shape) - middle.reshape(-1, 1, 1, 1), axis=0) < radius


def nodule_patch(number: int, malignancy: float, readers: int = 3) -> Patch:
    random = np.random.default_rng(number)
    mask = ball(PATCH, 3 + number % 4)
    hu = np.where(mask, 40, -800) + random.normal(0, 120, PATCH)
    return Patch(
        hu=hu.astype(np.int16),
        spacing_mm=(2.0, 0.7, 0.7),
        mask=mask,
        detection=1,
        malignancy=malignancy,
        ratings=random.uniform(1, 5, 8).astype(np.float32),
        readers=readers,
        diameter_mm=4.0 + number,
        inserted=number % 2 == 0,
        patient=f"P{number // 2}",
        split="test",
        source="made",
    )


def other_patch(number: int) -> Patch:
    hu = np.random.default_rng(100 + number).normal(-700, 250, PATCH).astype(np.int16)
    return Patch(
        hu=hu,
        spacing_mm=(2.0, 0.7, 0.7),
        detection=0,
        patient="N",
        split="test",
        source=f"host: {'vessel' if number else 'pleura'}",
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "tiny.h5"
    with StoreWriter(path, window=WINDOW, patch=PATCH, provenance={"command": "test", "seed": 7}) as writer:
        for number, malignancy in enumerate([1.0, 4.5, 2.0, 3.0, 2.5, 3.5, 4.0]):
            writer.add_patch(nodule_patch(number, malignancy))
        writer.add_patch(nodule_patch(7, 5.0, readers=2))
        for number in range(5):
            writer.add_patch(other_patch(number))
        writer.add_patch(replace(other_patch(9), split="train"))
        writer.add_window(bright_window("test"))
        writer.drop("too near the border", 2)
    return path


def bright_window(split: Any) -> Window:
    hu = np.full(WINDOW, -850, np.int16)
    for place in ((8, 8, 8), (8, 24, 24), (3, 8, 24)):
        hu[place] = 500
    return Window(
        hu=hu,
        spacing_mm=(2.0, 1.0, 1.0),
        nodules=np.array([[8, 8, 8.6, 6.0], [12, 20, 8, 10.0]], np.float32),
        unknown=np.array([[0, 4, 20, 6, 12, 28]], np.int32),
        patient="W",
        split=split,
        source="made",
    )


def random_networks(seed: int = 1) -> Networks:
    torch.manual_seed(seed)
    return Networks(
        name=f"random {seed}",
        version="0",
        concept_scale="unit",
        sha256="0" * 64,
        digests={"stage2": "0" * 64},
        stage1=None,
        stage2=Student2p5D().eval(),
    )


class Bright(torch.nn.Module):
    """A detector that knows what is bright; the background of -850 HU is 0.075 and gets a heat of 0.001."""

    def forward(self, image: Tensor) -> Tensor:
        return 16 * (image - 0.5)


@pytest.fixture(scope="module")
def networks() -> Networks:
    return random_networks()


@pytest.fixture(scope="module")
def evaluation(store: Path, networks: Networks) -> Evaluation:
    return evaluate(networks, Plan(parts=("stage1", "stage2", "series"), stores=(store,), device="cpu", resamples=40))


def direct(store: Path, networks: Networks) -> dict[str, np.ndarray]:
    """The network's outputs without any of the evaluation's code: the mean over the eight views of the node."""
    held = PatchStore(store)
    patches = [held.patch(int(row)) for row in held.rows("stage2", "test")]
    images = (np.stack([p.hu[1:8, 1:66, 1:66] for p in patches]).clip(-1000, 1000).astype(np.float32) + 1000) / 2000
    sums: dict[str, Any] = {}
    outline, seen = np.zeros((len(images), 65, 65)), np.zeros((65, 65))
    # quarter turns, rows reversed, slices reversed
    for turns, rows, slices in np.ndindex(4, 2, 2):
        if slices != (turns + rows) % 2:
            continue
        turned = np.rot90(images[:, :: 1 - 2 * slices, :: 1 - 2 * rows], turns, (2, 3))[:, :, :64, :64]
        with torch.inference_mode():
            out = networks.stage2(torch.from_numpy(turned.copy()))  # type: ignore[misc]
        whole, where = np.zeros((len(images), 65, 65)), np.zeros((65, 65))
        whole[:, :64, :64], where[:64, :64] = out.pop("segmentation")[:, 0].numpy(), 1
        outline += np.rot90(whole, -turns, (1, 2))[:, :: 1 - 2 * rows]
        seen += np.rot90(where, -turns)[:: 1 - 2 * rows]
        for name, values in out.items():
            sums[name] = sums.get(name, 0) + values / 8
    return {
        "detection": sums["detection"].softmax(1)[:, 1].numpy(),
        "malignancy": sums["malignancy"].softmax(1)[:, 1].numpy(),
        "concepts": 1 + 4 * sums["concepts"].numpy(),
        "outline": (outline / np.maximum(seen, 1))[:, :64, :64] > 0,
        "mask": np.stack([np.zeros((64, 64), bool) if p.mask is None else p.mask[4, 1:65, 1:65] for p in patches]),
        "ratings": np.stack([p.ratings for p in patches]),
    }


def share_of_pairs(positive: np.ndarray, negative: np.ndarray) -> float:
    return float((positive[:, None] > negative[None]).mean())


def test_stage_2_agrees_with_a_direct_computation(evaluation: Evaluation, store: Path, networks: Networks) -> None:
    figures, out = evaluation.report["stage2"], direct(store, networks)
    assert (figures["patches"], figures["nodules"], figures["no_nodules"], figures["nodules_inserted"]) == (13, 8, 5, 4)
    area = figures["detection"]["auc"]
    assert area["value"] == pytest.approx(share_of_pairs(out["detection"][:8], out["detection"][8:]), abs=1e-4)
    assert (area["positives"], area["negatives"], area["patients"]) == (8, 5, 5)
    assert area["resamples_without_a_class"] <= 3  # of 40: the negatives are of one patient, and drawn one by one
    kinds = {row["kind"]: row for row in figures["detection"]["by_kind_of_no_nodule"]}
    assert kinds["vessel"]["number"] == 4
    assert kinds["vessel"]["specificity_at_half"] == pytest.approx((out["detection"][9:] < 0.5).mean())
    assert kinds["pleura"]["auc"] == pytest.approx(
        share_of_pairs(out["detection"][:8], out["detection"][8:9]), abs=1e-4
    )
    own = figures["detection"]["auc_of_nodules_in_their_own_lung"]
    assert own["value"] == pytest.approx(share_of_pairs(out["detection"][1:8:2], out["detection"][8:]), abs=1e-4)
    # Ratings 1, 4.5, 2, (3), 2.5, 3.5, 4; the last nodule has two readers.
    malignant, benign = [1, 5, 6], [0, 2, 4]
    malignancy = figures["malignancy"]
    assert malignancy["auc"]["value"] == pytest.approx(
        share_of_pairs(out["malignancy"][malignant], out["malignancy"][benign]), abs=1e-4
    )
    diameters = 4.0 + np.arange(8)
    assert malignancy["auc_of_the_diameter_alone"]["value"] == pytest.approx(
        share_of_pairs(diameters[malignant], diameters[benign]), abs=1e-4
    )
    middle = malignancy["from_8_to_15_mm"]  # diameters 8, 9, 10 of numbers 4, 5, 6
    assert (middle["auc"]["positives"], middle["auc"]["negatives"]) == (2, 1)
    assert middle["auc_of_the_diameter_alone"]["value"] == 1.0
    dices = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in zip(out["outline"][:8], out["mask"][:8], strict=True)]
    assert figures["dice"]["central_slice"]["value"] == pytest.approx(np.mean(dices), abs=1e-4)
    assert figures["dice"]["volume"]["number"] == 8
    for column, row in enumerate(figures["concepts"]):
        truth, guess = out["ratings"][:7, column], out["concepts"][:7, column]
        expected = 1 - ((truth - guess) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()
        assert row["concept"] == CONCEPT_NAMES[column]
        assert row["r2"] == pytest.approx(expected, rel=1e-3, abs=2e-4)
        assert row["mae"] == pytest.approx(np.abs(truth - guess).mean(), abs=2e-4)
    head = networks.stage2.malignancy_head.weight.detach().numpy()  # type: ignore[union-attr]
    weights = [row["weight"] for row in figures["signs"]["rows"]]
    assert weights == pytest.approx((head[1] - head[0]).tolist(), abs=1e-4)


def test_the_volume_is_the_mask_that_the_node_builds(tmp_path: Path) -> None:
    class Outlines(torch.nn.Module):
        """Outlines what is bright on the central slice, as a perfect characteriser would."""

        def __init__(self) -> None:
            super().__init__()
            self.malignancy_head = torch.nn.Linear(8, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            count = len(x)
            return {
                "detection": torch.tensor([[0.0, 1.0]]).repeat(count, 1),
                "concepts": torch.zeros(count, 8),
                "malignancy": torch.zeros(count, 2),
                "segmentation": (x[:, 3:4] - 0.3) * 10,
            }

    path = tmp_path / "clean.h5"
    with StoreWriter(path, window=None, patch=PATCH, provenance={}) as writer:
        patch = nodule_patch(1, 4.0)
        clean = np.where(patch.mask, 40, -800).astype(np.int16) if patch.mask is not None else patch.hu
        writer.add_patch(replace(patch, hu=clean))
    known: Any = replace(random_networks(), stage2=Outlines())
    figures = evaluate(known, Plan(parts=("stage2",), stores=(path,), device="cpu", resamples=5)).report["stage2"]
    assert figures["dice"]["central_slice"]["value"] == 1.0
    assert figures["dice"]["volume"]["value"] == 1.0
    # One nodule and nothing else: what needs a second class is left open, not invented.
    assert figures["detection"]["auc"]["value"] is None
    assert figures["malignancy"]["auc"] == {
        "value": None, "ci95": None, "positives": 1, "negatives": 0, "patients": 1, "resamples_without_a_class": 5,
    }  # fmt: skip
    assert figures["detection"]["operating_points"] == []


def test_the_report_says_what_it_is_of(evaluation: Evaluation, store: Path) -> None:
    report = evaluation.report
    assert report["format"] == "pulmo evaluation 1"
    assert "Research use only" in report["notice"]
    assert report["weights"]["sha256"] == "0" * 64
    (described,) = report["stores"]
    assert described["file"] == "tiny.h5"
    assert described["provenance"] == {"command": "test", "seed": 7}
    assert described["dropped"] == {"too near the border": 2}
    assert described["samples"]["stage2"] == {"train": 1, "validation": 0, "test": 13}
    assert report["skipped"] == {"stage1": "there is no detector", "series": "needs --data"}
    assert report["how"]["seed"] == 99


def figures_of(store: Path, networks: Networks, **changes: Any) -> dict[str, Any]:
    assert networks.stage2 is not None
    head = MalignancyHead.of(networks.stage2, networks.concept_scale)
    characteriser = student(Runner(networks.stage2, torch.device("cpu"), "fp32"), head)
    seen = predict([PatchStore(store)], "test", characteriser)
    return stage2_figures(replace(seen, **changes), head, seed=99, resamples=40)


def test_the_same_seed_gives_the_same_figures(evaluation: Evaluation, store: Path, networks: Networks) -> None:
    assert figures_of(store, networks) == evaluation.report["stage2"]


def test_a_nodule_without_a_diameter_is_left_out_of_the_baseline_alone(store: Path, networks: Networks) -> None:
    sizes = np.array([np.nan, 9.0, *range(10, 21)])
    malignancy = figures_of(store, networks, diameter_mm=sizes)["malignancy"]
    assert malignancy["auc"]["negatives"] == 3
    assert malignancy["auc_of_the_diameter_alone"]["negatives"] == 2
    # Malignant 9, 13, 14 against benign 10, 12.
    assert malignancy["auc_of_the_diameter_alone"]["value"] == pytest.approx(4 / 6, abs=1e-4)


def test_the_page_stands_alone(evaluation: Evaluation, tmp_path: Path) -> None:
    path = write(evaluation, tmp_path / "out")
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"""(?:src|href)\s*=\s*["']?([a-z]+:)""", text)) == {"data:"}
    assert not re.search(r"https?://|@import|url\(|<script|<link", text)
    assert "Research use only" in text
    assert "4 of the 8 nodule patches" in text  # that are synthetic
    assert text.count("data:image/png;base64,") == len(evaluation.images)
    for name in ("stage2-roc", "stage2-reliability", "stage2-concepts", "stage2-signs", "stage2-masks"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    figures = evaluation.report["stage2"]
    assert f"{figures['detection']['auc']['value']:.3f}" in text
    assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8")) == evaluation.report


def test_texts_are_escaped(evaluation: Evaluation, tmp_path: Path) -> None:
    report = {**evaluation.report, "weights": {**evaluation.report["weights"], "name": "<script>alert(1)</script>"}}
    text = write(Evaluation(report=report, images={}), tmp_path).read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_windows_count_false_positives_per_window(store: Path) -> None:
    runner = Runner(Bright(), torch.device("cpu"), "fp32")
    figures = window_figures([PatchStore(store)], "test", runner, "luna16", seed=1, resamples=10)
    # One of two nodules has a bright voxel within its radius; one bright voxel is on nothing, one where nobody knows.
    assert (figures["windows"], figures["nodules"]) == (1, 2)
    at = {row["false_per_window"]: row["value"] for row in figures["sensitivity"]}
    assert at[8.0] == 0.5
    assert at[0.125] == pytest.approx(0.5 / 8)  # hit and false one have the same score: a line from (0, 0) to (1, 0.5)
    assert "no whole scans" in figures["protocol"]
    with pytest.raises(ValueError, match="validation"):
        window_figures([PatchStore(store)], "validation", runner, "luna16", seed=1, resamples=10)


def volume(bright: dict[tuple[int, int, int], int], affine: np.ndarray) -> Volume:
    hu = np.full((64, 128, 128), -850, np.float32)
    for place, level in bright.items():
        hu[place] = level
    return grid_volume(hu, affine)


def flipped_affine() -> np.ndarray:
    """Columns to the right, rows to the anterior, slices to the feet."""
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, :3] = [[0, 0, -0.8], [0, -0.8, 0], [-2.5, 0, 0]]
    affine[:3, 3] = [100, 50, -30]
    return affine


class Stage2Double:
    """Says what is very bright in the middle is a nodule, and outlines it."""

    device = torch.device("cpu")

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        centre = batch[:, 3, 32, 32]
        return {
            "detection": torch.stack([torch.zeros_like(centre), 40 * (centre - 0.7)], dim=1),
            "concepts": torch.zeros(len(batch), 8),
            "malignancy": torch.zeros(len(batch), 2),
            "segmentation": (batch[:, 3:4] - 0.4) * 10,
        }


@pytest.fixture
def analyst(monkeypatch: pytest.MonkeyPatch) -> Analyst:
    class Everywhere:
        def __init__(self, of: Volume) -> None:
            self.search = np.ones(of.hu.shape, bool)

    monkeypatch.setattr(stage1, "search_mask", lambda of: np.ones(of.hu.shape, bool))
    monkeypatch.setattr(series, "localise_lungs", Everywhere)
    return Analyst(
        detector=Runner(Bright(), torch.device("cpu"), "fp32"),
        characteriser=Stage2Double(),  # type: ignore[arg-type]
        head=MalignancyHead(weights=np.zeros(8), bias=0.0, concept_scale="unit"),
        peak_threshold=0.3,
        detection_threshold=0.5,
        cluster_mm=6.0,
    )


BRIGHT = {(4, 10, 10): 900, (4, 40, 40): 300, (12, 10, 50): 850, (12, 50, 10): 200}


def test_a_scan_is_matched_in_the_patient_frame(analyst: Analyst) -> None:
    affine = flipped_affine()

    def places(*rows: tuple[float, float, float]) -> Places:
        centres = np.array([index_to_lps(affine, row) for row in rows])
        return Places(centres_mm=centres, diameters_mm=np.full(len(rows), 7.0))

    scan = Scan(
        name="a",
        series="host",
        volume=volume(BRIGHT, affine),
        nodules=places((4.5, 11, 11), (4, 40, 42), (8, 30, 30)),
        excluded=places((12, 10, 50)),
        doubtful=places((12, 50, 10)),
    )
    scored = score(scan, analyst, "luna16")
    heats = [1 / (1 + np.exp(-16 * ((level + 1000) / 2000 - 0.5))) for level in (900, 300)]
    assert scored.stage1.nodules.tolist() == pytest.approx([*heats, -np.inf], rel=1e-4)
    assert len(scored.stage1.false) == 1
    assert scored.both is not None
    assert scored.both(0.3).nodules[0] > 0.99  # 0.95 in the middle
    assert scored.both(0.3).nodules[1] < 0.5  # 0.65
    assert scored.both(0.9999).nodules.tolist() == [-np.inf] * 3
    assert len(scored.missed) == 1
    assert len(scored.undoubted.false) == 0
    figures = scan_figures([scored], analyst, "luna16", Rates(stage1=0.5, both=0.5), seed=1, resamples=10)
    assert figures["stage1"]["cpm"] == pytest.approx(2 / 3, abs=1e-4)
    assert figures["stage1"]["at_the_default_threshold"]["found"] == 2
    assert figures["both_stages"]["at_the_default_threshold"]["found"] == 1
    assert figures["by_scan"] == [{"scan": "a", "nodules": 3, "found": 2, "false": 1}]
    assert figures["by_series"] == [
        {"series": "host", "scans": 1, "nodules": 3, "cpm": 0.6667, "from_6_mm_at_8_false_per_scan": 0.6667}
    ]
    assert figures["undoubted"]["candidates_on_nothing"] == 0
    assert figures["operating_point"]["peak_threshold"] == pytest.approx(heats[1], abs=1e-4)
    text = sections.stage1({"inserted": {**figures, "synthetic": "placed"}}, {})
    assert "Whole series with inserted nodules (synthetic)" in text
    assert "<td>CPM</td><td>0.667 [0.667, 0.667]</td>" in text
    assert "stage 1, doubtful left out" in text
    assert set(scan_images([scored], figures, "inserted", 1, 10)) == {
        "inserted-froc", "inserted-sizes", "inserted-missed", "inserted-false",
    }  # fmt: skip


def test_a_folder_of_luna16_is_read_with_its_direction(analyst: Analyst, tmp_path: Path) -> None:
    hu = volume(BRIGHT, np.eye(4)).hu
    image = sitk.GetImageFromArray(hu.astype(np.int16))
    image.SetSpacing((0.8, 0.8, 2.5))
    image.SetOrigin((100, 50, -30))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, -1))
    (tmp_path / "subset0").mkdir()
    sitk.WriteImage(image, str(tmp_path / "subset0" / "1.2.3.mhd"))
    x, y, z = image.TransformIndexToPhysicalPoint((10, 10, 4))
    header = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"
    (tmp_path / "annotations.csv").write_text(f"{header}1.2.3,{x},{y},{z},6\n9.9.9,0,0,0,5\n")
    x, y, z = image.TransformIndexToPhysicalPoint((50, 10, 12))
    (tmp_path / "candidates.csv").write_text("seriesuid,coordX,coordY,coordZ,class\n")
    (tmp_path / "annotations_excluded.csv").write_text(f"{header}1.2.3,{x},{y},{z},-1\n")
    (scan,) = luna16_scans(tmp_path, "test", {"1.2.3": "LIDC-IDRI-0005"})
    assert scan.name == "1.2.3"
    slice_step, row_step, column_step = scan.volume.affine[:3, :3].T
    assert (slice_step[2], row_step[1], column_step[0]) == pytest.approx((2.5, 0.8, 0.8))  # upright
    for column, row, k in ((10, 10, 4), (50, 10, 12), (0, 3, 1)):
        place = image.TransformIndexToPhysicalPoint((column, row, k))
        index = tuple(round(value) for value in lps_to_index(scan.volume.affine, place))
        assert scan.volume.hu[index] == hu[k, row, column]
    scored = score(scan, analyst, "luna16")
    assert scored.stage1.nodules[0] > 0.9
    assert len(scored.stage1.false) == 2
    (tmp_path / "subset0" / "1.2.3.mhd").unlink()
    with pytest.raises(CollectionInvalid, match=r"no \.mhd"):
        list(luna16_scans(tmp_path, "test", {}))


def test_luna16_is_measured_on_the_split_alone(
    analyst: Analyst, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever trained on the store of a folder is not judged by the scans that are in it; the same rule splits both."""
    patients = {"1.1": "LIDC-IDRI-0001", "1.3": "LIDC-IDRI-0003", "1.5": "LIDC-IDRI-0005", "1.6": "LIDC-IDRI-0006"}
    by_name = {"2.3": "test", "2.10": "train"}
    assert {name: split_of_series(name, {}) for name in by_name} == by_name
    for name in (*patients, *by_name):
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.int16)), str(tmp_path / f"{name}.mhd"))
    (tmp_path / "annotations.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n")
    (tmp_path / "candidates.csv").write_text("seriesuid,coordX,coordY,coordZ,class\n")
    assert [scan.name for scan in luna16_scans(tmp_path, "test", patients)] == ["1.5", "2.3"]
    assert [scan.name for scan in luna16_scans(tmp_path, "validation", patients)] == ["1.6"]
    with pytest.raises(CollectionInvalid, match="holds no scan of the validation split"):
        list(luna16_scans(tmp_path, "validation", dict.fromkeys((*patients, *by_name), "LIDC-IDRI-0001")))
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(whole, "luna16_scans", lambda *args: asked.append(args) or iter(()))
    monkeypatch.setattr(whole, "_froc", lambda scans, *_: ({}, {}))
    monkeypatch.setattr(whole.Analyst, "of", lambda *_: analyst)
    networks = replace(random_networks(), stage1=HeatmapUNet3D())
    for database in (True, False):
        path = tmp_path / f"{database}.h5"
        made = {"command": "data luna16", "database": database}
        with StoreWriter(path, window=None, patch=None, provenance=made):
            pass
        evaluate(networks, Plan(parts=("stage1",), luna16=tmp_path, stores=(path,), split="validation"))
    assert asked == [(tmp_path, "validation", None), (tmp_path, "validation", {})]


def test_a_scan_that_is_refused_has_its_nodules_missed(
    analyst: Analyst, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Left out, it would raise the sensitivity by the very scan that the node fails on."""
    affine = flipped_affine()
    place = Places(centres_mm=np.array([index_to_lps(affine, (4, 10, 10))]), diameters_mm=np.array([7.0]))
    seen = Scan(name="a", series="a", volume=volume(BRIGHT, affine), nodules=place, excluded=Places())
    blind = replace(seen, name="b", series="b")

    def lungs(of: Volume) -> np.ndarray:
        if of is blind.volume:
            raise Rejection("NO_LUNGS", "nothing looks like lung")
        return np.ones(of.hu.shape, bool)

    blind = replace(blind, volume=replace(blind.volume))
    monkeypatch.setattr(stage1, "search_mask", lungs)
    monkeypatch.setattr(whole, "luna16_scans", lambda *_: iter([seen, blind]))
    monkeypatch.setattr(whole.Analyst, "of", lambda *_: analyst)
    networks = replace(random_networks(), stage1=HeatmapUNet3D())
    done = evaluate(networks, Plan(parts=("stage1",), luna16=tmp_path, resamples=10))
    figures = done.report["stage1"]["luna16"]
    assert figures["rejected"] == ["b: NO_LUNGS: nothing looks like lung"]
    for stages in ("stage1", "both_stages"):
        assert (figures[stages]["scans"], figures[stages]["nodules"]) == (2, 2)
        assert figures[stages]["at_the_default_threshold"]["found"] == 1
        assert figures[stages]["cpm"] <= 0.5


def test_nodules_are_inserted_where_the_truth_says() -> None:
    phantom = make_phantom(5, shape=(60, 200, 200), spacing_mm=(3.3, 1.55, 1.55), nodules=())
    before = phantom.hu.copy()
    empty = Volume(
        hu=phantom.hu,
        affine=phantom.affine,
        frame_of_reference_uid="",
        series=SeriesDescription(study_instance_uid="", series_instance_uid="", modality="CT"),
        frames=frames_of_grid(phantom.affine, phantom.hu.shape),
    )
    mask = ball((11, 72, 72), 8)
    nodule = RealNodule(
        patient="LIDC-IDRI-0005",
        name="made",
        hu=np.where(mask, 60, -850).astype(np.int16),
        mask=mask,
        reach=mask,
        spacing_mm=(1.0, 1.0, 1.0),
        diameter_mm=15.0,
        ratings=np.full(8, 3, np.float32),
        malignancy=3.0,
        readers=4,
        error_hu=0.0,
    )
    own = Places(centres_mm=np.array([[-66.0, 0.0, 0.0]]), diameters_mm=np.array([10.0]))
    hu, placed = insert_nodules(empty, [nodule], own, np.random.default_rng(3))
    assert 5 <= len(placed.diameters_mm) <= 10
    assert set(placed.diameters_mm) == {15.0}
    assert (phantom.hu == before).all()
    points = np.concatenate([own.centres_mm, placed.centres_mm])
    apart = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e3 * np.eye(len(points))
    assert apart.min() > 28  # 30 mm before the centre is rounded to a voxel
    for centre in placed.centres_mm:
        index = lps_to_index(empty.affine, centre)
        assert hu[tuple(round(value) for value in index)] > -100
        far = np.linalg.norm((np.argwhere(hu != before) - index) * empty.spacing_mm, axis=1)
        assert far.min() < 4
    air = replace(empty, hu=np.where(phantom.hu < -600, -956, phantom.hu).astype(np.float32))
    for centre in insert_nodules(air, [nodule], own, np.random.default_rng(3))[1].centres_mm:
        z, y, x = (round(value) for value in lps_to_index(air.affine, centre))
        assert air.hu[z, y - 5 : y + 6, x - 5 : x + 6].max() > -600  # beside something, never in an open airway
    same = insert_nodules(empty, [nodule], own, np.random.default_rng(3))[1]
    assert (same.centres_mm == placed.centres_mm).all()


def test_the_truth_of_a_series_is_its_list_and_its_boxes(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, :3] = [[0, 0, 0.5], [0, 0.5, 0], [2, 0, 0]]
    affine[:3, 3] = [-100, -100, -260]
    of = volume({}, affine)  # its slices are "0" to "63", z from -260
    folder = tmp_path / "ct_cptac_c3n-00247"
    (folder / "annotation").mkdir(parents=True)
    for name, box in (("10", (20, 40, 40, 64)), ("11", (20, 40, 44, 60))):
        edges = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        (folder / "annotation" / f"{name}.xml").write_text(
            f"<annotation><object><bndbox>{edges}</bndbox></object></annotation>"
        )
    listed, boxed = true_nodules(of, folder)
    assert listed.diameter_mm == 20
    assert listed.centre_lps_mm == pytest.approx((-100 + 106 * 0.5, -100 + 168 * 0.5, -196), abs=1.01)
    assert boxed.diameter_mm == pytest.approx(24 * 0.5)
    x, y, z = boxed.centre_lps_mm
    assert (x, y) == pytest.approx((-100 + 31 * 0.5, -100 + 51 * 0.5), abs=0.6)
    assert -240 <= z <= -238
    assert own_places(of, folder).diameters_mm.tolist() == [20, 12]


def test_a_series_says_what_was_found_missed_and_unmatched(analyst: Analyst) -> None:
    affine = flipped_affine()
    known = [
        TrueNodule(name="bright", centre_lps_mm=index_to_lps(affine, (4, 11, 11)), diameter_mm=8.0),
        TrueNodule(name="faint", centre_lps_mm=index_to_lps(affine, (4, 40, 40)), diameter_mm=40.0),
        TrueNodule(name="absent", centre_lps_mm=index_to_lps(affine, (8, 5, 60)), diameter_mm=6.0),
    ]
    figures, crops = series.volume_figures(volume(BRIGHT, affine), known, analyst)
    bright, faint, absent = figures["known"]
    assert bright["found_at_mm"] == pytest.approx(0.8 * 2**0.5, abs=0.05)
    assert bright["in_question"] is True
    assert bright["heat"] == pytest.approx(0.9993, abs=1e-3)
    assert faint["found_at_mm"] is None
    assert faint["heat"] == pytest.approx(0.917, abs=1e-3)
    assert faint["detection_probability"] < 0.5
    assert faint["in_question"] is False
    assert absent["heat"] < 0.1
    assert (figures["candidates"], figures["findings"], figures["unmatched"]) == (4, 2, 1)
    assert figures["unmatched_findings"][0]["index"] == [12, 10, 50]
    assert {kind: len(sheet) for kind, sheet in crops.items()} == {"missed": 2, "found": 1, "unmatched": 1}
    row = {"series": "ct <a>", "role": "test", "readers_marked_everything": True, **figures}
    text = sections.series({"protocol": "p", "series": [row]}, {})
    assert "ct &lt;a&gt;" in text
    assert "of them false 1;" in text
    assert "found, 1.1 mm off" in text
    outline = crops["unmatched"][0].drawn
    assert outline is not None
    assert outline.sum() == 1


def test_phantoms_are_searched_for_what_was_planted(analyst: Analyst, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = [
        NoduleSpec(place=(-72.0, 30.0, -10.0), diameter_mm=16.0),
        NoduleSpec(place=(70, -30, 20), diameter_mm=14),
    ]
    phantom = make_phantom(5, shape=(64, 192, 192), spacing_mm=(3.0, 1.6, 1.6), nodules=planted)
    monkeypatch.setattr(series, "make_demo_phantom", lambda: phantom)
    monkeypatch.setattr(series, "PHANTOM_SEEDS", ())
    blind = replace(analyst, detection_threshold=1.1)
    figures = series.phantom_part(blind)
    (demo,) = figures["phantoms"]
    assert demo["findings"] == 0
    assert [row["found_at_mm"] for row in demo["known"]] == [None, None]
    assert all(row["heat"] > 0.4 for row in demo["known"])  # 10 to 60 HU against lung: the nodules are where it looks
    assert "solid 16 mm, solid 14 mm" in sections.phantoms(figures, {})


def test_series_that_are_not_there_are_named(analyst: Analyst, tmp_path: Path) -> None:
    figures, images = series.series_part(tmp_path, analyst, ["ct_qin_lsc_0055"])
    assert figures["series"] == [{"series": "ct_qin_lsc_0055", "missing": True}]
    assert images == {}


def test_checkpoints_of_a_training_can_be_evaluated(tmp_path: Path, networks: Networks) -> None:
    assert networks.stage2 is not None
    state = {f"network.{key}": value for key, value in networks.stage2.state_dict().items()}
    path = tmp_path / "best.ckpt"
    torch.save({"state_dict": {**state, "skipped": torch.zeros(())}, "concept_scale": "raw"}, path)
    loaded = load_networks(str(path))
    assert loaded.stage1 is None
    assert loaded.teacher is None
    assert loaded.concept_scale == "raw"
    assert loaded.stage2 is not None
    assert all(
        torch.equal(a, b)
        for a, b in zip(loaded.stage2.state_dict().values(), networks.stage2.state_dict().values(), strict=True)
    )
    torch.save({"state_dict": {"network.x": torch.zeros(1)}}, path)
    with pytest.raises(WeightsCorrupt, match="neither"):
        load_networks(str(path))
    with pytest.raises(WeightsMissing, match="does not exist"):
        load_networks(str(tmp_path / "other.ckpt"))
    detector_alone = replace(networks, stage2=None)
    with pytest.raises(WeightsMissing, match="no detector"):
        Analyst.of(detector_alone, NoduleSettings(), "auto", "cpu")


def test_a_teacher_predicts_its_volume(tmp_path: Path, networks: Networks) -> None:
    class Sees(torch.nn.Module):
        """Outlines what is bright, whatever the depth."""

        def __init__(self) -> None:
            super().__init__()
            self.malignancy_head = torch.nn.Linear(8, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            assert x.shape[1:] == (1, 16, 64, 64)
            return {
                "detection": torch.zeros(len(x), 2),
                "concepts": torch.zeros(len(x), 8),
                "malignancy": torch.zeros(len(x), 2),
                "segmentation": x - 0.3,
            }

    path = tmp_path / "deep.h5"
    mask = ball((20, 72, 72), 5)
    with StoreWriter(path, window=None, patch=mask.shape, provenance={}) as writer:
        hu = np.where(mask, 40, -800).astype(np.int16)
        writer.add_patch(replace(nodule_patch(1, 4.0), hu=hu, mask=mask))
    seeing: Any = replace(networks, stage2=None, teacher=Sees())
    figures = evaluate(seeing, Plan(parts=("stage2",), stores=(path,), device="cpu", resamples=5)).report["stage2"]
    assert figures["dice"]["central_slice"]["value"] == 1.0
    assert figures["dice"]["volume"]["value"] == 1.0


def test_a_patch_too_thin_for_the_teacher_is_named() -> None:
    with pytest.raises(StoreUnfit, match="made: a patch of 9 slices"):
        teacher_box(nodule_patch(1, 4.0))


def test_sets_are_compared_on_the_same_data(evaluation: Evaluation, store: Path) -> None:
    network = random_networks(2)
    other = {**evaluation.report, "weights": network.described(), "stage2": figures_of(store, network)}
    compared = comparison([evaluation.report, other])
    table = markdown(compared)
    assert table.splitlines()[0] == "| | random 1 | random 2 |"
    rows = {row["figure"]: row["values"] for row in compared["rows"]}
    for at, report in enumerate((evaluation.report, other)):
        assert rows["detection AUC, stage 2"][at].startswith(f"{report['stage2']['detection']['auc']['value']:.3f}")
        assert rows["concept signs that agree"][at] == f"{report['stage2']['signs']['agreeing']} of 7"
    assert rows["the diameter alone"][0] == rows["the diameter alone"][1]
    assert not any(name.startswith("inserted") for name in rows)  # nobody measured them
    assert sum(name.startswith("concept R²") for name in rows) == 8
    elsewhere = {**other, "how": {**other["how"], "seed": 1}}
    with pytest.raises(ValueError, match="same data"):
        comparison([evaluation.report, elsewhere])


def test_the_commands(networks: Networks, tmp_path: Path) -> None:
    store = tmp_path / "small.h5"
    with StoreWriter(store, window=WINDOW, patch=PATCH, provenance={}) as writer:
        writer.add_window(bright_window("test"))
        writer.add_patch(nodule_patch(1, 4.0))
        writer.add_patch(other_patch(1))
    assert networks.stage2 is not None
    about = {"version": "1", "licence": "none", "origin": "test", "attribution": "test"}
    torch.manual_seed(4)
    manifest = write_set(
        tmp_path / "set",
        name="random",
        stage1=HeatmapUNet3D().state_dict(),
        stage2=networks.stage2.state_dict(),
        concept_scale="unit",
        about=about,
    )
    app = typer.Typer()
    cli_evaluate.register(app)
    how = ["--store", str(store), "--device", "cpu", "--resamples", "10", "--precision", "fp32"]
    done = CliRunner().invoke(
        app, ["evaluate", str(manifest), "--parts", "stage1,stage2", "--out", str(tmp_path / "out"), *how]
    )
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["weights"]["name"] == "random"
    assert report["stage1"]["windows"]["windows"] == 1
    assert "stage1 on inserted nodules" in report["skipped"]
    assert set(report["weights"]["files"]) == {"stage1", "stage2"}
    missing = CliRunner().invoke(app, ["evaluate", str(manifest), "--store", str(tmp_path / "none.h5")])
    assert missing.exit_code == 1
    assert "none.h5" in missing.stderr
    wrong = CliRunner().invoke(app, ["evaluate", str(manifest), "--parts", "stage3"])
    assert wrong.exit_code == 2
    assert "stage3" in wrong.output
    twice = [str(manifest), str(manifest)]
    done = CliRunner().invoke(app, ["compare", *twice, "--parts", "stage2", "--out", str(tmp_path / "both"), *how])
    assert done.exit_code == 0, done.output
    assert "| random | random |" in (tmp_path / "both" / "comparison.md").read_text(encoding="utf-8")
    assert (tmp_path / "both" / "2-random" / "report.html").exists()
