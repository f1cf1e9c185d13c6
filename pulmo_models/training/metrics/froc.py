"""Free-response ROC of detection, by the protocol of LUNA16 or the looser rule of Pulmo's publication.

LUNA16 (Setio et al., Medical Image Analysis 42, 2017, and the challenge's evaluation): a candidate hits a nodule when
it lies closer to its centre than its radius, and hits each of several that overlap; of the candidates on a nodule the
best counts and the rest count neither way, and neither do candidates on a finding of the exclusion list. Sensitivity
over false positives per scan is read by linear interpolation at 1/8, 1/4, 1/2, 1, 2, 4 and 8; their mean is the CPM.
Intervals come from 1,000 bootstrap samples of the scans.

Published (Pulmo): within max(5 mm, half the diameter), and of several nodules the nearest.

Positions are in mm in any frame that nodules and candidates share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pulmo_models.training.metrics.resampling import CONFIDENCE, RESAMPLES, Counts, Floats, draw, interval, rounded

HitRule = Literal["luna16", "published"]

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per scan at which LUNA16 reads the sensitivity."""

SIZES_MM: tuple[tuple[str, float, float], ...] = (
    ("< 6 mm", 0.0, 6.0),
    ("6-8 mm", 6.0, 8.0),
    ("8-15 mm", 8.0, 15.0),
    ("≥ 15 mm", 15.0, np.inf),
)

PROTOCOLS = {
    "luna16": "LUNA16: a candidate hits a nodule when it lies within its radius; excluded findings and further "
    "candidates on a nodule count neither way; linear interpolation; intervals by bootstrap of the scans",
    "published": "Pulmo's published rule: a candidate hits the nearest nodule within max(5 mm, half its diameter); the "
    "rest as LUNA16",
}

UNKNOWN_DIAMETER_MM = 10.0  # LUNA16 takes that for a finding without a diameter

_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Places:
    """Nodules or other findings: centres in mm ``(n, 3)``, diameters in mm ``(n,)``."""

    centres_mm: Floats = field(default_factory=lambda: np.zeros((0, 3)))
    diameters_mm: Floats = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanScores:
    """What a detector scored in one scan."""

    scan: str
    nodules: Floats  # the best candidate on each nodule, -inf where there is none
    diameters_mm: Floats
    false: Floats  # candidates on nothing


def on_places(points_mm: Floats, places: Places, rule: HitRule = "luna16") -> _Bools:
    """Which candidates hit which places, ``(candidates, places)``."""
    distances = np.linalg.norm(points_mm.reshape(-1, 1, 3) - places.centres_mm.reshape(1, -1, 3), axis=2)
    known = places.diameters_mm > 0
    radii = np.where(known, places.diameters_mm, UNKNOWN_DIAMETER_MM) / 2
    if rule == "luna16":
        return np.asarray(distances < radii, dtype=bool)
    inside = distances <= np.maximum(5.0, radii)
    if inside.shape[1]:
        nearest = np.where(inside, distances, np.inf).argmin(axis=1)
        inside &= np.arange(inside.shape[1]) == nearest[:, None]
    return np.asarray(inside, dtype=bool)


def score_scan(
    scan: str,
    points_mm: Floats,
    scores: Floats,
    nodules: Places,
    excused: _Bools | None = None,
    rule: HitRule = "luna16",
) -> ScanScores:
    """Match the candidates of one scan to its nodules.

    Args:
        scan: its name.
        points_mm: positions of the candidates ``(n, 3)``.
        scores: of the candidates ``(n,)``.
        nodules: the truth.
        excused: which candidates count neither way unless they hit a nodule (`on_places` of the exclusion list).
        rule: what a hit is.
    """
    hit = on_places(points_mm, nodules, rule)
    best = np.where(hit, scores[:, None], -np.inf).max(axis=0, initial=-np.inf)
    free = ~hit.any(axis=1)
    if excused is not None:
        free &= ~excused
    return ScanScores(scan=scan, nodules=best, diameters_mm=nodules.diameters_mm, false=scores[free])


@dataclass(frozen=True, kw_only=True, eq=False)
class FrocCurve:
    """From the strictest threshold to the loosest; starts at (0, 0)."""

    false_per_scan: Floats
    sensitivity: Floats
    thresholds: Floats

    def at(self, rates: npt.ArrayLike) -> Floats:
        """Sensitivity at numbers of false positives per scan; beyond the end of the curve its last value."""
        return np.asarray(
            np.interp(np.asarray(rates, dtype=np.float64), self.false_per_scan, self.sensitivity), dtype=np.float64
        )


def froc_curve(scans: Sequence[ScanScores], chosen: Callable[[Floats], _Bools] | None = None) -> FrocCurve:
    """The curve over all thresholds; `chosen` takes diameters and says which nodules count (all by default)."""
    pool = _Pool(scans, chosen)
    return pool.curve(np.ones(len(scans), np.int64))


def cpm(curve: FrocCurve) -> float:
    """Mean sensitivity at the seven rates (competition performance metric)."""
    return float(curve.at(RATES).mean())


