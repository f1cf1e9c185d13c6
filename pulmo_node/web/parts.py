"""What the page is made of: the rest of the node, as far as it looks at it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from threading import Lock
from typing import Protocol, cast

from starlette.requests import Request

from pulmo_node.config import Config
from pulmo_node.domain.browsing import Counts, StudyFilter, StudyPage
from pulmo_node.domain.deliveries import ResultObject
from pulmo_node.domain.jobs import Job
from pulmo_node.errors import PulmoError
from pulmo_node.monitoring.catalogue import Catalogue
from pulmo_node.monitoring.observed import Observed
from pulmo_node.monitoring.readiness import Readiness
from pulmo_node.ports import AdminStore, Clock, EventRow, InstanceStore, Journal, ResultSender
from pulmo_node.web.access import AccountStore, LoginRate, Sessions, Visitor

LIVE_HEADER = "x-live"  # of what the script of the page asks for by itself
_MOST_MESSAGES = 1000
_REFUSED_SECONDS = 60.0


class PageStore(AdminStore, AccountStore, Protocol):
    """What the page needs of the database besides that."""

    def browse(self, wanted: StudyFilter, *, page: int, page_size: int) -> StudyPage:
        """A page of the studies that pass the filter; pages are numbered from 0."""
        ...

    def first_paths(self, studies: Sequence[str]) -> dict[str, str]:
        """Path of one image on disk of each of some studies."""
        ...

    def job_results(self, job_id: int) -> tuple[ResultObject, ...]:
        """The result objects of a job that are in use."""
        ...

    def instance_paths(self, series_instance_uid: str) -> tuple[str, ...]:
        """Paths of the instances in use, relative to the storage directory."""
        ...

    def counts(self) -> Counts:
        """How much there is of everything."""
        ...

    def running_jobs(self) -> tuple[Job, ...]:
        """The jobs that are analysed at this moment, by whichever node."""
        ...

    def latest_event_id(self) -> int:
        """Id of the newest line of history; whatever changes, it grows."""
        ...

    def events_after(self, event_id: int, *, limit: int = 1000) -> tuple[tuple[int, EventRow], ...]:
        """Lines of history behind that id, oldest first, each with its id."""
        ...


class Messages:
    """What is told once, on the next page of the same browser."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, str] = OrderedDict()
        self._lock = Lock()

    def tell(self, token: str, text: str) -> None:
        """On the next page."""
        with self._lock:
            self._waiting[token] = text
            while len(self._waiting) > _MOST_MESSAGES:
                self._waiting.popitem(last=False)

    def take(self, token: str) -> str:
        """What waits; empty where nothing does."""
        with self._lock:
            return self._waiting.pop(token, "")


class Recently:
    """What was noted within a while, so that a page that refreshes itself is noted once."""

    def __init__(self, seconds: float = 600.0) -> None:
        self._span = timedelta(seconds=seconds)
        self._noted: OrderedDict[tuple[str, str], datetime] = OrderedDict()
        self._lock = Lock()

    def once(self, who: str, what: str, at: datetime, record: Callable[[], None]) -> None:
        """Record it, unless it was recorded lately; two at once are one. What raises is not taken for recorded."""
        with self._lock:
            before = self._noted.get((who, what))
            if before is not None and abs(at - before) < self._span:
                return
            record()
            self._noted[who, what] = at
            self._noted.move_to_end((who, what))
            while len(self._noted) > _MOST_MESSAGES:
                self._noted.popitem(last=False)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything that a page may ask."""

    config: Config
    store: PageStore
    instances: InstanceStore
    observed: Observed
    readiness: Readiness
    catalogue: Catalogue
    sender: ResultSender
    journal: Journal
    clock: Clock
    sessions: Sessions
    logins: LoginRate = field(default_factory=LoginRate)
    messages: Messages = field(default_factory=Messages)
    shown: Recently = field(default_factory=Recently)
    refused: Recently = field(default_factory=lambda: Recently(_REFUSED_SECONDS))

    def audit(self, request: Request, action: str, **more: object) -> None:
        """Who did what; raises `PulmoError` where it cannot be written, so that nothing is done unseen."""
        visitor: Visitor | None = request.state.visitor
        who = f"page {visitor.name}" if visitor is not None else "page"
        self.journal.record([{"who": who, "action": action, "address": request.state.client.address, **more}])

    def message(self, request: Request) -> str:
        """What waits to be told; not to a page that only brings itself up to date, perhaps while it is being left."""
        return "" if LIVE_HEADER in request.headers else self.messages.take(request.state.token)

    def sees_names(self, visitor: Visitor | None) -> bool:
        """Whether patient names are for them."""
        return visitor is not None and visitor.role.value in self.config.web.patient_names


def parts_of(request: Request) -> Parts:
    """Those of the application."""
    return cast(Parts, request.app.state.parts)


class NotFound(PulmoError):
    """There is no such page."""
