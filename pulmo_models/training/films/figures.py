"""Figures of a multi-label classifier: AUROC and area under the precision-recall curve, by label and their means.

The area under the precision-recall curve is the average precision (Zhu, 2004: the sum of precision times step of
recall, as scikit-learn computes it). A label with one class has neither and is left out of the means. Intervals by
bootstrap of the patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pulmo_models.cxr.settings import LABELS
from pulmo_models.training.metrics.classification import auc
from pulmo_models.training.metrics.resampling import draw_by_group, interval, rounded

RESAMPLES = 1000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Probabilities and truth of a set of films."""

    probabilities: Floats  # (films, labels)
    targets: Floats  # (films, labels), 0 or 1
    patients: Sequence[str]


def average_precision(
    scores: npt.ArrayLike, positive: npt.NDArray[np.bool_], weights: npt.ArrayLike | None = None
) -> float:
    """Average precision, each film counted ``weights`` times; NaN without a positive or without a negative."""
    values = np.asarray(scores, dtype=np.float64)
    counts = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    hits, total = counts * positive, counts
    if not hits.sum() or hits.sum() == total.sum():
        return float("nan")
    order = np.argsort(-values, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
    found, called = np.cumsum(hits[order])[ends], np.cumsum(total[order])[ends]
    recall = found / hits.sum()
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def areas(scored: Scored) -> dict[str, float]:
    """``auc_<label>``, ``pr_<label>``, ``macro_auroc`` and ``macro_pr_auc``; NaN where there is none."""
    found: dict[str, float] = {}
    for number, label in enumerate(LABELS):
        positive = scored.targets[:, number] > 0.5
        found[f"auc_{label}"] = auc(scored.probabilities[:, number], positive)
        found[f"pr_{label}"] = average_precision(scored.probabilities[:, number], positive)
    return {**found, **_means(found)}


def figures(scored: Scored, seed: int, resamples: int = RESAMPLES) -> dict[str, dict[str, Any]]:
    """The same with 95 % intervals: ``{"value", "ci95"}`` of each, and for labels how many films have it."""
    plain = areas(scored)
    drawn: dict[str, list[float]] = {key: [] for key in plain}
    for counts in draw_by_group(scored.patients, resamples, seed):
        films = np.repeat(np.arange(len(counts)), counts)
        again = Scored(
            probabilities=scored.probabilities[films], targets=scored.targets[films], patients=[""] * len(films)
        )
        for key, value in areas(again).items():
            drawn[key].append(value)
    found: dict[str, dict[str, Any]] = {}
    for key, value in plain.items():
        found[key] = {"value": None if np.isnan(value) else rounded(value), "ci95": interval(drawn[key])}
        label = key.partition("_")[2]
        if label in LABELS:
            found[key]["positives"] = int(scored.targets[:, LABELS.index(label)].sum())
            found[key]["films"] = len(scored.targets)
    return found


def _means(found: dict[str, float]) -> dict[str, float]:
    def mean(kind: str) -> float:
        values = [found[f"{kind}_{label}"] for label in LABELS]
        defined = [value for value in values if not np.isnan(value)]
        return float(np.mean(defined)) if defined else float("nan")

    return {"macro_auroc": mean("auc"), "macro_pr_auc": mean("pr")}
