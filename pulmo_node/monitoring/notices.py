"""What people are told of: failed studies, destinations that are down, a disk that is nearly full, and their recovery.

A notice names UIDs, destinations and codes, never a patient, nor the reason in words, which may quote a peer.
What was told is kept in a file of the storage, so that a restart tells nothing twice and forgets no recovery.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain
from typing import Any, Protocol

from pulmo_node.config import Config
from pulmo_node.domain.jobs import JobState
from pulmo_node.errors import Transient
from pulmo_node.monitoring.observed import Observed
from pulmo_node.monitoring.readiness import disk_of
from pulmo_node.ports import Clock, EventRow, StudyDetail

_FILE = "notices.json"
_FAILED = (JobState.FAILED.value, JobState.QUARANTINED.value)
_OVER = (JobState.DONE.value, JobState.CANCELLED.value, JobState.REJECTED.value, JobState.SUPERSEDED.value)
_AGAIN = 1.1  # of the watermark must be free before the disk counts as well again, so that nothing flaps
_MOST_OPEN = 10_000


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One thing that happened."""

    kind: str  # "study failed", "destination down", "disk nearly full"
    subject: str  # Study Instance UID, name of the destination, or "storage"
    over: bool  # it is right again
    text: str  # one sentence

    @property
    def key(self) -> str:
        """The same of a trouble and of its recovery."""
        return f"{self.kind}: {self.subject}"


class NoticeStore(Protocol):
    """What is asked of the database."""

    def latest_event_id(self) -> int:
        """Id of the newest line of history."""
        ...

    def events_after(self, event_id: int, *, limit: int = 1000) -> tuple[tuple[int, EventRow], ...]:
        """Lines of history behind that id, oldest first, each with its id."""
        ...

    def study(self, study_instance_uid: str) -> StudyDetail | None:
        """Everything on one study."""
        ...


@dataclass(kw_only=True)
class _Memory:
    event_id: int
    troubles: dict[str, str] = field(default_factory=dict)  # key of each that was noticed and is not over: its sentence


class Watch:
    """Finds what is new since it was asked last; one thread at a time."""

    def __init__(self, config: Config, store: NoticeStore, observed: Observed, clock: Clock) -> None:
        """Reads what was told before. Raises `Transient` where the disk or the database refuses."""
        self._config = config
        self._store = store
        self._observed = observed
        self._clock = clock
        self._path = config.storage / _FILE
        self._memory = self._read()
        self._found: list[Notice] = []

    def new(self) -> tuple[Notice, ...]:
        """What happened since, in order; each is noticed once.

        Raises:
            PulmoError: the database cannot be asked; what was found until then comes with the next answer.
        """
        for notice in chain(self._of_studies(), self._of_destinations(), self._of_disk()):
            self._found.append(notice)
        found, self._found = tuple(self._found), []
        return found

    def remember(self) -> None:
        """What was noticed so far is told. Raises `Transient`."""
        text = json.dumps({"event_id": self._memory.event_id, "troubles": self._memory.troubles})
        part = self._path.with_name(f"{_FILE}.part")
        try:
            part.write_text(text, encoding="utf-8")
            os.replace(part, self._path)
        except OSError as exc:
            raise Transient(f"{self._path}: {exc.strerror}") from exc

    def _read(self) -> _Memory:
        try:
            plain: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
            return _Memory(event_id=int(plain["event_id"]), troubles=dict(plain["troubles"]))
        except FileNotFoundError:
            return _Memory(event_id=self._store.latest_event_id())
        except OSError as exc:
            raise Transient(f"{self._path}: {exc.strerror}") from exc
        except (ValueError, KeyError, TypeError):  # cut off or not ours: begin anew rather than not at all
            return _Memory(event_id=self._store.latest_event_id())

    def _of_studies(self) -> Iterator[Notice]:
        while events := self._store.events_after(self._memory.event_id):
            for number, event in events:
                if event.subject.startswith("job "):
                    yield from self._of_job(event)
                self._memory.event_id = number

    def _of_job(self, event: EventRow) -> Iterator[Notice]:
        uid = event.study_instance_uid
        key = Notice(kind="study failed", subject=uid, over=False, text="").key
        if event.state in _FAILED and key not in self._memory.troubles:
            yield self._begin("study failed", uid, f"Study {uid}: {event.subject} is {event.state}{self._code(event)}.")
        elif event.state in _OVER and key in self._memory.troubles and not self._still_failed(uid):
            yield self._end("study failed", uid, f"Study {uid}: no job is failed any more.")

    def _code(self, event: EventRow) -> str:
        detail = self._store.study(event.study_instance_uid)
        number = event.subject.removeprefix("job ")
        codes = [job.reason_code for job in detail.jobs if str(job.id) == number] if detail is not None else []
        return f" ({codes[0]})" if codes and codes[0] else ""

    def _still_failed(self, study_instance_uid: str) -> bool:
        detail = self._store.study(study_instance_uid)
        return detail is not None and detail.summary.state in _FAILED

    def _of_destinations(self) -> Iterator[Notice]:
        minutes = self._config.notify.destination_down_minutes
        for name, seen in sorted(self._observed.now().destinations.items()):
            known = Notice(kind="destination down", subject=name, over=False, text="").key in self._memory.troubles
            if seen.down_since is None:
                if known:
                    yield self._end("destination down", name, f"Destination {name} answers again.")
            elif not known and self._clock.now() - seen.down_since >= timedelta(minutes=minutes):
                since = seen.down_since.strftime("%Y-%m-%d %H:%M")
                yield self._begin("destination down", name, f"Destination {name} does not answer since {since} UTC.")

    def _of_disk(self) -> Iterator[Notice]:
        watermark = self._config.notify.free_bytes or self._config.receive.low_free_bytes
        disk = disk_of(self._config.storage)
        if disk is None:
            return
        free = f"{disk.free_bytes / 1024**3:.1f} GiB"
        known = "disk nearly full: storage" in self._memory.troubles
        if disk.free_bytes < watermark and not known:
            yield self._begin("disk nearly full", "storage", f"The disk of the storage has only {free} free.")
        elif known and disk.free_bytes >= watermark * _AGAIN:
            yield self._end("disk nearly full", "storage", f"The disk of the storage has {free} free again.")

    def _begin(self, kind: str, subject: str, text: str) -> Notice:
        notice = Notice(kind=kind, subject=subject, over=False, text=text)
        self._memory.troubles[notice.key] = text
        while len(self._memory.troubles) > _MOST_OPEN:
            del self._memory.troubles[next(iter(self._memory.troubles))]
        return notice

    def _end(self, kind: str, subject: str, text: str) -> Notice:
        notice = Notice(kind=kind, subject=subject, over=True, text=text)
        self._memory.troubles.pop(notice.key, None)
        return notice
