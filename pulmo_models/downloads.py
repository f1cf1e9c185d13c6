"""One published file from its address: taken up again where a transfer broke, and accepted by its digest alone.

Errors: :class:`WeightsUnavailable`, one sentence each.
"""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import httpx2

from pulmo_models.errors import WeightsUnavailable

ByteCallback = Callable[[str, int, int], None]
"""Called with the name of the file, the bytes that are there and the bytes of the whole file (0: not known)."""

_TIMEOUT_SECONDS = 30.0
_CHUNK_BYTES = 1 << 20
_FRUITLESS_ATTEMPTS = 4  # in a row, without one byte


def fetch_file(
    url: str,
    path: Path,
    digest: str,
    *,
    progress: ByteCallback = lambda file, done, total: None,
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    """Get the file of that digest (``algorithm:hex``) to ``path``; what came of an earlier transfer is kept and used.

    Raises:
        WeightsUnavailable: no connection, no such file, a place that cannot be written, or another file than the one
            that was published; that one is thrown away.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _transfer(url, path.name, stream, progress, wait)
        found = digest_of(part, digest.partition(":")[0])
        if found != digest:
            part.unlink()
            raise WeightsUnavailable(f"{url} is not the published file: its digest is {found}, not {digest}")
        part.rename(path)
    except BlockingIOError as exc:
        raise WeightsUnavailable(f"{part} is being written by another download") from exc
    except OSError as exc:
        raise WeightsUnavailable(f"{part} cannot be written: {exc.strerror or exc}") from exc
    return path


def digest_of(path: Path, algorithm: str = "sha256") -> str:
    """``algorithm:hex`` of a file."""
    with path.open("rb") as stream:
        return f"{algorithm}:{hashlib.file_digest(stream, algorithm).hexdigest()}"


def _transfer(url: str, file: str, stream: BinaryIO, progress: ByteCallback, wait: Callable[[float], None]) -> None:
    """Append what is missing; a broken connection is taken up again where it broke."""
    fruitless = 0
    while True:
        before = stream.tell()
        try:
            _append(url, file, stream, progress)
        except (httpx2.InvalidURL, httpx2.TooManyRedirects, httpx2.UnsupportedProtocol) as exc:
            raise WeightsUnavailable(f"{url} cannot be asked: {exc}") from exc
        except httpx2.TransportError as exc:
            fruitless = 0 if stream.tell() > before else fruitless + 1
            reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
            if fruitless == _FRUITLESS_ATTEMPTS or not stream.tell():
                raise WeightsUnavailable(
                    f"the connection to {url} broke at {stream.tell()} bytes ({reason}); what came is kept for the "
                    "next attempt"
                ) from exc
            if fruitless:
                wait(2.0 ** (fruitless - 1))
        else:
            return


def _append(url: str, file: str, stream: BinaryIO, progress: ByteCallback) -> None:
    begin = stream.tell()
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={begin}-"} if begin else {})}
    with httpx2.stream("GET", url, headers=headers, timeout=_TIMEOUT_SECONDS, follow_redirects=True) as response:
        if begin and response.status_code == httpx2.codes.RANGE_NOT_SATISFIABLE:
            return  # it is whole already; its digest will tell
        if response.status_code not in (httpx2.codes.OK, httpx2.codes.PARTIAL_CONTENT):
            raise WeightsUnavailable(f"{url} answers {response.status_code}")
        if begin and response.status_code == httpx2.codes.OK:  # the whole file comes, whatever was asked for
            stream.seek(0)
            stream.truncate()
            begin = 0
        length = int(response.headers.get("Content-Length", 0))
        total = begin + length if length else 0
        for chunk in response.iter_bytes(_CHUNK_BYTES):
            stream.write(chunk)
            progress(file, stream.tell(), total)
        if total and stream.tell() < total:
            raise httpx2.RemoteProtocolError("the transfer ended early")
