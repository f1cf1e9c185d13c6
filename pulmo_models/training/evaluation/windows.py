"""Stage 1 on the windows of a patch store: a look at the detector without whole scans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pulmo_models.ct.candidates import CandidateSettings, heatmap, pick_peaks
from pulmo_models.device import Runner
from pulmo_models.training.evaluation.analysis import LOWEST_HEAT
from pulmo_models.training.metrics.froc import HitRule, Places, ScanScores, froc_figures, score_scan
from pulmo_models.training.splits import Split
from pulmo_models.training.store import PatchStore, Window

WINDOW_PROTOCOL = (
    "Windows of a patch store, each seen once by the network: no whole scans, so false positives are per window and no "
    "CPM of scans can be made of them. Candidates in boxes where the truth is not known count neither way."
)


def window_figures(
    stores: Sequence[PatchStore], split: Split, runner: Runner, rule: HitRule, *, seed: int, resamples: int
) -> dict[str, Any]:
    """Sensitivity over false positives per window.

    Raises:
        ValueError: the stores have no window of that split.
    """
    scans = [
        _score_window(store.window(int(row)), f"{store.path.name} {row}", runner, rule)
        for store in stores
        for row in store.rows("stage1", split)
    ]
    if not scans:
        raise ValueError(f"no window of the split {split!r} in {', '.join(store.path.name for store in stores)}")
    figures = froc_figures(scans, rule=rule, seed=seed, resamples=resamples)
    return {
        "protocol": f"{WINDOW_PROTOCOL} {figures['protocol']}",
        "windows": figures["scans"],
        "nodules": figures["nodules"],
        "sensitivity": [
            {"false_per_window": row["false_per_scan"], "value": row["value"], "ci95": row["ci95"]}
            for row in figures["sensitivity"]
        ],
        "by_size": [
            {
                "size": row["size"],
                "nodules": row["nodules"],
                "at_1_false_per_window": row["at_1_false_per_scan"],
                "at_8_false_per_window": row["at_8_false_per_scan"],
            }
            for row in figures["by_size"]
        ],
    }


def _score_window(window: Window, name: str, runner: Runner, rule: HitRule) -> ScanScores:
    depth, height, width = window.hu.shape
    settings = CandidateSettings(
        window=(depth, height, width), peak_threshold=LOWEST_HEAT, skip_below_mean_hu=float("-inf")
    )
    spacing = (float(window.spacing_mm[0]), float(window.spacing_mm[1]), float(window.spacing_mm[2]))
    candidates = pick_peaks(heatmap(window.hu.astype(np.float32), runner, settings), spacing, settings)
    indices = np.array([candidate.index for candidate in candidates]).reshape(-1, 3)
    boxes = window.unknown.reshape(1, -1, 6)
    inside = ((indices[:, None] >= boxes[..., :3]) & (indices[:, None] < boxes[..., 3:])).all(axis=2)
    nodules = Places(
        centres_mm=window.nodules[:, :3].astype(np.float64) * spacing,
        diameters_mm=window.nodules[:, 3].astype(np.float64),
    )
    scores = np.array([candidate.score for candidate in candidates])
    return score_scan(name, indices * np.array(spacing), scores, nodules, np.logical_or.reduce(inside, axis=1), rule)
