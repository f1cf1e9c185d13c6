"""What the worker needs: jobs with their deliveries, and the outbox for encoded results."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from pulmo_node.domain.deliveries import Delivery, ResultObject
from pulmo_node.domain.jobs import Job
from pulmo_node.ports.commitment import AwaitingStore


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

    def check(self, result: ResultObject) -> None:
        """Whether an object is what was put here. Raises `Permanent` where it is not, `Transient` of the disk."""
        ...

    def discard(self, key: str) -> None:
        """Remove what lies under `key`: its study was erased meanwhile. Raises `Transient`."""
        ...


class JobStore(AwaitingStore, Protocol):
    """What the worker needs. Every change is one compare-and-set on the state seen, with its event row."""

    def claim_job(self, worker_id: str, *, now: datetime, lease_until: datetime) -> Job | None:
        """Lease the QUEUED job of the highest priority, of these the oldest, that is due and not leased.

        Taking over an expired lease is counted in `takeovers`, not in `attempts`: the node did not survive it.
        """
        ...

    def extend_job_lease(self, job: Job, lease_until: datetime) -> bool:
        """False where the job is no longer ours."""
        ...

    def job_progress(self, job: Job, step: str, share: float) -> bool:
        """Record how far a job is (`share` of the running step, 0 to 1); False where it is no longer ours."""
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

    def delivery_left_out(self, delivery: Delivery, reason: str) -> None:
        """PENDING -> CANCELLED, which is no failure; the job follows when this was its last. Raises StaleJob."""
        ...
