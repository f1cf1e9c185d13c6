"""`protocol = "published"` against a plain, independent implementation of the published inference."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from pulmo_models import registry
from pulmo_models.checkpoints import load_stage1, load_stage2
from pulmo_models.ct import engine, nodules
from pulmo_models.ct.candidates import CandidateSettings, find_candidates, heatmap
from pulmo_models.ct.characterise import CharacteriseSettings
from pulmo_models.ct.device import Precision, Runner, has_native_bf16
from pulmo_models.ct.looks import wide_input
from pulmo_models.ct.masks import overlap_share
from pulmo_models.imports import import_checkpoints
from pulmo_models.pipeline import Rejection
from pulmo_models.types import CONCEPT_NAMES, Findings
from pulmo_models.weights import load_set
from tests import published_reference as reference
from tests.models.test_lungs import make_volume
from tests.published_factory import WEIGHT_DIFFERENCES, write_published

CPU = torch.device("cpu")
SPACING = (2.5, 0.7, 0.8)

SHAPES = {
    "one window": (64, 128, 128),
    "smaller on every axis": (20, 90, 77),
    "smaller on one axis": (64, 100, 128),
    "exact strides": (96, 192, 128),
    "flush windows on every axis": (70, 150, 141),
    "one voxel more": (65, 129, 129),
    "smaller and flush": (9, 200, 130),
}


class StandIn(torch.nn.Module):
    """A cheap detector whose answer depends on the density, on the place in the window and on nothing else."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.ramp = torch.nn.Parameter(0.5 * torch.randn(1, 1, 64, 128, 128, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 6.0 * x - 4.0 + self.ramp


