"""How windows are laid, cut and put together again."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from pulmo_models.ct.candidates import (
    CandidateSettings,
    _are_highest,
    _highest_around,
    find_candidates,
    heatmap,
    pick_peaks,
)
from pulmo_models.ct.heat import STAGED_SLICES, HostWindows, StagedWindows, heat_slabs
from pulmo_models.ct.windows import (
    WindowPlan,
    box_at,
    depths_of,
    fit_windows,
    lay_windows,
    sizes_of,
    weights_of,
)
from pulmo_models.device import Runner
from tests import published_reference as reference
from tests.conftest import ROOT

CPU = torch.device("cpu")
SMALL = (16, 32, 32)
LUNGS = WindowPlan(window=SMALL, stride=(12, 24, 24), anchor="lungs", blend="centred")


def two_lungs(shape: tuple[int, int, int] = (50, 120, 130)) -> np.ndarray:
    z, y, x = np.indices(shape)
    mask = np.zeros(shape, dtype=bool)
    for column, reach in ((35, 20), (95, 25)):
        mask |= ((z - 26) / 18) ** 2 + ((y - 60) / 35) ** 2 + ((x - column) / reach) ** 2 <= 1
    return mask


@pytest.mark.parametrize("shape", [(64, 128, 128), (96, 192, 128), (70, 150, 141), (65, 129, 129)])
def test_the_published_windows(shape: tuple[int, int, int]) -> None:
    per_axis = [reference.starts(*axis) for axis in zip(shape, reference.PATCH, reference.STRIDE, strict=True)]
    assert lay_windows(shape, WindowPlan()) == [
        (z, y, x) for z in per_axis[0] for y in per_axis[1] for x in per_axis[2]
    ]


@pytest.mark.parametrize("stride", [(16, 32, 32), (12, 24, 24), (8, 16, 16)])
def test_windows_over_the_lungs_see_all_of_them_and_are_few(stride: tuple[int, int, int]) -> None:
    search = two_lungs()
    plan = WindowPlan(window=SMALL, stride=stride, anchor="lungs")
    starts = lay_windows(search.shape, plan, search)
    seen = np.zeros(search.shape, dtype=bool)
    for start in starts:
        box = box_at(start, SMALL)
        assert seen[box].shape == SMALL  # inside the volume
        seen[box] = True
    assert seen[search].all()
    assert starts == sorted(set(starts))
    everywhere = lay_windows(search.shape, WindowPlan(window=SMALL, stride=stride), search)
    assert len(starts) < len(everywhere)


def test_a_volume_smaller_than_the_window_and_lungs_at_its_border() -> None:
    search = np.zeros((10, 40, 100), dtype=bool)
    search[:, :, 95:] = True
    shape = (16, 40, 100)
    assert lay_windows(shape, LUNGS, search) == [(0, 0, 68), (0, 8, 68)]
    search[:] = False
    assert lay_windows(shape, LUNGS, search) == []


def test_one_window_has_the_lungs_in_its_middle() -> None:
    search = np.zeros((16, 100, 100), dtype=bool)
    search[4:8, 40:50, 60:64] = True
    assert lay_windows(search.shape, LUNGS, search) == [(0, 29, 46)]


TALL_LUNGS = WindowPlan(window=(64, 128, 128), stride=(56, 120, 120), anchor="lungs", blend="centred")


@pytest.mark.parametrize("shape", [(150, 300, 330), (62, 200, 260), (99, 384, 400), (20, 260, 400)])
def test_fitted_windows_see_all_of_the_lungs_and_compute_less(shape: tuple[int, int, int]) -> None:
    search = np.zeros(shape, dtype=bool)
    z, y, x = np.indices(shape) / np.reshape(shape, (3, 1, 1, 1))
    search |= ((z - 0.5) / 0.48) ** 2 + ((y - 0.5) / 0.4) ** 2 + ((x - 0.3) / 0.17) ** 2 <= 1
    search |= ((z - 0.5) / 0.45) ** 2 + ((y - 0.5) / 0.4) ** 2 + ((x - 0.7) / 0.25) ** 2 <= 1
    fitted = fit_windows(TALL_LUNGS, search)
    computed = []
    for plan in (TALL_LUNGS, fitted):
        padded = tuple(max(size, length) for size, length in zip(shape, plan.window, strict=True))
        starts = lay_windows(padded, plan, search)
        layers = sorted({start[0] for start in starts})
        depths = dict(zip(layers, depths_of(len(layers), plan), strict=True))
        seen = np.zeros(padded, dtype=bool)
        for start in starts:
            window = (depths[start[0]], *plan.window[1:])
            assert seen[box_at(start, window)].shape == window  # inside the volume
            seen[box_at(start, window)] = True
        assert seen[: shape[0], : shape[1], : shape[2]][search].all()
        sizes = sizes_of(starts, plan)
        assert sum(sizes.values()) == len(starts)
        computed.append(sum(number * math.prod(size) for size, number in sizes.items()))
        for size in sizes:
            assert all(length % 16 == 0 for length in size)
            assert all(0.75 <= length / own <= 1.25 for length, own in zip(size, TALL_LUNGS.window, strict=True))
        assert len(sizes) <= 2
    assert computed[1] < 0.95 * computed[0]


def test_lungs_that_the_windows_fit_keep_them() -> None:
    search = np.ones((64, 128, 248), dtype=bool)
    assert fit_windows(TALL_LUNGS, search) == TALL_LUNGS


def test_weights_fall_off_to_the_border_and_never_vanish() -> None:
    assert weights_of(WindowPlan()) is None
    weights = weights_of(LUNGS)
    assert weights is not None
    assert weights.shape == SMALL
    assert weights[8, 16, 16] == weights.max() == 1.0
    assert 0 < weights[0, 0, 0] == weights.min()
    np.testing.assert_array_equal(weights, weights[::-1, ::-1, ::-1])
    assert (np.diff(weights[8, 16, :16]) >= 0).all()


@pytest.mark.parametrize("shape", [(50, 70, 80), (STAGED_SLICES, 32, 32), (7, 20, 90)])
def test_windows_that_are_staged_are_those_of_the_host(shape: tuple[int, int, int]) -> None:
    """The way to a GPU, without one: the same pieces in the same order, on the CPU."""
    hu = np.random.default_rng(3).normal(-500, 700, shape).astype(np.float32)
    host, staged = HostWindows(hu, SMALL), StagedWindows(hu, SMALL, CPU)
    padded = [max(size, length) for size, length in zip(shape, SMALL, strict=True)]
    starts = lay_windows(padded, WindowPlan(window=SMALL, stride=(12, 24, 24)))
    for start in starts:
        host.prepare(start[0])
        staged.prepare(start[0])
        torch.testing.assert_close(staged.cut([start]), host.cut([start]), atol=0, rtol=0)
        assert host.cut([start]).shape == (1, 1, *SMALL)


class Ramp(torch.nn.Module):
    """An answer that depends on the place in the window, as a network's does."""

    def __init__(self, window: tuple[int, int, int] = SMALL) -> None:
        super().__init__()
        self.ramp = torch.nn.Parameter(torch.randn(1, 1, *window, generator=torch.Generator().manual_seed(5)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 6.0 * x - 4.0 + self.ramp[:, :, : x.shape[2]]


@pytest.mark.parametrize(
    "plan",
    [LUNGS, replace(LUNGS, last_depth=9), WindowPlan(window=SMALL, stride=(8, 16, 16))],
    ids=["lungs", "lungs, the last layer shallow", "volume"],
)
def test_the_heat_map_is_the_weighted_mean_of_the_windows(plan: WindowPlan) -> None:
    search = two_lungs()
    hu = np.random.default_rng(1).normal(-700, 250, search.shape).astype(np.float32)
    settings = CandidateSettings(**asdict(plan))
    network = Ramp()
    total, count = np.zeros(hu.shape), np.zeros(hu.shape)
    starts = lay_windows(hu.shape, plan, search)
    for start in starts:
        window = (plan.last_depth, *SMALL[1:]) if plan.last_depth and start[0] == starts[-1][0] else SMALL
        weights = weights_of(replace(plan, window=window))
        each = np.ones(window) if weights is None else weights
        box = box_at(start, window)
        x = torch.from_numpy((np.clip(hu[box], -1000, 1000) + 1000) / 2000)[None, None]
        total[box] += each * torch.sigmoid(network(x)).detach().numpy()[0, 0]
        count[box] += each
    expected = np.divide(total, count, out=np.zeros(hu.shape), where=count > 0)
    found = heatmap(hu, Runner(network, CPU, "fp32"), settings, search)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(found == 0, count == 0)


def test_candidates_of_slabs_are_those_of_the_whole_heat_map() -> None:
    """No slab is deeper than a window, and no peak is lost or doubled where two of them meet."""
    hu = np.random.default_rng(6).normal(-600, 400, (150, 40, 50)).astype(np.float32)
    hu[60:90] = -1000.0  # a gap without windows
    settings = CandidateSettings(window=SMALL, stride=(8, 16, 16), peak_threshold=0.3, cluster_mm=0.0)
    runner = Runner(Ramp(), CPU, "fp32")
    whole = heatmap(hu, runner, settings)
    assert (whole[72:80] == 0).all()
    found = find_candidates(hu, (1.0, 1.0, 1.0), runner, settings)
    assert found == pick_peaks(whole, (1.0, 1.0, 1.0), settings)
    assert len(found) > 100
    assert {c.index[0] % 8 for c in found} == set(range(8))
    slabs = heat_slabs(hu, runner, settings, lay_windows(hu.shape, settings), 4, lambda share: None)
    depths = [len(slab) for slab in slabs]
    assert sum(depths) == len(hu)
    assert max(depths) <= SMALL[0]


def test_a_device_that_is_full_leaves_the_heat_map_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    hu = np.random.default_rng(6).normal(-600, 400, (40, 40, 50)).astype(np.float32)
    settings = CandidateSettings(window=SMALL, stride=(8, 16, 16), peak_threshold=0.3)
    expected = find_candidates(hu, (1.0, 1.0, 1.0), Runner(Ramp(), CPU, "fp32"), settings)

    class Elsewhere(Runner):
        """Of a full GPU, which the meta device stands for: what it computes, it computes on the CPU."""

        def run(self, batch: torch.Tensor) -> torch.Tensor:
            return Runner(Ramp(), CPU, "fp32").run(batch)

    zeros = torch.zeros

    def full(*args: object, **options: object) -> torch.Tensor:
        if options.get("device") == torch.device("meta"):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return zeros(*args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(torch, "zeros", full)
    found = find_candidates(hu, (1.0, 1.0, 1.0), Elsewhere(Ramp(), torch.device("meta")), settings)
    assert found == expected
    assert len(found) > 10


@pytest.mark.parametrize("shape", [(40, 50, 60), (7, 9, 200), (3, 4, 5)])
def test_few_peaks_are_found_as_many_are(shape: tuple[int, int, int]) -> None:
    """Of few voxels the neighbourhoods are gathered, many are filtered: the same peaks, at borders and on plateaus."""
    random = np.random.default_rng(9)
    heat = np.zeros(shape, dtype=np.float32)
    places = tuple(random.integers(0, size, 40) for size in shape)
    heat[places] = random.random(40, dtype=np.float32).round(1)
    heat[0, 0, 0] = heat[-1, -1, -1] = 0.7
    volume = torch.from_numpy(heat)
    for threshold in (0.05, 0.5):
        settings = CandidateSettings(peak_threshold=threshold)
        above = torch.nonzero(volume >= threshold)
        few = above[_are_highest(volume, above, settings)]
        many = torch.nonzero((volume == _highest_around(volume, settings)) & (volume >= threshold))
        torch.testing.assert_close(few, many)
        assert len(few) > 0


_MEMORY = """
import resource, sys
import numpy as np, torch
from pulmo_models.ct.candidates import CandidateSettings, find_candidates

class Instant:
    name, precision, device, cautions = "instant", "fp32", torch.device("cpu"), []
    def run(self, batch):
        return 4.0 * batch - 6.0

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

slices = int(sys.argv[1])
hu = np.full((slices, 160, 160), -800.0, dtype=np.float32)
hu[::29, ::23, ::23] = 900.0
settings = CandidateSettings(stride=(56, 120, 120), anchor="lungs", blend="centred", peak_threshold=0.05)
search = np.ones(hu.shape, dtype=bool)
find_candidates(hu[:200], (1.0, 0.7, 0.7), Instant(), settings, search[:200])  # a slab, windows, what is loaded once
before = peak()
assert find_candidates(hu, (1.0, 0.7, 0.7), Instant(), settings, search)
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_number_of_slices() -> None:
    """Beyond the volume and its mask: the sums of the heat map of the longer one would be 300 MB."""
    done = subprocess.run([sys.executable, "-c", _MEMORY, "1500"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert float(done.stdout) < 100.0
