"""Reports without measurements: nothing found, series rejected, analysis failed.

A TID 1500 report without coordinates makes OHIF fail, so by default these are diagnostic imaging reports (PS3.16
TID 2000), (18748-4, LN), in sections of text, which any viewer shows. `negative_report = "air"` asks for TID 1500 all
the same, as IHE AI Results wants every result, for readers that look for the coded status there. Same SOP class as the
measurement report: a peer that takes one takes all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from pulmo_models.types import Findings, PipelineInfo, SeriesDescription, SliceSource, Volume
from pulmo_node.encode import codes
from pulmo_node.encode.group import algorithm_identification
from pulmo_node.encode.identity import RESEARCH_USE, EncodedObject, Equipment, ResultContext, library_errors
from pulmo_node.encode.report import acquisition_text, caution_text
from pulmo_node.encode.source import evidence_items, read_header, read_series
from pulmo_node.encode.sr import (
    build_sr,
    container,
    measurement_report,
    observation_context,
    procedure_codes,
    text_item,
)
from pulmo_node.errors import Permanent

NO_NODULES = "No lung nodules were found."

_CONTAINS = sr.RelationshipTypeValues.CONTAINS
_HAS_CONCEPT_MOD = sr.RelationshipTypeValues.HAS_CONCEPT_MOD


def encode_no_findings(findings: Findings, volume: Volume, context: ResultContext) -> EncodedObject:
    """The report of a series in which nothing was found.

    Raises:
        Permanent: a source file cannot be read, or the report cannot be encoded.
    """
    header = read_header(volume.frames[0])
    sentences = (
        *(findings.conclusions or (NO_NODULES,)),
        *map(caution_text, findings.cautions),
        acquisition_text(volume),
    )
    images = volume.series, volume.frames
    return _notice(sentences, codes.SUCCEEDED_WITHOUT_FINDINGS, header, images, findings.pipeline, "sr", context)


def encode_rejection(
    paths: Sequence[Path], code: str, sentence: str, context: ResultContext, info: PipelineInfo | None = None
) -> EncodedObject:
    """The report that says why a series has no findings: it was rejected, or its analysis failed.

    `paths` are its Part 10 files; patient and study come from the first that can be read. `code` is the
    machine-readable reason, `sentence` the one for people; `info` is the pipeline where it was built.

    Raises:
        Permanent: no source file can be read, or the report cannot be encoded.
    """
    header, sources = read_series(paths)
    if header is None:
        raise Permanent(f"no file of series {context.series_instance_uid} can be read")
    text = f"The series was not analysed: {sentence} [{code}]"
    series = SeriesDescription(
        study_instance_uid=str(header.StudyInstanceUID),
        series_instance_uid=str(header.SeriesInstanceUID),
        modality=str(header.get("Modality", "")),
        series_description=str(header.get("SeriesDescription", "")),
    )
    identity = f"sr {text}"  # the reason is content: another one must not come under the same UID
    return _notice((text,), codes.NONE_SUCCEEDED, header, (series, sources), info, identity, context)


def _notice(
    sentences: Sequence[str],
    status: Code,
    header: Dataset,
    images: tuple[SeriesDescription, Sequence[SliceSource]],
    info: PipelineInfo | None,
    identity: str,
    context: ResultContext,
) -> EncodedObject:
    series, sources = images
    equipment = Equipment.of(info, context)
    weights = "" if info is None else info.weights_sha256
    with library_errors("SR", context.series_instance_uid):
        if context.options.negative_report == "air":
            uid = context.uid(f"tracking {identity}", weights)
            content = _without_measurements(sentences, status, header, uid, equipment)
        else:
            content = _in_sections(sentences, status, header, series, equipment)
    return build_sr(content, header, evidence_items(series, sources), identity, equipment, weights, context)


def _in_sections(
    sentences: Sequence[str], status: Code, header: Dataset, series: SeriesDescription, equipment: Equipment
) -> Dataset:
    """The content tree of TID 2000."""
    findings = [
        sr.CodeContentItem(codes.ANALYSIS_SUMMARY, status, _CONTAINS),
        text_item(codes.FINDING, sentences[0]),
        *(text_item(codes.COMMENT, sentence) for sentence in sentences[1:]),
    ]
    performed = [text_item(codes.PROCEDURE_DESCRIPTION, line) for line in _description(series, equipment)]
    root = sr.ContainerContentItem(codes.DIAGNOSTIC_IMAGING_REPORT, is_content_continuous=False, template_id="2000")
    root.ContentSequence = sr.ContentSequence(
        [
            *(sr.CodeContentItem(codes.PROCEDURE_REPORTED, c, _HAS_CONCEPT_MOD) for c in procedure_codes(header)),
            *sr.LanguageOfContentItemAndDescendants(sr.CodedConcept.from_code(codes.LANGUAGE)),
            *observation_context(equipment),
            container(codes.FINDINGS, findings),
            container(codes.PROCEDURE_DESCRIPTIONS, performed),
            container(codes.CONCLUSIONS, [text_item(codes.CONCLUSION, RESEARCH_USE)]),
        ]
    )
    return root


def _without_measurements(
    sentences: Sequence[str], status: Code, header: Dataset, tracking_uid: str, equipment: Equipment
) -> Dataset:
    """The content tree of TID 1500 with one group (TID 1501) on the lungs, which holds the status and no number.

    The status stands where a report with findings has it too, below Qualitative Evaluations.
    """
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=tracking_uid, identifier=equipment.subject or "findings"),
        algorithm_id=algorithm_identification(equipment),
        finding_sites=[sr.FindingSite(codes.LUNG)],
        qualitative_evaluations=[sr.QualitativeEvaluation(codes.ANALYSIS_SUMMARY, status)],
    )
    return measurement_report([group], status, [*sentences, RESEARCH_USE], header, equipment)


def _description(series: SeriesDescription, equipment: Equipment) -> list[str]:
    """What was analysed, by what."""
    name = f"{series.series_description}, " if series.series_description else ""
    return [
        f"Series: {name}{series.series_instance_uid}",
        f"Algorithm: {equipment.model_name} {equipment.software_version} ({equipment.manufacturer})",
        *(f"{name}={value}" for name, value in equipment.parameters),
    ]
