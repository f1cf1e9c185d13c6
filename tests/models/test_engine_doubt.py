"""Candidates near the threshold are decided by the published windows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
import torch

from pulmo_models.ct.candidates import Candidate, CandidateSettings, heatmap, windows_of
from pulmo_models.ct.device import Runner
from pulmo_models.ct.doubt import _unlike_each_other, published_scores, settle, with_doubt

CPU = torch.device("cpu")
SPARSE = CandidateSettings(peak_threshold=0.5, anchor="lungs", stride=(60, 120, 120), blend="centred")
SHAPE = (96, 192, 192)
PLACES = [(40, 90, 100), (3, 5, 7), (95, 191, 191), (60, 64, 128)]


class Moody(torch.nn.Module):
    """Says the same of every voxel of a window, and of each window something else: about what it is asked to."""

    def __init__(self, level: float, spread: float) -> None:
        super().__init__()
        self.level, self.spread = level, spread
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += len(x)
        mood = torch.sin(1e4 * x.mean(dim=(1, 2, 3, 4), keepdim=True))
        return torch.logit(torch.clamp(self.level + self.spread * mood, 0.01, 0.99)).expand_as(x)


@pytest.fixture(scope="module")
def hu() -> np.ndarray:
    return np.random.default_rng(4).normal(-700, 200, SHAPE).astype(np.float32)


def test_a_score_at_the_threshold_is_that_of_the_published_heat_map(hu: np.ndarray) -> None:
    published = CandidateSettings(peak_threshold=0.5)
    heat = heatmap(hu, Runner(Moody(0.5, 0.02), CPU, "fp32"), published)
    network = Moody(0.5, 0.02)
    scores, windows = published_scores(hu, PLACES, Runner(network, CPU, "fp32"), SPARSE)
    for place, score in zip(PLACES, scores, strict=True):
        around = tuple(slice(max(0, p - r), p + r + 1) for p, r in zip(place, (2, 4, 4), strict=True))
        assert score == pytest.approx(float(heat[around].max()), abs=0.02)
    assert windows == network.calls <= len(windows_of(hu, published))
    corner, _ = published_scores(hu, [(3, 5, 7)], Runner(Moody(0.5, 0.02), CPU, "fp32"), SPARSE)
    assert corner == [pytest.approx(float(heat[:6, :10, :12].max()), abs=1e-6)]


def test_the_further_from_the_threshold_the_fewer_windows(hu: np.ndarray) -> None:
    counts = []
    for level in (0.5, 0.54, 0.7, 0.9):
        scores, windows = published_scores(hu, [(40, 90, 100)], Runner(Moody(level, 0.01), CPU, "fp32"), SPARSE)
        assert scores == [pytest.approx(level, abs=0.02)]
        counts.append(windows)
    seeing = [s for s in windows_of(hu, CandidateSettings()) if all(0 <= p - a < w for p, a, w in
              zip((40, 90, 100), s, (64, 128, 128), strict=True))]  # fmt: skip
    assert counts[0] == len(seeing) > counts[1] > counts[2] == counts[3] == 2


def test_only_what_stage_2_would_report_is_asked_again(hu: np.ndarray) -> None:
    network = Moody(0.62, 0.0)
    asked: list[tuple[int, int, int]] = []

    def accepts(places: Sequence[tuple[int, int, int]]) -> list[bool]:
        asked.extend(places)
        return [place != (10, 20, 20) for place in places]

    candidates = [
        Candidate(index=(40, 90, 100), score=0.9),
        Candidate(index=(50, 60, 70), score=0.55),
        Candidate(index=(10, 20, 20), score=0.52),
        Candidate(index=(20, 30, 30), score=0.46),
    ]
    settled = settle(hu, candidates, Runner(network, CPU, "fp32"), SPARSE, 0.06, accepts)
    assert asked == [c.index for c in candidates[1:]]
    assert [c.index for c in settled.candidates] == [(40, 90, 100), (50, 60, 70), (20, 30, 30)]
    assert [c.score for c in settled.candidates] == pytest.approx([0.9, 0.62, 0.62], abs=1e-5)
    assert settled.asked_again == 2
    assert settled.windows == network.calls > 0


def test_what_the_published_windows_do_not_bear_out_is_dropped(hu: np.ndarray) -> None:
    candidates = [Candidate(index=(50, 60, 70), score=0.55)]
    settled = settle(hu, candidates, Runner(Moody(0.3, 0.0), CPU, "fp32"), SPARSE, 0.06, lambda places: [True])
    assert settled.candidates == []


def test_without_doubt_nothing_is_asked(hu: np.ndarray) -> None:
    assert with_doubt(SPARSE, 0.06).peak_threshold == pytest.approx(0.44)
    network = Moody(0.3, 0.0)
    candidates = [Candidate(index=(50, 60, 70), score=0.5)]
    settled = settle(hu, candidates, Runner(network, CPU, "fp32"), SPARSE, 0.0, lambda places: [False])
    assert (settled.candidates, network.calls) == (candidates, 0)


def test_windows_that_disagree_are_asked_longer(hu: np.ndarray) -> None:
    counts = []
    for spread in (0.01, 0.3):
        runner = Runner(Moody(0.56, spread), CPU, "fp32")
        counts.append(sum(published_scores(hu, [place], runner, SPARSE)[1] for place in PLACES))
    assert counts[0] < counts[1]


def test_windows_that_have_least_in_common_come_first() -> None:
    window = (64, 128, 128)
    middle = (32, 64, 64)
    others = [start for start in product((32, 0), (64, 0), (64, 0)) if start != middle]
    order = _unlike_each_other([middle, *others], window)
    assert order[:2] == [middle, (0, 0, 0)]
    assert sorted(order) == sorted([middle, *others])
    assert _unlike_each_other([], window) == []