class _Pool:
    """The candidates of all scans in order of their score, for the curves of many resamples."""

    def __init__(self, scans: Sequence[ScanScores], chosen: Callable[[Floats], _Bools] | None = None) -> None:
        nodules = [scan.nodules if chosen is None else scan.nodules[chosen(scan.diameters_mm)] for scan in scans]
        found = [scores[np.isfinite(scores)] for scores in nodules]
        false = [scan.false for scan in scans]
        scores = np.concatenate([*found, *false]) if scans else np.zeros(0)
        owner = np.concatenate(
            [np.repeat(np.arange(len(scans)), [len(part) for part in parts]) for parts in (found, false)]
        )
        is_nodule = np.arange(len(scores)) < sum(len(part) for part in found)
        order = np.argsort(-scores, kind="stable")
        self.scores, self._owner, self._is_nodule = scores[order], owner[order], is_nodule[order]
        self._nodules = np.array([len(part) for part in nodules], dtype=np.int64)
        # Candidates of one score are accepted together.
        self._ends = np.flatnonzero(np.append(np.diff(self.scores) != 0, len(scores) > 0))

    def curve(self, times: Counts) -> FrocCurve:
        """`times`: how often each scan counts."""
        weights = times[self._owner]
        found = np.cumsum(weights * self._is_nodule)[self._ends]
        false = np.cumsum(weights * ~self._is_nodule)[self._ends]
        total = int(times @ self._nodules)
        return FrocCurve(
            false_per_scan=np.concatenate([[0.0], false / times.sum()]),
            sensitivity=np.concatenate([[0.0], found / total]) if total else np.full(len(found) + 1, np.nan),
            thresholds=np.concatenate([[np.inf], self.scores[self._ends]]),
        )

    def resampled(self, rates: npt.ArrayLike, seed: int, resamples: int) -> Floats:
        """Sensitivity at rates in each resample of the scans, ``(resamples, rates)``; NaN without nodules."""
        return np.stack([self.curve(times).at(rates) for times in draw(len(self._nodules), resamples, seed)])


def threshold_at(scans: Sequence[ScanScores], rate: float) -> float:
    """The lowest score of a candidate that, taken as a threshold, gives at most `rate` false ones a scan.

    Infinity where the highest-scored candidate is already one too many.
    """
    curve = froc_curve(scans)
    return float(curve.thresholds[np.flatnonzero(curve.false_per_scan <= rate)[-1]])


def at_threshold(scans: Sequence[ScanScores], threshold: float) -> dict[str, Any]:
    """What a threshold gives: found by size, false positives per scan."""
    nodules = np.concatenate([scan.nodules for scan in scans])
    diameters = np.concatenate([scan.diameters_mm for scan in scans])
    false = np.concatenate([scan.false for scan in scans])
    by_size = []
    for name, low, high in SIZES_MM:
        of_size = (diameters >= low) & (diameters < high)
        by_size.append(
            {"size": name, "nodules": int(of_size.sum()), "found": int((nodules[of_size] >= threshold).sum())}
        )
    return {
        "threshold": rounded(threshold),
        "nodules": len(nodules),
        "found": int((nodules >= threshold).sum()),
        "false_per_scan": rounded((false >= threshold).sum() / len(scans)),
        "by_size": by_size,
    }


def froc_figures(
    scans: Sequence[ScanScores], *, rule: HitRule, seed: int, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Everything that a report says of the scans of a detector, ready for JSON.

    Raises:
        ValueError: there are no scans.
    """
    if not scans:
        raise ValueError("a FROC needs at least one scan")
    pool = _Pool(scans)
    curve = pool.curve(np.ones(len(scans), np.int64))
    drawn = pool.resampled(RATES, seed, resamples)
    values = curve.at(RATES)
    nodules = int(sum(len(scan.nodules) for scan in scans))
    return {
        "protocol": PROTOCOLS[rule],
        "scans": len(scans),
        "nodules": nodules,
        "candidates_on_nothing": int(sum(len(scan.false) for scan in scans)),
        "cpm": _figure(values.mean()),
        "cpm_ci95": interval(drawn.mean(axis=1)),
        "sensitivity": [
            {"false_per_scan": rate, "value": _figure(value), "ci95": interval(column)}
            for rate, value, column in zip(RATES, values, drawn.T, strict=True)
        ],
        "curve_ends_at_false_per_scan": rounded(curve.false_per_scan[-1]),
        "by_size": [{"size": name, **_of_size(scans, low, high, seed, resamples)} for name, low, high in SIZES_MM],
        "from_6_mm": _of_size(scans, 6.0, np.inf, seed, resamples),
        "bootstrap": {"by": "scan", "resamples": resamples, "seed": seed, "confidence": CONFIDENCE},
    }


def _of_size(scans: Sequence[ScanScores], low: float, high: float, seed: int, resamples: int) -> dict[str, Any]:
    """Sensitivity for the nodules of some diameters, at 1 and at 8 false positives per scan."""
    pool = _Pool(scans, lambda diameters: (diameters >= low) & (diameters < high))
    at = pool.curve(np.ones(len(scans), np.int64)).at((1.0, 8.0))
    drawn = pool.resampled((8.0,), seed, resamples)
    return {
        "nodules": int(sum(((s.diameters_mm >= low) & (s.diameters_mm < high)).sum() for s in scans)),
        "at_1_false_per_scan": _figure(at[0]),
        "at_8_false_per_scan": _figure(at[1]),
        "at_8_false_per_scan_ci95": interval(drawn[:, 0]),
    }


def band(scans: Sequence[ScanScores], rates: Floats, *, seed: int, resamples: int = RESAMPLES) -> tuple[Floats, Floats]:
    """Lower and upper end of the interval of the sensitivity at each rate, for a plot."""
    drawn = _Pool(scans).resampled(rates, seed, resamples)
    defined = drawn[~np.isnan(drawn).any(axis=1)]
    if not len(defined):
        return np.full(len(rates), np.nan), np.full(len(rates), np.nan)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(defined, [tail, 100 - tail], axis=0)
    return low, high


def _figure(value: float | np.floating[Any]) -> float | None:
    return None if np.isnan(value) else rounded(value)
