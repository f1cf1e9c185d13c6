"""Port `AdminStore`: what an administrator sees and may change, while the node runs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from pulmo_node.domain.deliveries import DeliveryEvent, DeliveryState, ResultObject
from pulmo_node.domain.findings import Finding
from pulmo_node.domain.jobs import DELIVERY_FAILED, OPEN_STATES, Job, JobEvent, JobState, told_progress
from pulmo_node.domain.priority import Priority
from pulmo_node.domain.series import Series, SeriesEvent, SeriesState
from pulmo_node.domain.studies import derive_study_state
from pulmo_node.ports import StudyDetail, StudySummary
from pulmo_node.store import schema
from pulmo_node.store.database import Database
from pulmo_node.store.moves import (
    AFRESH,
    JOB_AFRESH,
    add_event,
    deliveries_of,
    end_pending,
    move_delivery,
    move_job,
    move_series,
)
from pulmo_node.store.rows import DELIVERIES, JOBS, to_delivery, to_event, to_finding, to_job, to_result, to_series

_REQUEUED_WHEN_FAILED = frozenset({JobState.FAILED, JobState.QUARANTINED})
_REQUEUED = _REQUEUED_WHEN_FAILED | {JobState.REJECTED, JobState.DONE, JobState.CANCELLED}


class SqlAdminStore(Database):
    """What the command line needs."""

    def studies(self, *, state: str | None = None) -> tuple[StudySummary, ...]:
        """The studies whose state is derived as `state`, or all; the last changed first."""
        with self._read() as connection:
            summaries = _summaries(connection, None)
        return tuple(summary for summary in summaries if state is None or summary.state == state)

    def study(self, study_instance_uid: str) -> StudyDetail | None:
        """Everything on one study."""
        of_study = schema.series.c.study_instance_uid == study_instance_uid
        with self._read() as connection:
            summaries = _summaries(connection, study_instance_uid)
            if not summaries:
                return None
            series = connection.execute(schema.series.select().where(of_study).order_by(schema.series.c.id))
            jobs = connection.execute(JOBS.where(of_study).order_by(schema.jobs.c.id))
            deliveries = connection.execute(
                DELIVERIES.join(schema.jobs, schema.deliveries.c.job_id == schema.jobs.c.id)
                .join(schema.series, schema.jobs.c.series_id == schema.series.c.id)
                .where(of_study)
                .order_by(schema.deliveries.c.id)
            )
            events = connection.execute(
                schema.events.select()
                .where(schema.events.c.study_instance_uid == study_instance_uid)
                .order_by(schema.events.c.id)
            )
            return StudyDetail(
                summary=summaries[0],
                series=tuple(to_series(row) for row in series),
                jobs=tuple(to_job(row) for row in jobs),
                deliveries=tuple(to_delivery(row) for row in deliveries),
                events=tuple(to_event(row) for row in events),
            )

    def results(self, study_instance_uid: str) -> tuple[ResultObject, ...]:
        """The result objects of a study that are in use: of the current revision of each series, latest analysis."""
        series, jobs, results = schema.series, schema.jobs, schema.results
        query = (
            sa.select(results)
            .join_from(results, jobs, results.c.job_id == jobs.c.id)
            .join(series, sa.and_(jobs.c.series_id == series.c.id, jobs.c.revision == series.c.revision))
            .where(series.c.study_instance_uid == study_instance_uid, results.c.in_use)
            .order_by(results.c.id)
        )
        with self._read() as connection:
            return tuple(to_result(row) for row in connection.execute(query))

    def findings(self, job_id: int) -> tuple[Finding, ...]:
        """The nodules of a job's latest results, in order of their segments."""
        table = schema.findings
        query = table.select().where(table.c.job_id == job_id).order_by(table.c.segment_number)
        with self._read() as connection:
            return tuple(to_finding(row) for row in connection.execute(query))

    def requeue(
        self,
        *,
        study_instance_uid: str | None = None,
        series_instance_uid: str | None = None,
        only_failed: bool = False,
        redeliver: bool = False,
    ) -> int:
        """Queue the jobs of the current revision again (or, with `redeliver`, their deliveries).

        Without `study_instance_uid` and `series_instance_uid` it concerns every series. `only_failed`: jobs that
        are FAILED or QUARANTINED, and of their deliveries the FAILED ones; a REJECTED job is none of these, since
        the same images would be rejected again. A COMPLETE series without any job goes back to RECEIVING, so that
        the rules are applied to it again. Open and SUPERSEDED jobs stay as they are.

        Returns:
            The number of jobs and series touched.
        """
        at = self._clock.now()
        query = schema.series.select().order_by(schema.series.c.id)
        if study_instance_uid is not None:
            query = query.where(schema.series.c.study_instance_uid == study_instance_uid)
        if series_instance_uid is not None:
            query = query.where(schema.series.c.series_instance_uid == series_instance_uid)
        if only_failed:
            failed = sa.select(schema.jobs.c.series_id).where(_in_states(_REQUEUED_WHEN_FAILED))
            query = query.where(schema.series.c.id.in_(failed))
        touched = 0
        with self._write() as connection:
            for series in [to_series(row) for row in connection.execute(query)]:
                jobs = _current_jobs(connection, series)
                if redeliver:
                    touched += sum(_redeliver(connection, job, only_failed=only_failed, at=at) for job in jobs)
                elif jobs:
                    touched += sum(_requeue(connection, job, only_failed=only_failed, at=at) for job in jobs)
                elif series.state is SeriesState.COMPLETE and not only_failed:
                    changes = {"note": None}
                    move_series(connection, series, SeriesEvent.REQUEUED, at=at, detail=None, changes=changes)
                    touched += 1
        return touched

    def cancel(self, study_instance_uid: str) -> int:
        """Cancel the open jobs of a study and what is still to be sent of them; their number."""
        at = self._clock.now()
        query = JOBS.where(
            schema.series.c.study_instance_uid == study_instance_uid,
            _in_states(OPEN_STATES),
        ).order_by(schema.jobs.c.id)
        with self._write() as connection:
            jobs = [to_job(row) for row in connection.execute(query)]
            for job in jobs:
                move_job(connection, job, JobEvent.CANCELLED, at=at)
                end_pending(connection, job, DeliveryEvent.CANCELLED, at=at)
        return len(jobs)

    def set_priority(self, study_instance_uid: str, priority: Priority) -> int:
        """Priority of a study: of its open jobs, and of those that come of its series later. The number of series."""
        series, jobs = schema.series, schema.jobs
        of_study = series.c.study_instance_uid == study_instance_uid
        ids = sa.select(series.c.id).where(of_study)
        with self._write() as connection:
            touched = connection.execute(series.update().where(of_study).values(priority=priority.value)).rowcount
            if touched:
                open_jobs = (jobs.c.series_id.in_(ids), _in_states(OPEN_STATES))
                connection.execute(jobs.update().where(*open_jobs).values(priority=priority.value))
                add_event(
                    connection,
                    study_instance_uid,
                    None,
                    at=self._clock.now(),
                    subject="study",
                    event="priority",
                    state=None,
                    detail=priority.name,
                )
        return touched


