"""Every real full series at the operating point of the node: what is known is found or missed, the rest is shown.

A finding hits a known nodule when its centre, or its candidate, lies within max(5 mm, half the diameter) of it.
Findings that hit nothing are false where the readers marked everything; elsewhere they are unmatched, and may be
nodules.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pulmo_models.ct.candidates import Candidate
from pulmo_models.ct.characterise import CharacterisedCandidate
from pulmo_models.ct.lungs import localise_lungs
from pulmo_models.geometry import index_to_lps, lps_to_index
from pulmo_models.mapping import frames_of_grid
from pulmo_models.pipeline import Rejection
from pulmo_models.training.evaluation import plots
from pulmo_models.training.evaluation.analysis import Analyst
from pulmo_models.training.evaluation.plots import Crop
from pulmo_models.training.evaluation.stage1 import crop_of
from pulmo_models.training.evaluation.truth import REAL_SERIES, SeriesTruth, TrueNodule, true_nodules
from pulmo_models.training.material.phantoms import PhantomScan, make_demo_phantom, make_phantom
from pulmo_models.training.metrics.froc import Places, on_places
from pulmo_models.training.metrics.resampling import Floats, rounded
from pulmo_models.training.series import read_ct
from pulmo_models.types import SeriesDescription, Volume

log = logging.getLogger(__name__)

IN_QUESTION_MM = (6.0, 35.0)
PHANTOM_SEEDS = (900, 901)  # none of them was trained on
PROTOCOL = (
    "The node's own stages at its default thresholds. A finding hits a nodule when its centre or its candidate lies "
    "within max(5 mm, half the diameter); heat is the highest of the heat map there, probability that of stage 2 at "
    "the finding, or at the hottest voxel where there is none."
)


def series_part(
    data: Path, analyst: Analyst, names: Iterable[str] = REAL_SERIES
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Figures and contact sheets of the series of the data folder; a series that is not there is said to be missing."""
    rows, images = [], {}
    for name in names:
        if not (data / name / "dicom").is_dir():
            rows.append({"series": name, "missing": True})
            continue
        volume = read_ct(data / name / "dicom")
        truth = REAL_SERIES.get(name, SeriesTruth())
        row, crops = volume_figures(volume, true_nodules(volume, data / name), analyst)
        rows.append({"series": name, "role": truth.role, "readers_marked_everything": truth.complete, **row})
        for kind, sheet in crops.items():
            if sheet:
                images[f"series-{name}-{kind}"] = plots.contact_sheet(sheet)
        log.info("%s: %s", name, rows[-1])
    return {"protocol": PROTOCOL, "series": rows}, images


def phantom_part(analyst: Analyst) -> dict[str, Any]:
    """The demo phantom and phantoms of unseen seeds: synthetic throughout."""
    rows = []
    for name, phantom in [("demo", make_demo_phantom()), *((f"seed {s}", make_phantom(s)) for s in PHANTOM_SEEDS)]:
        known = [
            TrueNodule(name=n.kind, centre_lps_mm=n.centre_lps_mm, diameter_mm=n.diameter_mm) for n in phantom.nodules
        ]
        row, _ = volume_figures(_volume(phantom), known, analyst)
        rows.append({"phantom": name, **row})
        log.info("phantom %s: %s", name, row)
    return {"protocol": PROTOCOL, "phantoms": rows}


def _volume(phantom: PhantomScan) -> Volume:
    return Volume(
        hu=phantom.hu,
        affine=phantom.affine,
        frame_of_reference_uid="",
        series=SeriesDescription(study_instance_uid="", series_instance_uid="", modality="CT"),
        frames=frames_of_grid(phantom.affine, phantom.hu.shape),
    )


def volume_figures(
    volume: Volume, known: Sequence[TrueNodule], analyst: Analyst
) -> tuple[dict[str, Any], dict[str, list[Crop]]]:
    """What was found in one volume, and crops: ``found``, ``missed``, ``unmatched``."""
    begun = time.monotonic()
    try:
        search = localise_lungs(volume).search
    except Rejection as exc:
        return {"rejected": str(exc)}, {}
    heat = analyst.heat(volume, search)
    candidates = analyst.peaks(heat, volume, search, analyst.peak_threshold)
    findings = analyst.findings(volume, candidates)
    seconds = time.monotonic() - begun
    hits = _hits(volume, findings, known)
    matched = np.logical_or.reduce(hits, axis=1)
    crops: dict[str, list[Crop]] = {"missed": [], "found": [], "unmatched": []}
    rows = []
    for number, nodule in enumerate(known):
        row = _known_row(
            volume, nodule, heat, [f for f, hit in zip(findings, hits[:, number], strict=True) if hit], analyst
        )
        rows.append(row)
        if row["found_at_mm"] is None:
            z, y, x = (round(value) for value in lps_to_index(volume.affine, nodule.centre_lps_mm))
            crops["missed"].append(crop_of(volume, (z, y, x), f"{nodule.diameter_mm:.0f} mm, heat {row['heat']:.2f}"))
    for finding, hit in zip(findings, matched, strict=True):
        crops["found" if hit else "unmatched"].append(_crop(volume, finding))
    figures = {
        "seconds": round(seconds, 1),
        "candidates": len(candidates),
        "findings": len(findings),
        "known": rows,
        "unmatched": int((~matched).sum()),
        "unmatched_findings": [
            _finding_row(finding) for finding, hit in zip(findings, matched, strict=True) if not hit
        ],
    }
    return figures, crops


