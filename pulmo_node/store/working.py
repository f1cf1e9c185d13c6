"""Port `JobStore`: what the worker claims and what becomes of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from pulmo_node.domain.deliveries import REPORT_KIND, Delivery, DeliveryEvent, DeliveryState, ResultObject
from pulmo_node.domain.findings import findings_of
from pulmo_node.domain.jobs import Job, JobEvent, JobState
from pulmo_node.errors import Permanent
from pulmo_node.store import schema
from pulmo_node.store.database import CLOCK_SET_BACK, Database
from pulmo_node.store.moves import (
    NO_PROGRESS,
    add_event,
    as_seen,
    job_by_id,
    move_delivery,
    move_job,
    replace_findings,
    replace_results,
    settle_job,
)
from pulmo_node.store.rows import DELIVERIES, JOBS, to_delivery, to_job, to_result

TAKEN_OVER = "taken over"
"""Event of a lease that ended with its worker; no state changes."""

_GIVEN_BACK = "given back by its worker"


class SqlJobStore(Database):
    """What the worker needs. Every change is one compare-and-set on the state seen, with its event row."""

    def claim_job(self, worker_id: str, *, now: datetime, lease_until: datetime) -> Job | None:
        """Lease the QUEUED job of the highest priority, of these the oldest, that is due and not leased.

        Taking over an expired lease is counted in `takeovers`, not in `attempts`: the node did not survive it.
        """
        table = schema.jobs
        oldest = (
            sa.select(table.c.id)
            .where(table.c.state == JobState.QUEUED.value, *_claimable(table, now))
            .order_by(table.c.priority.desc(), table.c.id)
            .limit(1)
        )
        with self._write() as connection:
            job_id = connection.scalar(oldest)
            if job_id is None:
                return None
            seen = job_by_id(connection, job_id)
            values, lost = _lease(seen, worker_id, lease_until)
            changes = {"updated_at": now, **NO_PROGRESS, **values}
            connection.execute(table.update().where(*as_seen(table, seen)).values(changes))
            if lost:
                _add_takeover(connection, seen, f"job {seen.id}", seen.state.value, seen.worker_id, now)
            return job_by_id(connection, job_id)

    def extend_job_lease(self, job: Job, lease_until: datetime) -> bool:
        """False where the job is no longer ours."""
        with self._write() as connection:
            updated = connection.execute(
                schema.jobs.update().where(*as_seen(schema.jobs, job)).values(lease_until=lease_until)
            )
            return updated.rowcount == 1

    def job_progress(self, job: Job, step: str, share: float) -> bool:
        """Record how far a job is; False where it is no longer ours."""
        with self._write() as connection:
            updated = connection.execute(
                schema.jobs.update().where(*as_seen(schema.jobs, job)).values(step=step[:32], share=share)
            )
            return updated.rowcount == 1

    def job_encoded(self, job: Job, results: Sequence[ResultObject], findings_json: str) -> None:
        """QUEUED -> ENCODED with one PENDING delivery per object and destination; DONE at once where there is none.

        The nodules of findings.json become the findings of the job.

        Raises:
            StaleJob: superseded, cancelled or leased by another worker meanwhile.
            Permanent: `findings_json` is none.
        """
        try:
            findings = findings_of(findings_json)
        except ValueError as exc:
            raise Permanent(f"findings.json of job {job.id} cannot be read: {type(exc).__name__}") from exc
        at = self._clock.now()
        changes = {"findings": findings_json, "not_before": None, "reason_code": None, "reason": None}
        with self._write() as connection:
            move_job(connection, job, JobEvent.ENCODED, at=at, detail=_kinds(results), changes=changes)
            replace_results(connection, job, results, at=at)
            replace_findings(connection, job, findings)
            settle_job(connection, job.id, at=at)

    def job_exists(self, job: Job) -> bool:
        """False where the study of the job was erased."""
        with self._read() as connection:
            return connection.scalar(sa.select(schema.jobs.c.id).where(schema.jobs.c.id == job.id)) is not None

    def earlier_reports(self, job: Job) -> tuple[ResultObject, ...]:
        """The reports on the same series by the same pipeline, oldest first, this job's own of earlier runs included.

        Only those that somebody has: what was never delivered, though it was to be, nobody will look for. A report
        without any destination counts as long as it is in use.
        """
        results, jobs, deliveries = schema.results, schema.jobs, schema.deliveries
        own = jobs.alias()
        of_series = sa.select(own.c.series_id).where(own.c.id == job.id).scalar_subquery()
        of_result = sa.select(deliveries.c.id).where(deliveries.c.result_id == results.c.id)
        taken = (DeliveryState.SENT.value, DeliveryState.COMMITTED.value)
        query = (
            sa.select(results)
            .join_from(results, jobs)
            .where(
                jobs.c.series_id == of_series,
                jobs.c.pipeline == job.pipeline,
                results.c.kind == REPORT_KIND,
                sa.or_(
                    of_result.where(deliveries.c.state.in_(taken)).exists(),
                    sa.and_(results.c.in_use.is_(True), ~of_result.exists()),
                ),
            )
            .order_by(results.c.id)
        )
        with self._read() as connection:
            return tuple(to_result(row) for row in connection.execute(query))

    def job_rejected(self, job: Job, code: str, reason: str, report: Sequence[ResultObject] = ()) -> None:
        """QUEUED -> REJECTED; `report` becomes deliveries where the site wants one. Raises `StaleJob`."""
        self._end(job, JobEvent.REJECTED, code, reason, report)

    def job_failed(self, job: Job, code: str, reason: str, report: Sequence[ResultObject] = ()) -> None:
        """QUEUED -> FAILED; like `job_rejected`. Raises `StaleJob`."""
        self._end(job, JobEvent.FAILED, code, reason, report)

    def job_quarantined(self, job: Job, reason: str) -> None:
        """QUEUED -> QUARANTINED. Raises `StaleJob`."""
        self._end(job, JobEvent.QUARANTINED, None, reason, ())

    def job_deferred(self, job: Job, reason: str, not_before: datetime, *, counts: bool = True) -> None:
        """QUEUED -> QUEUED, attempts + 1 where it counts, lease given up. Raises `StaleJob`."""
        changes = {"attempts": job.attempts + counts, "reason": reason, "not_before": not_before}
        detail = f"{reason}; again not before {not_before.isoformat(timespec='seconds')}"
        with self._write() as connection:
            move_job(connection, job, JobEvent.DEFERRED, at=self._clock.now(), detail=detail, changes=changes)

    def release_leases(self, worker_id: str, *, jobs: bool = True, destinations: Collection[str] | None = None) -> int:
        """Give up leases of a worker, without counting an attempt; the number of rows.

        Those of jobs, and those of deliveries to `destinations` (None: to all).
        """
        at = self._clock.now()
        of_jobs = JOBS.where(schema.jobs.c.worker_id == worker_id, schema.jobs.c.state == JobState.QUEUED.value)
        deliveries = DELIVERIES.where(
            schema.deliveries.c.worker_id == worker_id, schema.deliveries.c.state == DeliveryState.PENDING.value
        )
        if destinations is not None:
            deliveries = deliveries.where(schema.deliveries.c.destination.in_(list(destinations)))
        with self._write() as connection:
            rows = connection.execute(of_jobs.order_by(schema.jobs.c.id)).all() if jobs else ()
            leased = [to_job(row) for row in rows]
            for job in leased:
                move_job(connection, job, JobEvent.RELEASED, at=at, detail=_GIVEN_BACK)
            sending = [to_delivery(row) for row in connection.execute(deliveries.order_by(schema.deliveries.c.id))]
            for delivery in sending:
                job = job_by_id(connection, delivery.job_id)
                move_delivery(connection, delivery, DeliveryEvent.RELEASED, at=at, job=job, detail=_GIVEN_BACK)
        return len(leased) + len(sending)

    def claim_deliveries(
        self, destination: str, worker_id: str, *, now: datetime, lease_until: datetime
    ) -> tuple[Delivery, ...]:
        """Lease the due PENDING deliveries of the oldest job that has any for that destination.

        Those of a job that is being analysed again wait for what comes of it. Taking over an expired lease counts
        as an attempt.
        """
        table = schema.deliveries
        due = (
            DELIVERIES.join(schema.jobs, table.c.job_id == schema.jobs.c.id)
            .where(
                table.c.destination == destination,
                table.c.state == DeliveryState.PENDING.value,
                schema.jobs.c.state != JobState.QUEUED.value,
                *_claimable(table, now),
            )
            .order_by(schema.jobs.c.priority.desc(), table.c.job_id, table.c.id)
        )
        with self._write() as connection:
            oldest = connection.execute(due.limit(1)).first()
            if oldest is None:
                return ()
            seen = [to_delivery(row) for row in connection.execute(due.where(table.c.job_id == oldest.job_id))]
            job = job_by_id(connection, oldest.job_id)
            for delivery in seen:
                values, lost = _lease(delivery, worker_id, lease_until)
                connection.execute(table.update().where(*as_seen(table, delivery)).values(updated_at=now, **values))
                if lost:
                    subject = f"delivery {delivery.id}"
                    _add_takeover(connection, job, subject, delivery.state.value, delivery.worker_id, now)
            claimed = DELIVERIES.where(table.c.id.in_([delivery.id for delivery in seen])).order_by(table.c.id)
            return tuple(to_delivery(row) for row in connection.execute(claimed))

    def hasten_deliveries(self, destination: str) -> int:
        """Make every deferred PENDING delivery to a destination due now: it answers again. Their number."""
        table = schema.deliveries
        waiting = (
            table.c.destination == destination,
            table.c.state == DeliveryState.PENDING.value,
            table.c.not_before.is_not(None),
            table.c.worker_id.is_(None),
        )
        with self._write() as connection:
            return connection.execute(table.update().where(*waiting).values(not_before=None)).rowcount

    def delivery_sent(self, delivery: Delivery, detail: str, commitment_until: datetime | None = None) -> None:
        """PENDING -> SENT; the job follows to DONE or FAILED when this was its last. Raises `StaleJob`.

        With `commitment_until` it is delivered only once committed, and sent again where that is not by then.
        """
        changes = {"reason": None, "not_before": None, "commitment_uid": None, "commitment_until": commitment_until}
        self._move_delivery(delivery, DeliveryEvent.SENT, detail, changes)

    def delivery_deferred(self, delivery: Delivery, reason: str, not_before: datetime, *, counts: bool = True) -> None:
        """PENDING -> PENDING, attempts + 1 where it counts, lease given up. Raises `StaleJob`."""
        changes = {"attempts": delivery.attempts + counts, "reason": reason, "not_before": not_before}
        detail = f"{reason}; again not before {not_before.isoformat(timespec='seconds')}"
        self._move_delivery(delivery, DeliveryEvent.DEFERRED, detail, changes)

    def delivery_failed(self, delivery: Delivery, reason: str) -> None:
        """PENDING -> FAILED; the job follows when this was its last. Raises `StaleJob`."""
        self._move_delivery(delivery, DeliveryEvent.FAILED, reason, {"reason": reason, "not_before": None})

    def delivery_left_out(self, delivery: Delivery, reason: str) -> None:
        """PENDING -> CANCELLED, which is no failure; the job follows when this was its last. Raises `StaleJob`."""
        self._move_delivery(delivery, DeliveryEvent.LEFT_OUT, reason, {"reason": reason, "not_before": None})

    def _end(self, job: Job, event: JobEvent, code: str | None, reason: str, report: Sequence[ResultObject]) -> None:
        at = self._clock.now()
        changes = {"findings": None, "reason_code": code, "reason": reason, "not_before": None}
        detail = f"{code}: {reason}" if code else reason
        with self._write() as connection:
            move_job(connection, job, event, at=at, detail=detail, changes=changes)
            replace_results(connection, job, report, at=at)
            replace_findings(connection, job, ())

    def _move_delivery(self, delivery: Delivery, event: DeliveryEvent, detail: str, changes: dict[str, Any]) -> None:
        at = self._clock.now()
        with self._write() as connection:
            job = job_by_id(connection, delivery.job_id)
            move_delivery(connection, delivery, event, at=at, job=job, detail=detail, changes=changes)
            settle_job(connection, delivery.job_id, at=at)


def _claimable(table: sa.Table, now: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    """Due, and not leased or no longer so. Times that were set by a clock that has since been set back mean nothing."""
    set_back = table.c.updated_at > now + CLOCK_SET_BACK
    return (
        sa.or_(table.c.not_before.is_(None), table.c.not_before <= now, set_back),
        sa.or_(table.c.lease_until.is_(None), table.c.lease_until <= now, set_back),
    )


def _lease(seen: Job | Delivery, worker_id: str, lease_until: datetime) -> tuple[dict[str, Any], bool]:
    """The columns of a new lease, and whether it takes over one that was lost."""
    lost = seen.lease_until is not None
    values = {"worker_id": worker_id, "lease_until": lease_until}
    count = {"takeovers": seen.takeovers + lost} if isinstance(seen, Job) else {"attempts": seen.attempts + lost}
    return values | count, lost


def _add_takeover(
    connection: Connection, job: Job, subject: str, state: str, lost_worker_id: str | None, at: datetime
) -> None:
    add_event(
        connection,
        job.study_instance_uid,
        job.series_instance_uid,
        at=at,
        subject=subject,
        event=TAKEN_OVER,
        state=state,
        detail=f"the lease of {lost_worker_id} expired",
    )


def _kinds(results: Sequence[ResultObject]) -> str:
    return ", ".join(result.kind for result in results) or "no objects"
