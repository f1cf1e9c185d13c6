"""A finding as the store keeps it: one nodule of a job with the numbers of its report, for queries over many studies.

The numbers come from findings.json, in which they stand as they were reported: rounded once, in the units of its keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A nodule. None stands for what its pipeline or an earlier version of findings.json does not tell."""

    segment_number: int  # from 1: its number in SR and SEG
    tracking_uid: str  # the same in SR and SEG
    centre_x_mm: float  # LPS
    centre_y_mm: float
    centre_z_mm: float
    long_axis_mm: float
    short_axis_mm: float
    box_lps_mm: list[Any] | None  # two opposite corners, where the pipeline draws boxes
    volume_mm3: float | None
    mean_hu: float | None
    min_hu: float | None
    max_hu: float | None
    laterality: str | None  # "left" or "right", the patient's
    pleura_distance_mm: float | None
    candidate_score: float  # 0..1
    detection_probability: float  # 0..1
    malignancy_probability: float | None  # 0..1
    malignancy_bias: float | None  # of the logit; the same in every finding of a job
    concepts: Mapping[str, Any]  # {name: {"value": on the LIDC scale, "contribution": to the malignancy logit}}
    cautions: list[Any]  # [{"code": ..., "sentence": ...}] on this nodule


def findings_of(findings_json: str) -> tuple[Finding, ...]:
    """The nodules of a findings.json.

    Raises:
        ValueError: it is no findings.json.
    """
    try:
        plain = json.loads(findings_json)
        return tuple(_finding(nodule, plain["malignancy_bias"]) for nodule in plain.get("nodules", ()))
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError(f"no findings.json: {type(exc).__name__}") from exc


def _finding(nodule: Mapping[str, Any], malignancy_bias: float | None) -> Finding:
    x, y, z = nodule["centre_lps_mm"]
    return Finding(
        segment_number=nodule["segment_number"],
        tracking_uid=nodule["tracking_uid"],
        centre_x_mm=x,
        centre_y_mm=y,
        centre_z_mm=z,
        long_axis_mm=nodule["long_axis_mm"],
        short_axis_mm=nodule["short_axis_mm"],
        box_lps_mm=nodule.get("box_lps_mm"),
        volume_mm3=nodule["volume_mm3"],
        mean_hu=nodule["mean_hu"],
        min_hu=nodule.get("min_hu"),
        max_hu=nodule.get("max_hu"),
        laterality=nodule.get("laterality"),
        pleura_distance_mm=nodule.get("pleura_distance_mm"),
        candidate_score=nodule["candidate_score"],
        detection_probability=nodule["detection_probability"],
        malignancy_probability=nodule["malignancy_probability"],
        malignancy_bias=malignancy_bias,
        concepts=nodule["concepts"],
        cautions=nodule["cautions"],
    )
