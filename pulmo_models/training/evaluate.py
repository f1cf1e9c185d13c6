"""Figures of a set of weights: on phantoms, on real series with known nodules, on nodules of the test patients.

Hit: the centre of a finding lies within max(5 mm, half the diameter) of a nodule. A second finding on the same nodule
is neither a hit nor a false positive. Findings that match nothing known are "unmatched": on series whose readers did
not mark everything they need not be false.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter

from pulmo_models import registry
from pulmo_models.checkpoints import load_stage1, load_stage2
from pulmo_models.ct.candidates import CandidateSettings
from pulmo_models.ct.device import Precision, Runner, resolve_device
from pulmo_models.geometry import index_to_lps, lps_to_index
from pulmo_models.pipeline import Pipeline, Rejection
from pulmo_models.training import froc
from pulmo_models.training.hosts import TEST_HOSTS, VALIDATION_HOSTS, load_hosts, read_boxes
from pulmo_models.training.nodules import load_nodules, split_of
from pulmo_models.training.phantoms import make_demo_phantom, make_phantom
from pulmo_models.training.sampler import Material, Stage2Samples
from pulmo_models.training.series import read_ct
from pulmo_models.types import CONCEPT_NAMES, Findings, SeriesDescription, SliceSource, Volume
from pulmo_models.weights import load_set

log = logging.getLogger(__name__)

_PRECISIONS: TypeAdapter[Precision] = TypeAdapter(Precision)
_PHANTOM_SEEDS = (900, 901)  # none of them was trained on


@dataclass(frozen=True, kw_only=True)
class KnownPlace:
    """A nodule that is known to be there: column, row and z as the data set's description gives them."""

    name: str
    column: float
    row: float
    z_mm: float
    diameter_mm: float


REAL_SERIES: Mapping[str, Sequence[KnownPlace]] = {
    "ct_cptac_c3n-00247": (KnownPlace(name="right lower lobe", column=106, row=168, z_mm=-195, diameter_mm=20),),
    "ct_lidc_idri_0063": (
        KnownPlace(name="3 readers, 9-10 mm", column=187, row=333, z_mm=-202, diameter_mm=9.5),
        KnownPlace(name="4 readers, 7-8 mm", column=133, row=282, z_mm=-103, diameter_mm=7.5),
        KnownPlace(name="2 readers, 13 mm", column=219, row=300, z_mm=-142, diameter_mm=13),
        KnownPlace(name="1 reader, calcified", column=122, row=308, z_mm=-219, diameter_mm=5),
    ),
    "ct_lungdx_a0001": (),  # its truth is the boxes of its annotation folder
    "ct_lungdx_a0002_thick8mm": (),
    "ct_qin_lsc_0055": (),
    "ct_lungfcp_0001_slab": (),
    "ct_ricord1a_jpeglossless_slab": (),
}


def evaluate_set(weights: str, data: Path, work: Path, precision: str) -> dict[str, Any]:
    """All figures of a set, ready for JSON."""
    pipeline = registry.build("ct-nodules", {"weights": weights, "precision": precision})
    return {
        "weights_sha256": pipeline.info.weights_sha256,
        "stage2_on_test_patients": stage2_figures(weights, data, work),
        "stage1_on_inserted_nodules": froc_figures(weights, data, precision),
        "phantoms": phantom_figures(pipeline),
        "series": {name: series_figures(pipeline, data / name, places) for name, places in REAL_SERIES.items()},
    }


def match(
    findings: Sequence[npt.NDArray[np.float64]], truth: Sequence[tuple[npt.NDArray[np.float64], float]]
) -> tuple[list[float | None], int]:
    """Distance of the nearest hit for each nodule (None: missed), and the number of findings that match none.

    `truth` holds centres and diameters in mm.
    """
    hits: list[float | None] = [None] * len(truth)
    unmatched = 0
    for finding in findings:
        distances = [float(np.linalg.norm(finding - centre)) for centre, _ in truth]
        within = [
            (distance, number)
            for number, (distance, (_, diameter)) in enumerate(zip(distances, truth, strict=True))
            if distance <= max(5.0, diameter / 2)
        ]
        if not within:
            unmatched += 1
            continue
        distance, number = min(within)
        before = hits[number]
        hits[number] = distance if before is None else min(before, distance)
    return hits, unmatched