def _in_states(states: Collection[JobState]) -> sa.ColumnElement[bool]:
    return schema.jobs.c.state.in_([state.value for state in states])


def _current_jobs(connection: Connection, series: Series) -> list[Job]:
    query = JOBS.where(schema.jobs.c.series_id == series.id, schema.jobs.c.revision == series.revision)
    return [to_job(row) for row in connection.execute(query.order_by(schema.jobs.c.id))]


def _requeue(connection: Connection, job: Job, *, only_failed: bool, at: datetime) -> bool:
    """To be analysed again; its earlier deliveries wait for what comes of it."""
    if job.state not in (_REQUEUED_WHEN_FAILED if only_failed else _REQUEUED):
        return False
    move_job(connection, job, JobEvent.REQUEUED, at=at, changes={"reason_code": None, **JOB_AFRESH})
    return True


def _redeliver(connection: Connection, job: Job, *, only_failed: bool, at: datetime) -> bool:
    """To be delivered again, without a new analysis. The report of a rejected or failed job leaves the job as it is."""
    if job.state in {JobState.QUEUED, JobState.SUPERSEDED, JobState.CANCELLED}:
        return False
    if only_failed and job.state not in _REQUEUED_WHEN_FAILED:
        return False
    ended = [
        delivery
        for delivery in deliveries_of(connection, job, in_use=True)
        if (delivery.state is DeliveryState.FAILED if only_failed else delivery.state is not DeliveryState.PENDING)
    ]
    for delivery in ended:
        move_delivery(connection, delivery, DeliveryEvent.REQUEUED, at=at, job=job, changes=AFRESH)
    undelivered = job.state is JobState.FAILED and job.reason_code == DELIVERY_FAILED
    if ended and (job.state is JobState.DONE or undelivered):
        changes = {"reason_code": None, **AFRESH}
        move_job(connection, job, JobEvent.REDELIVERED, at=at, detail=f"{len(ended)} deliveries", changes=changes)
    return bool(ended)


