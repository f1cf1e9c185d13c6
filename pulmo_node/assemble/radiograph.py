"""A CR or DX object to one `Radiograph`, larger is brighter.

PS3.3 C.7.6.3.1.2 (Photometric Interpretation), C.11.1 (Modality LUT), 10.7 (pixel spacing calibration).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset

from pulmo_models.codes import RejectionCode
from pulmo_models.types import Radiograph, SeriesDescription, SliceSource
from pulmo_node.assemble.files import numbers, read_header, text, translated
from pulmo_node.assemble.pixels import padding_mask, read_pixel_module, stored_values
from pulmo_node.errors import Rejected

_KEYWORDS = ("SOPClassUID", "SOPInstanceUID", "ViewPosition", "PixelSpacing", "ImagerPixelSpacing", "SamplesPerPixel")


def assemble_radiograph(paths: Sequence[Path], series: SeriesDescription) -> Radiograph:
    """The one image of a radiograph series.

    Returns:
        float32 stored values after the rescale where the file has one, turned to MONOCHROME2 sense; padding takes the
        darkest value that is no padding. Spacing at the patient (PixelSpacing), else at the detector, else None.

    Raises:
        Rejected: UNREADABLE, NO_IMAGES, SEVERAL_IMAGES, UNSUPPORTED_PIXELS or DECODE_FAILED.
    """
    images: list[tuple[Path, Dataset]] = []
    for path in paths:
        header, has_pixels = read_header(path, _KEYWORDS)
        if has_pixels:
            images.append((path, header))
    if not images:
        raise Rejected(RejectionCode.NO_IMAGES, "the series holds no object with pixel data")
    if len(images) > 1:
        names = ", ".join(path.name for path, _ in images[:5])
        raise Rejected(RejectionCode.SEVERAL_IMAGES, f"the series holds {len(images)} images ({names}), not one")
    path, header = images[0]
    if header.get("SamplesPerPixel", 1) != 1:
        raise Rejected(
            RejectionCode.UNSUPPORTED_PIXELS,
            f"{path.name} is a colour image",
            file=path.name,
            tag="(0028,0002) SamplesPerPixel",
        )
    pixels = _brightness(path, read_pixel_module(path))
    with translated(path):
        return Radiograph(
            pixels=pixels,
            spacing_mm=_spacing_mm(header),
            view_position=text(header, "ViewPosition"),
            series=series,
            source=SliceSource(
                sop_class_uid=text(header, "SOPClassUID"),
                sop_instance_uid=text(header, "SOPInstanceUID"),
                path=str(path),
            ),
        )


def _brightness(path: Path, dataset: Dataset) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    stored = stored_values(path, dataset)
    with translated(path):
        slope, intercept = numbers(dataset, "RescaleSlope", 1), numbers(dataset, "RescaleIntercept", 1)
        padding = padding_mask(stored, dataset)
        inverted = text(dataset, "PhotometricInterpretation") == "MONOCHROME1"
    pixels = stored.astype(np.float64)
    if slope is not None and intercept is not None:
        pixels = pixels * slope[0] + intercept[0]
    if inverted:
        pixels = pixels.max() + pixels.min() - pixels
    if padding is not None and padding.any() and not padding.all():
        pixels[padding] = pixels[~padding].min()
    return pixels.astype(np.float32)


def _spacing_mm(header: Dataset) -> tuple[float, float] | None:
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        spacing = numbers(header, keyword, 2)
        if spacing is not None and (spacing > 0).all():
            return float(spacing[0]), float(spacing[1])
    return None
