"""Figures of a classifier: ROC AUC, operating points, calibration, Dice. Numpy only; intervals by patient.

A statistic that a sample cannot have (an AUC without one of the classes) is None, and resamples without it are left
out of the interval and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pulmo_models.training.metrics.resampling import RESAMPLES, Counts, Floats, draw_by_group, interval, rounded

SPECIFICITIES = (0.90, 0.95)
BINS = 10

_Bools = npt.NDArray[np.bool_]
_Groups = Sequence[str] | npt.NDArray[Any]


def auc(scores: npt.ArrayLike, positive: _Bools) -> float:
    """Area under the ROC curve: the share of pairs in the right order, ties counted half; NaN without a class."""
    return float(_aucs(np.asarray(scores, dtype=np.float64), positive, np.ones((1, len(positive)), np.int64))[0])


def _aucs(scores: Floats, positive: _Bools, weights: Counts) -> Floats:
    """The AUC in each resample; NaN where a class is missing."""
    if not len(scores):
        return np.full(len(weights), np.nan)
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))
    above = np.add.reduceat(weights[:, order] * positive[order], starts, axis=1)
    below = np.add.reduceat(weights[:, order] * ~positive[order], starts, axis=1)
    before = np.cumsum(below, axis=1) - below
    pairs = above.sum(axis=1) * below.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((above * (before + 0.5 * below)).sum(axis=1) / pairs, dtype=np.float64)


def auc_figures(
    scores: npt.ArrayLike, positive: _Bools, groups: _Groups, seed: int, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """AUC with its interval by group (patient)."""
    values = np.asarray(scores, dtype=np.float64)
    area = auc(values, positive)
    drawn = _aucs(values, positive, draw_by_group(groups, resamples, seed))
    return {
        "value": None if np.isnan(area) else rounded(area),
        "ci95": interval(drawn),
        "positives": int(positive.sum()),
        "negatives": int((~positive).sum()),
        "patients": len(np.unique(np.asarray(groups, dtype=str))),
        "resamples_without_a_class": int(np.isnan(drawn).sum()),
    }


def roc_points(scores: npt.ArrayLike, positive: _Bools) -> tuple[Floats, Floats, Floats]:
    """False positive rate, sensitivity and threshold (score >= threshold), from (0, 0) on.

    Raises:
        ValueError: a class is missing.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not positive.any() or positive.all():
        raise ValueError("a ROC curve needs both classes")
    order = np.argsort(-values, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
    hits = np.cumsum(positive[order])[ends] / positive.sum()
    alarms = np.cumsum(~positive[order])[ends] / (~positive).sum()
    return np.append(0.0, alarms), np.append(0.0, hits), np.append(np.inf, values[order][ends])


def operating_points(scores: npt.ArrayLike, positive: _Bools) -> list[dict[str, Any]]:
    """The threshold of Youden's index (1950), and the best sensitivity at fixed specificities; none without a class."""
    if not positive.any() or positive.all():
        return []
    alarms, hits, thresholds = roc_points(scores, positive)
    chosen = [("Youden", int(np.argmax(hits - alarms)))]
    for specificity in SPECIFICITIES:
        allowed = np.flatnonzero(1 - alarms >= specificity - 1e-12)
        chosen.append((f"specificity ≥ {specificity:.2f}", int(allowed[np.argmax(hits[allowed])])))
    return [
        {
            "rule": rule,
            "threshold": None if np.isinf(thresholds[at]) else rounded(thresholds[at]),
            "sensitivity": rounded(hits[at]),
            "specificity": rounded(1 - alarms[at]),
            "balanced_accuracy": rounded((hits[at] + 1 - alarms[at]) / 2),
        }
        for rule, at in chosen
    ]


def calibration(probabilities: npt.ArrayLike, positive: _Bools, bins: int = BINS) -> dict[str, Any] | None:
    """Expected calibration error (Guo et al., ICML 2017) over bins of equal width, and the Brier score.

    None where there are no samples. ECE is of the share of positives in this sample, which is no prevalence.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    if not len(values):
        return None
    number = np.minimum((values * bins).astype(int), bins - 1)
    table = []
    for which in range(bins):
        inside = number == which
        if inside.any():
            table.append(
                {
                    "from": rounded(which / bins),
                    "to": rounded((which + 1) / bins),
                    "number": int(inside.sum()),
                    "mean_probability": rounded(values[inside].mean()),
                    "share_of_positives": rounded(positive[inside].mean()),
                }
            )
    gaps = sum(row["number"] * abs(row["mean_probability"] - row["share_of_positives"]) for row in table)
    return {
        "ece": rounded(gaps / len(values)),
        "brier": rounded(((values - positive) ** 2).mean()),
        "bins": table,
    }


def dice(drawn: _Bools, truth: _Bools) -> float:
    """Dice coefficient of two masks of one shape; 1 where both are empty."""
    total = int(drawn.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2 * int((drawn & truth).sum()) / total
