"""Rows as the values of the domain, and the queries that yield them."""

from __future__ import annotations

from typing import Any, TypeAlias

import sqlalchemy as sa

from pulmo_node.domain.deliveries import Delivery, DeliveryState, ResultObject
from pulmo_node.domain.findings import Finding
from pulmo_node.domain.jobs import Job, JobState
from pulmo_node.domain.priority import Priority
from pulmo_node.domain.series import Series, SeriesState
from pulmo_node.ports import EventRow
from pulmo_node.store import schema

AnyRow: TypeAlias = "sa.Row[*tuple[Any, ...]]"

JOBS = sa.select(
    schema.jobs,
    schema.series.c.study_instance_uid,
    schema.series.c.series_instance_uid,
).join_from(schema.jobs, schema.series)
"""Jobs with what `to_job` needs of their series."""

DELIVERIES = sa.select(
    schema.deliveries,
    *(schema.results.c[name] for name in ResultObject.__dataclass_fields__),
).join_from(schema.deliveries, schema.results, schema.deliveries.c.result_id == schema.results.c.id)
"""Deliveries with what `to_delivery` needs of their result object."""


def to_series(row: AnyRow) -> Series:
    """From a row of the series table."""
    return Series(
        id=row.id,
        study_instance_uid=row.study_instance_uid,
        series_instance_uid=row.series_instance_uid,
        modality=row.modality,
        calling_ae_title=row.calling_ae_title,
        state=SeriesState(row.state),
        revision=row.revision,
        number_of_instances=row.number_of_instances,
        last_instance_at=row.last_instance_at,
        note=row.note,
    )


def to_job(row: AnyRow) -> Job:
    """From a row of `JOBS`."""
    return Job(
        id=row.id,
        study_instance_uid=row.study_instance_uid,
        series_instance_uid=row.series_instance_uid,
        revision=row.revision,
        pipeline=row.pipeline,
        destinations=tuple(row.destinations),
        state=JobState(row.state),
        attempts=row.attempts,
        not_before=row.not_before,
        reason_code=row.reason_code,
        reason=row.reason,
        worker_id=row.worker_id,
        lease_until=row.lease_until,
        created_at=row.created_at,
        updated_at=row.updated_at,
        findings=row.findings,
        priority=Priority(row.priority),
        step=row.step,
        share=row.share,
        takeovers=row.takeovers,
    )


def to_delivery(row: AnyRow) -> Delivery:
    """From a row of `DELIVERIES`."""
    return Delivery(
        id=row.id,
        job_id=row.job_id,
        result=to_result(row),
        destination=row.destination,
        state=DeliveryState(row.state),
        attempts=row.attempts,
        not_before=row.not_before,
        reason=row.reason,
        worker_id=row.worker_id,
        lease_until=row.lease_until,
        updated_at=row.updated_at,
        commitment_uid=row.commitment_uid,
        commitment_until=row.commitment_until,
    )


def to_result(row: AnyRow) -> ResultObject:
    """From a row that holds the columns of the result table."""
    return ResultObject(**{name: getattr(row, name) for name in ResultObject.__dataclass_fields__})


def to_finding(row: AnyRow) -> Finding:
    """From a row of the finding table."""
    return Finding(**{name: getattr(row, name) for name in Finding.__dataclass_fields__})


def to_event(row: AnyRow) -> EventRow:
    """From a row of the event table."""
    return EventRow(
        at=row.at,
        study_instance_uid=row.study_instance_uid,
        series_instance_uid=row.series_instance_uid,
        subject=row.subject,
        event=row.event,
        state=row.state,
        detail=row.detail,
    )
