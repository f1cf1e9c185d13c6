"""The adapter to pydicom: open a Part 10 file, read an element, and translate what pydicom raises into `Rejected`.

pydicom converts values when they are first looked at, so a malformed element may raise almost anything at any access;
`translated` is the one place that knows the list.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

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


@dataclass(frozen=True, kw_only=True)
class FileIdentity:
    """Which file it is: another one under the same name, or one that was written again, has another."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        """By what the system says of the file."""
        return cls(device=status.st_dev, inode=status.st_ino, size_bytes=status.st_size, modified_ns=status.st_mtime_ns)


@dataclass(frozen=True, kw_only=True, eq=False)
class Parsed:
    """What pydicom read of a file."""

    identity: FileIdentity
    dataset: Dataset
    ended_at: int  # offset in the file, or in what it inflates to
    size_bytes: int  # of the same
    inflated: bool


def read_header(path: Path, keywords: Sequence[str]) -> tuple[Dataset, bool]:
    """Read those elements of a file and nothing of its pixels.

    Returns:
        The data set, and whether pixel data follow the header.

    Raises:
        Rejected: UNREADABLE.
    """
    with translated(path):
        found = parsed(path, keywords, stop_before_pixels=True)
        check_meta(found.dataset)
        return found.dataset, found.ended_at < found.size_bytes


def check_meta(dataset: Dataset) -> None:
    """The transfer syntax is named, and the class can be read. Raises `ValueError` and what pydicom raises."""
    if not dataset.file_meta.get("TransferSyntaxUID"):
        raise ValueError("no transfer syntax UID (0002,0010) in the file meta information")
    dataset.file_meta.get("MediaStorageSOPClassUID")  # converted here, where an error is translated


def read_elements(path: Path, keywords: Sequence[str]) -> Dataset:
    """Read those elements of a file, pixel data too.

    Raises:
        Rejected: UNREADABLE.
    """
    with translated(path):
        return parsed(path, keywords, stop_before_pixels=False).dataset


def parsed(path: Path, tags: Sequence[str | int], *, stop_before_pixels: bool) -> Parsed:
    """Read a file, a deflated one as if it were explicit little endian. Raises what pydicom raises."""
    options: dict[str, Any] = {"stop_before_pixels": stop_before_pixels, "specific_tags": list(tags)}
    with _PartsOnly(io.FileIO(path)) as file:
        status = os.fstat(file.fileno())
        identity = FileIdentity.of(status)
        with suppress(_WholeFile):
            dataset = pydicom.dcmread(file, **options)
            return Parsed(
                identity=identity, dataset=dataset, ended_at=file.tell(), size_bytes=status.st_size, inflated=False
            )
    with path.open("rb") as plain:
        content = _inflated(plain)
        if content is None:
            raise ValueError("its data set is not deflated, and yet it is read as a whole")
        dataset = pydicom.dcmread(content, **options)
        size = len(content.getbuffer())
        return Parsed(identity=identity, dataset=dataset, ended_at=content.tell(), size_bytes=size, inflated=True)


class _WholeFile(Exception):
    """All that is left of the file was asked for, which pydicom does to inflate it, without any limit."""


class _PartsOnly(io.BufferedReader):
    """A file that gives no more at a time than is asked for by number."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            raise _WholeFile
        return super().read(size)


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