def random_volume(shape: tuple[int, int, int], seed: int = 1) -> np.ndarray:
    hu = np.random.default_rng(seed).normal(-700, 250, shape).astype(np.float32)
    hu[:, :, shape[2] // 2 :] -= 300
    hu[0, 0, 0], hu[-1, -1, -1] = -3024.0, 3071.0
    return hu


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_voxel_of_the_heat_map_and_every_candidate(shape: tuple[int, int, int]) -> None:
    hu, network = random_volume(shape), StandIn()
    expected = reference.heatmap(hu, network)
    threshold = float(np.quantile(expected, 0.9995))
    runner, settings = Runner(network, CPU, "fp32"), CandidateSettings(peak_threshold=threshold)
    found = heatmap(hu, runner, settings)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    candidates = find_candidates(hu, SPACING, runner, settings)
    wanted = reference.candidates(expected, SPACING, threshold)
    assert len(wanted) > 10
    assert [c.index for c in candidates] == wanted
    assert [c.score for c in candidates] == [float(expected[index]) for index in wanted]


def test_windows_of_air_are_passed_over() -> None:
    hu, network = random_volume((64, 128, 400)), StandIn()
    hu[:, :, 100:] = -3024.0
    found = heatmap(hu, Runner(network, CPU, "fp32"), CandidateSettings())
    np.testing.assert_array_equal(found, reference.heatmap(hu, network))
    assert (found[:, :, 260:] == 0).all()
    assert (found[:, :, :100] > 0).all()


@pytest.mark.parametrize(("mean_hu", "seen"), [(-980.0, True), (-980.5, False)])
def test_the_rule_for_air_is_a_mean_below_980(mean_hu: float, seen: bool) -> None:
    hu, network = np.full((64, 128, 128), mean_hu, dtype=np.float32), StandIn()
    found = heatmap(hu, Runner(network, CPU, "fp32"), CandidateSettings())
    np.testing.assert_array_equal(found, reference.heatmap(hu, network))
    assert found.any() == seen


CENTRES = [(20, 50, 60), (0, 0, 0), (39, 99, 109), (2, 31, 32), (3, 32, 77), (36, 68, 78), (37, 67, 0), (20, 99, 33)]


@pytest.mark.parametrize("centre", CENTRES)
def test_stage_2_sees_the_published_crop(centre: tuple[int, int, int]) -> None:
    hu = random_volume((40, 100, 110))
    found = wide_input(hu, centre)[:, :64, :64]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, reference.crop(hu, centre))


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 20, 200), (64, 64, 64)])
def test_stage_2_sees_the_published_crop_of_a_volume_smaller_than_it(shape: tuple[int, int, int]) -> None:
    hu = random_volume(shape)
    centre = (shape[0] // 2, shape[1] // 2, shape[2] // 2)
    np.testing.assert_array_equal(wide_input(hu, centre)[:, :64, :64], reference.crop(hu, centre))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Imported checkpoints; the detector is random."""
    folder = tmp_path_factory.mktemp("published")
    return import_checkpoints(*write_published(folder, seed=4), folder / "weights", name="pulmo")


@pytest.fixture(scope="module")
def networks(manifest: Path) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Random networks are undecided everywhere: this gives the heat map peaks and the outlines an end."""
    weights = load_set(manifest)
    detector, characteriser = load_stage1(weights), load_stage2(weights)
    with torch.no_grad():
        detector.out.weight.mul_(3)
        characteriser.cnn.final.bias.sub_(0.5)
    return detector, characteriser


@pytest.fixture(scope="module")
def hu() -> np.ndarray:
    """Noise without any lungs: two slabs of windows, of which one is flush."""
    return random_volume((24, 100, 150), seed=7)


def between(values: list[float], count: int) -> float:
    """A threshold in the widest gap that leaves about that many values, so that rounding decides nothing."""
    ordered = sorted(values, reverse=True)
    at = max(range(count - 5, count + 5), key=lambda i: ordered[i] - ordered[i + 1])
    return (ordered[at] + ordered[at + 1]) / 2


@pytest.fixture(scope="module")
def heat(hu: np.ndarray, networks: tuple[torch.nn.Module, torch.nn.Module]) -> np.ndarray:
    return reference.heatmap(hu, networks[0])


@pytest.fixture(scope="module")
def expected(
    hu: np.ndarray, heat: np.ndarray, networks: tuple[torch.nn.Module, torch.nn.Module]
) -> list[reference.Finding]:
    """The reference's findings from a threshold on that leaves about twenty."""
    peaks = reference.candidates(heat, SPACING, float(np.quantile(heat, 0.998)))
    threshold = between([float(heat[index]) for index in peaks], 20)
    return reference.characterise(hu, heat, reference.candidates(heat, SPACING, threshold), networks[1])


@pytest.fixture(scope="module")
def settings(manifest: Path, expected: list[reference.Finding]) -> dict[str, object]:
    return {
        "weights": str(manifest),
        "protocol": "published",
        "peak_threshold": min(f.score for f in expected),
        "detection_threshold": between([f.detection for f in expected], 9),
    }


@pytest.fixture
def pipeline_networks(networks: tuple[torch.nn.Module, torch.nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodules, "load_stage1", lambda weights: networks[0])
    monkeypatch.setattr(nodules, "load_stage2", lambda weights: networks[1])


@pytest.mark.usefixtures("pipeline_networks")
def test_the_whole_pipeline_with_the_real_networks(
    settings: dict[str, float], hu: np.ndarray, expected: list[reference.Finding], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same nodules in the same place with the same figures; no lungs, no merging and no limit come between."""
    monkeypatch.setattr(nodules, "MAX_NODULES", 1)
    found: Findings = registry.build("ct-nodules", settings, "cpu")(make_volume(hu, SPACING))
    wanted = [f for f in expected if f.detection >= settings["detection_threshold"]]
    assert 3 < len(wanted) < len(expected)
    wanted.sort(key=lambda f: -f.malignancy)
    assert [n.centre_index for n in found.nodules] == [f.index for f in wanted]
    for nodule, finding in zip(found.nodules, wanted, strict=True):
        assert nodule.candidate_score == pytest.approx(finding.score, abs=1e-6)
        assert nodule.detection_probability == pytest.approx(finding.detection, abs=1e-6)
        assert nodule.malignancy_probability == pytest.approx(finding.malignancy, abs=1e-6)
        contributions = np.multiply(WEIGHT_DIFFERENCES, finding.concepts)
        assert [c.name for c in nodule.concepts] == list(CONCEPT_NAMES)
        assert [c.value for c in nodule.concepts] == pytest.approx(finding.concepts, abs=1e-5)
        assert [c.contribution for c in nodule.concepts] == pytest.approx(contributions, abs=1e-5)
    masks = [nodule.mask for nodule in found.nodules]
    assert max(overlap_share(a, b) for a, b in itertools.combinations(masks, 2)) > CharacteriseSettings().merge_overlap
    assert found.cautions == ()
    assert {(n.laterality, n.pleura_distance_mm) for n in found.nodules} == {(None, None)}, (
        "there are no lungs in noise"
    )
    assert found.lungs == {}


def test_the_real_detector_voxel_by_voxel(
    hu: np.ndarray, heat: np.ndarray, networks: tuple[torch.nn.Module, torch.nn.Module]
) -> None:
    values = heatmap(hu, Runner(networks[0], CPU, "fp32"), CandidateSettings())
    assert np.ptp(values) > 0.3
    np.testing.assert_allclose(values, heat, rtol=0, atol=1e-6)


def test_a_volume_of_air_has_no_findings_and_is_no_rejection(manifest: Path) -> None:
    air = make_volume(np.full((10, 64, 64), -1000.0), SPACING)
    settings = {"weights": str(manifest), "protocol": "published"}
    assert registry.build("ct-nodules", settings, "cpu")(air).nodules == ()
    with pytest.raises(Rejection, match="NO_LUNGS"):
        registry.build("ct-nodules", {**settings, "protocol": "tuned"}, "cpu")(air)


@pytest.mark.parametrize(
    ("protocol", "asked", "used"),
    [
        ("published", "auto", "fp32"),
        ("published", "bf16", "bf16"),
        ("published", "fp32", "fp32"),
        ("tuned", "auto", "bf16" if has_native_bf16(CPU) else "fp32"),
    ],
)
def test_the_published_protocol_computes_in_fp32_unless_told_otherwise(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, protocol: str, asked: str, used: str
) -> None:
    made: list[str] = []

    class Watched(Runner):
        def __init__(self, network: torch.nn.Module, device: torch.device, precision: Precision, **how: bool) -> None:
            super().__init__(network, device, precision, **how)
            made.append(precision)

    monkeypatch.setattr(engine, "Runner", Watched)
    monkeypatch.setattr(engine, "installed", lambda: False)
    table = {"weights": str(manifest), "protocol": protocol, "precision": asked}
    pipeline = registry.build("ct-nodules", table, "cpu")
    parameters = pipeline.info.stages[0].parameters
    assert (parameters["protocol"], parameters["precision"]) == (protocol, used)
    try:
        pipeline(make_volume(np.full((10, 64, 64), -1000.0), SPACING))
    except Rejection:
        assert protocol == "tuned"
    sieve = ["bf16"] if protocol == "tuned" and has_native_bf16(CPU) else []
    assert made == [used, "fp32", *sieve]


def test_another_protocol_is_refused(manifest: Path) -> None:
    with pytest.raises(ValueError, match="protocol: "):
        registry.build("ct-nodules", {"weights": str(manifest), "protocol": "fast"}, "cpu")
