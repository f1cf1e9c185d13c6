"""What a compressed frame declares of itself, compared with the data set before any decoder sees it.

Decoders allocate by the size in the codestream, not by Rows and Columns: 12 bytes that are changed make a frame of
512 x 512 ask for gigabytes or for minutes. Only the headers are read, of ISO/IEC 10918-1 and 14495-1 (JPEG, JPEG-LS:
SOF) and ISO/IEC 15444-1 (JPEG 2000, HTJ2K: SIZ, also inside a JP2 file); RLE (PS3.5 G) declares no size.
"""

from __future__ import annotations

import struct

from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

_SOF_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})  # without DHT, JPG and DAC
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})  # TEM, RST0..7, SOI
_END = b"\xff\xd9"  # EOI in JPEG and JPEG-LS, EOC in JPEG 2000
_MOST_TILES = 4096  # a decoder keeps some kilobytes for each, however small it is


def check_codestream(encoded: bytes, syntax: UID, rows: int, columns: int) -> None:
    """Compare size and number of components of one encoded greyscale frame with the data set.

    Raises:
        ValueError: they differ, or the header cannot be understood; tells which.
    """
    if syntax in JPEGTransferSyntaxes or syntax in JPEGLSTransferSyntaxes:
        height, width, components = _jpeg_size(encoded)
    elif syntax in JPEG2000TransferSyntaxes:
        height, width, components = _jpeg_2000_size(encoded)
    else:
        return
    if (height, width) != (rows, columns):
        raise ValueError(f"its codestream is {height} x {width} pixels, the data set says {rows} x {columns}")
    if components != 1:
        raise ValueError(f"its codestream has {components} components, not the 1 of a greyscale image")
    # The end marker is 0xFFD9 in all of them; every decoder refuses a frame that lacks it, but JPEG-LS decoders
    # compute for 10 s and more before they do. A few bytes follow it where a frame is padded.
    if _END not in encoded[-16:]:
        raise ValueError("its codestream is cut off, it has no end marker")


def _jpeg_size(encoded: bytes) -> tuple[int, int, int]:
    """Rows, columns and components of the first frame header of a JPEG or JPEG-LS codestream."""
    if encoded[:2] != b"\xff\xd8":
        raise ValueError("its codestream does not begin with the marker SOI")
    at = 2
    while at + 4 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker in _SOF_MARKERS:
            if at + 10 > len(encoded):
                break
            height, width, components = struct.unpack_from(">HHB", encoded, at + 5)
            return height, width, components
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _WITHOUT_LENGTH:
            at += 2
        else:
            at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    raise ValueError("its codestream has no frame header (SOF)")


def _jpeg_2000_size(encoded: bytes) -> tuple[int, int, int]:
    """Rows, columns and components of a JPEG 2000 codestream, bare or in a JP2 file."""
    at = _start_in_jp2(encoded) if encoded[4:8] == b"jP  " else 0
    if encoded[at : at + 4] != b"\xff\x4f\xff\x51" or at + 45 > len(encoded):
        raise ValueError("its codestream does not begin with the markers SOC and SIZ")
    x1, y1, x0, y0, tile_width, tile_height, tile_x0, tile_y0, components = struct.unpack_from(">8IH", encoded, at + 8)
    if encoded[at + 43 : at + 45] != b"\x01\x01":
        raise ValueError("its codestream is subsampled")
    if not (tile_width and tile_height and tile_x0 <= x0 < x1 and tile_y0 <= y0 < y1):
        raise ValueError("its codestream has an impossible image or tile size")
    tiles = -(-(x1 - tile_x0) // tile_width) * -(-(y1 - tile_y0) // tile_height)
    if tiles > _MOST_TILES:
        raise ValueError(f"its codestream has {tiles} tiles, more than {_MOST_TILES}")
    return y1 - y0, x1 - x0, components


def _start_in_jp2(encoded: bytes) -> int:
    """Where the codestream begins in a JP2 file; DICOM wants it bare, some files wrap it."""
    at = 0
    while at + 8 <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, at)
        if kind == b"jp2c":
            return at + (16 if length == 1 else 8)
        if length < 8:  # 0 runs to the end, 1 has a longer length: neither stands before the codestream
            break
        at += length
    raise ValueError("its JP2 file holds no codestream")
