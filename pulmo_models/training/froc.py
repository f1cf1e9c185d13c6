"""Free-response ROC of stage 1: nodules of the test patients in series that no training saw.

Nodules that nobody trained on are placed into the lungs of held-out patients at native spacing, and the detector runs
over the whole volume as it does in the node. The nodules and the lungs are real, their meeting is not: the figures are
those of a synthetic test. What the host is known to have of its own counts neither way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pulmo_models.ct.candidates import Candidate, CandidateSettings, find_candidates
from pulmo_models.ct.device import Runner
from pulmo_models.ct.lungs import localise_lungs
from pulmo_models.training import insertion
from pulmo_models.training.insertion import Piece
from pulmo_models.training.nodules import RealNodule
from pulmo_models.types import Volume

FALSE_POSITIVES_PER_SCAN = (0.5, 1.0, 2.0, 4.0, 8.0)
LOWEST_SCORE = 0.05

Positions = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ScanScores:
    """What a detector scored in one scan."""

    nodules: tuple[float, ...]  # the best candidate on each nodule, 0 where there is none
    diameters_mm: tuple[float, ...]
    false: tuple[float, ...]  # candidates on nothing


def score_scan(
    candidates: Sequence[Candidate],
    spacing_mm: Sequence[float],
    truth: Sequence[tuple[Positions, float]],
    ignored: Sequence[tuple[Positions, float]] = (),
) -> ScanScores:
    """Match candidates to nodules; `truth` and `ignored` hold indices (slice, row, column) and diameters in mm.

    A candidate hits the nearest nodule within max(5 mm, half its diameter); a second one on it counts neither way, and
    so does one on what is ignored.
    """
    best = [0.0] * len(truth)
    false = []
    for candidate in candidates:
        hit = _nearest(candidate, spacing_mm, truth)
        if hit is not None:
            best[hit] = max(best[hit], candidate.score)
        elif _nearest(candidate, spacing_mm, ignored) is None:
            false.append(candidate.score)
    return ScanScores(nodules=tuple(best), diameters_mm=tuple(d for _, d in truth), false=tuple(false))


def _nearest(
    candidate: Candidate, spacing_mm: Sequence[float], places: Sequence[tuple[Positions, float]]
) -> int | None:
    within = []
    for number, (centre, diameter_mm) in enumerate(places):
        distance = float(np.linalg.norm((np.array(candidate.index) - centre) * np.array(spacing_mm)))
        if distance <= max(5.0, diameter_mm / 2):
            within.append((distance, number))
    return min(within)[1] if within else None


def froc(scans: Sequence[ScanScores], rates: Sequence[float] = FALSE_POSITIVES_PER_SCAN) -> dict[str, float]:
    """Sensitivity at each number of false positives per scan: at the lowest threshold that keeps to it."""
    false = np.sort(np.concatenate([scan.false for scan in scans]))[::-1]
    nodules = np.concatenate([scan.nodules for scan in scans])
    figures = {}
    for rate in rates:
        allowed = int(np.floor(rate * len(scans)))
        # The threshold lies just above the first false candidate that is one too many.
        threshold = float(false[allowed]) if allowed < len(false) else 0.0
        figures[f"{rate:g}"] = round(float((nodules > threshold).mean()), 3)
    return figures


def insert_nodules(
    volume: Volume, nodules: Sequence[RealNodule], taken: Sequence[tuple[Positions, float]], seed: int, count: int
) -> tuple[npt.NDArray[np.float32], list[tuple[Positions, float]]]:
    """HU with up to `count` nodules placed at random into the lungs, and their indices and diameters in mm.

    They keep 30 mm from one another and from what is `taken`.
    """
    random = np.random.default_rng([seed, len(volume.hu)])
    lung = localise_lungs(volume).mask
    places = np.argwhere(lung)
    piece = Piece(
        hu=torch.from_numpy(volume.hu.copy()),
        lung=torch.from_numpy(lung),
        spacing_mm=np.array(volume.spacing_mm),
        known=(),
    )
    placed: list[tuple[Positions, float]] = []
    for _ in range(50 * count):
        if len(placed) == count:
            break
        centre = places[int(random.integers(len(places)))]
        near = [np.linalg.norm((centre - other) * piece.spacing_mm) for other, _ in [*taken, *placed]]
        nodule = nodules[int(random.integers(len(nodules)))]
        insert = insertion.real_insert(random, nodule, piece.spacing_mm, (1.0, 1.0))
        if min(near, default=np.inf) < 30.0 or insert is None:
            continue
        where = insertion.place(piece, insert, torch.from_numpy(centre).float())
        if where is not None:
            placed.append((where[0], insert.diameter_mm))
    return piece.hu.numpy(), placed


def detect(volume: Volume, hu: npt.NDArray[np.float32], runner: Runner, settings: CandidateSettings) -> list[Candidate]:
    """Candidates in the lungs of a volume whose HU were changed."""
    return find_candidates(hu, volume.spacing_mm, runner, settings, localise_lungs(volume).search)


def summary(scans: Sequence[ScanScores], threshold: float) -> dict[str, Any]:
    """FROC, and what the node's own threshold gives, by size."""
    nodules = np.concatenate([scan.nodules for scan in scans])
    diameters = np.concatenate([scan.diameters_mm for scan in scans])
    false = np.concatenate([scan.false for scan in scans])
    by_size = {}
    for name, low, high in (("3-6 mm", 0, 6), ("6-10 mm", 6, 10), ("10 mm and more", 10, 1e9)):
        chosen = (diameters >= low) & (diameters < high)
        by_size[name] = f"{int((nodules[chosen] >= threshold).sum())} of {int(chosen.sum())}"
    return {
        "scans": len(scans),
        "nodules": len(nodules),
        "sensitivity_at_false_positives_per_scan": froc(scans),
        "at_the_default_threshold": {
            "threshold": threshold,
            "found": int((nodules >= threshold).sum()),
            "found_by_diameter": by_size,
            "false_positives_per_scan": round(float((false >= threshold).sum()) / len(scans), 2),
        },
    }
