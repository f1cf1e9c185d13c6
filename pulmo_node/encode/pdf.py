"""The results as an encapsulated PDF: numbers as text that can be searched and copied, and the pictures (PS3.3 A.45.1).

The pages do not name the patient, as the pictures do not; the header of the object does. ReportLab lays them out: BSD,
maintained since 2000, needs nothing but Pillow and charset-normalizer, and writes equal bytes for equal content
(`invariant`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from io import BytesIO
from xml.sax.saxutils import escape

import highdicom as hd
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.lib.units import mm
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, Flowable, Paragraph, SimpleDocTemplate, Spacer, Table
from reportlab.platypus import Image as Picture

from pulmo_models.types import Findings, Volume
from pulmo_node.encode import codes
from pulmo_node.encode.finish import finish
from pulmo_node.encode.identity import EncodedObject, Equipment, ResultContext, ascii_text, library_errors
from pulmo_node.encode.pictures import nodule_pictures, numbers, page_notes, page_title, places_picture
from pulmo_node.encode.report import NoduleRecord
from pulmo_node.encode.source import read_header

SERIES_OFFSET = 5
TITLE = "Lung nodules in chest CT"

_MARGIN = 18 * mm
_WIDTH = A4[0] - 2 * _MARGIN
_PICTURE_WIDTH = 0.85 * _WIDTH  # two pictures of nodules fit on a page
_COLUMNS = ("place", "size", "attenuation", "malignancy", "detection")


def encode_pdf(
    findings: Findings, records: Sequence[NoduleRecord], volume: Volume, equipment: Equipment, context: ResultContext
) -> EncodedObject:
    """The report as one encapsulated PDF, also of a series without nodules.

    Raises:
        Permanent: a source file cannot be read, or the object cannot be encoded.
    """
    weights_sha256 = findings.pipeline.weights_sha256
    header = read_header(volume.frames[0])
    with library_errors("PDF", context.series_instance_uid):
        document = write_pdf(findings, records, volume, context)
        built = hd.base.SOPClass(
            study_instance_uid=header.StudyInstanceUID,
            series_instance_uid=context.uid("pdf-series", weights_sha256),
            series_number=equipment.series_base + SERIES_OFFSET,
            sop_instance_uid=context.uid("pdf", weights_sha256),
            sop_class_uid=EncapsulatedPDFStorage,
            instance_number=1,
            modality="DOC",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            manufacturer=equipment.manufacturer,
            manufacturer_model_name=equipment.model_name,
            software_versions=equipment.software_version,
            device_serial_number=equipment.serial_number,
            series_description=equipment.series_description("PDF"),
        )
        built.ContributingEquipmentSequence = equipment.contributing_items(context)
        built.ConversionType = "WSD"  # by a workstation
        built.AcquisitionDateTime = None  # type 2, and not of one moment
        built.BurnedInAnnotation = "NO"  # nothing on the pages names the patient
        built.DocumentTitle = TITLE
        built.ConceptNameCodeSequence = [hd.sr.CodedConcept.from_code(codes.DIAGNOSTIC_IMAGING_REPORT)]
        built.VerificationFlag = "UNVERIFIED"
        built.SourceInstanceSequence = _instances(volume)
        built.MIMETypeOfEncapsulatedDocument = "application/pdf"
        built.EncapsulatedDocument = document + b"\0" * (len(document) % 2)
        built.EncapsulatedDocumentLength = len(document)
    return finish(built, "pdf", header, context)


def write_pdf(findings: Findings, records: Sequence[NoduleRecord], volume: Volume, context: ResultContext) -> bytes:
    """The PDF file: on its first page what was found, then the picture of each nodule."""
    styles = getSampleStyleSheet()
    story: list[Flowable] = [
        Paragraph(TITLE, styles["Title"]),
        Paragraph(escape(page_title(records)), styles["Heading2"]),
        _picture(places_picture(records, volume), _WIDTH),
        Spacer(0, 4 * mm),
    ]
    if records:
        story += [_table(findings, records, volume), Spacer(0, 4 * mm)]
    story += [Paragraph(escape(note), styles["BodyText"]) for note in page_notes(findings, volume, context)]
    for picture in nodule_pictures(findings, records, volume):
        story += [Spacer(0, 6 * mm), _picture(picture, _PICTURE_WIDTH)]
    when = f"D:{context.content_datetime.astimezone(UTC):%Y%m%d%H%M%S}Z"

    def first_page(canvas: Canvas, _: BaseDocTemplate) -> None:
        canvas.setDateFormatter(lambda *_: when)  # `invariant` would say the year 2000

    buffer = BytesIO()
    template = SimpleDocTemplate(
        buffer,
        pagesize=A4,
        leftMargin=_MARGIN,
        rightMargin=_MARGIN,
        topMargin=_MARGIN,
        bottomMargin=_MARGIN,
        title=TITLE,
        author=ascii_text(context.manufacturer),
        lang="en-GB",
        invariant=1,
        pageCompression=1,
    )
    template.build(story, onFirstPage=first_page)
    return buffer.getvalue()


def _picture(picture: Image.Image, width: float) -> Picture:
    buffer = BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    buffer.seek(0)
    return Picture(buffer, width=width, height=width * picture.height / picture.width, hAlign="LEFT")


def _table(findings: Findings, records: Sequence[NoduleRecord], volume: Volume) -> Table:
    rows = [["nodule", *_COLUMNS]]
    for nodule, record in zip(findings.nodules, records, strict=True):
        said = numbers(nodule, record, volume)
        rows.append([str(record.segment_number), *(said[name] for name in _COLUMNS)])
    style = [
        ("FONTSIZE", (0, 0), (-1, -1), 9),
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("TEXTCOLOR", (0, 0), (-1, 0), colors.grey),
        ("LINEBELOW", (0, 0), (-1, -1), 0.25, colors.lightgrey),
    ]
    return Table(rows, style=style, hAlign="LEFT", repeatRows=1)


def _instances(volume: Volume) -> list[Dataset]:
    """Every instance that the volume was made of."""
    found = []
    for sop_class_uid, sop_instance_uid in dict.fromkeys((f.sop_class_uid, f.sop_instance_uid) for f in volume.frames):
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
        found.append(item)
    return found
