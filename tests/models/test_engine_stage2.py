"""Stage 2 by every engine, with and without its sieve, reports what torch in fp32 alone reports."""

from __future__ import annotations

import pytest
import torch

from pulmo_models.ct import engine as engines
from pulmo_models.ct.candidates import Candidate, CandidateSettings, find_candidates
from pulmo_models.ct.characterise import CharacterisedCandidate, characterise
from pulmo_models.ct.device import Runner
from pulmo_models.ct.doubt import with_doubt
from pulmo_models.ct.engine import Engine, choose_engine, set_threads
from pulmo_models.ct.heat import FloatVolume
from pulmo_models.ct.looks import Looks
from pulmo_models.ct.settings import NoduleSettings
from pulmo_models.nets.student2p5d import Detection2p5D
from pulmo_models.types import Mask
from tests.conftest import data_folder
from tests.models.engine_plans import DOUBT, PUBLISHED, REAL_SERIES, Chest, Stages, over_lungs, told
from tests.models.test_engine import SPACING, phantom, real_crop

CPU = torch.device("cpu")
SCORE_TOLERANCE = 0.02
LEAST_DICE = 0.99
ELSEWHERE = [Candidate(index=index, score=0.01) for index in ((10, 30, 30), (32, 64, 96), (5, 100, 100), (60, 90, 20))]

needs_openvino = pytest.mark.skipif(not engines.installed(), reason="openvino is not installed")
WAYS = [
    ("torch", True),
    pytest.param("openvino", False, marks=needs_openvino),
    pytest.param("openvino", True, marks=needs_openvino),
]


@pytest.fixture(scope="module")
def stages() -> Stages:
    return Stages()


@pytest.fixture(scope="module", params=["phantom", "real"])
def volume(request: pytest.FixtureRequest) -> FloatVolume:
    return phantom() if request.param == "phantom" else real_crop()


@pytest.fixture(scope="module")
def candidates(volume: FloatVolume, stages: Stages) -> list[Candidate]:
    found = find_candidates(volume, SPACING, fast(stages.detector), CandidateSettings(peak_threshold=0.05))
    assert len(found) >= 6
    return [*found[:20], *ELSEWHERE]


@pytest.fixture(scope="module")
def expected(volume: FloatVolume, candidates: list[Candidate], stages: Stages) -> list[CharacterisedCandidate]:
    looks = Looks(volume, Runner(stages.characteriser, CPU, "fp32"), stages.settings)
    found = characterise(looks, SPACING, candidates, stages.head)
    assert 1 <= len(found) < len(candidates)
    return found


def fast(network: torch.nn.Module) -> Engine:
    return choose_engine(network, CPU, "auto", "auto").make(network, CPU, set_threads())


def looks_by(name: str, sieved: bool, volume: FloatVolume, stages: Stages) -> Looks:
    def make(network: torch.nn.Module, precision: str) -> Engine:
        choice = choose_engine(network, CPU, name, precision)  # type: ignore[arg-type]
        return choice.make(network, CPU, set_threads())

    sieve = make(Detection2p5D(stages.characteriser), "bf16") if sieved else None
    return Looks(volume, make(stages.characteriser, "fp32"), stages.settings, sieve)


def assert_the_same(
    expected: list[CharacterisedCandidate], found: list[CharacterisedCandidate], shape: tuple[int, ...]
) -> None:
    assert [f.candidate for f in found] == [f.candidate for f in expected]
    for one, other in zip(expected, found, strict=True):
        assert other.detection_probability == pytest.approx(one.detection_probability, abs=SCORE_TOLERANCE)
        assert other.malignancy_probability == pytest.approx(one.malignancy_probability, abs=SCORE_TOLERANCE)
        values = [concept.value for concept in one.concepts]
        assert [concept.value for concept in other.concepts] == pytest.approx(values, abs=SCORE_TOLERANCE)
        print(f"{told(one)} | {told(other)} | Dice {dice(one.mask, other.mask, shape):.4f}")
        assert dice(one.mask, other.mask, shape) >= LEAST_DICE


def dice(a: Mask, b: Mask, shape: tuple[int, ...]) -> float:
    one, other = a.to_volume(shape), b.to_volume(shape)
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


@pytest.mark.parametrize(("name", "sieved"), WAYS)
def test_every_way_reports_what_torch_in_fp32_reports(
    name: str,
    sieved: bool,
    volume: FloatVolume,
    candidates: list[Candidate],
    expected: list[CharacterisedCandidate],
    stages: Stages,
) -> None:
    found = characterise(looks_by(name, sieved, volume, stages), SPACING, candidates, stages.head)
    assert_the_same(expected, found, volume.shape)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("series", REAL_SERIES)
def test_every_real_series_is_reported_as_by_torch_in_fp32(series: str, stages: Stages) -> None:
    """All candidates down to those in doubt, by the engines of `auto`; and of each whether it would be reported."""
    chest = Chest.read(data_folder(series))
    plan = with_doubt(over_lungs(NoduleSettings().overlap), DOUBT)
    assert plan.peak_threshold < PUBLISHED.peak_threshold
    candidates = find_candidates(chest.hu, chest.spacing_mm, fast(stages.detector), plan, chest.search)
    places = [c.index for c in candidates]
    exact = Looks(chest.hu, Runner(stages.characteriser, CPU, "fp32"), stages.settings)
    name = choose_engine(stages.characteriser, CPU, "auto", "fp32").name
    quick = looks_by(name, True, chest.hu, stages)
    assert quick.reported(places) == exact.reported(places)
    expected, found = (characterise(looks, chest.spacing_mm, candidates, stages.head) for looks in (exact, quick))
    assert_the_same(expected, found, chest.hu.shape)
