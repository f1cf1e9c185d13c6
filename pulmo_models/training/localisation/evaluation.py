"""What the learned localisation is worth: slice by slice, and as the region of whole series beside the classical one.

The truth is the classical segmentation, since nobody drew lungs on these series: what is measured is agreement.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pulmo_models.ct.lung_boxes import SMALLEST_SHARE, LungLocaliser
from pulmo_models.ct.lungs import localise_lungs
from pulmo_models.pipeline import Rejection
from pulmo_models.training.localisation.data import LabelledSeries
from pulmo_models.training.localisation.module import overlap

DRAWS = 2000  # of the bootstrap
EDGES = ("left", "top", "right", "bottom")  # of the image


def evaluate(localiser: LungLocaliser, series: Sequence[LabelledSeries]) -> list[dict[str, Any]]:
    """Figures of each series."""
    return [{"series": one.name, **_slices(localiser, one), **_region(localiser, one)} for one in series]


def _slices(localiser: LungLocaliser, one: LabelledSeries) -> dict[str, Any]:
    """Overlap and error of the edges on slices with lungs; how many slices are taken for what they are not."""
    hu = np.ascontiguousarray(one.volume.hu)
    begun = time.perf_counter()
    found = localiser.boxes(hu)
    seconds = time.perf_counter() - begun
    with_lungs = one.boxes.any(axis=1)
    said = np.minimum(found[:, 2] - found[:, 0], found[:, 3] - found[:, 1]) >= SMALLEST_SHARE
    both = torch.from_numpy(found[with_lungs]).float(), torch.from_numpy(one.boxes[with_lungs])
    iou = overlap(*both).numpy()
    _, row_mm, column_mm = one.volume.spacing_mm
    scale_mm = np.array([hu.shape[2] * column_mm, hu.shape[1] * row_mm] * 2)
    error_mm = np.abs(found[with_lungs] - one.boxes[with_lungs]) * scale_mm
    return {
        "slices": len(found),
        "with_lungs": int(with_lungs.sum()),
        "iou_mean": round(float(iou.mean()), 4),
        "iou_95_percent": _interval(iou),
        "iou_5_percent": round(float(np.quantile(iou, 0.05)), 4),
        "edge_error_mm": {
            name: round(float(value), 2) for name, value in zip(EDGES, error_mm.mean(axis=0), strict=True)
        },
        "lungs_missed": int((with_lungs & ~said).sum()),
        "lungs_invented": int((~with_lungs & said).sum()),
        "seconds_a_slice": round(seconds / len(found), 4),
    }


def _interval(values: np.ndarray[Any, Any]) -> list[float]:
    """95 % of the means of slices drawn again. It tells nothing of other patients: slices of one series are alike."""
    draws = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    return [round(float(edge), 4) for edge in np.quantile(values[draws].mean(axis=1), (0.025, 0.975))]


def _region(localiser: LungLocaliser, one: LabelledSeries) -> dict[str, Any]:
    """Share of the lung voxels in the region that a detector would search, and what the region costs."""
    begun = time.perf_counter()
    classical = localise_lungs(one.volume)
    middle = time.perf_counter()
    try:
        learned = localiser(one.volume)
    except Rejection as exc:
        return {"rejected": exc.code, "classical_seconds": round(middle - begun, 2)}
    ended = time.perf_counter()
    return {
        "recall_of_lung_voxels": round(float(learned.search[one.lungs].mean()), 5),
        "recall_classical": round(float(classical.search[one.lungs].mean()), 5),
        "searched_share": round(float(learned.search.mean()), 4),
        "searched_share_classical": round(float(classical.search.mean()), 4),
        "learned_seconds": round(ended - middle, 2),
        "classical_seconds": round(middle - begun, 2),
    }