def _hits(
    volume: Volume, findings: Sequence[CharacterisedCandidate], known: Sequence[TrueNodule]
) -> npt.NDArray[np.bool_]:
    """Which findings hit which nodules, ``(findings, nodules)``."""
    places = Places(
        centres_mm=np.array([nodule.centre_lps_mm for nodule in known]).reshape(-1, 3),
        diameters_mm=np.array([nodule.diameter_mm for nodule in known], dtype=np.float64),
    )
    peaks = _points(volume, [finding.candidate for finding in findings])
    centroids = np.array(
        [index_to_lps(volume.affine, np.argwhere(f.mask.voxels).mean(axis=0) + f.mask.origin) for f in findings]
    ).reshape(-1, 3)
    return np.asarray(on_places(peaks, places, "published") | on_places(centroids, places, "published"))


def _points(volume: Volume, candidates: Sequence[Candidate]) -> Floats:
    return np.array([index_to_lps(volume.affine, candidate.index) for candidate in candidates]).reshape(-1, 3)


def _known_row(
    volume: Volume,
    nodule: TrueNodule,
    heat: npt.NDArray[np.float32],
    hits: Sequence[CharacterisedCandidate],
    analyst: Analyst,
) -> dict[str, Any]:
    hottest, place = _hottest(volume, nodule, heat)
    distances = np.linalg.norm(_points(volume, [hit.candidate for hit in hits]) - nodule.centre_lps_mm, axis=1)
    probability = (
        max(hit.detection_probability for hit in hits) if hits else analyst.detection_probabilities(volume, [place])[0]
    )
    return {
        "nodule": nodule.name,
        "diameter_mm": round(float(nodule.diameter_mm), 1),
        "in_question": IN_QUESTION_MM[0] <= nodule.diameter_mm <= IN_QUESTION_MM[1],
        "found_at_mm": round(float(distances.min()), 1) if hits else None,
        "heat": rounded(hottest),
        "detection_probability": rounded(probability),
        "malignancy_probability": rounded(max(h.malignancy_probability for h in hits)) if hits else None,
    }


def _hottest(volume: Volume, nodule: TrueNodule, heat: npt.NDArray[np.float32]) -> tuple[float, tuple[int, int, int]]:
    """The highest heat within reach of a nodule, and its voxel."""
    centre = np.array(lps_to_index(volume.affine, nodule.centre_lps_mm))
    reach = max(5.0, nodule.diameter_mm / 2)
    low = [max(0, int(c - reach / s)) for c, s in zip(centre, volume.spacing_mm, strict=True)]
    high = [int(c + reach / s) + 2 for c, s in zip(centre, volume.spacing_mm, strict=True)]
    part = heat[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    offsets = (np.indices(part.shape) + np.reshape(np.array(low) - centre, (3, 1, 1, 1))) * np.reshape(
        volume.spacing_mm, (3, 1, 1, 1)
    )
    near = np.where(np.linalg.norm(offsets, axis=0) <= reach, part, -1.0)
    z, y, x = (int(i + a) for i, a in zip(np.unravel_index(int(near.argmax()), near.shape), low, strict=True))
    return float(near.max()), (z, y, x)


def _finding_row(finding: CharacterisedCandidate) -> dict[str, Any]:
    return {
        "index": list(finding.candidate.index),
        "heat": rounded(finding.candidate.score),
        "detection_probability": rounded(finding.detection_probability),
        "malignancy_probability": rounded(finding.malignancy_probability),
    }


def _crop(volume: Volume, finding: CharacterisedCandidate) -> Crop:
    z, y, x = finding.candidate.index
    text = f"slice {z}, row {y}, col {x}\nheat {finding.candidate.score:.2f}, p {finding.detection_probability:.2f}"
    return crop_of(volume, finding.candidate.index, text, finding.mask.to_volume(volume.hu.shape))
