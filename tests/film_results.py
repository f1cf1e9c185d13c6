"""A film with findings whose places are known, encoded, for the tests of the encoder and of the viewer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pulmo_models.cxr.settings import LABELS
from pulmo_models.types import (
    AlgorithmStage,
    Caution,
    ClassScore,
    Estimate,
    Findings,
    HeatMap,
    ImageFindings,
    PipelineInfo,
    RadiographSeries,
)
from pulmo_node.assemble import assemble, describe
from pulmo_node.encode import EncodedObject, ResultOptions, encode_findings
from tests.encode_factory import context_of

PEAKS: Mapping[str, tuple[int, int]] = {  # cell of the map with the strongest signal
    "Atelectasis": (5, 1),
    "Cardiomegaly": (4, 3),
    "Consolidation": (1, 5),
    "Edema": (2, 2),
    "Pleural Effusion": (6, 6),
}
PROBABILITIES = dict(zip(LABELS, (0.12345678, 0.91, 0.5, 0.049, 0.77), strict=True))
SCORE = 61.237

FINDINGS_INFO = PipelineInfo(
    label="cxr-findings",
    name="Pulmo Node chest radiograph findings",
    version="0.1.0",
    weights_name="made-up",
    weights_sha256="ab" * 32,
    stages=(AlgorithmStage(name="densenet121 classifier", version="1", weights_sha256="cd" * 32),),
    subject="chest findings",
    series_base=9020,
    description="Classification of findings in frontal chest radiographs",
)
RISK_INFO = PipelineInfo(
    label="cxr-lung-risk",
    name="Pulmo Node CXR-Lung-Risk",
    version="0.1.0",
    weights_name="made-up",
    weights_sha256="ef" * 32,
    stages=(AlgorithmStage(name="CXR-Lung-Risk ensemble", version="1", weights_sha256="ef" * 32),),
    subject="lung risk",
    series_base=9030,
    description="Mortality risk score from frontal chest radiographs",
)


def read_films(paths: list[Path]) -> RadiographSeries:
    series = assemble(paths, describe(paths))
    assert isinstance(series, RadiographSeries)
    return series


def heat_map(label: str, rows: int, columns: int) -> HeatMap:
    """One strong cell, of a map of the middle square of the image, as the network sees it."""
    values = np.zeros((7, 7), dtype=np.float32)
    values[PEAKS[label]] = 1
    side = min(rows, columns) * 224 / 255
    top, left = (rows - side) / 2, (columns - side) / 2
    return HeatMap(values=values, box=(top, left, top + side, left + side))


def film_findings(series: RadiographSeries, *, cautions: tuple[Caution, ...] = (), silent: str = "") -> Findings:
    """Five scores of every film; that of the label `silent` has no heat map."""
    return Findings(
        pipeline=FINDINGS_INFO,
        malignancy_bias=None,
        images=tuple(
            ImageFindings(
                source=film.source,
                class_scores=tuple(
                    ClassScore(
                        label=label,
                        probability=PROBABILITIES[label],
                        heat_map=None if label == silent else heat_map(label, *film.pixels.shape),
                    )
                    for label in LABELS
                ),
                cautions=cautions,
            )
            for film in series.images
        ),
    )


def risk_findings(series: RadiographSeries) -> Findings:
    note = "Neither an age nor a diagnosis"
    estimate = Estimate(label="CXR-Lung-Risk", value=SCORE, unit="a", group="below 65", note=note)
    found = tuple(ImageFindings(source=film.source, estimates=(estimate,)) for film in series.images)
    return Findings(pipeline=RISK_INFO, malignancy_bias=None, images=found)


def encoded(findings: Findings, series: RadiographSeries, **options: Any) -> tuple[EncodedObject, ...]:
    context = context_of(
        series.series.series_instance_uid, pipeline=findings.pipeline.label, options=ResultOptions(**options)
    )
    return encode_findings(findings, series, context)
