"""Stage 2: crops, concepts and their contributions, masks through the slices, duplicates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pulmo_models.ct.candidates import Candidate
from pulmo_models.ct.characterise import (
    CharacterisedCandidate,
    CharacteriseSettings,
    MalignancyHead,
    characterise,
    merge_duplicates,
)
from pulmo_models.ct.device import Runner
from pulmo_models.ct.looks import Looks, wide_input
from pulmo_models.ct.masks import grow_from_hu, overlap_share
from pulmo_models.ct.views import ONE_VIEW
from pulmo_models.nets.student2p5d import Student2p5D
from pulmo_models.types import CONCEPT_NAMES, Mask

CPU = torch.device("cpu")
SPACING = (2.0, 1.0, 1.0)


class StandIn(torch.nn.Module):
    """Calls dense what is dense: outlines everything above -400 HU on the central slice.

    The detection logit grows with the density at the candidate, and the concepts are fixed.
    """

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.blind = blind
        self.concept_values = torch.tensor([0.5, 0.0, 1.0, 0.75, 0.25, 0.1, -0.1, 1.2])
        self.weight = torch.linspace(-1, 1, 16).reshape(2, 8)
        self.bias = torch.tensor([0.3, -0.2])

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        score = 20 * (x[:, 3, 32, 32] - 0.3)
        concepts = self.concept_values.expand(len(x), 8)
        outline = (x[:, 3:4] - 0.3) * (-1e3 if self.blind else 1e3)
        if self.blind:
            outline = torch.full_like(outline, -5.0)
        return {
            "detection": torch.stack((torch.zeros_like(score), score), dim=1),
            "concepts": concepts,
            "malignancy": concepts @ self.weight.T + self.bias,
            "segmentation": outline,
        }


def head(network: StandIn, scale: str = "unit") -> MalignancyHead:
    weights = (network.weight[1] - network.weight[0]).double().numpy()
    bias = float(network.bias[1] - network.bias[0])
    return MalignancyHead(weights=weights, bias=bias, concept_scale=scale)  # type: ignore[arg-type]


def volume_with(*balls: tuple[tuple[int, int, int], float], shape: tuple[int, int, int] = (40, 100, 110)) -> np.ndarray:
    hu = np.full(shape, -850.0, dtype=np.float32)
    for centre, radius_mm in balls:
        hu[ball(shape, centre, radius_mm)] = 30.0
    return hu


def ball(shape: tuple[int, ...], centre: tuple[int, ...], radius_mm: float) -> np.ndarray:
    grid = np.indices(shape)
    return sum(((g - c) * s) ** 2 for g, c, s in zip(grid, centre, SPACING, strict=True)) <= radius_mm**2


def run(hu: np.ndarray, *indices: tuple[int, int, int], network: StandIn | None = None) -> list[CharacterisedCandidate]:
    network = network or StandIn()
    candidates = [Candidate(index=index, score=0.9 - 0.01 * i) for i, index in enumerate(indices)]
    return characterise(
        Looks(hu, Runner(network, CPU, "fp32"), CharacteriseSettings()), SPACING, candidates, head(network)
    )


def test_input_is_seven_native_slices_with_the_candidate_in_the_middle() -> None:
    hu = np.random.default_rng(0).uniform(-1200, 1200, (20, 90, 100)).astype(np.float32)
    x = wide_input(hu, (10, 40, 50))[:, :64, :64]
    assert x.shape == (7, 64, 64)
    assert x.dtype == np.float32
    expected = (np.clip(hu[7:14, 8:72, 18:82], -1000, 1000) + 1000) / 2000
    np.testing.assert_allclose(x, expected, atol=1e-7)


def test_input_is_padded_with_air_at_the_border() -> None:
    hu = np.full((20, 90, 100), 1000.0, dtype=np.float32)
    x = wide_input(hu, (0, 89, 0))[:, :64, :64]
    assert (x[:3] == 0).all()
    assert (x[3:, :33, 32:] == 1).all()
    assert (x[:, 33:] == 0).all()
    assert (x[:, :, :32] == 0).all()


def test_logit_is_the_sum_of_contributions_plus_bias() -> None:
    hu = volume_with(((20, 50, 50), 6.0))
    network = StandIn()
    (found,) = run(hu, (20, 50, 50), network=network)
    logit = sum(c.contribution for c in found.concepts) + head(network).bias
    assert 1 / (1 + math.exp(-logit)) == pytest.approx(found.malignancy_probability, abs=1e-6)
    assert tuple(c.name for c in found.concepts) == CONCEPT_NAMES


@pytest.mark.parametrize("scale", ["raw", "unit"])
def test_logit_with_the_real_network_on_either_scale(scale: str) -> None:
    torch.manual_seed(7)
    network = Student2p5D().eval()
    with torch.no_grad():
        network.malignancy_head.weight.mul_(5)
        network.detection_head[4].bias[1] = 50.0
    read_out = MalignancyHead.of(network, scale)  # type: ignore[arg-type]
    hu = volume_with(((20, 50, 50), 6.0), shape=(24, 80, 80))
    candidate = Candidate(index=(20, 50, 50), score=0.5)
    runner = Runner(network, CPU, "fp32")
    looks = Looks(hu, runner, CharacteriseSettings(views=ONE_VIEW))
    (found,) = characterise(looks, SPACING, [candidate], read_out)
    logit = sum(c.contribution for c in found.concepts) + read_out.bias
    assert 1 / (1 + math.exp(-logit)) == pytest.approx(found.malignancy_probability, abs=1e-5)
    with torch.inference_mode():
        output = network(torch.from_numpy(wide_input(hu, (20, 50, 50))[:, :64, :64])[None])["concepts"][0].tolist()
    values = output if scale == "raw" else [1 + 4 * v for v in output]
    assert [c.value for c in found.concepts] == pytest.approx(values, abs=1e-5)


def test_candidates_below_the_threshold_are_dropped() -> None:
    hu = volume_with(((20, 30, 30), 6.0))
    found = run(hu, (20, 30, 30), (20, 70, 80))
    assert [f.candidate.index for f in found] == [(20, 30, 30)]
    assert found[0].detection_probability > 0.9
    assert run(hu, (20, 70, 80)) == []
    assert run(hu) == []


def test_mask_follows_the_nodule_through_the_slices() -> None:
    centre = (20, 50, 50)
    hu = volume_with((centre, 11.0))
    (found,) = run(hu, (18, 53, 47))  # the candidate need not be the centre
    assert np.array_equal(found.mask.to_volume(hu.shape), ball(hu.shape, centre, 11.0))


def test_mask_stops_at_the_border_of_the_volume() -> None:
    hu = volume_with(((1, 3, 108), 9.0))
    (found,) = run(hu, (1, 3, 108))
    assert np.array_equal(found.mask.to_volume(hu.shape), ball(hu.shape, (1, 3, 108), 9.0))


def test_neighbours_stay_out_of_the_mask() -> None:
    hu = volume_with(((20, 50, 50), 5.0), ((20, 50, 65), 5.0), ((30, 50, 50), 5.0))
    (found,) = run(hu, (20, 50, 50))
    assert np.array_equal(found.mask.to_volume(hu.shape), ball(hu.shape, (20, 50, 50), 5.0))


def test_mask_of_an_endless_vessel_is_bounded() -> None:
    hu = np.full((120, 80, 80), -850.0, dtype=np.float32)
    hu[:, 38:43, 38:43] = 30.0
    (found,) = run(hu, (60, 40, 40))
    assert found.mask.voxels.shape == (35, 5, 5)


def test_an_outline_a_little_beside_the_candidate_is_taken() -> None:
    hu = volume_with(((20, 50, 50), 4.0))
    network = StandIn()
    network.forward = lambda x, inner=network.forward: {**inner(x), "detection": torch.tensor([[0.0, 5.0]] * len(x))}
    (found,) = run(hu, (20, 50, 56), network=network)
    assert np.array_equal(found.mask.to_volume(hu.shape), ball(hu.shape, (20, 50, 50), 4.0))


def test_an_empty_outline_falls_back_to_density() -> None:
    hu = volume_with(((20, 50, 50), 4.0))
    (found,) = run(hu, (20, 50, 50), network=StandIn(blind=True))
    assert np.array_equal(found.mask.to_volume(hu.shape), ball(hu.shape, (20, 50, 50), 4.0))


@pytest.mark.parametrize("level", [-3024.0, -1000.0, -850.0, -300.0, 500.0])
def test_growing_from_density_never_gives_an_empty_mask(level: float) -> None:
    hu = np.full((5, 40, 40), level, dtype=np.float32)
    for centre in ((0, 0, 0), (2, 20, 20), (4, 39, 39)):
        mask = grow_from_hu(hu, SPACING, centre)
        assert mask.to_volume(hu.shape)[centre]
        assert mask.voxels.sum() == mask.to_volume(hu.shape).sum(), "no voxel outside the volume"
        reach = np.argwhere(mask.voxels) + mask.origin - np.array(centre)
        assert np.linalg.norm(reach * SPACING, axis=1).max() <= 5.0


def test_two_candidates_on_one_nodule_become_one_finding() -> None:
    hu = volume_with(((20, 50, 50), 8.0), ((20, 80, 80), 8.0))
    hu[20, 52, 52] = 100.0  # the second candidate has the higher detection probability
    found = run(hu, (19, 48, 48), (20, 52, 52), (20, 80, 80))
    assert [f.candidate.index for f in found] == [(20, 52, 52), (20, 80, 80)]


def test_merging_looks_at_the_share_of_the_smaller_mask() -> None:
    def finding(origin: int, length: int, probability: float) -> CharacterisedCandidate:
        return CharacterisedCandidate(
            candidate=Candidate(index=(0, 0, origin), score=0.5),
            detection_probability=probability,
            malignancy_probability=0.1,
            concepts=(),
            mask=Mask(origin=(0, 0, origin), voxels=np.ones((1, 1, length), dtype=bool)),
        )

    small, large, beside = finding(0, 4, 0.9), finding(2, 10, 0.8), finding(11, 4, 0.7)
    assert overlap_share(small.mask, large.mask) == 0.5
    assert overlap_share(large.mask, beside.mask) == 0.25
    assert overlap_share(small.mask, beside.mask) == 0.0
    assert merge_duplicates([beside, large, small], 0.5) == [small, beside]
    assert merge_duplicates([beside, large, small], 0.6) == [small, large, beside]
