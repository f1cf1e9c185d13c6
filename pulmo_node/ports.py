"""What the stages need of the outside world. Adapters: `files`, `store`, `deliver`; for tests: `testing`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from pulmo_node.domain.commitments import Commitment, CommitmentReport, KeptInstance
from pulmo_node.domain.deliveries import Delivery, Peer, ResultObject
from pulmo_node.domain.findings import Finding
from pulmo_node.domain.jobs import Job, NewJob
from pulmo_node.domain.priority import Priority
from pulmo_node.domain.series import InstanceOutcome, Series, StoredInstance


class Clock(Protocol):
    """The time, so that tests can set it."""

    def now(self) -> datetime:
        """Aware UTC."""
        ...


@dataclass(frozen=True, kw_only=True)
class WrittenInstance:
    """Bytes of an instance that are durable on disk."""

    path: str  # relative to the storage directory
    sha256: str  # of the data set as the peer sent it, without preamble and meta header
    size_bytes: int


class InstanceStore(Protocol):
    """Received Part 10 files, one per SOP instance, as the peer sent them."""

    def write(
        self, *, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str, meta: bytes, data_set: bytes
    ) -> WrittenInstance:
        """Write preamble and meta header (`meta`) and the data set; file fsynced, renamed, folder fsynced on return.

        A file that is already there under that SOP Instance UID with the same data set is kept. One with other
        bytes is kept too, and the new bytes are written beside it under a name of their own (a conflict).

        Raises:
            StorageFull: it is new and there is too little space.
            Transient: the disk refuses.
        """
        ...

    def digest(self, path: str) -> str | None:
        """sha256 of the data set in a file as it is now; None where there is no such file, or no whole one.

        Raises:
            Transient: it cannot be read.
        """
        ...

    def absolute(self, path: str) -> Path:
        """A path of `WrittenInstance` or `ResultObject` on this machine."""
        ...


@dataclass(frozen=True, kw_only=True)
class OutboxItem:
    """One file to be put into the outbox."""

    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    content: bytes  # a whole Part 10 file


class Outbox(Protocol):
    """Encoded result objects. A set of objects is written whole or not at all, and never rewritten."""

    def put(self, key: str, items: Sequence[OutboxItem], findings_json: str) -> tuple[tuple[ResultObject, ...], str]:
        """Write the objects of one job under `key` with its findings.json, durable on return.

        Where `key` is there already (the worker died after an earlier put), what is there is returned instead:
        bytes under one UID never change, and SR and SEG always come from the same analysis.

        Raises:
            Transient: the disk refuses.
        """
        ...

    def get(self, key: str) -> tuple[tuple[ResultObject, ...], str] | None:
        """What lies under `key`, or None."""
        ...

    def discard(self, key: str) -> None:
        """Remove what lies under `key`: its study was erased meanwhile. Raises `Transient`."""
        ...


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


@dataclass(frozen=True, kw_only=True)
class StudyDetail:
    """Everything that `pulmo-node show` prints."""

    summary: StudySummary
    series: tuple[Series, ...]
    jobs: tuple[Job, ...]
    deliveries: tuple[Delivery, ...]
    events: tuple[EventRow, ...]


class Journal(Protocol):
    """The audit trail."""

    def record(self, entries: Sequence[Mapping[str, object]], *, durable: bool = False) -> None:
        """Append entries: `action` and what it was done to. Raises `Transient`."""
        ...


@dataclass(frozen=True, kw_only=True)
class StudyFiles:
    """What lies on disk of a study. Paths are relative to the storage directory."""

    series: int
    instances: tuple[str, ...]
    results: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PurgeableStudy:
    """A study of which nothing is unsent, failed or still to be done."""

    study_instance_uid: str
    size_bytes: int
    touched_at: datetime


@dataclass(frozen=True, kw_only=True)
class PurgedSeries:
    """A series whose images were removed."""

    series_instance_uid: str
    calling_ae_title: str  # of who sent them
    images: int


class MaintenanceStore(Protocol):
    """What erasure and purge need."""

    def study_files(self, study_instance_uid: str) -> StudyFiles | None:
        """What lies on disk of a study; None where it is unknown. Raises `Transient` while it is being received."""
        ...

    def erase(self, study_instance_uid: str) -> None:
        """Remove every row of a study. Raises `Transient` while it is being received."""
        ...

    def known_outbox_paths(self) -> set[str]:
        """Paths of all result objects that a row knows."""
        ...

    def purgeable(self) -> tuple[PurgeableStudy, ...]:
        """Studies whose images can go, the longest untouched first."""
        ...

    def purge(self, study_instance_uid: str) -> tuple[str, ...]:
        """Mark the images of a study as purged; the paths to be removed, none where that is no longer allowed."""
        ...

    def purged_paths(self) -> tuple[str, ...]:
        """Paths of the images that were purged and have not come again."""
        ...

    def stored_bytes(self) -> int:
        """Size of the received images on disk, in bytes."""
        ...


class ReceiveStore(Protocol):
    """What the receiver and the quiet-period check need."""

    def record_instance(self, instance: StoredInstance) -> InstanceOutcome:
        """One transaction: the instance row, the series row and its event.

        A new instance of a COMPLETE series reopens it: revision + 1, its open jobs SUPERSEDED, their pending
        deliveries CANCELLED. On return the row is committed.
        """
        ...

    def quiet_series(self, *, before: datetime, excluding: Collection[str]) -> tuple[Series, ...]:
        """RECEIVING series whose last instance came before that time, without those Series Instance UIDs."""
        ...

    def complete_series(self, series: Series, jobs: Sequence[NewJob], note: str | None) -> None:
        """RECEIVING -> COMPLETE with its jobs QUEUED, in one transaction.

        Raises:
            StaleJob: an instance came meanwhile (state or number of instances is not what `series` says).
        """
        ...

    def instance_paths(self, series_instance_uid: str) -> tuple[str, ...]:
        """Paths of the instances in use (no conflicts), relative to the storage directory, in order of arrival."""
        ...

    def study_paths(self, series_instance_uid: str) -> tuple[str, ...]:
        """Path of the first instance of every series of the same study, the series itself among them."""
        ...


class ReconcileStore(Protocol):
    """What the comparison of disk and database at the start of the node needs."""

    def recorded_paths(self) -> tuple[set[str], set[str]]:
        """Paths of the instances in use, and those of conflicts and of purged instances; relative to storage."""
        ...

    def record_instance(self, instance: StoredInstance) -> InstanceOutcome:
        """As `ReceiveStore` has it."""
        ...

    def drop_lost(self, paths: Collection[str]) -> tuple[str, ...]:
        """Drop the rows of instances in use whose file is gone, one transaction a series; these Series Instance UIDs.

        The series goes back to RECEIVING with what is left; a COMPLETE one as a new revision, as for a late instance.
        """
        ...


class CommitmentStore(Protocol):
    """What storage commitment as SCP needs."""

    def add_commitment(
        self, transaction_uid: str, calling_ae_title: str, instances: Sequence[tuple[str, str]], *, at: datetime
    ) -> bool:
        """Keep a request, committed on return; False where another one of that peer has the same transaction UID."""
        ...

    def due_commitments(self, now: datetime) -> tuple[Commitment, ...]:
        """Requests that are to be answered now, oldest first."""
        ...

    def commitment_deferred(self, commitment: Commitment, not_before: datetime) -> None:
        """The peer could not be told: attempts + 1."""
        ...

    def commitment_ended(self, commitment: Commitment) -> None:
        """It was answered, or given up."""
        ...

    def kept_instance(self, sop_instance_uid: str) -> KeptInstance | None:
        """What is in use under that SOP Instance UID; None where nothing is."""
        ...


class CommitmentSender(Protocol):
    """Tells peers of the instances that the node keeps."""

    def report_commitment(self, peer: Peer, report: CommitmentReport) -> None:
        """Raises `Transient` where the peer cannot be told."""
        ...


class AwaitingStore(Protocol):
    """What storage commitment as SCU needs: deliveries that were sent and count only once committed."""

    def uncommitted(self, destination: str) -> int:
        """The number of those that were not asked for yet."""
        ...

    def commitment_asked(self, destination: str, transaction_uid: str) -> tuple[Delivery, ...]:
        """Give those that were not asked for this Transaction UID, before the request is sent; what has it now."""
        ...

    def commitment_not_asked(self, transaction_uid: str) -> None:
        """The request was lost: it is made again, under another Transaction UID."""
        ...

    def commitment_waived(self, destination: str) -> int:
        """The peer no longer offers commitment: what was not asked for counts as delivered; the number."""
        ...

    def deliveries_of_transaction(self, transaction_uid: str) -> tuple[Delivery, ...]:
        """What was asked for under that Transaction UID, also what is committed already."""
        ...

    def overdue_commitments(self, destination: str, now: datetime) -> tuple[Delivery, ...]:
        """Those whose time to be committed is over."""
        ...

    def delivery_committed(self, delivery: Delivery) -> None:
        """SENT -> COMMITTED; the job follows to DONE when this was its last. Raises StaleJob."""
        ...

    def delivery_not_committed(self, delivery: Delivery, reason: str, not_before: datetime | None) -> bool:
        """SENT -> PENDING, attempts + 1; SENT -> FAILED without `not_before`. Raises StaleJob.

        False where nobody wants it any more (its job was superseded or cancelled, or has other results): it stays SENT.
        """
        ...


class CommitmentReports(Protocol):
    """Where the reports of peers arrive, on whatever association."""

    def on_n_event_report(self, event: Any) -> tuple[int, None]:
        """Status of the answer; `event` is one of pynetdicom's."""
        ...


