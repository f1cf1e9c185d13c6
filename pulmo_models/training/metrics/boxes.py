"""COCO's figures for boxes in 3D, as MONAI's `COCOMetric` computes them for one class.

Detections are matched best score first, each to the nearest truth that is still free and overlaps enough; precision is
read at 101 recalls after being made to fall. Boxes are ``(n, 6)``: low corner, high corner, in any unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

THRESHOLDS = tuple(round(0.1 + 0.05 * n, 2) for n in range(9))
"""Overlaps (IoU) from 0.10 to 0.50."""

RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100  # detections of an image that count


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageBoxes:
    """What was found in one image, and what is there."""

    boxes: Floats
    scores: Floats
    truth: Floats


@dataclass(frozen=True, kw_only=True)
class BoxFigures:
    """Mean average precision and recall over the overlaps, and both at the first of them."""

    mean_precision: float
    mean_recall: float
    precision_at_10: float
    recall_at_10: float

    @property
    def selection(self) -> float:
        """The number by which the bundle chooses a model."""
        return (self.mean_precision + self.mean_recall + self.precision_at_10 + self.recall_at_10) / 4


def box_figures(images: Sequence[ImageBoxes], most: int = MOST) -> BoxFigures | None:
    """The figures over all images; None where there is no truth at all."""
    count = sum(len(image.truth) for image in images)
    if not count:
        return None
    orders = [np.argsort(-image.scores, kind="stable")[:most] for image in images]
    scores = np.concatenate([image.scores[order] for image, order in zip(images, orders, strict=True)])
    best_first = np.argsort(-scores, kind="stable")
    precisions, recalls = [], []
    overlaps = [overlap(image.boxes[order], image.truth) for image, order in zip(images, orders, strict=True)]
    for threshold in THRESHOLDS:
        hits = np.concatenate([_matched(each, threshold) for each in overlaps])[best_first]
        precision, recall = _curve(hits, count)
        precisions.append(precision)
        recalls.append(recall)
    return BoxFigures(
        mean_precision=float(np.mean(precisions)),
        mean_recall=float(np.mean(recalls)),
        precision_at_10=precisions[0],
        recall_at_10=recalls[0],
    )


def overlap(first: Floats, second: Floats) -> Floats:
    """Intersection over union of every pair, ``(n, m)``."""
    low = np.maximum(first[:, None, :3], second[None, :, :3])
    high = np.minimum(first[:, None, 3:], second[None, :, 3:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    sizes = [(boxes[:, 3:] - boxes[:, :3]).prod(axis=1) for boxes in (first, second)]
    shares: Floats = common / np.maximum(sizes[0][:, None] + sizes[1][None] - common, 1e-12)
    return shares


def _matched(overlaps: Floats, threshold: float) -> npt.NDArray[np.bool_]:
    """Which of the detections, best first, hit a truth of their own."""
    free = np.ones(overlaps.shape[1], dtype=bool)
    hit = np.zeros(overlaps.shape[0], dtype=bool)
    for row, of_one in enumerate(overlaps):
        able = np.where(free & (of_one >= threshold), of_one, -1.0)
        if len(able) and able.max() >= 0:
            best = len(able) - 1 - int(np.argmax(able[::-1]))  # of equals the last one, as in COCO
            free[best], hit[row] = False, True
    return hit


def _curve(hits: npt.NDArray[np.bool_], count: int) -> tuple[float, float]:
    """Mean precision over the recalls, and the largest recall."""
    if not len(hits):
        return 0.0, 0.0
    true = np.cumsum(hits)
    recall, precision = true / count, true / np.arange(1, len(hits) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALLS, side="left")
    reached = places < len(falling)
    return float(np.where(reached, falling[np.minimum(places, len(falling) - 1)], 0.0).mean()), float(recall[-1])
