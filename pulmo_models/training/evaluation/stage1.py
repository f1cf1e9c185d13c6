"""Stage 1 on whole scans: FROC of the detector, and of both stages at the operating point of the first."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pulmo_models.geometry import index_to_lps, lps_to_index
from pulmo_models.training.evaluation import plots
from pulmo_models.training.evaluation.analysis import LOWEST_HEAT, Analyst, search_mask
from pulmo_models.training.evaluation.plots import Crop
from pulmo_models.training.evaluation.scans import Scan
from pulmo_models.training.metrics.froc import (
    HitRule,
    ScanScores,
    at_threshold,
    band,
    cpm,
    froc_curve,
    froc_figures,
    on_places,
    score_scan,
    threshold_at,
)
from pulmo_models.training.metrics.resampling import Floats, rounded
from pulmo_models.types import Volume

log = logging.getLogger(__name__)

SHOWN = 18
ASKED = 200  # candidates of a scan that stage 2 is asked about, best first: a detector at work gives a tenth of that
DOUBT = (
    "As stage 1, but candidates on places that look like nodules and have no truth (seen by eye, without a reader) "
    "count neither way."
)
CROP_MM = 40.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """A scan by stage 1 alone, and by stage 2's probability of those candidates that reach a peak threshold."""

    series: str
    stage1: ScanScores
    undoubted: ScanScores  # stage 1 without the candidates on doubtful places; the same where there are none
    both: Callable[[float], ScanScores] | None
    missed: tuple[Crop, ...]
    false: tuple[tuple[float, Crop], ...]


def score(scan: Scan, analyst: Analyst, rule: HitRule) -> Scored:
    """Run the detector over one scan and match what it found.

    Raises:
        Rejection: there are no lungs.
    """
    search = search_mask(scan.volume)
    heat = analyst.heat(scan.volume, search)
    candidates = analyst.peaks(heat, scan.volume, search, LOWEST_HEAT)
    indices = [candidate.index for candidate in candidates]
    points = _points(scan.volume, indices)
    heats = np.array([candidate.score for candidate in candidates])
    excused = np.logical_or.reduce(on_places(points, scan.excluded, rule), axis=1)
    doubtful = np.logical_or.reduce(on_places(points, scan.doubtful, rule), axis=1)
    first = score_scan(scan.name, points, heats, scan.nodules, excused, rule)
    both = None
    if analyst.characteriser is not None:
        probabilities = analyst.detection_probabilities(scan.volume, indices[:ASKED])

        def reaching(peak_threshold: float) -> ScanScores:
            kept = np.flatnonzero(heats[:ASKED] >= peak_threshold)
            return score_scan(scan.name, points[kept], probabilities[kept], scan.nodules, excused[kept], rule)

        both = reaching
    log.info("%s: %d nodules, %d candidates", scan.name, len(scan.nodules.diameters_mm), len(candidates))
    free = ~on_places(points, scan.nodules, rule).any(axis=1) & ~excused
    return Scored(
        series=scan.series,
        stage1=first,
        undoubted=score_scan(scan.name, points, heats, scan.nodules, excused | doubtful, rule),
        both=both,
        missed=tuple(_missed(scan, first, analyst.peak_threshold)),
        false=tuple(
            (float(heats[i]), crop_of(scan.volume, indices[i], f"heat {heats[i]:.2f}"))
            for i in np.flatnonzero(free)[:6]
        ),
    )


def refused(scan: Scan, analyst: Analyst, rule: HitRule) -> Scored:
    """A scan that was not analysed: nothing was found in it, and all of its nodules are missed."""
    nothing = score_scan(scan.name, np.zeros((0, 3)), np.zeros(0), scan.nodules, None, rule)
    return Scored(
        series=scan.series,
        stage1=nothing,
        undoubted=nothing,
        both=None if analyst.characteriser is None else lambda _: nothing,
        missed=tuple(_missed(scan, nothing, analyst.peak_threshold)),
        false=(),
    )


def _points(volume: Volume, indices: Sequence[Sequence[float]]) -> Floats:
    return np.array([index_to_lps(volume.affine, index) for index in indices]).reshape(-1, 3)


def _missed(scan: Scan, scores: ScanScores, threshold: float) -> Iterator[Crop]:
    for centre, diameter, best in zip(scan.nodules.centres_mm, scan.nodules.diameters_mm, scores.nodules, strict=True):
        if best < threshold:
            z, y, x = (round(value) for value in lps_to_index(scan.volume.affine, centre))
            heat = "no peak" if np.isinf(best) else f"heat {best:.2f}"
            yield crop_of(scan.volume, (z, y, x), f"{diameter:.0f} mm, {heat}")


