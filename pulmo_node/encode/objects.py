"""Findings -> result objects: one SR always, and one SEG where there is a nodule."""

from __future__ import annotations

from pulmo_models.types import Findings, Radiograph, Volume
from pulmo_node.encode.identity import EncodedObject, Equipment, ResultContext
from pulmo_node.encode.notice import encode_no_findings
from pulmo_node.encode.report import nodule_records
from pulmo_node.encode.seg import encode_seg
from pulmo_node.encode.sr import encode_sr
from pulmo_node.errors import Permanent


def encode_findings(
    findings: Findings, volume: Volume | Radiograph, context: ResultContext
) -> tuple[EncodedObject, ...]:
    """The result objects of one analysed series, SR first.

    Encoding the same findings, volume and context again gives equal bytes.

    Raises:
        Permanent: the image is a radiograph, a source file cannot be read, a number is not finite, or an object
            cannot be encoded.
    """
    if not isinstance(volume, Volume):
        raise Permanent("findings in a radiograph cannot be encoded: no pipeline yields them yet")
    if not findings.nodules:
        return (encode_no_findings(findings, volume, context),)
    records = nodule_records(findings, context)
    equipment = Equipment.of(findings.pipeline, context)
    seg = encode_seg(findings, records, volume, equipment, context)
    return encode_sr(findings, records, volume, seg, equipment, context), seg
