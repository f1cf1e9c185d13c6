"""Stage 1 against a plain second implementation of the published protocol, voxel by voxel."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from pulmo_models.ct.candidates import Candidate, CandidateSettings, find_candidates, heatmap, normalise, pick_peaks
from pulmo_models.ct.device import Runner
from pulmo_models.nets.heatmap_unet3d import HeatmapUNet3D

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


def reference_heatmap(hu: np.ndarray, network: torch.nn.Module) -> np.ndarray:
    """The published protocol as its notebook states it, without any mask, one window at a time."""
    shape = hu.shape
    padded = np.full([max(a, b) for a, b in zip(shape, (64, 128, 128), strict=True)], -1000.0, dtype=np.float32)
    padded[: shape[0], : shape[1], : shape[2]] = hu
    total = np.zeros(padded.shape, dtype=np.float64)
    seen = np.zeros(padded.shape, dtype=np.float64)
    starts = []
    for size, patch, stride in zip(padded.shape, (64, 128, 128), (32, 64, 64), strict=True):
        found = []
        position = 0
        while position + patch <= size:
            found.append(position)
            position += stride
        if (size - patch) % stride != 0:
            found.append(size - patch)
        starts.append(found)
    for z, y, x in itertools.product(*starts):
        patch_hu = np.clip(padded[z : z + 64, y : y + 128, x : x + 128], -1000, 1000)
        if patch_hu.mean() < -980:
            continue
        with torch.inference_mode():
            logits = network(torch.from_numpy((patch_hu + 1000) / 2000)[None, None])
        total[z : z + 64, y : y + 128, x : x + 128] += torch.sigmoid(logits)[0, 0].numpy()
        seen[z : z + 64, y : y + 128, x : x + 128] += 1
    mean = np.where(seen > 0, total / np.maximum(seen, 1), 0.0)
    return mean[: shape[0], : shape[1], : shape[2]]


def reference_peaks(
    heat: np.ndarray, spacing: tuple[float, float, float], threshold: float, cluster_mm: float
) -> list[tuple[int, int, int]]:
    peaks = []
    for z, y, x in np.argwhere(heat >= threshold):
        around = heat[max(0, z - 2) : z + 3, max(0, y - 4) : y + 5, max(0, x - 4) : x + 5]
        if heat[z, y, x] == around.max():
            peaks.append((int(z), int(y), int(x)))
    peaks.sort(key=lambda p: -heat[p])
    kept: list[tuple[int, int, int]] = []
    for peak in peaks:
        if all(math.dist(np.multiply(peak, spacing), np.multiply(other, spacing)) >= cluster_mm for other in kept):
            kept.append(peak)
    return kept


def random_volume(shape: tuple[int, int, int], seed: int = 1) -> np.ndarray:
    hu = np.random.default_rng(seed).normal(-700, 250, shape).astype(np.float32)
    hu[:, :, shape[2] // 2 :] -= 300
    return hu


@pytest.mark.parametrize(
    "shape", [(64, 128, 128), (70, 150, 140), (96, 192, 128), (40, 100, 90), (20, 200, 130), (65, 128, 257)]
)
def test_heatmap_is_that_of_the_published_protocol(shape: tuple[int, int, int]) -> None:
    hu = random_volume(shape)
    network = StandIn()
    found = heatmap(hu, Runner(network, CPU, "fp32"), CandidateSettings())
    assert found.shape == shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reference_heatmap(hu, network), atol=1e-6)


def test_windows_of_air_are_skipped_and_stay_zero() -> None:
    hu = random_volume((64, 128, 320))
    hu[:, :, 100:] = -3024.0
    network = StandIn()
    found = heatmap(hu, Runner(network, CPU, "fp32"), CandidateSettings())
    np.testing.assert_allclose(found, reference_heatmap(hu, network), atol=1e-6)
    assert found[:, :, 260:].max() == 0.0
    assert found[:, :, :64].min() > 0.0


def test_the_real_network_in_one_window() -> None:
    torch.manual_seed(0)
    network = HeatmapUNet3D().eval()
    with torch.no_grad():
        network.out.weight.mul_(20)
    hu = random_volume((64, 128, 128), seed=3)
    found = heatmap(hu, Runner(network, CPU, "fp32"), CandidateSettings())
    reference = reference_heatmap(hu, network)
    assert np.ptp(reference) > 0.1
    np.testing.assert_allclose(found, reference, atol=1e-5)


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
    assert [c.index for c in found] == reference_peaks(heat, spacing, threshold, cluster_mm)
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