class JobStore(AwaitingStore, Protocol):
    """What the worker needs. Every change is one compare-and-set on the state seen, with its event row."""

    def claim_job(self, worker_id: str, *, now: datetime, lease_until: datetime) -> Job | None:
        """Lease the QUEUED job of the highest priority, of these the oldest, that is due and not leased.

        Taking over an expired lease counts as an attempt (`attempts` + 1): the worker before did not survive it.
        """
        ...

    def extend_job_lease(self, job: Job, lease_until: datetime) -> bool:
        """False where the job is no longer ours."""
        ...

    def job_encoded(self, job: Job, results: Sequence[ResultObject], findings_json: str) -> None:
        """QUEUED -> ENCODED with one PENDING delivery per object and destination; DONE at once where there is none.

        Deliveries that exist already (the job was requeued) are requeued instead of duplicated. The nodules of
        findings.json become the findings of the job.

        Raises:
            StaleJob: superseded, cancelled or leased by another worker meanwhile.
            Permanent: `findings_json` is none.
        """
        ...

    def job_exists(self, job: Job) -> bool:
        """False where the study of the job was erased."""
        ...

    def earlier_reports(self, job: Job) -> tuple[ResultObject, ...]:
        """The reports on the same series by the same pipeline, oldest first, this job's own of earlier runs included.

        Only those that were delivered; of a job without destinations, those in use.
        """
        ...

    def job_rejected(self, job: Job, code: str, reason: str, report: Sequence[ResultObject] = ()) -> None:
        """QUEUED -> REJECTED; `report` becomes deliveries where the site wants one. Raises StaleJob."""
        ...

    def job_failed(self, job: Job, code: str, reason: str, report: Sequence[ResultObject] = ()) -> None:
        """QUEUED -> FAILED; like `job_rejected`. Raises StaleJob."""
        ...

    def job_quarantined(self, job: Job, reason: str) -> None:
        """QUEUED -> QUARANTINED. Raises StaleJob."""
        ...

    def job_deferred(self, job: Job, reason: str, not_before: datetime, *, counts: bool = True) -> None:
        """QUEUED -> QUEUED, attempts + 1 where it counts, lease given up. Raises StaleJob."""
        ...

    def release_leases(self, worker_id: str, *, jobs: bool = True, destinations: Collection[str] | None = None) -> int:
        """Give up leases of a worker, without counting an attempt; the number of rows.

        Those of jobs, and those of deliveries to `destinations` (None: to all).
        """
        ...

    def claim_deliveries(
        self, destination: str, worker_id: str, *, now: datetime, lease_until: datetime
    ) -> tuple[Delivery, ...]:
        """Lease the due PENDING deliveries of the first job, by priority and age, that has any for that destination."""
        ...

    def hasten_deliveries(self, destination: str) -> int:
        """Make every deferred PENDING delivery to a destination due now: it answers again. Their number."""
        ...

    def delivery_sent(self, delivery: Delivery, detail: str, commitment_until: datetime | None = None) -> None:
        """PENDING -> SENT; the job follows to DONE or FAILED when this was its last. Raises StaleJob.

        With `commitment_until` it is delivered only once committed, and sent again where that is not by then.
        """
        ...

    def delivery_deferred(self, delivery: Delivery, reason: str, not_before: datetime, *, counts: bool = True) -> None:
        """PENDING -> PENDING, attempts + 1 where it counts, lease given up. Raises StaleJob."""
        ...

    def delivery_failed(self, delivery: Delivery, reason: str) -> None:
        """PENDING -> FAILED; the job follows when this was its last. Raises StaleJob."""
        ...


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

    def purged_series(self, study_instance_uid: str) -> tuple[PurgedSeries, ...]:
        """Series of a study whose images were purged and have not come again."""
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


