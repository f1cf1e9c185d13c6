"""Stored values of one frame to Hounsfield units, float from the first step so that nothing wraps.

Input: a Part 10 file. Output: float arrays. PS3.3 C.7.6.3 (Image Pixel), C.7.5.1.1.2 (Pixel Padding), C.11.1
(Modality LUT); PS3.5 8.1.1 (Bits Stored).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder

from pulmo_models.codes import RejectionCode
from pulmo_node.assemble.codestream import check_codestream
from pulmo_node.assemble.decoding import FrameLayout, decode
from pulmo_node.assemble.files import read_elements, text, translated
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


def read_pixel_module(path: Path, keywords: Sequence[str] = PIXEL_KEYWORDS) -> Dataset:
    """The elements that decoding needs, pixel data among them, still encoded.

    Raises:
        Rejected: UNREADABLE, or UNSUPPORTED_PIXELS for a layout that is not greyscale integers from bit 0.
    """
    dataset = read_elements(path, keywords)
    with translated(path):
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

    Compressed frames are compared with Rows and Columns first, and decoded in a process of their own.

    Raises:
        Rejected: DECODE_FAILED with the decoder's reason.
    """
    index = 0 if frame_number is None else frame_number - 1
    with translated(path, RejectionCode.DECODE_FAILED, "cannot be decoded"):
        syntax = dataset.file_meta.TransferSyntaxUID
        pixels = _decompress(dataset, index) if syntax.is_encapsulated else _native(dataset, index)
        if pixels.shape != (dataset.Rows, dataset.Columns):
            raise ValueError(f"the frame decodes to {pixels.shape}, not {(dataset.Rows, dataset.Columns)}")
        return _without_unused_bits(pixels, dataset)


def _native(dataset: Dataset, index: int) -> IntegerArray:
    return get_decoder(dataset.file_meta.TransferSyntaxUID).as_array(dataset, index=index, raw=True)[0]


def _decompress(dataset: Dataset, index: int) -> IntegerArray:
    layout = FrameLayout(
        transfer_syntax=str(dataset.file_meta.TransferSyntaxUID),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        bits_allocated=int(dataset.BitsAllocated),
        bits_stored=int(dataset.BitsStored),
        pixel_representation=int(dataset.PixelRepresentation),
        photometric_interpretation=text(dataset, "PhotometricInterpretation"),
    )
    offsets = _extended_offsets(dataset)
    frames = int(dataset.get("NumberOfFrames") or 1)
    encoded = get_frame(dataset.PixelData, index, number_of_frames=frames, extended_offsets=offsets)
    check_codestream(encoded, dataset.file_meta.TransferSyntaxUID, layout.rows, layout.columns)
    return decode(encoded, layout)


def _extended_offsets(dataset: Dataset) -> tuple[bytes, bytes] | None:
    offsets, lengths = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    return (offsets, lengths) if offsets and lengths else None


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
    """HU of one frame into ``out`` (rows, columns), rounded once; padding and what lies below -1024 become -1024.

    PhotometricInterpretation plays no part: it tells how to show the values, the rescale holds for MONOCHROME1 too
    (C.7.6.3.1.2). Values above the scale of tissue (metal) are kept.
    """
    slope, intercept = rescale
    if _exact_in_float32(stored, slope, intercept):
        np.multiply(stored, np.float32(slope), out=out, casting="unsafe")
        out += np.float32(intercept)
    else:
        out[...] = stored * np.float64(slope) + intercept
    np.maximum(out, AIR_HU, out=out)
    mask = padding_mask(stored, dataset)
    if mask is not None:
        out[mask] = AIR_HU


def _exact_in_float32(stored: IntegerArray, slope: float, intercept: float) -> bool:
    """Whether no step of the rescale needs more than the 24 bits of a float32: the usual case, and the faster one."""
    largest = float(np.iinfo(stored.dtype).max) * abs(slope) + abs(intercept)
    return slope.is_integer() and intercept.is_integer() and largest < 1 << 24
