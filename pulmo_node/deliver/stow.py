"""Deliver by STOW-RS: a destination that is a DICOMweb server (DICOM PS3.18 10.5), instead of a DICOM node.

Input: Part 10 files and a peer with a `stow_url`. Output: the server's answer in words. The bytes of a file are sent as
they are, one object a request, so that each has an answer of its own; the connection is kept open between them.

Errors: `Transient` where the server cannot be reached, does not let the node in (401, 403, 404), is busy or out of
resources (408, 429, 5xx, failure reason 0xA7xx); `Permanent` where it refuses the object.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from pulmo_node.deliver.files import check_identity, reason
from pulmo_node.dimse import StatusKind, status_in_words, status_kind
from pulmo_node.domain.deliveries import Peer, ResultObject
from pulmo_node.errors import Permanent, PulmoError, Transient
from pulmo_node.network.tls import client_context
from pulmo_node.ports import ResultLink, ResultSender

_CHUNK_BYTES = 1024 * 1024
_LARGEST_ANSWER_BYTES = 1024 * 1024
_TRY_LATER = frozenset({401, 403, 404, 405, 408, 425, 429})
_REFERENCED, _FAILED = "00081199", "00081198"  # Referenced and Failed SOP Sequence
_UID, _WARNING, _FAILURE = "00081155", "00081196", "00081197"  # Referenced SOP Instance UID, reasons


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What a server says of one object; None where it is silent about it."""

    kept: bool = False
    warning: int | None = None
    failure: int | None = None
    names: frozenset[str] = field(default_factory=frozenset)  # every instance that it speaks of


class StowLink:
    """An open connection to a DICOMweb server (port `ResultLink`)."""

    commits = False  # STOW-RS has no storage commitment: what was stored was answered for

    def __init__(self, client: httpx2.Client, peer: Peer) -> None:
        self._client = client
        self._peer = peer

    def store(self, file: Path, result: ResultObject) -> str:
        """Store one result object; the answer in words.

        Raises:
            Transient: connection lost, no answer in time, not let in, server out of resources, file cannot be read.
            Permanent: the server refused it, or the file is not the object that `result` speaks of.
        """
        check_identity(file, result)
        boundary = uuid.uuid4().hex
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        headers = _headers(boundary)
        try:
            headers["Content-Length"] = str(len(head) + file.stat().st_size + len(tail))
            content = _body(head, file, tail)
            with self._client.stream("POST", _studies(self._peer), headers=headers, content=content) as response:
                said = _read(response)
        except (httpx2.HTTPError, httpx2.StreamError) as exc:
            raise Transient(f"{self._peer.name} did not answer: {type(exc).__name__}") from exc
        except OSError as exc:
            raise Transient(f"{file.name} cannot be read: {reason(exc)}") from exc
        return _judge(self._peer.name, response.status_code, _answer(said, result.sop_instance_uid))

    def request_commitment(self, transaction_uid: str, instances: Sequence[tuple[str, str]]) -> None:
        """Never done: see `commits`."""
        raise Permanent(f"{self._peer.name}: STOW-RS has no storage commitment")


class StowSender:
    """Speaks to DICOMweb servers (port `ResultSender`)."""

    def __init__(self, *, timeout_seconds: float = 30.0) -> None:
        """The timeout holds for the connection and for each silence."""
        self._timeout_seconds = timeout_seconds

    @contextmanager
    def open(self, peer: Peer) -> Iterator[StowLink]:
        """A connection; made with the first request. Raises `Transient` where a certificate of ours cannot be used."""
        with self._client(peer) as client:
            yield StowLink(client, peer)

    def echo(self, peer: Peer) -> float:
        """Ask whether there is somebody who takes studies, by a request without any; refused (400) is an answer.

        Returns:
            Seconds to the answer.

        Raises:
            Transient: it cannot be reached, does not let the node in, or is out of order.
        """
        started = time.monotonic()
        boundary = uuid.uuid4().hex
        with self._client(peer) as client:
            try:
                response = client.post(
                    _studies(peer), headers=_headers(boundary), content=f"--{boundary}--\r\n".encode()
                )
            except httpx2.HTTPError as exc:
                raise Transient(f"{peer.name} cannot be reached: {type(exc).__name__}") from exc
        if response.status_code in _TRY_LATER or response.status_code >= 500:
            raise Transient(f"{peer.name} answered {_http(response.status_code)}")
        return time.monotonic() - started

    def _client(self, peer: Peer) -> httpx2.Client:
        headers = {"Authorization": peer.stow_authorization} if peer.stow_authorization else {}
        # No proxy of the environment: images of patients go where the configuration says, and nowhere else.
        verify = True if peer.tls is None else client_context(peer.tls)
        return httpx2.Client(
            headers=headers, timeout=self._timeout_seconds, verify=verify, trust_env=False, follow_redirects=False
        )


