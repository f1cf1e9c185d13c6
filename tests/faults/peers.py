"""A PACS behind a network that can be told what to do with each connection: a `SmallPacs` behind a TCP proxy."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path

from pulmo_node.dimse import DimseStatus
from pulmo_node.domain.deliveries import Peer
from pulmo_node.testing import Answer, SmallPacs

_CHUNK = 16_384
_BEFORE_TROUBLE_BYTES = 12_000
"""Of the node, that still pass: more than an association request, less than that and a report."""
_AFFECTED_SOP_INSTANCE_UID = re.compile(rb"\x00\x00\x00\x10(..)\x00\x00([0-9.]+)", re.DOTALL)


class Trouble(Enum):
    """What becomes of one connection; the value goes into the table."""

    RESET_AT_ONCE = "reset at once"
    RESET_IN_OBJECT = "reset in the middle of an object"
    SILENT = "connection taken and nothing more"
    STALL_IN_OBJECT = "stall in the middle of an object"
    NO_ANSWER = "object taken and no answer"
    WRONG_UID = "answer for another instance"
    BUSY = "0xA700"
    MISMATCH = "0xA900"
    NOT_UNDERSTOOD = "0xC000"
    COERCED = "0xB000"


ANSWERS = {
    Trouble.BUSY: DimseStatus.OUT_OF_RESOURCES,
    Trouble.MISMATCH: DimseStatus.DATA_SET_DOES_NOT_MATCH_SOP_CLASS,
    Trouble.NOT_UNDERSTOOD: DimseStatus.CANNOT_UNDERSTAND,
    Trouble.COERCED: DimseStatus.ELEMENTS_COERCED,
}
"""To the first object of the connection."""

REFUSING = (Trouble.MISMATCH, Trouble.NOT_UNDERSTOOD)


class TroubledPacs:
    """A context manager. Connections take the troubles in order, one each; further ones are served."""

    def __init__(self, folder: Path, name: str, troubles: Sequence[Trouble] = ()) -> None:
        self.pacs = SmallPacs(folder, ae_title=name.upper())
        self._name = name
        self._troubles = deque(troubles)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._sockets: list[socket.socket] = []

    @property
    def peer(self) -> Peer:
        """How a sender addresses it."""
        return Peer(
            name=self._name, ae_title=self._name.upper(), host="127.0.0.1", port=self._listener.getsockname()[1]
        )

    @property
    def troubles_left(self) -> int:
        """How many are still to come."""
        with self._lock:
            return len(self._troubles)

    def __enter__(self) -> TroubledPacs:
        self.pacs.start()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._listener.close()
        for each in self._sockets:
            each.close()
        self.pacs.stop()

    def _accept(self) -> None:
        while True:
            try:
                outer, _ = self._listener.accept()
            except OSError:  # closed
                return
            with self._lock:
                trouble = self._troubles.popleft() if self._troubles else None
            self._sockets.append(outer)
            threading.Thread(target=self._serve, args=(outer, trouble), daemon=True).start()

    def _serve(self, outer: socket.socket, trouble: Trouble | None) -> None:
        if trouble is Trouble.SILENT:
            return
        if trouble is Trouble.RESET_AT_ONCE:
            _reset(outer)
            return
        if trouble in ANSWERS:
            self.pacs.answer_next(Answer(status=ANSWERS[trouble]))
        inner = socket.create_connection(("127.0.0.1", self.pacs.port))
        self._sockets.append(inner)
        change: Callable[[bytes], bytes] = bytes
        if trouble is Trouble.WRONG_UID:
            change = _another_instance
        if trouble is Trouble.NO_ANSWER:
            change = _without_answers
        threading.Thread(target=self._pump, args=(inner, outer, change), daemon=True).start()
        stopping = trouble in (Trouble.RESET_IN_OBJECT, Trouble.STALL_IN_OBJECT)
        self._pump(outer, inner, bytes, _BEFORE_TROUBLE_BYTES if stopping else None)
        if stopping:
            inner.close()  # what came of the object is not enough for the PACS behind
        if trouble is Trouble.RESET_IN_OBJECT:
            _reset(outer)

    def _pump(
        self, source: socket.socket, target: socket.socket, change: Callable[[bytes], bytes], most: int | None = None
    ) -> None:
        """Pass on until the end, or until that many bytes came."""
        passed = 0
        try:
            while most is None or passed < most:
                chunk = source.recv(_CHUNK if most is None else min(_CHUNK, most - passed))
                if not chunk:
                    target.shutdown(socket.SHUT_WR)
                    return
                passed += len(chunk)
                target.sendall(change(chunk))
        except OSError:  # one of the two ended; the other learns it so
            if not self._closing.is_set() and most is None:
                target.close()


def _reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _another_instance(chunk: bytes) -> bytes:
    """C-STORE responses with another SOP Instance UID of the same length."""

    def other(found: re.Match[bytes]) -> bytes:
        uid = found[2]
        return found[0][: -len(uid)] + uid[:-1] + (b"1" if uid[-1:] != b"1" else b"2")

    return _AFFECTED_SOP_INSTANCE_UID.sub(other, chunk)


def _without_answers(chunk: bytes) -> bytes:
    """Nothing of what holds a C-STORE response; association control passes."""
    return b"" if _AFFECTED_SOP_INSTANCE_UID.search(chunk) else chunk
