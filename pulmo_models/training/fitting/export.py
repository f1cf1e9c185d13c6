"""Trained checkpoints -> a set of weights, with a record of how they were trained beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from pulmo_models.checkpoints import write_set
from pulmo_models.errors import ModelError
from pulmo_models.training.fitting.runs import BEST, read_run, trained_state
from pulmo_models.weights import OperatingPoint, read_manifest, write_manifest

ATTRIBUTION = (
    "Trained on LIDC-IDRI (Armato et al., TCIA, doi:10.7937/K9/TCIA.2015.LO9QL9SX, CC BY 3.0), Lung-PET-CT-Dx (Li et "
    "al., TCIA, doi:10.7937/TCIA.2020.NNC2-0461, CC BY 4.0), QIN LUNG CT (Kalpathy-Cramer et al., TCIA, "
    "doi:10.7937/K9/TCIA.2015.NPGZYZBZ, CC BY) and Lung-Fused-CT-Pathology (Madabhushi and Rusu, TCIA, "
    "doi:10.7937/K9/TCIA.2018.SMT36LPN, CC BY)"
)

RECORD_SUFFIX = "-training.json"


class ReportUnfit(ModelError):
    """A report cannot give the thresholds of a set. The message says why."""


def export_set(work: Path, out: Path, *, name: str, version: str, attribution: str | None = None) -> Path:
    """Write the best networks of a work folder as safetensors with a manifest; the path of the manifest.

    Beside it ``<name>-training.json`` has recipe, seed, versions, and the provenance of the stores of each training,
    and whether it came to its end.

    Raises:
        WeightsMissing: the detector or the student was not trained in that folder.
        WeightsCorrupt: a checkpoint is of another network.
    """
    record = {training: read_run(work / training) for training in ("stage1", "distill")}
    if (work / "teacher" / "run.json").exists() and record["distill"]["recipe"]["teacher_share"] > 0:
        record["teacher"] = read_run(work / "teacher")
    about = {
        "version": version,
        "licence": "CC-BY-4.0",
        "origin": f"trained by pulmo-train (seeds {_seeds(record)}); {name}{RECORD_SUFFIX} has recipe, stores and "
        "versions",
        "attribution": attribution or ATTRIBUTION,
    }
    manifest = write_set(
        out,
        name=name,
        stage1=trained_state(work / "stage1" / BEST),
        stage2=trained_state(work / "distill" / BEST),
        concept_scale=record["distill"]["recipe"]["labels"]["concepts"],
        about=about,
    )
    (out / f"{name}{RECORD_SUFFIX}").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return manifest


def set_operating_point(manifest: Path, report: Path) -> OperatingPoint:
    """Write the thresholds that an evaluation's FROC gives at the wanted false positives into a set's manifest.

    The second stage's threshold holds for the first stage's that it was measured with, so the evaluation is run again
    with the first one in force.

    Raises:
        ReportUnfit: the report is of other weights, or its curve reaches no such rate, or was measured with another
            threshold of stage 1.
        WeightsMissing, WeightsCorrupt: of the set.
    """
    weights = read_manifest(manifest)
    try:
        found = json.loads(report.read_text(encoding="utf-8"))
        measured = found["weights"]
        of_these = measured["sha256"] == weights.sha256
    except (IsADirectoryError, ValueError, KeyError, TypeError) as exc:
        raise ReportUnfit(f"{report} is no report.json of pulmo-train evaluate") from exc
    if not of_these:
        raise ReportUnfit(f"{report} is of {measured['name']}, other weights than those of {manifest}")
    point = found.get("stage1", {}).get("inserted", {}).get("operating_point", {})
    peak, detection = point.get("peak_threshold"), point.get("detection_threshold")
    if peak is None or detection is None:
        raise ReportUnfit(f"{report} has no operating point of both stages: run the part stage1 with --data")
    chosen = OperatingPoint(peak_threshold=peak, detection_threshold=detection)
    write_manifest(manifest, replace(weights, operating_point=chosen))
    return chosen


def _seeds(record: dict[str, dict[str, object]]) -> str:
    return ", ".join(f"{training} {run['seed']}" for training, run in record.items())
