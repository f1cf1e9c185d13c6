"""Stored values of one frame to Hounsfield units, float from the first step so that nothing wraps.

Input: a Part 10 file. Output: float arrays. PS3.3 C.7.6.3 (Image Pixel), C.7.5.1.1.2 (Pixel Padding), C.11.1
(Modality LUT); PS3.5 8.1.1 (Bits Stored).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pulmo_models.codes import RejectionCode
from pulmo_node.assemble.codestream import check_codestream
from pulmo_node.assemble.decoding import FrameLayout, decode
from pulmo_node.assemble.files import READ_ERRORS, FileIdentity, read_elements, text, translated
from pulmo_node.assemble.headers import PIXEL_KEYWORDS, Header
from pulmo_node.errors import Rejected

AIR_HU = -1024.0
"""What padding becomes, and the smallest HU that a volume holds."""

IntegerArray = npt.NDArray[np.integer]

_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
_GREYSCALE = ("MONOCHROME1", "MONOCHROME2")
_PIXEL_DATA = b"\xe0\x7f\x10\x00"  # (7FE0,0010) in little endian


def read_pixel_module(path: Path) -> Dataset:
    """The elements that decoding needs, pixel data among them, still encoded.

    Raises:
        Rejected: UNREADABLE, or UNSUPPORTED_PIXELS for a layout that is not greyscale integers from bit 0.
    """
    dataset = read_elements(path, (*PIXEL_KEYWORDS, "PixelData"))
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


def native_values(header: Header) -> IntegerArray | None:
    """Stored values ``(rows, columns)`` of the usual uncompressed file, straight from where they lie in it.

    None for every other file, and for one that is not what its header says: `stored_values` says then what is wrong.
    """
    try:
        layout = _native_layout(header.dataset)
        if layout is None or header.pixels_at is None:
            return None
        dtype, rows, columns = layout
        with header.path.open("rb") as file:
            if FileIdentity.of(os.fstat(file.fileno())) != header.identity:
                return None
            file.seek(header.pixels_at)
            explicit = header.dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
            length = _native_length(file.read(12 if explicit else 8))
            expected = rows * columns * dtype.itemsize
            if length not in (expected, expected + expected % 2):
                return None
            pixels = np.fromfile(file, dtype, rows * columns)
    except READ_ERRORS:
        return None
    if pixels.size != rows * columns:
        return None
    return _without_unused_bits(pixels.reshape(rows, columns), header.dataset)


def _native_layout(dataset: Dataset) -> tuple[np.dtype[np.integer], int, int] | None:
    """Type, rows and columns of one uncompressed greyscale frame of 8 or 16 bits a pixel, None for all else."""
    if dataset.file_meta.TransferSyntaxUID not in _NATIVE or int(dataset.get("NumberOfFrames") or 1) != 1:
        return None
    allocated, stored, high = (int(dataset[name].value) for name in ("BitsAllocated", "BitsStored", "HighBit"))
    signed, rows, columns = (int(dataset[name].value) for name in ("PixelRepresentation", "Rows", "Columns"))
    usual = allocated in (8, 16) and 1 <= stored <= allocated and high == stored - 1 and signed in (0, 1)
    grey = dataset.SamplesPerPixel == 1 and text(dataset, "PhotometricInterpretation") in _GREYSCALE
    if not usual or not grey or rows < 1 or columns < 1:
        return None
    return np.dtype(f"<{'i' if signed else 'u'}{allocated // 8}"), rows, columns


def _native_length(element: bytes) -> int | None:
    """Length of the pixel data by the head of their element; None where it is none of them."""
    if element[:4] != _PIXEL_DATA:
        return None
    if len(element) == 12 and element[4:6] not in (b"OW", b"OB"):
        return None
    return int.from_bytes(element[-4:], "little")


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
    stored = int(dataset.BitsStored)
    unused = 8 * pixels.dtype.itemsize - stored
    low, high = (-(1 << (stored - 1)), 1 << (stored - 1)) if signed else (0, 1 << stored)
    if unused <= 0 or (low <= native.min() and native.max() < high):  # nearly always, and told in half the time
        return native
    return (native << unused) >> unused


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
        scaled = stored if slope == 1 else np.multiply(stored, np.float32(slope), out=out, casting="unsafe")
        np.add(scaled, np.float32(intercept), out=out, casting="unsafe")
    else:
        out[...] = stored * np.float64(slope) + intercept
    if slope < 0 or int(stored.min()) * slope + intercept < AIR_HU:
        np.maximum(out, AIR_HU, out=out)
    mask = padding_mask(stored, dataset)
    if mask is not None:
        out[mask] = AIR_HU


def _exact_in_float32(stored: IntegerArray, slope: float, intercept: float) -> bool:
    """Whether no step of the rescale needs more than the 24 bits of a float32: the usual case, and the faster one."""
    largest = float(np.iinfo(stored.dtype).max) * abs(slope) + abs(intercept)
    return slope.is_integer() and intercept.is_integer() and largest < 1 << 24