class ResultLink(Protocol):
    """An open association to a destination."""

    @property
    def commits(self) -> bool:
        """Whether storage commitment was wanted and the peer offers it."""
        ...

    def request_commitment(self, transaction_uid: str, instances: Sequence[tuple[str, str]]) -> None:
        """N-ACTION for pairs of SOP Class UID and SOP Instance UID.

        Raises:
            Transient: association lost, no answer.
            Permanent: refused.
        """
        ...

    def store(self, file: Path, result: ResultObject) -> str:
        """C-STORE one object; the status in words where the peer answered Success or a warning.

        Raises:
            Transient: association lost, peer busy (0xA7xx).
            Permanent: refused (0xA9xx, 0xCxxx, 0x01xx), or its SOP class was not accepted at negotiation.
        """
        ...


class ResultSender(Protocol):
    """Delivers result objects."""

    def open(self, peer: Peer) -> AbstractContextManager[ResultLink]:
        """Open an association. Raises `Transient` where the peer cannot be reached or rejects."""
        ...

    def echo(self, peer: Peer) -> float:
        """C-ECHO; seconds it took. Raises `Transient`."""
        ...


class Transfers(Protocol):
    """What is arriving right now."""

    def series_in_transfer(self) -> Collection[str]:
        """Series Instance UIDs whose instance was the latest on an open association."""
        ...
