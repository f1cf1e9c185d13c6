"""Findings -> result objects: one SR always, one SEG where there is a mask, pictures for people by the options."""

from __future__ import annotations

from pulmo_models.types import Findings, Image, RadiographSeries, Volume
from pulmo_node.encode.captures import encode_key_images
from pulmo_node.encode.film_records import film_records
from pulmo_node.encode.film_sr import encode_film_sr
from pulmo_node.encode.heat_maps import encode_heat_maps, encode_parametric_maps
from pulmo_node.encode.identity import EncodedObject, Equipment, ResultContext
from pulmo_node.encode.notice import encode_no_findings
from pulmo_node.encode.pdf import encode_pdf
from pulmo_node.encode.presentation import encode_presentation_states
from pulmo_node.encode.report import nodule_records
from pulmo_node.encode.seg import encode_seg
from pulmo_node.encode.sr import encode_sr


def encode_findings(findings: Findings, volume: Image, context: ResultContext) -> tuple[EncodedObject, ...]:
    """The result objects of one analysed series: SR, SEG if there are masks, then what the options ask for.

    Encoding the same findings, volume and context again gives equal bytes.

    Raises:
        Permanent: the image is a radiograph, a source file cannot be read, a number is not finite, or an object
            cannot be encoded.
    """
    if not isinstance(volume, Volume):
        return _of_films(findings, volume, context)
    records = nodule_records(findings, context)
    equipment = Equipment.of(findings.pipeline, context)
    objects: list[EncodedObject] = []
    if findings.nodules:
        seg = encode_seg(findings, records, volume, equipment, context) if findings.outlined else None
        objects.append(encode_sr(findings, records, volume, seg, equipment, context))
        objects += [] if seg is None else [seg]
    else:
        objects.append(encode_no_findings(findings, volume, context))
    if findings.conclusions:
        return (
            (*objects, encode_seg(findings, records, volume, equipment, context)) if findings.lungs else tuple(objects)
        )
    if context.options.key_images:
        objects += encode_key_images(findings, records, volume, equipment, context)
    if context.options.presentation_states:
        objects += encode_presentation_states(findings, records, volume, equipment, context)
    if context.options.pdf_report:
        objects.append(encode_pdf(findings, records, volume, equipment, context))
    return tuple(objects)


def _of_films(findings: Findings, series: RadiographSeries, context: ResultContext) -> tuple[EncodedObject, ...]:
    """Of radiographs: one SR, then pictures and parametric maps of the heat maps."""
    records = film_records(findings, series, context)
    equipment = Equipment.of(findings.pipeline, context)
    objects = [encode_film_sr(findings, records, series, equipment, context)]
    if context.options.heat_maps:
        objects += encode_heat_maps(findings, records, series, equipment, context)
    if context.options.parametric_maps:
        objects += encode_parametric_maps(findings, series, equipment, context)
    return tuple(objects)