class ResultSenders:
    """Speaks to each destination as it is configured (port `ResultSender`)."""

    def __init__(self, dicom: ResultSender, stow: ResultSender) -> None:
        self._dicom = dicom
        self._stow = stow

    def open(self, peer: Peer) -> AbstractContextManager[ResultLink]:
        """A connection to the peer. Raises `Transient`."""
        return self._of(peer).open(peer)

    def echo(self, peer: Peer) -> float:
        """Seconds to its answer. Raises `Transient`."""
        return self._of(peer).echo(peer)

    def _of(self, peer: Peer) -> ResultSender:
        return self._stow if peer.stow_url else self._dicom


def _studies(peer: Peer) -> str:
    return f"{peer.stow_url.rstrip('/')}/studies"


def _headers(boundary: str) -> dict[str, str]:
    return {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Accept": "application/dicom+json",
    }


def _body(head: bytes, file: Path, tail: bytes) -> Iterator[bytes]:
    yield head
    with file.open("rb") as source:
        while chunk := source.read(_CHUNK_BYTES):
            yield chunk
    yield tail


def _read(response: httpx2.Response) -> bytes:
    """The answer, as far as it may be long."""
    said = b""
    for chunk in response.iter_bytes():
        said += chunk
        if len(said) > _LARGEST_ANSWER_BYTES:
            return b""
    return said


def _answer(said: bytes, sop_instance_uid: str) -> _Answer:
    """The Store Instances Response Module (PS3.18 I.2) in JSON; nothing is known where it is none."""
    try:
        module = json.loads(said)
        kept = {_value(item, _UID): item for item in _items(module, _REFERENCED)}
        failed = {_value(item, _UID): item for item in _items(module, _FAILED)}
        names = frozenset(map(str, [*kept, *failed]))
        if sop_instance_uid in failed:
            return _Answer(failure=int(_value(failed[sop_instance_uid], _FAILURE) or 0x0110), names=names)
        if sop_instance_uid in kept:
            warning = _value(kept[sop_instance_uid], _WARNING)
            return _Answer(kept=True, warning=None if warning is None else int(warning), names=names)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):  # not JSON, or of another form
        return _Answer()
    return _Answer(names=names)


def _items(module: Any, tag: str) -> list[Any]:
    return list(module.get(tag, {}).get("Value", ()))


def _value(item: Any, tag: str) -> Any:
    values = item.get(tag, {}).get("Value", ())
    return values[0] if values else None


def _judge(name: str, code: int, answer: _Answer) -> str:
    """The answer in words. Raises `PulmoError` where the object was not stored."""
    if answer.failure is not None:
        raise _failure(f"{name} failed to store it, {status_in_words(answer.failure)}", answer.failure)
    if code in _TRY_LATER or code >= 500:
        raise Transient(f"{name} answered {_http(code)}")
    if not 200 <= code < 300:
        raise Permanent(f"{name} refused it: {_http(code)}")
    if not answer.kept and (code != 200 or answer.names):
        raise Transient(f"{name} answered {_http(code)} and does not say that it keeps the object")
    return _http(code) if answer.warning is None else f"{_http(code)}, {status_in_words(answer.warning)}"


def _failure(words: str, reason: int) -> PulmoError:
    return Transient(words) if status_kind(reason) is StatusKind.BUSY else Permanent(words)


def _http(code: int) -> str:
    try:
        return f"HTTP {code} {httpx2.codes(code).name.replace('_', ' ').lower()}"
    except ValueError:
        return f"HTTP {code}"