@dataclass
class _Tally:
    """What a study's line is made of, while the rows are read."""

    study_instance_uid: str
    series_states: list[SeriesState] = field(default_factory=list)
    job_states: list[JobState] = field(default_factory=list)
    instances: int = 0
    changes: list[datetime] = field(default_factory=list)
    progress: str = ""


def _summaries(connection: Connection, study_instance_uid: str | None) -> list[StudySummary]:
    """One line a study, the last changed first; jobs of earlier revisions do not count."""
    series, jobs, deliveries = schema.series, schema.jobs, schema.deliveries
    of_series = sa.select(
        series.c.study_instance_uid, series.c.state, series.c.number_of_instances, series.c.updated_at
    )
    of_jobs = (
        sa.select(
            series.c.study_instance_uid,
            jobs.c.state,
            jobs.c.updated_at,
            jobs.c.step,
            jobs.c.share,
            sa.func.max(deliveries.c.updated_at, type_=schema.UtcDateTime()).label("delivered_at"),
        )
        .join_from(jobs, series, sa.and_(jobs.c.series_id == series.c.id, jobs.c.revision == series.c.revision))
        .outerjoin(deliveries, deliveries.c.job_id == jobs.c.id)
        .group_by(jobs.c.id, series.c.study_instance_uid, jobs.c.state, jobs.c.updated_at, jobs.c.step, jobs.c.share)
    )
    if study_instance_uid is not None:
        of_series = of_series.where(series.c.study_instance_uid == study_instance_uid)
        of_jobs = of_jobs.where(series.c.study_instance_uid == study_instance_uid)
    tallies: dict[str, _Tally] = {}
    for row in connection.execute(of_series):
        tally = tallies.setdefault(row.study_instance_uid, _Tally(row.study_instance_uid))
        tally.series_states.append(SeriesState(row.state))
        tally.instances += row.number_of_instances
        tally.changes.append(row.updated_at)
    for job in connection.execute(of_jobs):
        tally = tallies[job.study_instance_uid]
        tally.job_states.append(JobState(job.state))
        tally.progress = tally.progress or told_progress(job.step, job.share)
        tally.changes += [job.updated_at] if job.delivered_at is None else [job.updated_at, job.delivered_at]
    summaries = [
        StudySummary(
            study_instance_uid=tally.study_instance_uid,
            state=derive_study_state(tally.series_states, tally.job_states),
            series=len(tally.series_states),
            instances=tally.instances,
            jobs=len(tally.job_states),
            updated_at=max(tally.changes),
            progress=tally.progress,
        )
        for tally in tallies.values()
    ]
    return sorted(summaries, key=lambda summary: (summary.updated_at, summary.study_instance_uid), reverse=True)
