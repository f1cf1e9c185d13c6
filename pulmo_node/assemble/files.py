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
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

from pulmo_models.codes import RejectionCode
from pulmo_node.errors import Rejected

READ_ERRORS: tuple[type[Exception], ...] = (
    OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError,
    NotImplementedError, RuntimeError, MemoryError, struct.error, zlib.error, InvalidDicomError,
    BytesLengthException,
)  # fmt: skip
"""What pydicom and its decoders raise on malformed input."""


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
        The data set, and whether pixel data follow the header. For the deflated transfer syntax, whose end of header
        is not a place in the file, the answer is always yes.

    Raises:
        Rejected: UNREADABLE.
    """
    with translated(path), path.open("rb") as file:
        dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(keywords))
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        if syntax is None:
            raise ValueError("no transfer syntax UID (0002,0010) in the file meta information")
        has_pixels = bool(syntax.is_deflated) or file.tell() < path.stat().st_size
    return dataset, has_pixels


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
