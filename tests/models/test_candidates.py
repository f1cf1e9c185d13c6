"""Stage 1: batches, peaks, thinning, the search mask. The heat map itself: test_published_protocol.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pulmo_models.ct.candidates import Candidate, CandidateSettings, find_candidates, heatmap, normalise, pick_peaks
from pulmo_models.device import Runner
from tests import published_reference as reference

CPU = torch.device("cpu")


class StandIn(torch.nn.Module):
    """A cheap detector whose answer depends on the place in the window, as a network's does."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.ramp = torch.nn.Parameter(0.5 * torch.randn(1, 1, 64, 128, 128, generator=generator))
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        return 6.0 * x - 4.0 + self.ramp


def random_volume(shape: tuple[int, int, int], seed: int = 1) -> np.ndarray:
    hu = np.random.default_rng(seed).normal(-700, 250, shape).astype(np.float32)
    hu[:, :, shape[2] // 2 :] -= 300
    return hu


def test_batches_are_of_the_size_asked_for() -> None:
    network = StandIn()
    shares: list[float] = []
    heatmap(
        random_volume((64, 192, 256)), Runner(network, CPU, "fp32"), CandidateSettings(batch=4), progress=shares.append
    )
    assert network.batches == [4, 2]
    assert shares == pytest.approx([4 / 6, 1.0])


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("cluster_mm", [0.0, 6.0, 15.0])
def test_peaks_are_those_of_the_published_protocol(threshold: float, cluster_mm: float) -> None:
    noise = np.random.default_rng(8).random((18, 40, 50), dtype=np.float32)
    heat = np.where(noise > 0.9, noise, noise * 0.3).astype(np.float32)
    heat[3:5, 10:12, 10:12] = 0.95  # a plateau
    spacing = (2.5, 0.7, 0.8)
    settings = CandidateSettings(peak_threshold=threshold, cluster_mm=cluster_mm)
    found = pick_peaks(heat, spacing, settings)
    assert [c.index for c in found] == reference.candidates(heat, spacing, threshold, cluster_mm)
    assert [c.score for c in found] == pytest.approx([float(heat[c.index]) for c in found])
    assert len(found) > 3


def test_two_peaks_at_exactly_the_cluster_distance_both_stay() -> None:
    heat = np.zeros((20, 30, 30), dtype=np.float32)
    heat[5, 5, 5], heat[11, 5, 5], heat[5, 16, 5] = 0.9, 0.8, 0.7
    settings = CandidateSettings()
    assert [c.index for c in pick_peaks(heat, (1.0, 0.5, 0.5), settings)] == [(5, 5, 5), (11, 5, 5)]
    assert pick_peaks(heat, (1.0, 0.6, 0.6), settings)[2] == Candidate(index=(5, 16, 5), score=float(np.float32(0.7)))


def test_nothing_above_the_threshold() -> None:
    assert pick_peaks(np.full((5, 20, 20), 0.1, dtype=np.float32), (1.0, 1.0, 1.0), CandidateSettings()) == []
    assert pick_peaks(np.zeros((5, 20, 20), np.float32), (1, 1, 1), CandidateSettings(peak_threshold=0.0)) == []


def test_the_search_mask_skips_windows_and_peaks_but_changes_nothing_inside() -> None:
    hu = random_volume((64, 128, 512))
    search = np.zeros(hu.shape, dtype=bool)
    search[20:40, 30:90, 40:60] = True
    settings = CandidateSettings(peak_threshold=0.5)
    network, restricted = StandIn(), StandIn()
    whole = heatmap(hu, Runner(network, CPU, "fp32"), settings)
    part = heatmap(hu, Runner(restricted, CPU, "fp32"), settings, search)
    assert sum(restricted.batches) == 1 < sum(network.batches)
    np.testing.assert_array_equal(part[search], whole[search])
    found = find_candidates(hu, (1.0, 1.0, 1.0), Runner(StandIn(), CPU, "fp32"), settings, search)
    assert found
    assert all(search[c.index] for c in found)


def test_normalise() -> None:
    values = normalise(np.array([-3024.0, -1000.0, 0.0, 1000.0, 3071.0], dtype=np.float32))
    assert values.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert values.dtype == np.float32


def test_published_defaults() -> None:
    settings = CandidateSettings()
    assert settings.window == (64, 128, 128)
    assert settings.stride == (32, 64, 64)
    assert settings.peak_size == (5, 9, 9)
    assert (settings.peak_threshold, settings.cluster_mm, settings.skip_below_mean_hu) == (0.3, 6.0, -980.0)
