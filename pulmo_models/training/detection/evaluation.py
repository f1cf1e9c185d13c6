"""What a detector of boxes is worth on whole scans: COCO's figures, and LUNA16's FROC beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pulmo_models.ct.boxes import SelectionSettings, select
from pulmo_models.ct.retinanet import DetectorSettings, Size, head_maps
from pulmo_models.device import Runner
from pulmo_models.training.detection.folds import FoldScan, GridScan, on_grid
from pulmo_models.training.metrics.boxes import THRESHOLDS, ImageBoxes, box_figures
from pulmo_models.training.metrics.froc import Places, froc_figures, score_scan

Floats = npt.NDArray[np.float64]

NOTHING_EXCLUDED = "A fold has no list of excluded findings: candidates on them count as false here"


def find_boxes(network: nn.Module, scan: GridScan, window: Size, device: torch.device) -> tuple[Floats, Floats]:
    """Boxes ``(n, 6)`` on the grid of the scan and their scores, at the published selection."""
    runner = Runner(network, device, "auto")
    logits, codes = head_maps(scan.image, runner, DetectorSettings(window=window))
    found = select(logits, codes, scan.image.shape, SelectionSettings())
    return found.corners.double().numpy(), found.scores.double().numpy()


def evaluate(
    network: nn.Module, scans: Sequence[FoldScan], window: Size, device: torch.device, seed: int = 0
) -> dict[str, Any]:
    """Both kinds of figures over some scans, ready for JSON. A nodule's diameter is the mean side of its box."""
    seen, scored = [], []
    for scan in scans:
        grid = on_grid(scan)
        boxes, scores = find_boxes(network, grid, window, device)
        seen.append(ImageBoxes(boxes=boxes, scores=scores, truth=grid.boxes))
        centres = (boxes[:, :3] + boxes[:, 3:]) / 2
        places_mm = centres @ grid.to_lps[:3, :3].T + grid.to_lps[:3, 3]
        truth = Places(centres_mm=scan.boxes_lps_mm[:, :3], diameters_mm=scan.boxes_lps_mm[:, 3:].mean(axis=1))
        scored.append(score_scan(scan.name, places_mm, scores, truth))
    figures = box_figures(seen)
    froc = froc_figures(scored, rule="luna16", seed=seed)
    return {
        "scans": len(seen),
        "nodules": int(sum(len(image.truth) for image in seen)),
        "coco": None if figures is None else {**asdict(figures), "selection": figures.selection},
        "coco_protocol": f"IoU {THRESHOLDS[0]:.2f} to {THRESHOLDS[-1]:.2f} by 0.05, at most 100 boxes a scan",
        "froc": {**froc, "protocol": f"{froc['protocol']}. {NOTHING_EXCLUDED}"},
    }
