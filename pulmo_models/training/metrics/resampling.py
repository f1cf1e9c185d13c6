"""Bootstrap by scan or by patient, and the form in which figures are written.

A resample draws as many groups as there are, with replacement, and everything of a group goes along. It is held as how
often each group was drawn, so that a statistic of many resamples is one weighted computation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

CONFIDENCE = 0.95
RESAMPLES = 1000
DIGITS = 4


def draw(groups: int, resamples: int, seed: int) -> Counts:
    """How often each group was drawn, ``(resamples, groups)``; each row sums to `groups`."""
    random = np.random.default_rng(seed)
    if groups == 0:
        return np.zeros((resamples, 0), np.int64)
    return random.multinomial(groups, np.full(groups, 1 / groups), size=resamples)


def draw_by_group(labels: Sequence[str] | npt.NDArray[Any], resamples: int, seed: int) -> Counts:
    """How often each item was drawn with its group, ``(resamples, items)``."""
    names, numbers = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    return draw(len(names), resamples, seed)[:, numbers]


def interval(values: npt.ArrayLike) -> list[float] | None:
    """Percentile interval of the resamples in which the statistic was defined (not NaN); None where it never was."""
    defined = np.asarray(values, dtype=np.float64)
    defined = defined[~np.isnan(defined)]
    if not len(defined):
        return None
    tail = 50 * (1 - CONFIDENCE)
    return [rounded(value) for value in np.percentile(defined, [tail, 100 - tail])]


def weighted_means(values: npt.ArrayLike, weights: Counts) -> Floats:
    """The mean in each resample; NaN where nothing was drawn."""
    total = weights.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(weights @ np.asarray(values, dtype=np.float64) / total, dtype=np.float64)


def mean_figures(values: npt.ArrayLike, labels: Sequence[str] | npt.NDArray[Any], seed: int, resamples: int) -> Any:
    """Mean with its interval by group; None where there are no values."""
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        return None
    means = weighted_means(numbers, draw_by_group(labels, resamples, seed))
    return {"value": rounded(numbers.mean()), "ci95": interval(means), "number": len(numbers)}


def rounded(value: float | np.floating[Any]) -> float:
    """A figure as it is written."""
    return round(float(value), DIGITS)
