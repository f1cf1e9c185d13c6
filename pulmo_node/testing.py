"""For tests and the demo: a clock that is set by hand, and a small PACS.

`SmallPacs` stores what it is sent as Part 10 files in a folder, answers C-ECHO, and can be told to be busy, to refuse,
to abort or to stay silent. It listens on loopback only. It is no PACS: it has no query, no index and no lasting state.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import cast

from pydicom.dataset import Dataset
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.transport import ThreadedAssociationServer

from pulmo_node.dimse import (
    COMPRESSED,
    UNCOMPRESSED,
    VERIFICATION,
    DimseStatus,
    StatusKind,
    configure_pynetdicom,
    listen,
    prepare_connection,
    status_kind,
)
from pulmo_node.domain.deliveries import Peer

_LOOPBACK = "127.0.0.1"
_SILENCE_SECONDS = 60.0


class ManualClock:
    """A clock that stands still until it is moved (port `Clock`)."""

    def __init__(self, now: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._now = now

    def now(self) -> datetime:
        """Aware UTC."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move it forward."""
        self._now += timedelta(seconds=seconds)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the PACS answers to a C-STORE request; it keeps the object where the status is Success or a warning."""

    status: int = DimseStatus.SUCCESS
    comment: str = ""


class Misbehaviour(Enum):
    """What the PACS does instead of an answer."""

    ABORT = "abort the association"
    SILENCE = "do not answer until it is stopped"


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An object that the PACS keeps, in order of arrival; the same one sent twice stands here twice."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str
    path: Path  # Part 10 file


class SmallPacs:
    """A storage SCP for every storage SOP class, as a context manager or by `start` and `stop`.

    Started again after `stop`, it listens on the same port and still has what it stored.
    """

    def __init__(
        self, folder: Path, *, ae_title: str = "SMALLPACS", port: int = 0, accept_calling: Sequence[str] = ()
    ) -> None:
        """`folder` is created; with `accept_calling`, other calling AE titles, and calls to another title than
        ours, are rejected."""
        configure_pynetdicom()
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._port = port
        self._entity = AE(ae_title=ae_title)
        self._entity.require_calling_aet = list(accept_calling)
        self._entity.require_called_aet = bool(accept_calling)
        self._entity.add_supported_context(VERIFICATION)
        for context in AllStoragePresentationContexts:
            self._entity.add_supported_context(str(context.abstract_syntax), [*UNCOMPRESSED, *COMPRESSED])
        self._server: ThreadedAssociationServer | None = None
        self._script: deque[Answer | Misbehaviour] = deque()
        self._stored: list[StoredObject] = []
        self._requests = 0
        self._changed = threading.Condition()
        self._stopping = threading.Event()

    @property
    def ae_title(self) -> str:
        """Its AE title."""
        return self._entity.ae_title

    @property
    def port(self) -> int:
        """The port it listens on, 0 before the first start."""
        return self._port

    @property
    def peer(self) -> Peer:
        """How a sender addresses it."""
        return Peer(name=self.ae_title.lower(), ae_title=self.ae_title, host=_LOOPBACK, port=self._port)

    @property
    def stored(self) -> tuple[StoredObject, ...]:
        """What it has stored so far."""
        with self._changed:
            return tuple(self._stored)

    @property
    def requests(self) -> int:
        """C-STORE requests so far, whatever became of them."""
        with self._changed:
            return self._requests

    def start(self) -> SmallPacs:
        """Listen and return."""
        self._stopping.clear()
        self._server = listen(
            self._entity,
            (_LOOPBACK, self._port),
            [
                (evt.EVT_CONN_OPEN, prepare_connection, [_SILENCE_SECONDS]),
                (evt.EVT_C_ECHO, lambda event: DimseStatus.SUCCESS),
                (evt.EVT_C_STORE, self._on_c_store),
            ],
        )
        self._port = int(self._server.server_address[1])
        return self

    def stop(self) -> None:
        """Abort what is open and close the port: from now on connections are refused."""
        self._stopping.set()
        if self._server is None:
            return
        server, self._server = self._server, None
        server.shutdown()
        for association in server.active_associations:
            association.abort()

    def answer_next(self, *script: Answer | Misbehaviour) -> None:
        """What happens to the next C-STORE requests, one each; later ones are answered with Success."""
        with self._changed:
            self._script.extend(script)

    def wait_for(self, count: int, timeout_seconds: float) -> bool:
        """Wait until that many objects are stored; False where they were not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._stored) >= count, timeout_seconds)

    def wait_for_requests(self, count: int, timeout_seconds: float) -> bool:
        """Wait until that many C-STORE requests came, stored or not; False where they did not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._requests >= count, timeout_seconds)

    def __enter__(self) -> SmallPacs:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _on_c_store(self, event: evt.Event) -> int | Dataset:
        with self._changed:
            self._requests += 1
            planned = self._script.popleft() if self._script else Answer()
            self._changed.notify_all()
        if planned is Misbehaviour.ABORT:
            event.assoc.abort()
            return DimseStatus.PROCESSING_FAILURE  # never sent
        if planned is Misbehaviour.SILENCE:
            self._stopping.wait(_SILENCE_SECONDS)
            return DimseStatus.PROCESSING_FAILURE
        if status_kind(planned.status) in (StatusKind.SUCCESS, StatusKind.WARNING):
            self._keep(event)
        reply = Dataset()
        reply.Status = int(planned.status)
        if planned.comment:
            reply.ErrorComment = planned.comment
        return reply

    def _keep(self, event: evt.Event) -> None:
        request = cast(C_STORE, event.request)
        with self._changed:
            path = self._folder / f"{len(self._stored) + 1:05d}_{request.AffectedSOPInstanceUID}.dcm"
            path.write_bytes(event.encoded_dataset())
            self._stored.append(
                StoredObject(
                    sop_class_uid=str(request.AffectedSOPClassUID),
                    sop_instance_uid=str(request.AffectedSOPInstanceUID),
                    transfer_syntax_uid=str(event.context.transfer_syntax),
                    calling_ae_title=str(event.assoc.requestor.ae_title).strip(),
                    path=path,
                )
            )
            self._changed.notify_all()
