"""How much there is of everything, for metrics, notifications and the page."""

from __future__ import annotations

from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from pulmo_node.domain.browsing import Counts, QueueCount, ReceivedCount
from pulmo_node.domain.deliveries import DeliveryState
from pulmo_node.domain.jobs import Job, JobState
from pulmo_node.ports import EventRow
from pulmo_node.store import schema
from pulmo_node.store.database import Database
from pulmo_node.store.rows import JOBS, to_event, to_job


class SqlCountStore(Database):
    """What is counted."""

    def counts(self) -> Counts:
        """Everything at one moment."""
        series, jobs, deliveries = schema.series, schema.jobs, schema.deliveries
        with self._read() as connection:
            waiting = connection.execute(
                sa.select(sa.func.count(), sa.func.min(jobs.c.created_at, type_=schema.UtcDateTime())).where(
                    jobs.c.state == JobState.QUEUED.value
                )
            ).one()
            return Counts(
                received=tuple(
                    ReceivedCount(**row) for row in connection.execute(sa.select(schema.received)).mappings()
                ),
                series=dict(_grouped(connection, series.c.state)),
                jobs={
                    (state, code or ""): number
                    for state, code, number in _grouped(connection, jobs.c.state, jobs.c.reason_code)
                },
                deliveries={
                    (destination, state): number
                    for destination, state, number in _grouped(connection, deliveries.c.destination, deliveries.c.state)
                },
                queues=tuple(_queues(connection)),
                analysis_waiting=waiting[0],
                analysis_oldest_at=waiting[1],
                analysis_running=len(self._running(connection)),
            )

    def running_jobs(self) -> tuple[Job, ...]:
        """The jobs that a node, this or another, is analysing at this moment and has told how far it is."""
        with self._read() as connection:
            return self._running(connection)

    def _running(self, connection: Connection) -> tuple[Job, ...]:
        jobs = schema.jobs.c
        running = (jobs.state == JobState.QUEUED.value, jobs.step.is_not(None), jobs.lease_until > self._clock.now())
        return tuple(to_job(row) for row in connection.execute(JOBS.where(*running).order_by(jobs.id)))

    def count_refused(self, calling_ae_title: str, instances: int) -> None:
        """Add to what a peer sent and the receiver refused."""
        with self._write() as connection:
            count_received(connection, {(calling_ae_title, "refused"): (instances, 0)})

    def latest_event_id(self) -> int:
        """Id of the newest line of history; 0 where there is none. Whatever changes, it grows."""
        with self._read() as connection:
            return int(connection.scalar(sa.select(sa.func.max(schema.events.c.id))) or 0)

    def events_after(self, event_id: int, *, limit: int = 1000) -> tuple[tuple[int, EventRow], ...]:
        """Lines of history behind that id, oldest first, each with its id."""
        events = schema.events
        query = events.select().where(events.c.id > event_id).order_by(events.c.id).limit(limit)
        with self._read() as connection:
            return tuple((row.id, to_event(row)) for row in connection.execute(query))


def count_received(connection: Connection, counts: dict[tuple[str, str], tuple[int, int]]) -> None:
    """Add instances and bytes to what was received, by calling AE title and status."""
    rows = [
        {"calling_ae_title": calling_ae_title, "status": status, "instances": instances, "size_bytes": size_bytes}
        for (calling_ae_title, status), (instances, size_bytes) in counts.items()
    ]
    connection.execute(_add_received(connection.dialect.name), rows)


@cache
def _add_received(dialect: str) -> sa.Executable:
    """Put together once, as each group of instances that arrives needs it."""
    table = schema.received
    insert: Any = (postgresql.insert if dialect == "postgresql" else sqlite.insert)(table)
    of_one = {name: table.c[name] + insert.excluded[name] for name in ("instances", "size_bytes")}
    statement: sa.Executable = insert.on_conflict_do_update(
        index_elements=[table.c.calling_ae_title, table.c.status], set_=of_one
    )
    return statement


def _grouped(connection: Connection, *columns: sa.Column[Any]) -> list[tuple[Any, ...]]:
    rows = connection.execute(sa.select(*columns, sa.func.count()).group_by(*columns))
    return [tuple(row) for row in rows]


def _queues(connection: Connection) -> list[QueueCount]:
    """A delivery waits since its job was encoded, which is the job's latest change while any of it is pending."""
    deliveries, jobs = schema.deliveries, schema.jobs
    query = (
        sa.select(
            deliveries.c.destination,
            sa.func.count().label("waiting"),
            sa.func.min(jobs.c.updated_at, type_=schema.UtcDateTime()).label("oldest_at"),
        )
        .join_from(deliveries, jobs, deliveries.c.job_id == jobs.c.id)
        .where(deliveries.c.state == DeliveryState.PENDING.value)
        .group_by(deliveries.c.destination)
        .order_by(deliveries.c.destination)
    )
    return [QueueCount(**row) for row in connection.execute(query).mappings()]
