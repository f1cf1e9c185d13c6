"""The nodule pipeline as the registry builds it, with random weights in real architectures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from pulmo_models import registry
from pulmo_models.checkpoints import write_set
from pulmo_models.codes import CautionCode
from pulmo_models.ct import engine, nodules
from pulmo_models.ct.device import Precision, Runner, has_native_bf16
from pulmo_models.errors import DeviceUnavailable, WeightsMissing
from pulmo_models.geometry import index_to_lps
from pulmo_models.mapping import frames_of_grid
from pulmo_models.nets.heatmap_unet3d import HeatmapUNet3D
from pulmo_models.nets.student2p5d import Student2p5D
from pulmo_models.pipeline import Rejection
from pulmo_models.types import CONCEPT_NAMES, Caution, Findings, Volume
from pulmo_models.weights import load_set
from tests.models.test_lungs import ellipsoid, make_volume, thorax
from tests.models.test_weights import ABOUT

SPACING = (4.0, 2.0, 2.0)
REPAIRED = Caution(code=CautionCode.GAP_FILLED, sentence="One slice was repaired.")
NODULES = ((30, 85, 62), (25, 70, 140))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of random weights; its characteriser takes every candidate for a nodule."""
    torch.manual_seed(11)
    stage1, stage2 = HeatmapUNet3D(), Student2p5D()
    with torch.no_grad():
        stage2.detection_head[4].bias[1] = 50.0
    return write_set(
        tmp_path_factory.mktemp("weights"),
        name="tiny",
        stage1=stage1.state_dict(),
        stage2=stage2.state_dict(),
        concept_scale="unit",
        about=ABOUT,
    )


