"""Key images: secondary captures for systems that show neither SR nor SEG (PS3.3 A.8.1).

One series: first the summary page, then a picture of each nodule. No machine reads these: the numbers are in the SR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import highdicom as hd
import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from pulmo_models.types import Findings, Volume
from pulmo_node.encode.finish import finish
from pulmo_node.encode.identity import EncodedObject, Equipment, ResultContext, ascii_text, library_errors
from pulmo_node.encode.keyimage import direction
from pulmo_node.encode.pictures import nodule_pictures, page_title, summary_page
from pulmo_node.encode.presentation import key_mask
from pulmo_node.encode.report import NoduleRecord
from pulmo_node.encode.source import bare_header, read_header


@dataclass(frozen=True, kw_only=True)
class CaptureSeries:
    """A series of secondary captures."""

    identity: str  # what its UIDs are derived from
    offset: int  # of its series number from that of the pipeline
    kind: str  # in its description
    derivation: str  # what the pictures are


KEY_IMAGES = CaptureSeries(
    identity="key-image",
    offset=3,
    kind="key images",
    derivation="Slices in the lung window with outlines and numbers of the nodules",
)

_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


def encode_key_images(
    findings: Findings, records: Sequence[NoduleRecord], volume: Volume, equipment: Equipment, context: ResultContext
) -> tuple[EncodedObject, ...]:
    """The summary page, then one secondary capture for each nodule; without nodules the page alone, which says so.

    Raises:
        Permanent: a source file cannot be read, or a picture cannot be encoded.
    """
    weights_sha256 = findings.pipeline.weights_sha256
    header = read_header(volume.frames[0])
    first = summary_page(findings, records, volume, context)
    page = capture(first, KEY_IMAGES, 0, weights_sha256, header, equipment, context)
    page.ImageComments = page_title(records)
    page.PatientOrientation = []  # a page of several planes
    captures = [page]
    for picture, nodule, record in zip(
        nodule_pictures(findings, records, volume), findings.nodules, records, strict=True
    ):
        shown = capture(picture, KEY_IMAGES, record.segment_number, weights_sha256, header, equipment, context)
        shown.ImageComments = ascii_text(record.comment)
        source = volume.frames[key_mask(nodule, volume).frame]
        reference = Dataset()
        reference.ReferencedSOPClassUID = source.sop_class_uid
        reference.ReferencedSOPInstanceUID = source.sop_instance_uid
        if source.frame_number is not None:
            reference.ReferencedFrameNumber = source.frame_number
        shown.SourceImageSequence = [reference]
        shown.PatientOrientation = [direction(volume.affine[:3, axis]) for axis in (2, 1)]
        captures.append(shown)
    return tuple(finish(each, KEY_IMAGES.identity, header, context) for each in captures)


def capture(
    picture: Image.Image,
    series: CaptureSeries,
    number: int,
    weights_sha256: str,
    header: Dataset,
    equipment: Equipment,
    context: ResultContext,
) -> hd.sc.SCImage:
    """A picture as an instance of a series of them, ``number`` counted from 0; of key images 0 is the page.

    Raises:
        Permanent: it cannot be encoded.
    """
    with library_errors(series.identity, context.series_instance_uid):
        built = hd.sc.SCImage.from_ref_dataset(
            ref_dataset=bare_header(header),
            pixel_array=np.asarray(picture),
            photometric_interpretation=hd.PhotometricInterpretationValues.RGB,
            bits_allocated=8,
            coordinate_system=hd.CoordinateSystemNames.PATIENT,
            patient_orientation=("L", "P"),  # the callers say what it is
            series_instance_uid=context.uid(f"{series.identity}-series", weights_sha256),
            series_number=equipment.series_base + series.offset,
            sop_instance_uid=context.uid(f"{series.identity} {number}", weights_sha256),
            instance_number=number + 1,
            manufacturer=equipment.manufacturer,
            manufacturer_model_name=equipment.model_name,
            software_versions=equipment.software_version,
            device_serial_number=equipment.serial_number,
            series_description=equipment.series_description(series.kind),
            transfer_syntax_uid=ExplicitVRLittleEndian,
            contributing_equipment=equipment.contributing_items(context),
        )
    built.ConversionType = "WSD"  # by a workstation
    built.BodyPartExamined = "CHEST"  # no paired part, so no laterality is asked for
    built.BurnedInAnnotation = built.RecognizableVisualFeatures = "NO"
    built.DerivationDescription = series.derivation
    for keyword in ("DateOfSecondaryCapture", "TimeOfSecondaryCapture"):  # the clock; the dates of the content tell it
        del built[keyword]
    if header.get("LossyImageCompression") == "01":  # it stays lossy whatever is made of it (PS3.3 C.7.6.1.1.5)
        for keyword in _LOSSY:
            if keyword in header:
                built[keyword] = header[keyword]
    return built
