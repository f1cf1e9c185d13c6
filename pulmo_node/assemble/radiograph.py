"""The CR and DX objects of one series to radiographs, larger is brighter.

Input: the files of one series. Output: :class:`RadiographSeries`, one radiograph for each image that is made to be
looked at. Errors: `Rejected` where there is none. PS3.3 C.8.1 (CR), C.8.11 (DX), 10.7 (pixel spacing: at the patient or
at the detector), C.8.11.5.1.1 and PS3.16 CID 4010 (views); :mod:`pulmo_node.assemble.brightness` has the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydicom import Dataset
from pydicom.uid import DigitalXRayImageStorageForProcessing

from pulmo_models.codes import CautionCode, RejectionCode
from pulmo_models.types import Caution, Radiograph, RadiographSeries, SeriesDescription, SliceSource, View
from pulmo_node.assemble.brightness import read_brightness
from pulmo_node.assemble.files import numbers, read_header, text, texts, translated
from pulmo_node.errors import Rejected

_KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "InstanceNumber", "ViewPosition", "ViewCodeSequence", "PixelSpacing",
    "PixelSpacingCalibrationType", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio",
    "PresentationIntentType", "PhotometricInterpretation", "PresentationLUTShape", "PatientOrientation",
)  # fmt: skip

_VIEWS: dict[str, View] = {
    "PA": "PA",
    "AP": "AP",
    **dict.fromkeys(("LL", "RL", "LAT", "LATERAL", "LLAT", "RLAT"), "lateral"),
    **dict.fromkeys(("LLD", "RLD", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO"), "other"),  # decubitus, obliques
}
_VIEW_CODES: dict[str, View] = {  # PS3.16 CID 4010, SNOMED CT and the older SRT
    **dict.fromkeys(("272479007", "R-40888", "R-10214"), "PA"),
    **dict.fromkeys(("399348003", "R-10206"), "AP"),
    **dict.fromkeys(("399033003", "R-10202"), "frontal"),
    **dict.fromkeys(("399067008", "R-102CD", "399173006", "R-10236", "399198007", "R-10232"), "lateral"),
    **dict.fromkeys(("399352003", "R-10228", "399260004", "R-10224", "30730003"), "lateral"),
}


def assemble_radiographs(paths: Sequence[Path], series: SeriesDescription) -> RadiographSeries:
    """Every radiograph of a series; an object that is none is set aside, and a caution names it.

    Raises:
        Rejected: NO_IMAGES, or where every image is refused what the first is refused for: UNREADABLE,
            NOT_FOR_PRESENTATION, UNSUPPORTED_PIXELS or DECODE_FAILED.
    """
    images: list[tuple[float, Radiograph]] = []
    refused: list[Rejected] = []
    for path in paths:
        try:
            header, has_pixels = read_header(path, _KEYWORDS)
            if has_pixels:
                images.append((_number(path, header), _radiograph(path, header)))
        except Rejected as exc:
            refused.append(exc)
    if not images:
        raise refused[0] if refused else Rejected(RejectionCode.NO_IMAGES, "the series holds no object with pixel data")
    reasons = "; ".join(exc.reason for exc in refused)
    aside = (Caution(code=CautionCode.SET_ASIDE, sentence=f"Set aside: {reasons}."),) if refused else ()
    ordered = sorted(images, key=lambda item: (item[0], item[1].source.sop_instance_uid))
    return RadiographSeries(images=tuple(image for _, image in ordered), series=series, cautions=aside)


def _radiograph(path: Path, header: Dataset) -> Radiograph:
    with translated(path):
        intent = text(header, "PresentationIntentType")
        if intent == "FOR PROCESSING" or text(header, "SOPClassUID") == DigitalXRayImageStorageForProcessing:
            raise Rejected(
                RejectionCode.NOT_FOR_PRESENTATION,
                f"{path.name} is made for processing, not to be looked at",
                file=path.name,
                tag="(0008,0068) PresentationIntentType",
            )
        spacing_mm, plane = _spacing(header)
        about = {
            "view": _view(header),
            "view_position": text(header, "ViewPosition"),
            "spacing_mm": spacing_mm,
            "spacing_plane": plane,
            "pixel_aspect": _aspect(header, spacing_mm),
            "cautions": _doubt(header),
            "source": SliceSource(
                sop_class_uid=text(header, "SOPClassUID"),
                sop_instance_uid=text(header, "SOPInstanceUID"),
                path=str(path),
            ),
        }
    pixels, display = read_brightness(path)
    return Radiograph(pixels=pixels, display=display, **about)  # type: ignore[arg-type]


def _number(path: Path, header: Dataset) -> float:
    with translated(path):
        found = numbers(header, "InstanceNumber", 1)
        return float("inf") if found is None else float(found[0])


def _view(header: Dataset) -> View:
    """By the code where it is known, else by View Position, else, of a lateral view, by where the rows run to."""
    for item in header.get("ViewCodeSequence") or ():
        if (view := _VIEW_CODES.get(text(item, "CodeValue"))) is not None:
            return view
    position = text(header, "ViewPosition").upper()
    if header.get("ViewCodeSequence") and not position:
        return "other"  # a view of the table, but none of a chest
    if not position and len(sides := texts(header, "PatientOrientation")) == 2:
        return "lateral" if sides[0] in ("A", "P") and sides[1] in ("F", "H") else "unknown"
    return _VIEWS.get(position, "other" if position else "unknown")


def _spacing(header: Dataset) -> tuple[tuple[float, float] | None, Literal["patient", "detector"] | None]:
    """Spacing and the plane in which it holds: PixelSpacing is the detector's too where it was not calibrated."""
    imager = _positive(header, "ImagerPixelSpacing") or _positive(header, "NominalScannedPixelSpacing")
    pixel = _positive(header, "PixelSpacing")
    if pixel is None:
        return imager, None if imager is None else "detector"
    calibrated = text(header, "PixelSpacingCalibrationType") != "" or (imager is not None and pixel != imager)
    return pixel, "patient" if calibrated else "detector"


def _positive(header: Dataset, keyword: str) -> tuple[float, float] | None:
    values = numbers(header, keyword, 2)
    return None if values is None or not (values > 0).all() else (float(values[0]), float(values[1]))


def _aspect(header: Dataset, spacing_mm: tuple[float, float] | None) -> float:
    if spacing_mm is not None:
        return spacing_mm[0] / spacing_mm[1]
    ratio = numbers(header, "PixelAspectRatio", 2)
    return 1.0 if ratio is None or not (ratio > 0).all() else float(ratio[0] / ratio[1])


def _doubt(header: Dataset) -> tuple[Caution, ...]:
    """PS3.3 C.8.11.3.1.2: IDENTITY with MONOCHROME2, INVERSE with MONOCHROME1; else one of the two is wrong."""
    shape, photometric = text(header, "PresentationLUTShape"), text(header, "PhotometricInterpretation")
    if (shape, photometric) not in (("INVERSE", "MONOCHROME2"), ("IDENTITY", "MONOCHROME1")):
        return ()
    sentence = f"Presentation LUT Shape {shape} contradicts {photometric}, which was followed; black may be white."
    return (Caution(code=CautionCode.LOOKS_INVERTED, sentence=sentence),)
