"""FROC by the LUNA16 protocol, against cases made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pulmo_models.training.metrics.froc import (
    RATES,
    Places,
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

INF = float("inf")


def places(*rows: tuple[float, float, float, float]) -> Places:
    table = np.array(rows, dtype=float).reshape(-1, 4)
    return Places(centres_mm=table[:, :3], diameters_mm=table[:, 3])


def points(*rows: tuple[float, float, float]) -> np.ndarray:
    return np.array(rows, dtype=float).reshape(-1, 3)


def scan(nodules: Sequence[float], false: Sequence[float], diameters: Sequence[float] | None = None) -> ScanScores:
    return ScanScores(
        scan="scan",
        nodules=np.array(nodules, dtype=float),
        diameters_mm=np.array(diameters if diameters is not None else [10.0] * len(nodules)),
        false=np.array(false, dtype=float),
    )


def test_luna16_hits_inside_the_radius_and_published_within_five_millimetres() -> None:
    at = points((0, 0, 2.9), (0, 0, 3.0), (0, 0, 5.0), (0, 0, 5.1))
    nodule = places((0, 0, 0, 6))
    assert on_places(at, nodule, "luna16")[:, 0].tolist() == [True, False, False, False]
    assert on_places(at, nodule, "published")[:, 0].tolist() == [True, True, True, False]
    assert on_places(points((0, 0, 9.9)), places((0, 0, 0, 20)), "luna16").all()
    assert on_places(points((0, 0, 10.0)), places((0, 0, 0, 20)), "published").all()


def test_a_finding_without_a_diameter_reaches_five_millimetres() -> None:
    assert on_places(points((4.9, 0, 0), (5.1, 0, 0)), places((0, 0, 0, -1)))[:, 0].tolist() == [True, False]


def test_the_best_candidate_on_a_nodule_counts_and_the_rest_neither_way() -> None:
    candidates = points((0, 0, 0), (1, 0, 0), (50, 0, 0))
    scored = score_scan("a", candidates, np.array([0.4, 0.9, 0.3]), places((0, 0, 0, 8), (90, 0, 0, 8)))
    assert scored.nodules.tolist() == [0.9, -INF]
    assert scored.false.tolist() == [0.3]


def test_a_candidate_inside_two_nodules() -> None:
    two = places((0, 0, 0, 10), (4, 0, 0, 10))
    between = points((1.5, 0, 0))
    assert score_scan("a", between, np.array([0.7]), two).nodules.tolist() == [0.7, 0.7]
    nearest = score_scan("a", between, np.array([0.7]), two, rule="published")
    assert nearest.nodules.tolist() == [0.7, -INF]
    assert not len(nearest.false)


def test_a_candidate_on_an_excluded_finding_counts_neither_way_unless_it_hits_a_nodule() -> None:
    candidates = points((0, 0, 0), (30, 0, 0), (60, 0, 0))
    excused = on_places(candidates, places((0, 0, 0, 10), (30, 0, 0, 10)))[:, :].any(axis=1)
    scored = score_scan("a", candidates, np.array([0.5, 0.6, 0.7]), places((1, 0, 0, 6)), excused)
    assert scored.nodules.tolist() == [0.5]
    assert scored.false.tolist() == [0.7]


def test_no_candidates() -> None:
    empty = score_scan("a", points(), np.zeros(0), places((0, 0, 0, 8)))
    assert empty.nodules.tolist() == [-INF]
    curve = froc_curve([empty])
    assert curve.at(RATES).tolist() == [0.0] * 7
    assert cpm(curve) == 0.0
    assert threshold_at([empty], 1.0) == INF


def test_everything_found_without_a_false_one() -> None:
    scans = [scan([0.9, 0.2], []), scan([0.5], [])]
    assert froc_curve(scans).at((0.0, 0.125, 8.0)).tolist() == [1.0, 1.0, 1.0]
    figures = froc_figures(scans, rule="luna16", seed=1, resamples=50)
    assert figures["cpm"] == 1.0
    assert figures["cpm_ci95"] == [1.0, 1.0]


def test_the_curve_by_hand() -> None:
    # In order: 0.9 hit, 0.8 false, 0.7 hit, 0.6 false, 0.5 false, 0.4 hit; one nodule is missed. Two scans.
    scans = [scan([0.9, 0.4], [0.8, 0.5]), scan([0.7, -INF], [0.6])]
    curve = froc_curve(scans)
    assert curve.false_per_scan.tolist() == [0, 0, 0.5, 0.5, 1.0, 1.5, 1.5]
    assert curve.sensitivity.tolist() == [0, 0.25, 0.25, 0.5, 0.5, 0.5, 0.75]
    assert curve.thresholds.tolist() == [INF, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    assert curve.at(RATES).tolist() == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 0.75]
    assert cpm(curve) == pytest.approx((0.25 + 0.25 + 0.5 + 0.5 + 3 * 0.75) / 7)


def test_at_the_coarse_end_fewer_scans_than_the_rate_needs_allow_no_false_one() -> None:
    # With two scans 1/8 and 1/4 a scan mean less than one false candidate: the sensitivity before the first.
    assert froc_curve([scan([0.9, 0.1], [0.5]), scan([0.3], [])]).at((0.125, 0.25, 0.5)).tolist() == pytest.approx(
        [1 / 3, 1 / 3, 1.0]
    )
    # The highest of all is a false one: nothing is found before it.
    assert froc_curve([scan([0.5], [0.9])]).at((0.125, 0.5, 1.0)).tolist() == [0.0, 0.0, 1.0]


def test_ties_are_accepted_together_and_read_on_the_line_between() -> None:
    curve = froc_curve([scan([0.5, 0.5], [0.5, 0.5])])
    assert curve.false_per_scan.tolist() == [0.0, 2.0]
    assert curve.sensitivity.tolist() == [0.0, 1.0]
    assert curve.at(1.0) == pytest.approx(0.5)
    assert threshold_at([scan([0.5, 0.5], [0.5, 0.5])], 1.0) == INF
    assert threshold_at([scan([0.5, 0.5], [0.5, 0.5])], 2.0) == 0.5


def test_beyond_its_end_the_curve_keeps_its_last_value() -> None:
    figures = froc_figures([scan([0.9, -INF], [0.4])], rule="luna16", seed=1, resamples=10)
    assert figures["sensitivity"][-1]["value"] == 0.5
    assert figures["curve_ends_at_false_per_scan"] == 1.0


def test_sizes() -> None:
    scans = [scan([0.9, 0.3, -INF, 0.6, 0.2], [0.8, 0.5, 0.5], [5.9, 6.0, 7.9, 15.0, 40.0])]
    figures = froc_figures(scans, rule="luna16", seed=1, resamples=20)
    rows = {
        row["size"]: (row["nodules"], row["at_1_false_per_scan"], row["at_8_false_per_scan"])
        for row in figures["by_size"]
    }
    assert rows == {
        "< 6 mm": (1, 1.0, 1.0), "6-8 mm": (2, 0.0, 0.5), "8-15 mm": (0, None, None), "≥ 15 mm": (2, 0.5, 1.0),
    }  # fmt: skip
    assert figures["from_6_mm"]["at_8_false_per_scan"] == 0.75
    assert figures["from_6_mm"]["at_1_false_per_scan"] == 0.25


def test_the_operating_point_keeps_to_its_rate() -> None:
    scans = [scan([0.9, 0.35], [0.8, 0.3, 0.1]), scan([0.2], [0.35])]
    assert threshold_at(scans, 0.5) == 0.8
    assert threshold_at(scans, 1.0) == 0.35
    assert threshold_at(scans, 8.0) == 0.1
    assert threshold_at(scans, 0.25) == 0.9
    found = at_threshold(scans, 0.35)
    assert (found["found"], found["false_per_scan"]) == (2, 1.0)
    assert [row["found"] for row in found["by_size"]] == [0, 0, 2, 0]


def test_the_interval_is_of_scans_and_repeats_with_its_seed() -> None:
    scans = [scan([0.9], []) for _ in range(10)] + [scan([-INF], []) for _ in range(10)]
    first = froc_figures(scans, rule="luna16", seed=5)
    assert first == froc_figures(scans, rule="luna16", seed=5)
    low, high = first["cpm_ci95"]
    # The mean of 20 independent coins: 0.5 +- 1.96 x 0.112.
    assert low == pytest.approx(0.28, abs=0.05)
    assert high == pytest.approx(0.72, abs=0.05)
    # One scan with every nodule is no evidence of anything: resampling scans gives it again and again.
    one = froc_figures([scan([0.9] * 10 + [-INF] * 10, [])], rule="luna16", seed=5, resamples=20)
    assert one["cpm_ci95"] == [0.5, 0.5]
    lower, upper = band(scans, np.array([1.0]), seed=5)
    assert [round(float(lower[0]), 4), round(float(upper[0]), 4)] == first["cpm_ci95"]


def test_a_resample_without_a_nodule_is_left_out() -> None:
    figures = froc_figures([scan([0.9], []), scan([], [0.5])], rule="luna16", seed=1, resamples=100)
    assert figures["cpm_ci95"] == [1.0, 1.0]
    without = froc_figures([scan([], [0.5])], rule="luna16", seed=1, resamples=10)
    assert without["cpm"] is None
    assert without["cpm_ci95"] is None
    with pytest.raises(ValueError, match="at least one scan"):
        froc_figures([], rule="luna16", seed=1)
