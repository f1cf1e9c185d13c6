"""The adapter to pydicom: open a Part 10 file, read an element, and translate what pydicom raises into `Rejected`.

pydicom converts values when they are first looked at, so a malformed element may raise almost anything at any access;
`translated` is the one place that knows the list.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset, read_preamble
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from pulmo_models.codes import RejectionCode
from pulmo_node.errors import Rejected

READ_ERRORS: tuple[type[Exception], ...] = (
    OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError,
    NotImplementedError, RuntimeError, MemoryError, struct.error, zlib.error, InvalidDicomError,
    BytesLengthException,
)  # fmt: skip
"""What pydicom and its decoders raise on malformed input."""

MOST_INFLATED_BYTES = 128 << 20  # of a deflated data set: 250 slices of 512 x 512 pixels of 16 bits


@contextmanager
def translated(
    path: Path, code: RejectionCode = RejectionCode.UNREADABLE, what: str = "cannot be read"
) -> Iterator[None]:
    """Turn an error of pydicom inside the block into `Rejected(code)` that names the file and the reader's reason."""
    try:
        yield
    except Rejected:
        raise
    except READ_ERRORS as exc:
        reason = _reason(exc)
        if code is RejectionCode.UNREADABLE:
            # Readers quote the value or the path that they stumble over, and either may hold a patient's name.
            reason = re.sub(r"(['\"]).*?\1", "'...'", reason)
        raise Rejected(code, f"{path.name} {what}: {reason}", file=path.name) from exc


def _reason(exc: Exception) -> str:
    if isinstance(exc, InvalidDicomError):
        return "it is not a DICOM Part 10 file (no DICM prefix)"
    text = " ".join(str(exc).split())
    return f"{type(exc).__name__}: {text[:300]}" if text else type(exc).__name__


def read_header(path: Path, keywords: Sequence[str]) -> tuple[Dataset, bool]:
    """Read those elements of a file and nothing of its pixels.

    Returns:
        The data set, and whether pixel data follow the header.

    Raises:
        Rejected: UNREADABLE.
    """
    with translated(path), _opened(path) as (file, size):
        dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(keywords))
        if not dataset.file_meta.get("TransferSyntaxUID"):
            raise ValueError("no transfer syntax UID (0002,0010) in the file meta information")
        dataset.file_meta.get("MediaStorageSOPClassUID")  # converted here, where an error is translated
        return dataset, file.tell() < size


def read_elements(path: Path, keywords: Sequence[str]) -> Dataset:
    """Read those elements of a file, pixel data too.

    Raises:
        Rejected: UNREADABLE.
    """
    with translated(path), _opened(path) as (file, _):
        return pydicom.dcmread(file, specific_tags=list(keywords))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A Part 10 file and its size; a deflated one as if it were explicit little endian."""
    with path.open("rb") as file:
        inflated = _inflated(file)
        if inflated is None:
            file.seek(0)
            yield file, path.stat().st_size
        else:
            yield inflated, len(inflated.getbuffer())


def _inflated(file: BinaryIO) -> BytesIO | None:
    """The content of a deflated Part 10 file (PS3.5 A.5), inflated within a limit; None for any other file.

    pydicom inflates without limit: a file of 1 MB may ask for 1 GB.
    """
    read_preamble(file, False)
    meta = FileMetaDataset(read_dataset(file, False, True, stop_when=lambda tag, _vr, _length: tag >> 16 != 2))
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return None
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflater.decompress(file.read(), MOST_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise ValueError(f"its data set inflates to more than {MOST_INFLATED_BYTES >> 20} MiB")
    if not inflater.eof:
        raise EOFError("its deflated data set is cut off")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    head = DicomBytesIO()
    head.is_little_endian, head.is_implicit_VR = True, False
    write_file_meta_info(head, meta, enforce_standard=False)
    return BytesIO(b"".join((bytes(128), b"DICM", head.getvalue(), content)))


def text(dataset: Dataset, keyword: str) -> str:
    """A value as stripped text, "" where it is absent or empty; several values are joined by a backslash."""
    value = dataset.get(keyword)
    if value is None:
        return ""
    if isinstance(value, (list, tuple, pydicom.multival.MultiValue)):
        return "\\".join(str(item).strip() for item in value)
    return str(value).strip()


def texts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """The values of an element as stripped texts."""
    joined = text(dataset, keyword)
    return tuple(joined.split("\\")) if joined else ()


def numbers(dataset: Dataset, keyword: str, count: int) -> npt.NDArray[np.float64] | None:
    """The `count` finite values of an element as float64, None where it is absent or empty.

    Raises:
        ValueError: another number of values, or one that is not finite.
    """
    parts = texts(dataset, keyword)
    if not parts:
        return None
    values = np.array([float(part) for part in parts], dtype=np.float64)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise ValueError(f"{keyword} must hold {count} finite numbers")
    return values
