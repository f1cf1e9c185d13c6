"""The pipeline of the RetinaNet as the registry builds it: boxes alone, and in front of the characteriser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pulmo_models import registry
from pulmo_models.checkpoints import write_set
from pulmo_models.codes import CautionCode
from pulmo_models.ct import box_nodules
from pulmo_models.errors import DeviceUnavailable, WeightsCorrupt, WeightsMissing
from pulmo_models.geometry import lps_to_index
from pulmo_models.nets.heatmap_unet3d import HeatmapUNet3D
from pulmo_models.nets.retinanet3d import STRIDES, RetinaNet3D
from pulmo_models.nets.student2p5d import Student2p5D
from pulmo_models.pipeline import Rejection
from pulmo_models.types import Findings, Volume
from tests.made_up_sets import write_network_set
from tests.models.test_lungs import ellipsoid, make_volume, thorax
from tests.models.test_nodules import NODULES, REPAIRED, SPACING, box_mean
from tests.models.test_weights import ABOUT


class BlobDetector(nn.Module):
    """Stands in for the detector: on the finest level, cells that are denser than their wider surroundings."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        cells = nn.functional.avg_pool3d(x, STRIDES[0], STRIDES[0])
        spot = box_mean(cells, (3, 3, 3)) - box_mean(cells, (11, 11, 11))
        found = {"logits_0": (60 * (spot - 0.35)).expand(-1, 3, -1, -1, -1)}
        for level in (1, 2):
            shape = [size // by for size, by in zip(x.shape[-3:], STRIDES[level], strict=True)]
            found[f"logits_{level}"] = torch.full((1, 3, *shape), -30.0)
        return found | {f"codes_{n}": torch.zeros(1, 18, *found[f"logits_{n}"].shape[-3:]) for n in range(3)}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network_set(tmp_path_factory.mktemp("weights"), "ct-retinanet", {"detector": RetinaNet3D()})


@pytest.fixture(scope="module")
def characteriser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set whose characteriser takes every candidate for a nodule."""
    torch.manual_seed(11)
    stage2 = Student2p5D()
    with torch.no_grad():
        stage2.detection_head[4].bias[1] = 50.0
    return write_set(
        tmp_path_factory.mktemp("second"),
        name="second",
        stage1=HeatmapUNet3D().state_dict(),
        stage2=stage2.state_dict(),
        concept_scale="unit",
        about=ABOUT,
    )


@pytest.fixture
def _detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector is the stand-in, once its weights were read and checked."""
    read = box_nodules.load_network
    monkeypatch.setattr(box_nodules, "load_network", lambda spec, network: read(spec, network) and BlobDetector())


@pytest.fixture(scope="module")
def volume() -> Volume:
    hu, _ = thorax()
    for centre in NODULES:
        hu[ellipsoid(hu.shape, centre, (8, 8, 8))] = 60.0
    return replace(make_volume(hu[10:50], SPACING), cautions=(REPAIRED,))


def distances_mm(findings: Findings, volume: Volume) -> list[float]:
    """From each nodule that was planted to the nearest one that was found."""
    centres = [lps_to_index(volume.affine, nodule.centre_lps_mm) for nodule in findings.nodules]
    planted = [np.subtract(centre, (10, 0, 0)) for centre in NODULES]
    return [min(float(np.linalg.norm((np.array(c) - p) * SPACING)) for c in centres) for p in planted]


@pytest.mark.usefixtures("_detector")
@pytest.mark.parametrize("protocol", ["tuned", pytest.param("published", marks=pytest.mark.slow)])
def test_boxes_alone(manifest: Path, volume: Volume, protocol: str) -> None:
    pipeline = registry.build("ct-retinanet", {"weights": str(manifest), "protocol": protocol}, "cpu")
    assert (pipeline.info.label, pipeline.info.weights_name, len(pipeline.info.stages)) == ("ct-retinanet", "some", 1)
    assert pipeline.info.weights_sha256 != pipeline.info.stages[0].weights_sha256
    seen: list[str] = []
    findings = pipeline(volume, lambda step, share: seen.append(step))
    assert list(dict.fromkeys(seen)) == ["lungs", "stage1"]
    assert max(distances_mm(findings, volume)) < 5.0
    scores = [nodule.candidate_score for nodule in findings.nodules]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > 0.5
    assert REPAIRED in findings.cautions
    assert (findings.malignancy_bias, findings.outlined) == (None, False)
    sides = set()
    for nodule in findings.nodules[: len(NODULES)]:
        assert nodule.box is not None
        assert nodule.malignancy_probability is None
        size = np.subtract(nodule.box.high, nodule.box.low) * SPACING
        assert nodule.long_axis.length_mm == pytest.approx(max(size[1:]))
        assert nodule.short_axis.length_mm == pytest.approx(min(size[1:]))
        # One of the three anchors of the level, in millimetres: slices, rows, columns.
        known = [(4 * 1.25, 8 * 0.703125, 6 * 0.703125), (4 * 1.25, 6 * 0.703125, 8 * 0.703125)]
        known.append((6 * 1.25, 10 * 0.703125, 10 * 0.703125))
        assert any(np.allclose(size, one) for one in known)
        sides.add(nodule.laterality)
    assert sides <= {"left", "right"}


@pytest.mark.slow
@pytest.mark.usefixtures("_detector")
def test_a_score_threshold_leaves_fewer(manifest: Path, volume: Volume) -> None:
    def count(threshold: float) -> int:
        settings = {"weights": str(manifest), "score_threshold": threshold, "precision": "fp32"}
        return len(registry.build("ct-retinanet", settings, "cpu")(volume).nodules)

    assert count(0.05) >= count(0.5) >= count(0.999) >= 1


@pytest.mark.usefixtures("_detector")
def test_in_front_of_the_characteriser(manifest: Path, characteriser: Path, volume: Volume) -> None:
    settings = {"weights": str(manifest), "characterise": True, "candidate_threshold": 0.999}
    settings["characteriser"] = str(characteriser)
    pipeline = registry.build("ct-retinanet", settings, "cpu")
    assert [stage.name for stage in pipeline.info.stages] == ["RetinaNet3D detector", "Student2p5D characteriser"]
    assert pipeline.info.weights_name == "some+second"
    findings = pipeline(volume)
    assert findings.outlined
    assert max(distances_mm(findings, volume)) < 16.0  # of the mask that random weights draw
    assert findings.malignancy_bias == pytest.approx(pipeline._characteriser.head.bias)  # type: ignore[attr-defined]
    for nodule in findings.nodules:
        assert nodule.mask is not None
        assert nodule.malignancy_probability is not None
        assert len(nodule.concepts) == 8
        assert nodule.volume_mm3 == pytest.approx(nodule.mask.voxels.sum() * np.prod(SPACING))
    alone = registry.build("ct-retinanet", {"weights": str(manifest)}, "cpu")
    assert alone.info.weights_sha256 != pipeline.info.weights_sha256


@pytest.mark.slow
@pytest.mark.usefixtures("_detector")
def test_many_boxes_are_cut_off_with_a_caution(manifest: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box_nodules, "MAX_NODULES", 1)
    findings = registry.build("ct-retinanet", {"weights": str(manifest)}, "cpu")(volume)
    assert len(findings.nodules) == 1
    assert CautionCode.TOO_MANY_NODULES in [caution.code for caution in findings.cautions]


@pytest.mark.usefixtures("_detector")
def test_without_lungs_only_the_published_inference_goes_on(manifest: Path) -> None:
    air = make_volume(np.full((20, 60, 60), -1024, dtype=np.float32), SPACING)
    with pytest.raises(Rejection, match="NO_LUNGS"):
        registry.build("ct-retinanet", {"weights": str(manifest)}, "cpu")(air)
    published = registry.build("ct-retinanet", {"weights": str(manifest), "protocol": "published"}, "cpu")
    assert published(air).nodules == ()


def test_missing_weights_say_where_they_come_from() -> None:
    with pytest.raises(WeightsMissing, match="pulmo-node weights fetch monai-luna16"):
        registry.build("ct-retinanet", {}, "cpu")


def test_a_set_of_another_pipeline_is_refused(manifest: Path, tmp_path: Path) -> None:
    text = manifest.read_text(encoding="utf-8").replace('"ct-retinanet"', '"cxr-findings"')
    (tmp_path / "other.toml").write_text(text, encoding="utf-8")
    with pytest.raises(WeightsCorrupt, match="for the pipeline cxr-findings, not for ct-retinanet"):
        registry.build("ct-retinanet", {"weights": str(tmp_path / "other.toml")}, "cpu")


def test_the_switch_for_tensorrt_says_what_is_missing(manifest: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="needs a CUDA device, and the analysis runs on the cpu"):
        registry.build("ct-retinanet", {"weights": str(manifest), "tensorrt": "model_trt.ts"}, "cpu")


def test_wrong_settings_are_named(manifest: Path) -> None:
    with pytest.raises(ValueError, match=r"score_threshold: .*; wndow: "):
        registry.build("ct-retinanet", {"weights": str(manifest), "score_threshold": 2, "wndow": "small"}, "cpu")
