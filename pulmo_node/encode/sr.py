"""Measurement report: Comprehensive 3D SR by TID 1500 with one group per nodule (PS3.16): TID 1411 or 1501.

Written so that OHIF shows and hydrates it: the first number of each group is the long axis, which carries its line
as an SCOORD on the key slice, the tracking identifier names a bidirectional tool, and a comment holds what the
measurement panel cannot show.
"""

from __future__ import annotations

from collections.abc import Sequence

from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from pulmo_models.types import Findings, Volume
from pulmo_node.encode import codes
from pulmo_node.encode.finish import finish
from pulmo_node.encode.group import Group, measurement_group
from pulmo_node.encode.identity import (
    RESEARCH_USE,
    EncodedObject,
    Equipment,
    ResultContext,
    ascii_text,
    library_errors,
)
from pulmo_node.encode.report import NoduleRecord, acquisition_text, caution_text, malignancy_bias
from pulmo_node.encode.source import bare_header, evidence_items, library_images, read_header, reference

SERIES_OFFSET = 1

_CONTAINS = sr.RelationshipTypeValues.CONTAINS


def encode_sr(
    findings: Findings,
    records: Sequence[NoduleRecord],
    volume: Volume,
    seg: EncodedObject | None,
    equipment: Equipment,
    context: ResultContext,
) -> EncodedObject:
    """The measurement report of at least one nodule; ``seg`` holds the masks, where the nodules have any.

    Raises:
        Permanent: a source file cannot be read, or an axis does not lie on a slice of the volume.
    """
    header = read_header(volume.frames[0])
    weights = findings.pipeline.weights_sha256
    with library_errors("SR", context.series_instance_uid):
        bias = malignancy_bias(findings)
        groups = [
            measurement_group(nodule, record, volume, seg, equipment, bias)
            for nodule, record in zip(findings.nodules, records, strict=True)
        ]
        sentences = [*map(caution_text, findings.cautions), acquisition_text(volume), RESEARCH_USE]
        images = library_images(volume) if context.options.image_library else ()
        report = measurement_report(groups, codes.SUCCEEDED_WITH_FINDINGS, sentences, header, equipment, images)
    evidence = evidence_items(volume.series, volume.frames)
    if seg is not None:
        study = header.StudyInstanceUID
        evidence.append(reference(study, seg.series_instance_uid, seg.sop_class_uid, seg.sop_instance_uid))
    return build_sr(report, header, evidence, "sr", equipment, weights, context)


def measurement_report(
    groups: Sequence[Group],
    status: Code,
    sentences: Sequence[str],
    header: Dataset,
    equipment: Equipment,
    images: Sequence[Dataset] = (),
) -> Dataset:
    """The content tree of TID 1500: at least one group, then what holds for the whole report (row 12).

    `images` make the image library. Raises what highdicom raises.
    """
    report = sr.MeasurementReport(
        observation_context=observation_context(equipment),
        procedure_reported=procedure_codes(header)
        or [codes.PROCEDURES.get(str(header.get("Modality")), codes.CT_CHEST_REPORT)],
        imaging_measurements=groups,
        title=codes.IMAGING_MEASUREMENT_REPORT,
        language_of_content_item_and_descendants=sr.LanguageOfContentItemAndDescendants(
            sr.CodedConcept.from_code(codes.LANGUAGE)
        ),
        referenced_images=images,
    )[0]
    summary = sr.CodeContentItem(codes.ANALYSIS_SUMMARY, status, _CONTAINS)
    comments = [text_item(codes.COMMENT, sentence) for sentence in sentences]
    report.ContentSequence.append(container(codes.QUALITATIVE_EVALUATIONS, [summary, *comments]))
    return report


def build_sr(
    content: Dataset,
    header: Dataset,
    evidence: Sequence[Dataset],
    identity: str,
    equipment: Equipment,
    weights_sha256: str,
    context: ResultContext,
) -> EncodedObject:
    """A Comprehensive 3D SR document around a content tree; `identity` is the kind that its UIDs are derived from.

    Every instance that the tree refers to must be in `evidence`.

    Raises:
        Permanent: the document cannot be encoded.
    """
    # highdicom is shown the root alone: it would copy the tree twice and search it twice, a third of the whole time.
    root = Dataset()
    root.update({element.tag: element for element in content if element.keyword != "ContentSequence"})
    root.ContentSequence = []
    with library_errors("SR", context.series_instance_uid):
        built = sr.Comprehensive3DSR(
            evidence=[bare_header(header), *evidence],
            content=root,
            series_instance_uid=context.uid(f"{identity}-series", weights_sha256),
            series_number=equipment.series_base + SERIES_OFFSET,
            sop_instance_uid=context.uid(identity, weights_sha256),
            instance_number=1,
            manufacturer=equipment.manufacturer,
            is_complete=True,
            is_final=False,
            is_verified=False,
            series_description=equipment.series_description("SR"),
            manufacturer_model_name=equipment.model_name,
            software_versions=equipment.software_version,
            device_serial_number=equipment.serial_number,
            contributing_equipment=equipment.contributing_items(context),
            previous_versions=_predecessors(header, context) or None,
            coding_schemes=codes.coding_schemes(),
        )
        built.ContentSequence = content.ContentSequence
    return finish(built, "sr", header, context)


def _predecessors(header: Dataset, context: ResultContext) -> list[Dataset]:
    """The reports that this one replaces, all of them in the study of the series."""
    return [
        reference(header.StudyInstanceUID, one.series_instance_uid, one.sop_class_uid, one.sop_instance_uid)
        for one in context.predecessors
    ]


def observation_context(equipment: Equipment) -> sr.ObservationContext:
    """TID 1001: the program as the observer."""
    attributes = sr.DeviceObserverIdentifyingAttributes(
        uid=equipment.device_uid,
        name=equipment.model_name,
        manufacturer_name=equipment.manufacturer,
        model_name=equipment.model_name,
        serial_number=equipment.serial_number,
    )
    return sr.ObservationContext(
        observer_device_context=sr.ObserverContext(
            observer_type=sr.CodedConcept.from_code(codes.DEVICE), observer_identifying_attributes=attributes
        )
    )


def procedure_codes(header: Dataset) -> list[sr.CodedConcept]:
    """The codes of the procedure as the source gives them (0008,1032); items without value or meaning are left out."""
    return [
        sr.CodedConcept(str(item.CodeValue), str(item.CodingSchemeDesignator), str(item.CodeMeaning)[:64])
        for item in header.get("ProcedureCodeSequence") or []
        if item.get("CodeValue") and item.get("CodingSchemeDesignator") and item.get("CodeMeaning")
    ]


def text_item(name: Code, text: str) -> sr.TextContentItem:
    """A TEXT item that its parent contains."""
    return sr.TextContentItem(name, ascii_text(text), _CONTAINS)


def container(name: Code, items: Sequence[sr.ContentItem]) -> sr.ContainerContentItem:
    """A CONTAINER with its items."""
    item = sr.ContainerContentItem(name, is_content_continuous=False, relationship_type=_CONTAINS)
    item.ContentSequence = sr.ContentSequence(items)
    return item