class BlobDetector(torch.nn.Module):
    """Stands in for the detector: density around a voxel above the density of its wider surroundings."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 30 * (box_mean(x, (3, 5, 5)) - box_mean(x, (7, 15, 15))) - 7


def box_mean(x: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    for axis, length in enumerate(size):
        kernel = [length if i == axis else 1 for i in range(3)]
        x = functional.avg_pool3d(x, kernel, 1, [k // 2 for k in kernel], count_include_pad=False)
    return x


@pytest.fixture(scope="module", autouse=True)
def _detector() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nodules, "load_stage1", lambda weights: BlobDetector())
        yield


@pytest.fixture(scope="module")
def volume() -> Volume:
    """Forty slices of a made thorax with a nodule of 16 mm in each lung, and a caution."""
    hu, _ = thorax()
    for centre in NODULES:
        hu[ellipsoid(hu.shape, centre, (8, 8, 8))] = 60.0
    made = make_volume(hu[10:50], SPACING)
    return replace(made, cautions=(REPAIRED,))


@pytest.fixture(scope="module")
def result(manifest: Path, volume: Volume) -> tuple[Findings, list[tuple[str, float]]]:
    seen: list[tuple[str, float]] = []
    pipeline = registry.build("ct-nodules", {"weights": str(manifest)}, "cpu")
    return pipeline(volume, lambda step, share: seen.append((step, share))), seen


def test_the_nodules_are_found_and_measured(result: tuple[Findings, object], volume: Volume) -> None:
    findings, _ = result
    for centre in NODULES:
        truth = np.subtract(centre, (10, 0, 0))
        assert min(np.linalg.norm((n.centre_index - truth) * SPACING) for n in findings.nodules) <= 4.0
    for nodule in findings.nodules:
        assert nodule.candidate_score >= 0.3
        assert nodule.detection_probability >= 0.5
        assert nodule.mask.to_volume(volume.hu.shape).sum() == nodule.mask.voxels.sum()
        assert nodule.long_axis.length_mm >= nodule.short_axis.length_mm - 1e-9 > 0
        assert nodule.volume_mm3 == pytest.approx(nodule.mask.voxels.sum() * 16.0)
        logit = sum(c.contribution for c in nodule.concepts) + findings.malignancy_bias
        assert 1 / (1 + np.exp(-logit)) == pytest.approx(nodule.malignancy_probability, abs=1e-5)
        assert tuple(c.name for c in nodule.concepts) == CONCEPT_NAMES
    probabilities = [n.malignancy_probability for n in findings.nodules]
    assert probabilities == sorted(probabilities, reverse=True)


@pytest.mark.parametrize(
    ("axes", "reversed_axes"),
    [
        pytest.param((0, 1, 2), (0, 2), id="feet first"),
        pytest.param((0, 2, 1), (0, 1, 2), id="feet first, on the side"),
    ],
)
def test_another_orientation_gives_the_same_findings_at_the_same_places(
    manifest: Path,
    volume: Volume,
    result: tuple[Findings, object],
    axes: tuple[int, int, int],
    reversed_axes: tuple[int, ...],
) -> None:
    """The voxels of the same patient in another order, as another scan would have stored them."""
    hu = np.ascontiguousarray(np.flip(volume.hu.transpose(axes), reversed_axes))
    affine = volume.affine.copy()
    for n, axis in enumerate(axes):
        step = volume.affine[:3, axis]
        affine[:3, n] = -step if n in reversed_axes else step
        if n in reversed_axes:
            affine[:3, 3] += (volume.hu.shape[axis] - 1) * step
    turned = replace(volume, hu=hu, affine=affine, frames=frames_of_grid(affine, hu.shape))
    findings = registry.build("ct-nodules", {"weights": str(manifest)}, "cpu")(turned)
    expected = result[0].nodules
    assert len(findings.nodules) == len(expected)
    for found, nodule in zip(findings.nodules, expected, strict=True):
        np.testing.assert_allclose(found.centre_lps_mm, nodule.centre_lps_mm, atol=1e-6)
        assert found.malignancy_probability == pytest.approx(nodule.malignancy_probability, abs=1e-6)
        assert found.detection_probability == pytest.approx(nodule.detection_probability, abs=1e-6)
        assert found.volume_mm3 == pytest.approx(nodule.volume_mm3)
        assert found.mean_hu == pytest.approx(nodule.mean_hu)
        assert found.laterality == nodule.laterality
        assert found.pleura_distance_mm == pytest.approx(nodule.pleura_distance_mm, abs=1e-4)
        np.testing.assert_allclose(
            index_to_lps(affine, found.centre_index), index_to_lps(volume.affine, nodule.centre_index), atol=1e-6
        )


def check_sites(findings: Findings, volume: Volume) -> None:
    """The first of NODULES lies in the right lung, the second in the left one; both are inside."""
    assert set(findings.lungs) == {"left", "right"}
    lungs = {side: mask.to_volume(volume.hu.shape) for side, mask in findings.lungs.items()}
    assert not (lungs["left"] & lungs["right"]).any()
    for centre, side in zip(NODULES, ("right", "left"), strict=True):
        truth = np.subtract(centre, (10, 0, 0))
        nodule = min(findings.nodules, key=lambda n: float(np.linalg.norm((n.centre_index - truth) * SPACING)))
        assert lungs[side][tuple(truth)]
        assert nodule.laterality == side
        assert nodule.pleura_distance_mm is not None
        assert 0 <= nodule.pleura_distance_mm < 55, "the lungs are 110 mm broad"


def test_each_nodule_lies_in_its_lung(result: tuple[Findings, object], volume: Volume) -> None:
    check_sites(result[0], volume)


def test_the_published_protocol_tells_the_lung_as_well(manifest: Path, volume: Volume) -> None:
    settings = {"weights": str(manifest), "protocol": "published", "peak_threshold": 0.95}
    check_sites(registry.build("ct-nodules", settings, "cpu")(volume), volume)


def test_findings_say_what_made_them(result: tuple[Findings, object], manifest: Path) -> None:
    findings, _ = result
    weights = load_set(manifest)
    info = findings.pipeline
    assert (info.label, info.weights_name, info.weights_sha256) == ("ct-nodules", "tiny", weights.sha256)
    assert [stage.weights_sha256 for stage in info.stages] == [weights.stage1.sha256, weights.stage2.sha256]
    assert info.stages[0].parameters["peak_threshold"] == "0.3"
    assert info.stages[1].parameters["detection_threshold"] == "0.5"
    assert findings.device == "cpu"
    assert [caution.code for caution in findings.cautions] == ["GAP_FILLED", "PARTIAL_LUNGS"]
    assert findings.cautions[0] == REPAIRED
    assert list(findings.timings_seconds) == ["lungs", "stage1", "doubt", "stage2", "measure"]


def test_progress_runs_through_all_steps(result: tuple[Findings, list[tuple[str, float]]]) -> None:
    _, seen = result
    assert list(dict.fromkeys(step for step, _ in seen)) == ["lungs", "stage1", "doubt", "stage2", "measure"]
    for step in ("lungs", "stage1", "doubt", "stage2", "measure"):
        shares = [share for name, share in seen if name == step]
        assert shares[0] == 0.0
        assert shares[-1] == 1.0
        assert shares == sorted(shares)


def test_too_many_nodules_are_cut_with_a_caution(
    manifest: Path, volume: Volume, result: tuple[Findings, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(result[0].nodules)
    assert count > 1
    monkeypatch.setattr(nodules, "MAX_NODULES", 1)
    findings = registry.build("ct-nodules", {"weights": str(manifest)}, "cpu")(volume)
    assert len(findings.nodules) == 1
    (caution,) = [caution for caution in findings.cautions if caution.code == CautionCode.TOO_MANY_NODULES]
    assert caution.sentence == (
        f"{count} nodules were found; only the 1 with the highest detection probability are reported."
    )


def test_cautions_of_the_devices_and_the_precision_reach_the_report(
    manifest: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, str]] = []

    class Watched(Runner):
        def __init__(self, network: torch.nn.Module, device: torch.device, precision: Precision, **how: bool) -> None:
            super().__init__(network, device, precision, **how)
            name = type(network).__name__
            made.append((name, precision))
            self.cautions.append(Caution(code=CautionCode.CPU_FALLBACK, sentence=f"{name} ran on the CPU"))

    monkeypatch.setattr(engine, "Runner", Watched)
    findings = registry.build("ct-nodules", {"weights": str(manifest), "precision": "bf16"}, "cpu")(volume)
    sieve = [("Detection2p5D", "bf16")] if has_native_bf16(torch.device("cpu")) else []
    assert made == [("BlobDetector", "bf16"), ("Student2p5D", "fp32"), *sieve]
    said = [str(caution) for caution in findings.cautions if caution.code == CautionCode.CPU_FALLBACK]
    assert said == ["BlobDetector ran on the CPU", "Student2p5D ran on the CPU"]


def test_a_volume_without_lungs_is_rejected(manifest: Path) -> None:
    pipeline = registry.build("ct-nodules", {"weights": str(manifest)}, "cpu")
    with pytest.raises(Rejection, match="NO_LUNGS"):
        pipeline(make_volume(np.zeros((10, 64, 64)), SPACING))


def test_every_wrong_setting_is_named(manifest: Path) -> None:
    table = {"weights": str(manifest), "peak_treshold": 0.3, "cluster_mm": -1, "precision": "fp8"}
    with pytest.raises(ValueError, match="settings of ct-nodules") as caught:
        registry.build("ct-nodules", table, "cpu")
    for key in ("peak_treshold", "cluster_mm", "precision"):
        assert f"{key}: " in str(caught.value)


def test_weights_and_device_are_checked_when_it_is_built(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsMissing):
        registry.build("ct-nodules", {"weights": "nonsense"}, "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceUnavailable):
        registry.build("ct-nodules", {"weights": str(manifest)}, "cuda")
