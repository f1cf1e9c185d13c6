"""The audit trail: who did what to which study, and when. One JSON object a line, only ever appended to.

Lines name UIDs, AE titles, addresses and operators, never a patient. The file is opened for every batch of lines, so a
log rotation may rename it at any time. Errors: `Transient` where it cannot be written.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from pulmo_node.errors import Transient
from pulmo_node.ports import Clock


class AuditTrail:
    """An audit file (port `Journal`)."""

    def __init__(self, path: Path, who: str, clock: Clock) -> None:
        self._path = path
        self._who = who
        self._clock = clock
        self._writing = threading.Lock()
        self._cut = False  # the last line was, by a disk that was full

    def record(self, entries: Sequence[Mapping[str, object]], *, durable: bool = False) -> None:
        """Append one line an entry; `at` is now where the entry does not say. With `durable` it is on disk on return.

        Raises:
            Transient: the file cannot be written.
        """
        now = self._clock.now()
        lines = [json.dumps({"at": now, "who": self._who, **entry}, default=_plain) + "\n" for entry in entries]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
            try:
                self._append(descriptor, "".join(lines).encode())
                if durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as exc:
            raise Transient(f"audit {self._path}: {exc.strerror}") from exc

    def _append(self, descriptor: int, lines: bytes) -> None:
        """All of it, which one call need not write; what follows a line that was cut begins a new one."""
        with self._writing:
            rest = memoryview(b"\n" + lines if self._cut else lines)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
                self._cut = bool(rest)

    def close(self) -> None:
        """Nothing is open between two batches."""


def operator() -> str:
    """Who gives a command on this machine."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in a container
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"


def _plain(value: object) -> str:
    return value.isoformat(timespec="milliseconds") if isinstance(value, datetime) else str(value)