def phantom_figures(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Found and missed nodules of the demo phantom and of phantoms of unseen seeds (synthetic data)."""
    figures = []
    for name, phantom in [("demo", make_demo_phantom()), *((str(s), make_phantom(s)) for s in _PHANTOM_SEEDS)]:
        sources = tuple(SliceSource(sop_class_uid="", sop_instance_uid=str(k)) for k in range(len(phantom.hu)))
        volume = Volume(
            hu=phantom.hu,
            affine=phantom.affine,
            frame_of_reference_uid="",
            series=SeriesDescription(study_instance_uid="", series_instance_uid="", modality="CT"),
            sources=sources,
        )
        truth = [(np.array(n.centre_lps_mm), n.diameter_mm) for n in phantom.nodules]
        hits, unmatched = match(_centres(pipeline(volume)), truth)
        missed = [
            {"kind": n.kind, "diameter_mm": round(n.diameter_mm, 1)}
            for n, hit in zip(phantom.nodules, hits, strict=True)
            if hit is None
        ]
        figures.append({"phantom": name, "nodules": len(truth), "missed": missed, "unmatched": unmatched})
        log.info("phantom %s: %s", name, figures[-1])
    return figures


def series_figures(pipeline: Pipeline, folder: Path, places: Sequence[KnownPlace]) -> dict[str, Any]:
    """What was found in one real series."""
    volume = read_ct(folder / "dicom")
    begun = time.monotonic()
    try:
        findings = pipeline(volume)
    except Rejection as exc:
        return {"rejected": str(exc)}
    truth = [(_lps(volume, place), place.diameter_mm) for place in places]
    hits, unmatched = match(_centres(findings), truth)
    figures = {
        "seconds": round(time.monotonic() - begun, 1),
        "findings": len(findings.nodules),
        "known": [
            {"nodule": place.name, "found_at_mm": None if hit is None else round(hit, 1)}
            for place, hit in zip(places, hits, strict=True)
        ],
        "boxes": _box_figures(volume, findings, folder / "annotation"),
        "unmatched": unmatched,
    }
    log.info("%s: %s", folder.name, figures)
    return figures


def _centres(findings: Findings) -> list[npt.NDArray[np.float64]]:
    return [np.array(nodule.centre_lps_mm) for nodule in findings.nodules]


def _lps(volume: Volume, place: KnownPlace) -> npt.NDArray[np.float64]:
    heights = volume.affine[2, 3] + np.arange(volume.hu.shape[0]) * volume.affine[2, 0]
    nearest = float(np.argmin(np.abs(heights - place.z_mm)))
    return np.array(index_to_lps(volume.affine, (nearest, place.row, place.column)))


def _box_figures(volume: Volume, findings: Findings, annotation: Path) -> dict[str, int] | None:
    """Of the annotated tumour boxes, how many hold a voxel of some mask on their slice; None where there are none."""
    boxes = read_boxes(annotation, [source.sop_instance_uid for source in volume.sources])
    if not boxes:
        return None
    union = np.zeros(volume.hu.shape, dtype=bool)
    for nodule in findings.nodules:
        union[nodule.mask.slices] |= nodule.mask.voxels
    hit = sum(
        bool(union[k, round(top) : round(bottom), round(left) : round(right)].any())
        for k, left, top, right, bottom in boxes
    )
    return {"boxes": len(boxes), "hit": hit}


def froc_figures(weights: str, data: Path, precision: str, count: int = 10) -> dict[str, Any]:
    """FROC of stage 1: nodules of the test patients placed into the series that no training saw; see `froc`."""
    runner = Runner(
        load_stage1(load_set(weights)).eval(), resolve_device("auto"), _PRECISIONS.validate_python(precision)
    )
    nodules = load_nodules(data / "lidc_patches", lambda patient: split_of(patient) == "test")
    scans = []
    for name in (*TEST_HOSTS, *VALIDATION_HOSTS):
        volume = read_ct(data / name / "dicom")
        own = [(np.array(lps_to_index(volume.affine, _lps(volume, p))), p.diameter_mm) for p in REAL_SERIES[name]]
        hu, placed = froc.insert_nodules(volume, nodules, own, seed=99, count=count)
        candidates = froc.detect(volume, hu, runner, CandidateSettings(peak_threshold=froc.LOWEST_SCORE))
        scans.append(froc.score_scan(candidates, volume.spacing_mm, placed, own))
        log.info("%s: %d nodules placed, %d candidates", name, len(placed), len(candidates))
    return froc.summary(scans, CandidateSettings().peak_threshold)


def stage2_figures(weights: str, data: Path, work: Path, count: int = 800) -> dict[str, Any]:
    """Stage 2 on nodules of the test patients, placed into hosts that no training saw; half the samples are none."""
    network = load_stage2(load_set(weights)).eval()
    material = Material(
        hosts=load_hosts(data, (*TEST_HOSTS, *VALIDATION_HOSTS), work),
        phantoms=[],
        nodules=load_nodules(data / "lidc_patches", lambda patient: split_of(patient) == "test"),
        seed=99,
    )
    samples = Stage2Samples(material, count)
    rows = [samples[number] for number in range(count)]
    with torch.inference_mode():
        parts = [network(torch.stack([row["image"] for row in rows[at : at + 32]])) for at in range(0, count, 32)]
    out = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    seen = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    nodule, graded = seen["detection"] == 1, seen["malignancy"] >= 0
    rated = seen["concepts"][:, 0] >= 0
    malignant = seen["malignancy"][graded].numpy() == 1
    return {
        "protocol": f"{count} patches of {len(material.nodules)} nodules of test patients in unseen lungs, seed 99",
        "detection_auc": auc(out["detection"].softmax(1)[:, 1].numpy(), nodule.numpy()),
        "malignancy_auc": auc(out["malignancy"].softmax(1)[graded, 1].numpy(), malignant),
        "malignancy_auc_of_diameter_alone": auc(seen["diameter_mm"][graded].numpy(), malignant),
        "graded": int(graded.sum()),
        "dice_central_slice": _dice(out["segmentation"][nodule], seen["mask"][nodule]),
        "concept_r2": _r2(out["concepts"][rated].numpy(), seen["concepts"][rated].numpy()),
    }


def auc(scores: npt.NDArray[Any], positive: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the share of pairs in the right order, ties counted half."""
    above = scores[positive][:, None] - scores[~positive][None, :]
    return float(((above > 0) + 0.5 * (above == 0)).mean())


def _dice(logits: torch.Tensor, mask: torch.Tensor) -> float:
    drawn = (logits > 0).float()
    both = 2 * (drawn * mask).sum((1, 2, 3))
    whole = drawn.sum((1, 2, 3)) + mask.sum((1, 2, 3))
    return float((both / whole.clamp(min=1)).mean())


def _r2(found: npt.NDArray[Any], rated: npt.NDArray[Any]) -> dict[str, float | None]:
    """Share of the variance explained, by concept; None for one that does not vary."""
    figures: dict[str, float | None] = {}
    for column, name in enumerate(CONCEPT_NAMES):
        spread = float(((rated[:, column] - rated[:, column].mean()) ** 2).sum())
        rest = float(((rated[:, column] - found[:, column]) ** 2).sum())
        figures[name] = None if spread == 0 else round(1 - rest / spread, 3)
    return figures
