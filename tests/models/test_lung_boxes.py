"""The learned lung localisation: networks, input, read-out, region, checkpoints, training, use by a pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pulmo_models import registry
from pulmo_models.checkpoints import load_network
from pulmo_models.ct import lung_boxes, lung_region
from pulmo_models.ct.lung_boxes import (
    DEVIATION,
    MEAN,
    LungLocaliser,
    inside_of,
    load_localiser,
    lungs_by,
    prepare,
    read_boxes,
    told_by,
)
from pulmo_models.ct.lungs import localise_lungs
from pulmo_models.ct.settings import NoduleSettings
from pulmo_models.errors import WeightsCorrupt, WeightsMissing
from pulmo_models.nets.lung_boxes import ARCHITECTURES, lung_resnet50
from pulmo_models.network_sets import read_networks
from pulmo_models.pipeline import Rejection
from pulmo_models.training.localisation import data as training_data
from pulmo_models.training.localisation.data import SeriesMissing, slice_box
from pulmo_models.training.localisation.module import augmented, box_loss, overlap
from pulmo_models.training.localisation.train import LungTraining, train_lungs, write_lung_set
from pulmo_models.types import AlgorithmStage, PipelineInfo, Volume
from pulmo_node.encode import encode_findings
from tests.ct_factory import ct_datasets
from tests.encode_factory import make_context, read_object, write_volume
from tests.models.test_lungs import make_volume, thorax

CPU = torch.device("cpu")
SPACING = (4.0, 2.0, 2.0)
ABOUT = {"version": "0", "licence": "none", "origin": "a test", "attribution": "nobody"}


def write_checkpoint(path: Path, network: nn.Module, prefix: str = "model.") -> Path:
    """As Lightning writes that of a module with the network in its attribute ``model``."""
    state = {f"{prefix}{key}": value for key, value in network.state_dict().items()}
    torch.save({"epoch": 3, "global_step": 12, "state_dict": state, "hyper_parameters": {"lr": 1e-4}}, path)
    return path


@pytest.fixture(scope="module")
def volume() -> Volume:
    return make_volume(thorax()[0], SPACING)


def test_the_published_network_has_the_published_names_and_counts() -> None:
    network = lung_resnet50()
    state = network.state_dict()
    assert (sum(p.numel() for p in network.parameters()), len(state)) == (25_604_036, 322)
    assert list(state)[-4:] == ["fc.0.weight", "fc.0.bias", "fc.3.weight", "fc.3.bias"]
    assert state["conv1.weight"].shape == (64, 1, 7, 7)
    assert (state["fc.0.weight"].shape, state["fc.3.weight"].shape) == ((1024, 2048), (4, 1024))
    assert "conv1.bias" not in state


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_network_gives_four_numbers(architecture: str) -> None:
    network = ARCHITECTURES[architecture]().eval()
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs = network(images)
    assert outputs.shape == (2, 4)
    assert outputs.abs().max() < 5.0, "a fresh network must not begin where its sigmoid is flat"


def test_a_published_checkpoint_loads_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    network = lung_resnet50()
    file = write_checkpoint(tmp_path / "epoch=7.ckpt", network)
    manifest = write_lung_set(
        {"resnet50": file}, tmp_path / "set", name="published", settings={"readout": "corners"}, about=ABOUT
    )
    found = read_networks(manifest, "ct-lungs")
    assert found.settings == {"readout": "corners"}
    loaded = load_network(found.networks["resnet50"], lung_resnet50()).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in network.state_dict().items())
    assert load_localiser(str(manifest), "cpu").readout == "corners"

    def refused(path: Path, architecture: str, reason: str) -> None:
        with pytest.raises(WeightsCorrupt, match=reason):
            write_lung_set({architecture: path}, tmp_path / "no", name="no", settings={}, about=ABOUT)

    refused(file, "efficientnet_b0", "keys are missing")
    refused(write_checkpoint(tmp_path / "bare.ckpt", network, prefix=""), "resnet50", "do not begin with model.")
    rgb = lung_resnet50()
    rgb.conv1 = nn.Conv2d(3, 64, 7, bias=False)
    refused(write_checkpoint(tmp_path / "rgb.ckpt", rgb), "resnet50", r"conv1.weight has shape \[64, 3, 7, 7\]")
    with pytest.raises(WeightsMissing, match="pulmo-train lungs"):
        load_localiser("nothing-of-that-name", "cpu")


def test_a_slice_is_seen_in_its_window_whatever_else_is_in_it() -> None:
    hu = np.array([[-2000.0, -1350.0, -600.0], [150.0, 400.0, 30000.0]], dtype=np.float32)
    seen = prepare(hu[None], size=2)
    assert torch.isfinite(seen).all()
    flat = prepare(np.repeat(np.repeat(hu[None, :, :2], 2, axis=1), 2, axis=2), size=4)[0, 0]
    shares = flat[::2, ::2] * DEVIATION + MEAN
    torch.testing.assert_close(shares, torch.tensor([[0.0, 0.0], [1.0, 1.0]]), atol=1e-6, rtol=0)
    # The same tissue gives the same value beside air and beside metal, and an empty slice is no error.
    beside = np.full((2, 8, 8), -600.0, dtype=np.float32)
    beside[0, :2], beside[1, :2] = -1000.0, 3000.0
    first, second = prepare(beside, size=8)[:, 0]
    assert first[5, 5] == second[5, 5] == pytest.approx((0.5 - MEAN) / DEVIATION, abs=1e-6)
    assert torch.isfinite(prepare(np.full((1, 8, 8), -3000.0, dtype=np.float32), size=16)).all()


def test_both_ways_to_read_the_four_numbers() -> None:
    corners = read_boxes(torch.tensor([[-20.0, 51.2, 256.0, 600.0], [300.0, 10.0, 100.0, 5.0]]), "corners")
    torch.testing.assert_close(corners[0], torch.tensor([0.0, 0.1, 0.5, 1.0]))
    assert (corners[1, :2] <= corners[1, 2:]).all()
    found = read_boxes(torch.tensor([[0.0, 0.0, 0.0, -20.0]]), "centre_size")
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.5, 0.75, 0.5]]), atol=1e-6, rtol=0)
    # Outside of the image too there is a gradient: the clamp of the published read-out has none.
    outputs = torch.tensor([[30.0, 0.0, 0.0, 0.0]], requires_grad=True)
    box_loss(outputs * 0.1, torch.tensor([[0.1, 0.1, 0.4, 0.4]])).backward()
    assert outputs.grad is not None
    assert outputs.grad[0, 0].abs() > 0


def test_slips_of_single_slices_do_not_count() -> None:
    looked_at = list(range(0, 60, 5))
    boxes = np.zeros((12, 4))
    boxes[3:9] = (0.2, 0.3, 0.8, 0.7)
    boxes[5] = (0.0, 0.0, 1.0, 1.0)  # stands out
    boxes[7] = 0.0  # missed
    boxes[11] = (0.4, 0.4, 0.6, 0.6)  # a slip far from the lungs
    inside = inside_of(boxes, looked_at, (60, 100, 200), (2.0, 2.0, 2.0))
    assert np.flatnonzero(inside.any(axis=(1, 2))).tolist() == list(range(10, 46))  # 15 to 40, and 10 mm
    rows, columns = np.flatnonzero(inside[25].any(axis=1)), np.flatnonzero(inside[25].any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (25, 74, 35, 164)
    assert not inside_of(np.zeros((12, 4)), looked_at, (60, 100, 200), (2.0, 2.0, 2.0)).any()


class Reader(nn.Module):
    """Reads the box of what is as thin as lung in the middle of the image off the pixels, as logits."""

    def forward(self, x: Tensor) -> Tensor:
        share = x[:, 0] * DEVIATION + MEAN
        lung = ((share > 0.29) & (share < 0.6)).float()
        lung = -nn.functional.max_pool2d(-lung, 5, 1, 2)  # without the blurred skin
        lung = nn.functional.max_pool2d(lung, 5, 1, 2) > 0
        found = []
        for layer in lung:
            if not layer.any():
                found.append(torch.tensor([0.5, 0.5, 1e-4, 1e-4]))
                continue
            rows, columns = torch.nonzero(layer.any(dim=1))[:, 0], torch.nonzero(layer.any(dim=0))[:, 0]
            low, high = torch.stack((columns[0], rows[0])), torch.stack((columns[-1], rows[-1])) + 1
            found.append(torch.cat(((low + high) / 2, (high - low).float())) / layer.shape[0])
        return torch.logit(torch.stack(found).clamp(1e-4, 1 - 1e-4))


def reader(size: int = 128) -> LungLocaliser:
    return LungLocaliser(networks=(Reader(), Reader()), readout="centre_size", size=size, device=CPU, sha256="ab" * 32)


def test_the_region_of_a_volume_is_that_of_the_classical_way(volume: Volume) -> None:
    classical, learned = localise_lungs(volume), reader()(volume)
    lungs = classical.proper.whole()
    assert learned.search[lungs].mean() > 0.995
    assert (learned.mask & classical.mask).sum() / (learned.mask | classical.mask).sum() > 0.9
    assert (learned.left.whole() == classical.left.whole())[lungs].mean() > 0.98
    assert learned.volume_ml == pytest.approx(classical.volume_ml, rel=0.1)


def test_a_volume_stored_the_other_way_round_has_the_same_region(volume: Volume) -> None:
    turned = make_volume(np.ascontiguousarray(volume.hu[::-1, :, ::-1]), SPACING)
    affine = volume.affine.copy()
    affine[:3, 0] *= -1
    affine[:3, 2] *= -1
    affine[:3, 3] = (volume.affine @ (volume.hu.shape[0] - 1, 0, volume.hu.shape[2] - 1, 1))[:3]
    object.__setattr__(turned, "affine", affine)
    here, there = reader()(volume), reader()(turned)
    np.testing.assert_array_equal(there.search[::-1, :, ::-1], here.search)
    turned_left = there.left.whole()[::-1, :, ::-1]
    assert (turned_left == here.left.whole())[here.proper.whole()].mean() > 0.99


def test_without_lungs_the_volume_is_rejected() -> None:
    with pytest.raises(Rejection, match="NO_LUNGS"):
        reader()(make_volume(np.full((20, 60, 60), 40, dtype=np.float32), SPACING))


def test_the_ensemble_is_the_mean_of_the_boxes() -> None:
    class Says(nn.Module):
        def __init__(self, *share: float) -> None:
            super().__init__()
            self.logits = torch.logit(torch.tensor(share))

        def forward(self, x: Tensor) -> Tensor:
            return self.logits.expand(len(x), 4)

    both = (Says(0.5, 0.5, 0.4, 0.2), Says(0.6, 0.5, 0.6, 0.4))
    localiser = LungLocaliser(networks=both, readout="centre_size", size=64, device=CPU)
    boxes = localiser.boxes(np.zeros((19, 32, 32), dtype=np.float32))
    np.testing.assert_allclose(boxes, np.tile([[0.3, 0.35, 0.8, 0.65]], (19, 1)), atol=1e-6)


def test_boxes_of_slices_and_their_overlap() -> None:
    layer = np.zeros((50, 100), dtype=bool)
    assert not slice_box(layer).any()
    layer[10:20, 30:50] = True
    np.testing.assert_allclose(slice_box(layer), (0.3, 0.2, 0.5, 0.4))
    first = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.2, 0.2]])
    second = torch.tensor([[0.25, 0.0, 0.75, 0.5], [0.5, 0.5, 0.6, 0.6]])
    torch.testing.assert_close(overlap(first, second), torch.tensor([1 / 3, 0.0]))


def test_a_box_goes_with_its_image_when_it_is_moved() -> None:
    images = torch.zeros(16, 1, 128, 128)
    images[:, :, 40:80, 30:90] = 1.0
    boxes = torch.tensor([[30 / 128, 40 / 128, 90 / 128, 80 / 128]]).repeat(16, 1)
    boxes[15] = 0.0  # a slice without lungs stays one
    moved, placed = augmented(images, boxes, torch.Generator().manual_seed(3))
    assert not placed[15].any()
    assert len({tuple(box.tolist()) for box in placed}) == 16
    for image, box in zip(moved[:15, 0], placed[:15], strict=True):
        bright = image > 0.5
        rows, columns = torch.nonzero(bright.any(dim=1))[:, 0], torch.nonzero(bright.any(dim=0))[:, 0]
        seen = torch.stack((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)) / 128
        assert (seen - box).abs().max() < 2 / 128
    again, _ = augmented(images, boxes, torch.Generator().manual_seed(3))
    assert torch.equal(moved, again)


@pytest.mark.parametrize(
    "architectures", [("efficientnet_b0",), pytest.param(tuple(ARCHITECTURES), marks=pytest.mark.slow)], ids=len
)
def test_training_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, volume: Volume, architectures: tuple[str, ...]
) -> None:
    """One step; the set loads, the report says what was measured, a second call trains nothing."""
    small = make_volume(np.ascontiguousarray(volume.hu[::10, ::2, ::2]), (40.0, 4.0, 4.0))
    monkeypatch.setattr(training_data, "read_ct", lambda folder: small)
    for name in ("first", "second", "third"):
        (tmp_path / "data" / name).mkdir(parents=True)
    training = LungTraining(
        data=tmp_path / "data",
        work=tmp_path / "runs",
        splits={"train": ["first", "missing"], "validation": ["second"], "test": ["third"]},
        architectures=architectures,
        device=CPU,
        epochs=1,
        batch=6,
        size=64,
        out=tmp_path / "sets",
    )
    manifest = train_lungs(training)
    found = read_networks(manifest, "ct-lungs")
    assert tuple(found.networks) == architectures
    assert found.settings == {"readout": "centre_size", "size": 64}
    assert found.networks[architectures[0]].source_file == "best.ckpt"
    report: dict[str, Any] = json.loads((tmp_path / "runs" / "lungs.json").read_text(encoding="utf-8"))
    assert set(report) - set(ARCHITECTURES) == {"truth", "series", "size", "ensemble"}
    assert set(report) & set(ARCHITECTURES) == (set(architectures) if len(architectures) > 1 else set())
    (figures,) = report["ensemble"]
    low, high = figures["iou_95_percent"]
    assert 0 <= low <= figures["iou_mean"] <= high <= 1
    assert set(figures["edge_error_mm"]) == {"left", "top", "right", "bottom"}
    assert load_localiser(str(manifest), "cpu").size == 64
    before = (tmp_path / "runs" / f"lungs-{architectures[0]}" / "best.ckpt").stat().st_mtime_ns
    train_lungs(training)
    assert (tmp_path / "runs" / f"lungs-{architectures[0]}" / "best.ckpt").stat().st_mtime_ns == before


def test_training_needs_series_of_each_split(tmp_path: Path) -> None:
    with pytest.raises(SeriesMissing, match="none of the series is there: somebody"):
        training_data.read_series(tmp_path, ["somebody"], 64)


def test_the_lungs_alone_are_a_pipeline_with_segments_and_volumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set of random weights; what reads it is replaced by networks that know what lung looks like."""
    network = lung_resnet50()
    file = write_checkpoint(tmp_path / "some.ckpt", network)
    manifest = write_lung_set({"resnet50": file}, tmp_path / "set", name="some", settings={}, about=ABOUT)
    with pytest.raises(ValueError, match="sharpness"):
        registry.build("ct-lungs", {"weights": str(manifest), "sharpness": 1}, "cpu")
    monkeypatch.setattr(lung_region, "load_localiser", lambda name, device: reader())
    pipeline = registry.build("ct-lungs", {"weights": str(manifest)}, "cpu")
    assert [stage.name for stage in pipeline.info.stages] == ["resnet50 box regressor"]
    volume = write_volume(ct_datasets(thorax()[0][::2, ::2, ::2], spacing_mm=(8.0, 4.0, 4.0)), tmp_path / "ct")
    findings = pipeline(volume)
    assert sorted(findings.lungs) == ["left", "right"]
    said, _ = findings.conclusions
    litres = {side: mask.voxels.sum() * 8 * 4 * 4 / 1000 for side, mask in findings.lungs.items()}
    assert said == f"Left lung: {litres['left']:.0f} ml. Right lung: {litres['right']:.0f} ml."
    report, seg = (read_object(each) for each in encode_findings(findings, volume, make_context(volume)))
    assert (report.SeriesDescription, seg.SeriesDescription) == ("Pulmo lungs SR", "Pulmo lungs SEG")
    texts = [str(element.value) for element in report.iterall() if element.keyword == "TextValue"]
    assert said in texts
    assert "No lung nodules were found." not in texts
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["Left lung", "Right lung"]
    assert (seg.ContentLabel, seg.ContentDescription) == ("LUNGS", "Lungs")


def test_a_pipeline_takes_the_learned_way_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lung_boxes, "load_localiser", lambda name, device: reader())
    info = PipelineInfo(
        label="ct-nodules", name="n", version="1", weights_name="w", weights_sha256="cd" * 32,
        stages=(AlgorithmStage(name="a", version="1", weights_sha256="ef" * 32),),
    )  # fmt: skip
    classical, learned = NoduleSettings(), NoduleSettings(lungs="learned")
    assert lungs_by(classical, "cpu") is localise_lungs
    assert told_by(info, localise_lungs, classical) == info
    told = told_by(info, lungs_by(learned, "cpu"), learned)
    assert (told.weights_name, told.stages[0].parameters) == ("w+ct-lungs", {"lungs": "learned abababababababab"})
    assert told.weights_sha256 != info.weights_sha256
