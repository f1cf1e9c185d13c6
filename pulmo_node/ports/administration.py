"""What the command line needs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from pulmo_node.domain.deliveries import Delivery, ResultObject
from pulmo_node.domain.findings import Finding
from pulmo_node.domain.jobs import Job
from pulmo_node.domain.priority import Priority
from pulmo_node.domain.series import Series


@dataclass(frozen=True, kw_only=True)
class EventRow:
    """One line of the history of a study."""

    at: datetime
    study_instance_uid: str
    series_instance_uid: str | None
    subject: str  # "series", "instance", "job 12", "delivery 7"
    event: str
    state: str | None  # state after the event
    detail: str | None


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """One line of `pulmo-node studies`."""

    study_instance_uid: str
    state: str  # derived: failed or rejected jobs first, else the least advanced
    series: int
    instances: int
    jobs: int
    updated_at: datetime
    progress: str = ""  # of the analysis that is running


@dataclass(frozen=True, kw_only=True)
class StudyDetail:
    """Everything that `pulmo-node show` prints."""

    summary: StudySummary
    series: tuple[Series, ...]
    jobs: tuple[Job, ...]
    deliveries: tuple[Delivery, ...]
    events: tuple[EventRow, ...]


@dataclass(frozen=True, kw_only=True)
class PurgedSeries:
    """A series whose images were removed."""

    series_instance_uid: str
    calling_ae_title: str  # of who sent them
    images: int


class AdminStore(Protocol):
    """What the command line needs; works while the node runs."""

    def studies(self, *, state: str | None = None) -> tuple[StudySummary, ...]:
        """Newest first."""
        ...

    def study(self, study_instance_uid: str) -> StudyDetail | None:
        """Everything on one study."""
        ...

    def findings(self, job_id: int) -> tuple[Finding, ...]:
        """The nodules of a job's latest results, in order of their segments."""
        ...

    def results(self, study_instance_uid: str) -> tuple[ResultObject, ...]:
        """The result objects of a study that are in use: of the current revision of each series, latest analysis."""
        ...

    def requeue(
        self,
        *,
        study_instance_uid: str | None = None,
        series_instance_uid: str | None = None,
        only_failed: bool = False,
        redeliver: bool = False,
    ) -> int:
        """Queue jobs again (or, with `redeliver`, their deliveries); the number of jobs and series touched.

        A COMPLETE series without any job goes back to RECEIVING, so that the rules are applied to it again.
        """
        ...

    def purged_series(
        self, study_instance_uid: str | None = None, series_instance_uid: str | None = None
    ) -> tuple[PurgedSeries, ...]:
        """Series whose images were purged and have not come again: of a study, or that one."""
        ...

    def cancel(self, study_instance_uid: str) -> int:
        """Cancel the open jobs of a study; their number."""
        ...

    def set_priority(self, study_instance_uid: str, priority: Priority) -> int:
        """Priority of a study: of its open jobs, and of those that come of its series later. The number of series."""
        ...

    def check(self) -> str:
        """The schema revision in use; raises where the database cannot be used."""
        ...
