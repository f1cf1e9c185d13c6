"""Measurement report of radiographs: Comprehensive 3D SR by TID 1500 with one group (TID 1501) for each finding.

A group has the probability as its first number, below it a point on the image at the peak of the heat map (SCOORD,
PS3.3 C.18.6), then whether the finding counts as present, and a comment with what OHIF's measurement panel cannot show.
Where the heat map has no peak, and for numbers that belong to the whole image, the point is the middle of the image:
OHIF fails on a report with a group without coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from highdicom import sr

from pulmo_models.types import Findings, Radiograph, RadiographSeries
from pulmo_node.encode import codes
from pulmo_node.encode.film_records import (
    TRACKING_PREFIX,
    EstimateRecord,
    FilmRecord,
    ScoreRecord,
    centre_of,
    film_of,
    image_words,
)
from pulmo_node.encode.group import algorithm_identification
from pulmo_node.encode.identity import (
    RESEARCH_USE,
    EncodedObject,
    Equipment,
    ResultContext,
    ascii_text,
    library_errors,
)
from pulmo_node.encode.report import caution_text, percent
from pulmo_node.encode.source import evidence_items, read_header
from pulmo_node.encode.sr import build_sr, measurement_report, text_item

_Group = sr.MeasurementsAndQualitativeEvaluations


def encode_film_sr(
    findings: Findings,
    records: Sequence[FilmRecord],
    series: RadiographSeries,
    equipment: Equipment,
    context: ResultContext,
) -> EncodedObject:
    """The measurement report of the radiographs of one series.

    Raises:
        Permanent: a source file cannot be read, or the report cannot be encoded.
    """
    films = [film_of(found, series) for found in findings.images]
    header = read_header(films[0].source)
    with library_errors("SR", context.series_instance_uid):
        groups = [
            group
            for number, (record, film) in enumerate(zip(records, films, strict=True), start=1)
            for group in _groups(record, film, image_words(number, len(films)), equipment)
        ]
        sentences = [*map(caution_text, findings.cautions), *_film_sentences(records), RESEARCH_USE]
        positive = any(score.positive for record in records for score in record.class_scores)
        measured = any(record.estimates for record in records)
        status = codes.SUCCEEDED_WITH_FINDINGS if positive or measured else codes.SUCCEEDED_WITHOUT_FINDINGS
        report = measurement_report(groups, status, sentences, header, equipment)
    evidence = evidence_items(series.series, [film.source for film in films])
    return build_sr(report, header, evidence, "sr", equipment, findings.pipeline.weights_sha256, context)


def _film_sentences(records: Sequence[FilmRecord]) -> Iterator[str]:
    """What is known of each image, in the order of the report."""
    for number, record in enumerate(records, start=1):
        name = f"Image {number}: " if len(records) > 1 else ""
        for caution in record.cautions:
            yield name + caution_text(caution)
        if record.spacing_mm is None:
            yield f"{name}The file tells no pixel spacing."
        elif record.spacing_plane == "detector":
            yield f"{name}Pixel spacing {record.spacing_mm[0]:g} x {record.spacing_mm[1]:g} mm holds at the detector."


def _groups(record: FilmRecord, film: Radiograph, image: str, equipment: Equipment) -> Iterator[_Group]:
    for score in record.class_scores:
        yield _score_group(score, film, image, equipment)
    for estimate in record.estimates:
        yield _estimate_group(estimate, film, image, equipment)


def _score_group(score: ScoreRecord, film: Radiograph, image: str, equipment: Equipment) -> _Group:
    finding, site = codes.film_finding(score.label)
    group = _Group(
        tracking_identifier=sr.TrackingIdentifier(uid=score.tracking_uid, identifier=f"{TRACKING_PREFIX}{score.label}"),
        finding_type=finding,
        finding_sites=[sr.FindingSite(site)],
        algorithm_id=algorithm_identification(equipment),
        measurements=[sr.Measurement(codes.PROBABILITY, percent(score.probability), codes.PERCENT)],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(codes.PRESENCE, codes.PRESENT if score.positive else codes.ABSENT)
        ],
    )
    return _shown(group, score.peak or centre_of(film), film, score.comment(image))


def _estimate_group(estimate: EstimateRecord, film: Radiograph, image: str, equipment: Equipment) -> _Group:
    name, unit = codes.estimate(estimate.label), codes.unit(estimate.unit)
    group = _Group(
        tracking_identifier=sr.TrackingIdentifier(
            uid=estimate.tracking_uid, identifier=f"{TRACKING_PREFIX}{estimate.label}"
        ),
        finding_sites=[sr.FindingSite(codes.LUNG)],
        algorithm_id=algorithm_identification(equipment),
        measurements=[sr.Measurement(name, estimate.value, unit)],
    )
    return _shown(group, centre_of(film), film, estimate.comment(image))


def _shown(group: _Group, place: tuple[float, float], film: Radiograph, comment: str) -> _Group:
    """The group with a point below its first number, where a viewer looks for it, and a line of text."""
    items = group[0].ContentSequence
    number = next(item for item in items if item.value_type == sr.ValueTypeValues.NUM)
    row, column = place
    point = sr.CoordinatesForMeasurement(
        sr.GraphicTypeValues.POINT,
        np.array([[column + 0.5, row + 0.5]]),  # the centre of the first pixel is 0.5, 0.5 (C.18.6.1.2)
        sr.SourceImageForRegion(film.source.sop_class_uid, film.source.sop_instance_uid),
    )
    number.ContentSequence = sr.ContentSequence([point])
    items.append(text_item(codes.COMMENT, ascii_text(comment)))
    return group
