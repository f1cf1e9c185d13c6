"""Findings -> DICOM result objects (SR, SEG, key images, presentation states, PDF), findings.json and pictures.

Input: `pulmo_models.types.Findings` with the `Volume` they were found in, and a `ResultContext`. Output: Part 10 files
as bytes. Errors: `Permanent`. Governed by PS3.3 A.35.13 (Comprehensive 3D SR) and A.51 (Segmentation), PS3.16 TID 1500
and TID 2000; `docs/results.md` says what the objects hold.
"""

from pulmo_node.encode.film_records import findings_to_json
from pulmo_node.encode.identity import EncodedObject, Predecessor, ResultContext, ResultOptions
from pulmo_node.encode.keyimage import direction, render_mask
from pulmo_node.encode.notice import encode_rejection
from pulmo_node.encode.objects import encode_findings
from pulmo_node.encode.pictures import render_nodules
from pulmo_node.encode.planes import render_planes
from pulmo_node.encode.uids import result_uid

__all__ = [
    "EncodedObject",
    "Predecessor",
    "ResultContext",
    "ResultOptions",
    "direction",
    "encode_findings",
    "encode_rejection",
    "findings_to_json",
    "render_mask",
    "render_nodules",
    "render_planes",
    "result_uid",
]