def crop_of(volume: Volume, index: tuple[int, int, int], text: str, mask: npt.NDArray[np.bool_] | None = None) -> Crop:
    """The slice around a place, 40 mm wide, with a mask of the whole volume as outline."""
    z = min(max(index[0], 0), volume.hu.shape[0] - 1)
    box = []
    for axis in (1, 2):
        half = max(1, round(CROP_MM / 2 / volume.spacing_mm[axis]))
        low = min(max(index[axis] - half, 0), max(0, volume.hu.shape[axis] - 2 * half))
        box.append(slice(low, low + 2 * half))
    where = (z, *box)
    return Crop(
        hu=volume.hu[where].copy(),
        text=text,
        drawn=None if mask is None else mask[where].copy(),
        aspect=volume.spacing_mm[1] / volume.spacing_mm[2],
    )


@dataclass(frozen=True, kw_only=True)
class Rates:
    """False positives per scan of the operating point."""

    stage1: float = 8.0
    both: float = 2.0


def scan_figures(
    scored: Sequence[Scored], analyst: Analyst, rule: HitRule, rates: Rates, seed: int, resamples: int
) -> dict[str, Any]:
    """FROC of stage 1 and of both stages, and the thresholds at the wanted rates.

    Raises:
        ValueError: there are no scans.
    """
    first = [scan.stage1 for scan in scored]
    threshold = threshold_at(first, rates.stage1)
    figures: dict[str, Any] = {
        "stage1": froc_figures(first, rule=rule, seed=seed, resamples=resamples)
        | {"at_the_default_threshold": at_threshold(first, analyst.peak_threshold)},
        "by_scan": [
            {
                "scan": scan.scan,
                "nodules": len(scan.nodules),
                "found": int((scan.nodules >= analyst.peak_threshold).sum()),
                "false": int((scan.false >= analyst.peak_threshold).sum()),
            }
            for scan in first
        ],
        "by_series": [
            _of_series(name, [scan.stage1 for scan in scored if scan.series == name])
            for name in dict.fromkeys(scan.series for scan in scored)
        ],
        "operating_point": {"peak_threshold": _finite(threshold), "false_per_scan": rates.stage1},
    }
    undoubted = [scan.undoubted for scan in scored]
    if any(len(a.false) != len(b.false) for a, b in zip(first, undoubted, strict=True)):
        figures["undoubted"] = froc_figures(undoubted, rule=rule, seed=seed, resamples=resamples) | {
            "at_the_default_threshold": at_threshold(undoubted, analyst.peak_threshold),
            "protocol": DOUBT,
        }
    if both := _both(scored, analyst.peak_threshold):
        figures["both_stages"] = froc_figures(both, rule=rule, seed=seed, resamples=resamples) | {
            "at_the_default_threshold": at_threshold(both, analyst.detection_threshold),
            "peak_threshold": analyst.peak_threshold,
        }
        figures["operating_point"] |= {
            "detection_threshold": _finite(threshold_at(_both(scored, threshold), rates.both)),
            "findings_false_per_scan": rates.both,
        }
    return figures


def _both(scored: Sequence[Scored], peak_threshold: float) -> list[ScanScores]:
    return [scan.both(peak_threshold) for scan in scored if scan.both is not None]


def _of_series(name: str, scans: Sequence[ScanScores]) -> dict[str, Any]:
    """Figures of the variants of one series."""
    curve = froc_curve(scans)
    large = froc_curve(scans, lambda diameters: diameters >= 6.0)
    nodules = sum(len(scan.nodules) for scan in scans)
    return {
        "series": name,
        "scans": len(scans),
        "nodules": nodules,
        "cpm": rounded(cpm(curve)) if nodules else None,
        "from_6_mm_at_8_false_per_scan": _defined(float(large.at(8.0))),
    }


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else rounded(value)


def _finite(threshold: float) -> float | None:
    return None if np.isinf(threshold) else math.floor(threshold * 1e4) / 1e4  # down, so that it is reached


def scan_images(
    scored: Sequence[Scored], figures: dict[str, Any], name: str, seed: int, resamples: int
) -> dict[str, bytes]:
    """FROC with its band, sensitivity by size, missed nodules and the hottest false candidates."""
    rates = np.geomspace(0.1, 10, 60)
    curves = {}
    for label, scans in (
        ("stage 1", [scan.stage1 for scan in scored]),
        ("both stages", _both(scored, figures.get("both_stages", {}).get("peak_threshold", np.inf))),
    ):
        if scans and sum(len(scan.nodules) for scan in scans):
            curves[label] = (froc_curve(scans), rates, *band(scans, rates, seed=seed, resamples=resamples))
    images = {}
    if curves:
        images[f"{name}-froc"] = plots.froc_plot(curves)
        images[f"{name}-sizes"] = plots.size_plot(figures["stage1"]["by_size"])
    missed = [crop for scan in scored for crop in scan.missed][:SHOWN]
    false = sorted((pair for scan in scored for pair in scan.false), key=lambda pair: -pair[0])[:SHOWN]
    if missed:
        images[f"{name}-missed"] = plots.contact_sheet(missed)
    if false:
        images[f"{name}-false"] = plots.contact_sheet([crop for _, crop in false])
    return images
