"""Figures of the concept bottleneck: how well each rating is predicted, and whether the sign of its weight is right.

Predictions and ratings are on the LIDC scale. internalStructure hardly varies in LIDC and is reported apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pulmo_models.training.metrics.resampling import RESAMPLES, Floats, draw_by_group, interval, rounded
from pulmo_models.types import CONCEPT_NAMES

APART = "internalStructure"

_Groups = Sequence[str] | npt.NDArray[Any]


def concept_figures(
    found: Floats, rated: Floats, groups: _Groups, seed: int, resamples: int = RESAMPLES
) -> list[dict[str, Any]]:
    """R² (share of the variance explained), mean absolute error and correlation of each concept.

    `found` and `rated` are ``(n, 8)``; a rating of NaN is left out. R² is None where the ratings do not vary.
    """
    figures = []
    for column, name in enumerate(CONCEPT_NAMES):
        known = np.isfinite(rated[:, column])
        truth, guess = rated[known, column], found[known, column]
        weights = draw_by_group(np.asarray(groups, dtype=str)[known], resamples, seed).astype(np.float64)
        r2 = _r2(truth, guess, np.ones((1, len(truth))))[0] if len(truth) else np.nan
        figures.append(
            {
                "concept": name,
                "number": len(truth),
                "r2": None if np.isnan(r2) else rounded(r2),
                "r2_ci95": interval(_r2(truth, guess, weights)) if len(truth) else None,
                "mae": rounded(np.abs(truth - guess).mean()) if len(truth) else None,
                "correlation": correlation(truth, guess),
                "mean_rating": rounded(truth.mean()) if len(truth) else None,
                "mean_predicted": rounded(guess.mean()) if len(truth) else None,
                "sd_of_ratings": rounded(truth.std()) if len(truth) else None,
            }
        )
    return figures


def _r2(truth: Floats, guess: Floats, weights: Floats) -> Floats:
    """1 - residual / total sum of squares in each resample; NaN where the ratings do not vary."""
    total = weights.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = weights @ truth / total
        spread = weights @ truth**2 / total - mean**2
        rest = weights @ (truth - guess) ** 2 / total
        return np.where(spread > 1e-9, 1 - rest / spread, np.nan)


def correlation(first: Floats, second: Floats) -> float | None:
    """Pearson's coefficient; None where one of them does not vary."""
    if len(first) < 2 or first.std() < 1e-9 or second.std() < 1e-9:
        return None
    return rounded(np.corrcoef(first, second)[0, 1])


def sign_table(
    weights: npt.ArrayLike, ratings: Floats, malignancy: Floats, groups: _Groups, seed: int, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """The sign of each concept's weight in the malignancy logit beside that of the ratings' own correlation with it.

    Args:
        weights: W[1] - W[0] of the malignancy head, ``(8,)``.
        ratings: mean ratings of the nodules ``(n, 8)``, NaN where nobody rated.
        malignancy: mean malignancy ratings ``(n,)``.
        groups: their patients.
        seed: of the bootstrap.
        resamples: of the bootstrap.
    """
    rows = []
    for column, (name, weight) in enumerate(zip(CONCEPT_NAMES, np.asarray(weights, dtype=np.float64), strict=True)):
        known = np.isfinite(ratings[:, column]) & np.isfinite(malignancy)
        rated, graded = ratings[known, column], malignancy[known]
        own = correlation(rated, graded)
        drawn = _correlations(rated, graded, draw_by_group(np.asarray(groups, dtype=str)[known], resamples, seed))
        rows.append(
            {
                "concept": name,
                "weight": rounded(weight),
                "correlation": own,
                "correlation_ci95": interval(drawn),
                "number": int(known.sum()),
                "agrees": None if own is None else bool(np.sign(weight) == np.sign(own)),
                "clear": _clear(interval(drawn)),
            }
        )
    judged = [row for row in rows if row["concept"] != APART and row["agrees"] is not None]
    clear = [row for row in judged if row["clear"]]
    return {
        "rows": rows,
        "judged": len(judged),
        "agreeing": sum(bool(row["agrees"]) for row in judged),
        "clear": len(clear),
        "clear_agreeing": sum(bool(row["agrees"]) for row in clear),
        "apart": APART,
    }


def _clear(ends: list[float] | None) -> bool:
    """Whether the interval of a correlation leaves no doubt of its sign."""
    return ends is not None and ends[0] * ends[1] > 0


def _correlations(first: Floats, second: Floats, times: npt.NDArray[np.int64]) -> Floats:
    if not len(first):
        return np.full(len(times), np.nan)
    weights = times / times.sum(axis=1, keepdims=True)
    a = first - (weights @ first)[:, None]
    b = second - (weights @ second)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        below = np.sqrt((weights * a**2).sum(axis=1) * (weights * b**2).sum(axis=1))
        return np.where(below > 1e-12, (weights * a * b).sum(axis=1) / below, np.nan)
