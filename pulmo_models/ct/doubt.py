"""Candidates whose score is too near the threshold for few windows to decide.

The detector has instance norms: what it says of a voxel depends on the window around it. The published score is a mean
over up to twelve windows; a sparser plan has one or two, and near the threshold its scores differ by some hundredths
(docs/performance.md). A candidate within that distance of the threshold, if stage 2 would report it at all, is
therefore computed anew in windows of the published protocol, first in that in whose middle it lies, then always in the
one that shares least with those before it, until their mean is further from the threshold than the windows that are
left are likely to move it.

Errors: :class:`DeviceOutOfMemory`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pulmo_models.ct.candidates import Candidate, CandidateSettings, windows_of
from pulmo_models.ct.engine import Engine
from pulmo_models.ct.heat import FloatVolume, HostWindows
from pulmo_models.ct.windows import Start, WindowPlan

SPREAD = 0.05
"""Least standard deviation that is taken for granted between the windows that see a place. That of 40 candidates with
scores of 0.10 to 0.24 on seven real CTs was 0.045 in the median and 0.058 in the mean (shipped weights)."""

LEAST_WINDOWS = 2

DEVIATIONS = 1.5
"""A mean that is so many of its standard deviations from the threshold is taken to stay on its side."""

Index = tuple[int, int, int]
Accepts = Callable[[Sequence[Index]], Sequence[bool]]


@dataclass(frozen=True, kw_only=True)
class Settled:
    """Candidates from the threshold up, highest score first."""

    candidates: list[Candidate]
    asked_again: int = 0  # candidates that were computed anew
    windows: int = 0  # in how many windows


def with_doubt(settings: CandidateSettings, doubt: float) -> CandidateSettings:
    """Settings that also find the candidates that lie in doubt below the threshold."""
    return replace(settings, peak_threshold=max(0.0, settings.peak_threshold - doubt))


def settle(
    hu: FloatVolume,
    candidates: Sequence[Candidate],
    engine: Engine,
    settings: CandidateSettings,
    doubt: float,
    accepts: Accepts,
) -> Settled:
    """Decide on the candidates that were found :func:`with_doubt`.

    ``settings`` are those without, ``accepts`` tells of places whether stage 2 would report them.

    Raises:
        DeviceOutOfMemory: from the engine.
    """
    threshold = settings.peak_threshold
    sure = [c for c in candidates if c.score >= threshold + doubt]
    doubtful = [c for c in candidates if threshold - doubt <= c.score < threshold + doubt]
    answers = accepts([c.index for c in doubtful]) if doubtful else []
    again = [c for c, accepted in zip(doubtful, answers, strict=True) if accepted]
    scores, windows = published_scores(hu, [c.index for c in again], engine, settings)
    kept = [replace(c, score=score) for c, score in zip(again, scores, strict=True) if score >= threshold]
    ordered = sorted([*sure, *kept], key=lambda c: -c.score)
    return Settled(candidates=ordered, asked_again=len(again), windows=windows)


def published_scores(
    hu: FloatVolume, places: Sequence[Index], engine: Engine, settings: CandidateSettings
) -> tuple[list[float], int]:
    """The highest value of the published heat map around each place, and how many windows that took.

    It is exact where the threshold could not be told from it before, and else the mean over the windows that told.
    Around is as far as a peak reaches (``peak_size``): the published peak may lie a voxel or two away.

    Raises:
        DeviceOutOfMemory: from the engine.
    """
    if not places:
        return [], 0
    plan = WindowPlan(window=settings.window)
    published = replace(settings, stride=plan.stride, anchor=plan.anchor, blend=plan.blend)
    search = np.zeros(hu.shape, dtype=np.bool_)
    search[tuple(np.transpose(places))] = True
    windows = windows_of(hu, published, search)  # the others see none of the places
    patches = [_Patch.around(place, hu.shape, windows, settings) for place in places]
    source = HostWindows(hu, plan.window)
    computed = 0
    while chunk := sorted({patch.to_come[0] for patch in patches if patch.is_open()})[: settings.batch]:
        heat = torch.sigmoid(engine.run(source.cut(chunk))).cpu().numpy()[:, 0]
        for start, values in zip(chunk, heat, strict=True):
            for patch in patches:
                patch.add(start, values)
        computed += len(chunk)
    return [patch.highest() for patch in patches], computed


class _Patch:
    """The neighbourhood of a place, cut at the border of the volume, and the sums of what windows say of it."""

    def __init__(self, low: Index, high: Index, to_come: list[Start], threshold: float) -> None:
        self.to_come = to_come  # windows that see the place and were not computed
        self._said: list[float] = []  # by each window that was computed
        self._threshold = threshold
        self._low, self._high = low, high
        self._total = np.zeros(np.subtract(high, low), dtype=np.float32)
        self._count = np.zeros_like(self._total)

    @classmethod
    def around(
        cls, place: Index, shape: Sequence[int], windows: Sequence[Start], settings: CandidateSettings
    ) -> _Patch:
        low = [max(0, p - s // 2) for p, s in zip(place, settings.peak_size, strict=True)]
        high = [min(n, p + s // 2 + 1) for p, s, n in zip(place, settings.peak_size, shape, strict=True)]

        def off_centre(start: Start) -> float:
            parts = zip(place, start, settings.window, strict=True)
            return max(abs((p - s + 0.5) / length - 0.5) for p, s, length in parts)

        seeing = sorted((start for start in windows if off_centre(start) < 0.5), key=off_centre)
        order = _unlike_each_other(seeing, settings.window)
        return cls((low[0], low[1], low[2]), (high[0], high[1], high[2]), order, settings.peak_threshold)

    def is_open(self) -> bool:
        """Whether the windows that are left may still change on which side of the threshold the mean lies."""
        seen = len(self._said)
        if seen < LEAST_WINDOWS or not self.to_come:
            return bool(self.to_come)
        spread = max(SPREAD, statistics.stdev(self._said))
        uncertain = DEVIATIONS * spread * math.sqrt(1.0 / seen - 1.0 / (seen + len(self.to_come)))
        return abs(self.highest() - self._threshold) < uncertain

    def add(self, start: Start, heat: FloatVolume) -> None:
        """Add what a window says of the part of the patch that it holds, if it sees the place."""
        if start not in self.to_come:
            return
        self.to_come.remove(start)
        low = np.maximum(self._low, start)
        high = np.minimum(self._high, np.add(start, heat.shape))
        here = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, self._low, strict=True))
        said = heat[tuple(slice(a - o, b - o) for a, b, o in zip(low, high, start, strict=True))]
        self._said.append(float(said.max()))
        self._total[here] += said
        self._count[here] += 1.0

    def highest(self) -> float:
        """The highest mean; 0 where no window was computed."""
        return float((self._total / np.maximum(self._count, 1.0)).max())


def _unlike_each_other(starts: Sequence[Start], window: Sequence[int]) -> list[Start]:
    """The first, and from there on always the one that is farthest from all before it, in lengths of a window.

    Windows near each other see the same surroundings and say much the same, so that their mean tells less.
    """

    def distance(a: Start, b: Start) -> float:
        return sum(abs(p - q) / length for p, q, length in zip(a, b, window, strict=True))

    left, order = list(starts[1:]), list(starts[:1])
    while left:
        farthest = max(left, key=lambda start: min(distance(start, other) for other in order))
        left.remove(farthest)
        order.append(farthest)
    return order
