"""Stored values of one frame to Hounsfield units, float from the first step so that nothing wraps.

Input: a Part 10 file. Output: float arrays. PS3.3 C.7.6.3 (Image Pixel), C.7.5.1.1.2 (Pixel Padding), C.11.1
(Modality LUT); PS3.5 8.1.1 (Bits Stored).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import JPEGLSTransferSyntaxes

from pulmo_models.codes import RejectionCode
from pulmo_node.assemble.files import translated
from pulmo_node.errors import Rejected

AIR_HU = -1024.0
"""What padding becomes, and the smallest HU that a volume holds."""

IntegerArray = npt.NDArray[np.integer]

PIXEL_KEYWORDS = (
    "SOPClassUID", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns",
    "NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "ModalityLUTSequence",
)  # fmt: skip


def read_pixel_module(path: Path) -> Dataset:
    """The elements that decoding needs, pixel data among them, still encoded.

    Raises:
        Rejected: UNREADABLE, or UNSUPPORTED_PIXELS for a layout that is not greyscale integers from bit 0.
    """
    with translated(path):
        dataset = pydicom.dcmread(path, specific_tags=list(PIXEL_KEYWORDS))
        stored, high = int(dataset.BitsStored), int(dataset.HighBit)
        allocated = int(dataset.BitsAllocated)
    if high != stored - 1 or not 1 <= stored <= allocated or allocated not in (8, 16, 32):
        raise Rejected(
            RejectionCode.UNSUPPORTED_PIXELS,
            f"{path.name} stores {stored} of {allocated} bits with high bit {high}, a layout that DICOM has withdrawn",
            file=path.name,
            tag="(0028,0102) HighBit",
        )
    return dataset


def stored_values(path: Path, dataset: Dataset, frame_number: int | None = None) -> IntegerArray:
    """Decode one frame ``(rows, columns)`` to its stored values, bits above the high bit (overlays) cleared.

    Raises:
        Rejected: DECODE_FAILED with the decoder's reason.
    """
    index = 0 if frame_number is None else frame_number - 1
    with translated(path, RejectionCode.DECODE_FAILED, "cannot be decoded"):
        pixels = _decode(dataset, index)
        if pixels.shape != (dataset.Rows, dataset.Columns):
            raise ValueError(f"the frame decodes to {pixels.shape}, not {(dataset.Rows, dataset.Columns)}")
        return _without_unused_bits(pixels, dataset)


def _decode(dataset: Dataset, index: int) -> IntegerArray:
    syntax = dataset.file_meta.TransferSyntaxUID
    decoder = get_decoder(syntax)
    if syntax in JPEGLSTransferSyntaxes and "pyjpegls" in decoder.available_plugins:
        # Twice as fast as gdcm, which pydicom tries first; what it refuses, gdcm may still read.
        with suppress(RuntimeError):
            return decoder.as_array(dataset, index=index, raw=True, decoding_plugin="pyjpegls")[0]
    return decoder.as_array(dataset, index=index, raw=True)[0]


def _without_unused_bits(pixels: IntegerArray, dataset: Dataset) -> IntegerArray:
    """Clear or sign-extend what lies above the high bit; idempotent, so it may follow a decoder that did it."""
    signed = bool(dataset.PixelRepresentation)
    native = pixels.astype(np.dtype(f"{'i' if signed else 'u'}{pixels.dtype.itemsize}"), copy=False)
    unused = 8 * pixels.dtype.itemsize - int(dataset.BitsStored)
    return native if unused <= 0 else (native << unused) >> unused


def padding_mask(stored: IntegerArray, dataset: Dataset) -> npt.NDArray[np.bool_] | None:
    """Where the scanner wrote padding: PixelPaddingValue up to PixelPaddingRangeLimit, both stored values."""
    value = dataset.get("PixelPaddingValue")
    if value is None or value == "":
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    first = _as_stored(value, dataset)
    last = first if limit is None or limit == "" else _as_stored(limit, dataset)
    low, high = min(first, last), max(first, last)
    return stored == low if low == high else (stored >= low) & (stored <= high)


def _as_stored(value: object, dataset: Dataset) -> int:
    """A padding value in the signedness of the pixels; files give 63536 for -2000 where the VR was read as US."""
    bits = int(dataset.BitsAllocated)
    number = int(str(value)) % (1 << bits)
    return number - (1 << bits) if dataset.PixelRepresentation and number >= 1 << (bits - 1) else number


def write_hu(
    stored: IntegerArray, dataset: Dataset, rescale: tuple[float, float], out: npt.NDArray[np.float32]
) -> None:
    """HU of one frame into ``out`` (rows, columns): slope and intercept in float64, padding and below -1024 to -1024.

    PhotometricInterpretation plays no part: it tells how to show the values, the rescale holds for MONOCHROME1 too
    (C.7.6.3.1.2). Values above the scale of tissue (metal) are kept.
    """
    slope, intercept = rescale
    hu = stored * np.float64(slope)
    hu += intercept
    np.maximum(hu, AIR_HU, out=hu)
    mask = padding_mask(stored, dataset)
    if mask is not None:
        hu[mask] = AIR_HU
    out[...] = hu
