"""The one way in which a state changes: compare-and-set on what was seen, with an event row, in one transaction.

Every function takes a connection of a writing transaction. `StaleJob` means that no row was as it had been seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.sql.dml import ReturningInsert

from pulmo_node.domain import deliveries as delivery_domain
from pulmo_node.domain import jobs as job_domain
from pulmo_node.domain import series as series_domain
from pulmo_node.domain.deliveries import Delivery, DeliveryEvent, DeliveryState, ResultObject
from pulmo_node.domain.findings import Finding
from pulmo_node.domain.jobs import DELIVERY_FAILED, OPEN_STATES, Job, JobEvent, JobState
from pulmo_node.domain.series import Series, SeriesEvent, SeriesState
from pulmo_node.errors import StaleJob
from pulmo_node.store import schema
from pulmo_node.store.database import HAPPENED
from pulmo_node.store.rows import DELIVERIES, JOBS, to_delivery, to_job

NO_LEASE: dict[str, Any] = {"worker_id": None, "lease_until": None}
NO_PROGRESS: dict[str, Any] = {"step": None, "share": None}
AFRESH: dict[str, Any] = {"attempts": 0, "not_before": None, "reason": None, **NO_LEASE}
"""What a requeued delivery starts with."""
JOB_AFRESH: dict[str, Any] = {**AFRESH, "takeovers": 0}
"""What a requeued job starts with."""

# A statement costs as much to put together as to execute, and each instance that arrives needs some: so each is put
# together once.
_INSERT_EVENT = schema.events.insert()
_SERIES_AS_SEEN = ("id", "state", "revision", "number_of_instances")


@cache
def _insert(table: sa.Table) -> ReturningInsert[int]:
    return table.insert().returning(table.c.id)


@cache
def _update_series(names: tuple[str, ...]) -> sa.Update:
    """Sets these columns of a series that is as it was seen."""
    columns = schema.series.c
    as_it_was = (columns[name] == sa.bindparam(f"seen_{name}") for name in _SERIES_AS_SEEN)
    return schema.series.update().where(*as_it_was).values({name: sa.bindparam(name) for name in names})


def add_event(
    connection: Connection, study_instance_uid: str, series_instance_uid: str | None, **values: object
) -> None:
    """Write one line of history; `values` are the columns at, subject, event, state and detail."""
    event = {"study_instance_uid": study_instance_uid, "series_instance_uid": series_instance_uid, **values}
    connection.execute(_INSERT_EVENT, event)
    connection.info.setdefault(HAPPENED, []).append(event)


def add_row(connection: Connection, table: sa.Table, **values: object) -> int:
    """Insert one row; its id."""
    return int(connection.execute(_insert(table), values).scalar_one())


def move_series(
    connection: Connection,
    series: Series,
    event: SeriesEvent,
    *,
    at: datetime,
    detail: str | None,
    changes: dict[str, Any],
) -> SeriesState:
    """One event of a series; `changes` are further columns."""
    state = series_domain.transition(series.state, event)
    new = {"state": state.value, "updated_at": at, **changes}
    seen = {f"seen_{name}": getattr(series, name) for name in _SERIES_AS_SEEN}
    updated = connection.execute(_update_series(tuple(new)), new | seen | {"seen_state": series.state.value})
    if updated.rowcount != 1:
        raise StaleJob(f"series {series.series_instance_uid} changed before {event.value} could be recorded")
    add_event(
        connection,
        series.study_instance_uid,
        series.series_instance_uid,
        at=at,
        subject="series",
        event=event.value,
        state=state.value,
        detail=detail,
    )
    return state


def move_job(
    connection: Connection,
    job: Job,
    event: JobEvent,
    *,
    at: datetime,
    detail: str | None = None,
    changes: dict[str, Any] | None = None,
) -> None:
    """One event of a job; its lease is given up; `changes` are further columns."""
    state = job_domain.transition(job.state, event)
    updated = connection.execute(
        schema.jobs.update()
        .where(*as_seen(schema.jobs, job))
        .values({"state": state.value, "updated_at": at, **NO_LEASE, **NO_PROGRESS, **(changes or {})})
    )
    if updated.rowcount != 1:
        raise StaleJob(f"job {job.id} is no longer {job.state.value} and ours: {event.value} comes too late")
    add_event(
        connection,
        job.study_instance_uid,
        job.series_instance_uid,
        at=at,
        subject=f"job {job.id}",
        event=event.value,
        state=state.value,
        detail=detail,
    )


def move_delivery(
    connection: Connection,
    delivery: Delivery,
    event: DeliveryEvent,
    *,
    at: datetime,
    job: Job,
    detail: str | None = None,
    changes: dict[str, Any] | None = None,
) -> None:
    """One event of a delivery of `job`; its lease is given up; `changes` are further columns."""
    state = delivery_domain.transition(delivery.state, event)
    columns = {"state": state.value, "updated_at": at, "commitment_until": None, **NO_LEASE, **(changes or {})}
    updated = connection.execute(
        schema.deliveries.update().where(*as_seen(schema.deliveries, delivery)).values(columns)
    )
    if updated.rowcount != 1:
        raise StaleJob(f"delivery {delivery.id} is no longer {delivery.state.value} and ours: {event.value} is late")
    what = f"{delivery.result.kind} to {delivery.destination}"
    add_event(
        connection,
        job.study_instance_uid,
        job.series_instance_uid,
        at=at,
        subject=f"delivery {delivery.id}",
        event=event.value,
        state=state.value,
        detail=f"{what}: {detail}" if detail else what,
    )


def as_seen(table: sa.Table, value: Job | Delivery) -> tuple[sa.ColumnElement[bool], ...]:
    """The row is as `value` says: state and holder of the lease. The counts tell two leases of one worker apart."""
    lost = (schema.jobs.c.takeovers == value.takeovers,) if isinstance(value, Job) else ()
    return (
        *lost,
        table.c.id == value.id,
        table.c.state == value.state.value,
        table.c.worker_id.is_not_distinct_from(value.worker_id),
        table.c.attempts == value.attempts,
    )


def job_by_id(connection: Connection, job_id: int) -> Job:
    """The job as it is now. Raises `StaleJob` where its study was erased."""
    row = connection.execute(JOBS.where(schema.jobs.c.id == job_id)).first()
    if row is None:
        raise StaleJob(f"job {job_id} was erased with its study")
    return to_job(row)


def deliveries_of(connection: Connection, job: Job, *, in_use: bool | None = None) -> tuple[Delivery, ...]:
    """Deliveries of a job; with `in_use` only those of result objects that are (not) part of its latest results."""
    query = DELIVERIES.where(schema.deliveries.c.job_id == job.id).order_by(schema.deliveries.c.id)
    if in_use is not None:
        query = query.where(schema.results.c.in_use.is_(in_use))
    return tuple(to_delivery(row) for row in connection.execute(query))


def end_pending(
    connection: Connection, job: Job, event: DeliveryEvent, *, at: datetime, in_use: bool | None = None
) -> None:
    """Cancel what is still to be sent of a job, also where a worker is sending it at this moment."""
    for delivery in deliveries_of(connection, job, in_use=in_use):
        if delivery.state is DeliveryState.PENDING:
            move_delivery(connection, delivery, event, at=at, job=job)


def supersede_jobs(connection: Connection, series_id: int, *, at: datetime) -> None:
    """The series goes on: its open jobs end, and nothing that speaks of fewer instances is sent any more."""
    for row in connection.execute(JOBS.where(schema.jobs.c.series_id == series_id).order_by(schema.jobs.c.id)).all():
        job = to_job(row)
        if job.state in OPEN_STATES:
            move_job(connection, job, JobEvent.SUPERSEDED, at=at)
        end_pending(connection, job, DeliveryEvent.SUPERSEDED, at=at)


def replace_results(connection: Connection, job: Job, objects: Sequence[ResultObject], *, at: datetime) -> int:
    """Make `objects` the results of the job, each with a PENDING delivery to every destination; their number."""
    table = schema.results
    connection.execute(table.update().where(table.c.job_id == job.id).values(in_use=False))
    known = {
        row.sop_instance_uid: row.id
        for row in connection.execute(sa.select(table.c.id, table.c.sop_instance_uid).where(table.c.job_id == job.id))
    }
    for result in objects:
        values = {name: getattr(result, name) for name in ResultObject.__dataclass_fields__}
        if result.sop_instance_uid in known:
            row_id = known[result.sop_instance_uid]
            connection.execute(table.update().where(table.c.id == row_id).values(in_use=True, **values))
        else:
            known[result.sop_instance_uid] = add_row(connection, table, job_id=job.id, in_use=True, **values)
    end_pending(connection, job, DeliveryEvent.CANCELLED, at=at, in_use=False)
    existing = {
        (delivery.result.sop_instance_uid, delivery.destination): delivery
        for delivery in deliveries_of(connection, job, in_use=True)
    }
    for result in objects:
        for destination in job.destinations:
            delivery = existing.get((result.sop_instance_uid, destination))
            if delivery is None:
                _add_delivery(connection, job, known[result.sop_instance_uid], destination, at)
            elif delivery.state is not DeliveryState.PENDING:
                move_delivery(connection, delivery, DeliveryEvent.REQUEUED, at=at, job=job, changes=AFRESH)
    return len(objects) * len(job.destinations)


def replace_findings(connection: Connection, job: Job, findings: Sequence[Finding]) -> None:
    """Make `findings` those of the job."""
    table = schema.findings
    connection.execute(table.delete().where(table.c.job_id == job.id))
    if findings:
        connection.execute(table.insert(), [{"job_id": job.id, **asdict(finding)} for finding in findings])


def _add_delivery(connection: Connection, job: Job, result_id: int, destination: str, at: datetime) -> None:
    add_row(
        connection,
        schema.deliveries,
        job_id=job.id,
        result_id=result_id,
        destination=destination,
        state=DeliveryState.PENDING.value,
        attempts=0,
        updated_at=at,
    )


def settle_job(connection: Connection, job_id: int, *, at: datetime) -> None:
    """Let an ENCODED job follow its deliveries once the last of them has ended; any other job stays as it is."""
    job = job_by_id(connection, job_id)
    if job.state is not JobState.ENCODED:
        return
    deliveries = deliveries_of(connection, job, in_use=True)
    if any(delivery.state is DeliveryState.PENDING or delivery.commitment_until for delivery in deliveries):
        return
    failed = [delivery for delivery in deliveries if delivery.state is DeliveryState.FAILED]
    if not failed:
        move_job(connection, job, JobEvent.DELIVERED, at=at)
        return
    reason = f"{len(failed)} of {len(deliveries)} deliveries failed; " + "; ".join(
        f"{delivery.result.kind} to {delivery.destination}: {delivery.reason}" for delivery in failed
    )
    changes = {"reason_code": DELIVERY_FAILED, "reason": reason}
    move_job(connection, job, JobEvent.UNDELIVERABLE, at=at, detail=reason, changes=changes)
