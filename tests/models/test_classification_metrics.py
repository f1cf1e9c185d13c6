"""AUC, operating points, calibration, Dice, concepts, signs: numbers with a known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pulmo_models.training.metrics.classification import (
    auc,
    auc_figures,
    calibration,
    dice,
    operating_points,
    roc_points,
)
from pulmo_models.training.metrics.concepts import concept_figures, sign_table
from pulmo_models.training.metrics.resampling import draw_by_group, interval, mean_figures, weighted_means
from pulmo_models.types import CONCEPT_NAMES


def flags(*values: int) -> np.ndarray:
    return np.array(values, dtype=bool)


def test_auc_counts_pairs_and_ties_half() -> None:
    assert auc([0.1, 0.4, 0.4, 0.9], flags(0, 0, 1, 1)) == pytest.approx((2 + 0.5 + 1) / 4)
    assert auc([0.5, 0.5, 0.5], flags(0, 1, 1)) == 0.5
    assert auc([1, 2, 3], flags(1, 0, 0)) == 0.0
    assert math.isnan(auc([0.2, 0.3], flags(1, 1)))
    assert math.isnan(auc([], flags()))


def test_auc_agrees_with_counting_every_pair() -> None:
    random = np.random.default_rng(3)
    scores, positive = random.integers(0, 20, 150) / 20, random.random(150) < 0.3
    above = scores[positive][:, None] - scores[~positive][None]
    assert auc(scores, positive) == pytest.approx(((above > 0) + 0.5 * (above == 0)).mean())


def test_the_interval_of_an_auc_is_by_patient_and_leaves_out_resamples_without_a_class() -> None:
    # One patient has the only positive: about a third of the resamples of three patients do not hold it.
    figures = auc_figures([0.9, 0.2, 0.1], flags(1, 0, 0), ["a", "b", "c"], seed=1, resamples=300)
    assert figures["value"] == 1.0
    assert figures["ci95"] == [1.0, 1.0]
    assert 60 <= figures["resamples_without_a_class"] <= 130
    none = auc_figures([0.9, 0.2], flags(0, 0), ["a", "b"], seed=1, resamples=20)
    assert none["value"] is None
    assert none["ci95"] is None
    # The same samples as two patients, or as many: patients that go together make the interval wider.
    random = np.random.default_rng(0)
    positive = np.arange(200) % 2 == 0
    blocks = np.repeat(np.arange(10), 20)
    scores = positive * 0.5 + random.normal(0, 1, 200) + random.normal(0, 1, 10)[blocks] * np.where(positive, 1, -1)
    together, apart = (auc_figures(scores, positive, g, seed=2)["ci95"] for g in (blocks, np.arange(200)))
    assert together[1] - together[0] > 1.5 * (apart[1] - apart[0])


def test_everything_of_a_patient_is_drawn_together() -> None:
    times = draw_by_group(["a", "a", "b", "c"], 50, seed=1)
    assert (times[:, 0] == times[:, 1]).all()
    assert (times[:, [0, 2, 3]].sum(axis=1) == 3).all()
    assert weighted_means([1.0, 3.0], np.array([[2, 0], [1, 1], [0, 0]])).tolist() == pytest.approx(
        [1.0, 2.0, math.nan], nan_ok=True
    )
    assert interval([math.nan]) is None
    assert mean_figures([], [], 1, 10) is None
    assert mean_figures([0.5, 0.7], ["a", "a"], 1, 10) == {"value": 0.6, "ci95": [0.6, 0.6], "number": 2}


def test_roc_and_operating_points_by_hand() -> None:
    scores, positive = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], flags(1, 1, 0, 1, 0, 0)
    alarms, hits, thresholds = roc_points(scores, positive)
    assert alarms.tolist() == pytest.approx([0, 0, 0, 1 / 3, 1 / 3, 2 / 3, 1])
    assert hits.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 2 / 3, 1, 1, 1])
    assert thresholds[3] == 0.7
    youden, at_90, at_95 = operating_points(scores, positive)
    assert (youden["threshold"], youden["sensitivity"], youden["specificity"]) in (
        (0.8, 0.6667, 1.0),
        (0.6, 1.0, 0.6667),
    )
    assert at_90 == {
        "rule": "specificity ≥ 0.90", "threshold": 0.8, "sensitivity": 0.6667, "specificity": 1.0,
        "balanced_accuracy": 0.8333,
    }  # fmt: skip
    assert at_95["threshold"] == 0.8
    assert operating_points([0.1], flags(1)) == []


def test_calibration_by_hand() -> None:
    figures = calibration([0.12, 0.18, 0.92, 0.98, 1.0], flags(0, 1, 1, 1, 0))
    assert figures is not None
    low, high = figures["bins"]
    assert (low["number"], low["mean_probability"], low["share_of_positives"]) == (2, 0.15, 0.5)
    assert (high["number"], high["mean_probability"], high["share_of_positives"]) == (3, 0.9667, 0.6667)
    assert figures["ece"] == pytest.approx((2 * 0.35 + 3 * 0.3) / 5, abs=1e-4)
    assert figures["brier"] == pytest.approx((0.12**2 + 0.82**2 + 0.08**2 + 0.02**2 + 1) / 5, abs=1e-4)
    assert calibration([], flags()) is None


def test_dice() -> None:
    assert dice(flags(1, 1, 0, 0), flags(0, 1, 1, 0)) == 0.5
    assert dice(flags(0, 0), flags(0, 0)) == 1.0
    assert dice(flags(0, 0), flags(0, 1)) == 0.0


def ratings(count: int = 40) -> np.ndarray:
    random = np.random.default_rng(1)
    rated = random.uniform(1, 5, (count, len(CONCEPT_NAMES)))
    rated[:, CONCEPT_NAMES.index("internalStructure")] = 1.0
    return rated


def test_concept_figures_by_hand() -> None:
    rated = ratings()
    found = rated.copy()
    found[:, 2] = rated[:, 2].mean()  # the mean explains nothing
    found[:, 3] = rated[:, 3] + 0.5
    rated[0, 4] = np.nan
    rows = {row["concept"]: row for row in concept_figures(found, rated, [str(n) for n in range(40)], 1, 100)}
    assert rows["subtlety"]["r2"] == 1.0
    assert rows["internalStructure"]["r2"] is None
    assert rows["internalStructure"]["r2_ci95"] is None
    assert rows["internalStructure"]["mae"] == 0.0
    assert rows["calcification"]["r2"] == pytest.approx(0, abs=1e-4)
    assert rows["calcification"]["correlation"] is None
    assert rows["sphericity"]["r2"] == pytest.approx(1 - 0.25 / rated[:, 3].var(), abs=1e-4)
    assert rows["sphericity"]["mae"] == 0.5
    assert rows["sphericity"]["r2_ci95"][0] < rows["sphericity"]["r2"] < rows["sphericity"]["r2_ci95"][1]
    assert rows["margin"]["number"] == 39
    nothing = concept_figures(np.zeros((0, 8)), np.zeros((0, 8)), [], 1, 10)
    assert all(row["r2"] is None and row["number"] == 0 for row in nothing)


def test_signs_are_held_against_the_ratings() -> None:
    rated = ratings(200)
    spiculation, margin = CONCEPT_NAMES.index("spiculation"), CONCEPT_NAMES.index("margin")
    malignancy = 0.5 * rated[:, spiculation] - 0.3 * rated[:, margin] + 2
    weights = np.zeros(8)
    weights[spiculation], weights[margin], weights[1] = 1.0, 0.5, -0.9
    table = sign_table(weights, rated, malignancy, [str(n) for n in range(200)], 1, 100)
    rows = {row["concept"]: row for row in table["rows"]}
    assert rows["spiculation"]["agrees"] is True
    assert rows["spiculation"]["correlation"] == pytest.approx(
        np.corrcoef(rated[:, spiculation], malignancy)[0, 1], abs=1e-4
    )
    low, high = rows["spiculation"]["correlation_ci95"]
    assert low < rows["spiculation"]["correlation"] < high
    assert rows["margin"]["agrees"] is False
    assert rows["internalStructure"]["agrees"] is None
    assert table["judged"] == 7
    assert rows["spiculation"]["clear"]
    assert rows["margin"]["clear"]
    assert table["clear_agreeing"] == 1
    assert table["apart"] == "internalStructure"
    varied = rated.copy()
    varied[:, 1] = malignancy  # now it varies and disagrees, and is still not judged
    assert sign_table(weights, varied, malignancy, [str(n) for n in range(200)], 1, 10)["judged"] == 7
