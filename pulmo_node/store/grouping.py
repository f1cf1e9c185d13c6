"""Group commit: what several threads want to write at the same moment is one transaction, with one wait for the disk.

The first thread writes for all that queued while the one before was writing; nobody waits for company, so a single
sender is as fast as without. Each caller returns when what it brought is committed, and not before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


@dataclass(eq=False)
class _Entry(Generic[Item, Outcome]):
    item: Item
    outcome: Outcome | None = None
    error: BaseException | None = None
    done: bool = False


class GroupCommit(Generic[Item, Outcome]):
    """Calls `write_all` with everything that is waiting; a call of its own for each where that fails."""

    def __init__(self, write_all: Callable[[Sequence[Item]], Sequence[Outcome]]) -> None:
        """`write_all` writes all of the items in one transaction, or none and raises."""
        self._write_all = write_all
        self._waiting: list[_Entry[Item, Outcome]] = []
        self._queue_lock = threading.Lock()
        self._writing = threading.Lock()

    def write(self, item: Item) -> Outcome:
        """The outcome of `item`, committed. Raises what `write_all` raised for it alone."""
        own = _Entry[Item, Outcome](item)
        with self._queue_lock:
            self._waiting.append(own)
        with self._writing:
            if not own.done:
                self._write_waiting()
        if own.error is not None:
            raise own.error
        return own.outcome  # type: ignore[return-value]  # set where there is no error

    def _write_waiting(self) -> None:
        with self._queue_lock:
            entries, self._waiting = self._waiting, []
        if len(entries) == 1 or not self._attempt(entries):
            for entry in entries:  # so that one that cannot be written costs no other
                self._attempt([entry], final=True)

    def _attempt(self, entries: Sequence[_Entry[Item, Outcome]], *, final: bool = False) -> bool:
        """Whether they are written; where it is `final`, an error becomes that of the entries."""
        try:
            outcomes = self._write_all([entry.item for entry in entries])
        except BaseException as exc:  # noqa: BLE001 - a boundary: raised again in the thread that brought the item
            if not final:
                return False
            for entry in entries:
                entry.error, entry.done = exc, True
            return True
        for entry, outcome in zip(entries, outcomes, strict=True):
            entry.outcome, entry.done = outcome, True
        return True
