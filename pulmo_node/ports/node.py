"""What every part of the node may need: the time, and the audit trail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """The time, so that tests can set it."""

    def now(self) -> datetime:
        """Aware UTC."""
        ...


class Journal(Protocol):
    """The audit trail."""

    def record(self, entries: Sequence[Mapping[str, object]], *, durable: bool = False) -> None:
        """Append entries: `action` and what it was done to. Raises `Transient`."""
        ...
