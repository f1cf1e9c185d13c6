"""Port `ReceiveStore`: instances come in, a quiet series becomes complete."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from pulmo_node.domain.jobs import JobState, NewJob
from pulmo_node.domain.priority import Priority
from pulmo_node.domain.series import InstanceOutcome, Series, SeriesEvent, SeriesState, StoredInstance
from pulmo_node.ports import Clock
from pulmo_node.store import schema
from pulmo_node.store.counting import count_received
from pulmo_node.store.database import CLOCK_SET_BACK, Database
from pulmo_node.store.grouping import GroupCommit
from pulmo_node.store.moves import add_event, add_row, move_series, supersede_jobs
from pulmo_node.store.rows import AnyRow, to_series

KEPT_ASIDE = " kept aside as "
"""Before the path in the event of a conflict."""

_KNOWN_INSTANCE = (
    sa.select(
        schema.instances.c.id,
        schema.instances.c.sha256,
        schema.instances.c.purged_at,
        schema.instances.c.series_id,
        schema.series.c.study_instance_uid,
        schema.series.c.series_instance_uid,
    )
    .join_from(schema.instances, schema.series)
    .where(schema.instances.c.sop_instance_uid == sa.bindparam("uid"))
)
_INSERT_INSTANCE = schema.instances.insert().inline()  # nobody asks for its id
_SERIES = schema.series.select().where(schema.series.c.series_instance_uid == sa.bindparam("uid"))


class SqlReceiveStore(Database):
    """What the receiver and the quiet-period check need."""

    def __init__(self, url: str, clock: Clock) -> None:
        """As `Database` has it."""
        super().__init__(url, clock)
        self._arriving = GroupCommit(self._record_all)

    def record_instance(self, instance: StoredInstance) -> InstanceOutcome:
        """One transaction: the instance row, the series row and its event; committed on return.

        Instances that come at the same moment share the transaction. The first bytes, study and series under a SOP
        Instance UID stay; so does the first study of a series.
        """
        return self._arriving.write(instance)

    def _record_all(self, instances: Sequence[StoredInstance]) -> list[InstanceOutcome]:
        with self._write() as connection:
            outcomes = [self._record(connection, instance) for instance in instances]
            count_received(connection, _tally(instances, outcomes))
        return outcomes

    def _record(self, connection: Connection, instance: StoredInstance) -> InstanceOutcome:
        known = _known_instance(connection, instance.sop_instance_uid)
        series = _series(connection, instance.series_instance_uid)
        if known is not None:
            if _is_same(known, instance):
                self._present_again(connection, known, instance)
                return InstanceOutcome.DUPLICATE
            self._add_conflict(connection, instance, known.study_instance_uid, known.series_instance_uid)
            return InstanceOutcome.CONFLICT
        if series is not None and series.study_instance_uid != instance.study_instance_uid:
            self._add_conflict(connection, instance, series.study_instance_uid, series.series_instance_uid)
            return InstanceOutcome.CONFLICT
        series_id = self._add_to_series(connection, instance, series)
        row = {
            "series_id": series_id,
            "sop_instance_uid": instance.sop_instance_uid,
            "sop_class_uid": instance.sop_class_uid,
            "transfer_syntax_uid": instance.transfer_syntax_uid,
            "path": instance.path,
            "sha256": instance.sha256,
            "size_bytes": instance.size_bytes,
            "received_at": instance.received_at,
        }
        connection.execute(_INSERT_INSTANCE, row)
        return InstanceOutcome.NEW

    def quiet_series(self, *, before: datetime, excluding: Collection[str]) -> tuple[Series, ...]:
        """RECEIVING series whose last instance came before that time, without those Series Instance UIDs."""
        query = (
            schema.series.select()
            .where(
                schema.series.c.state == SeriesState.RECEIVING.value,
                sa.or_(
                    schema.series.c.last_instance_at < before,
                    schema.series.c.last_instance_at > self._clock.now() + CLOCK_SET_BACK,
                ),
                schema.series.c.number_of_instances > 0,  # none where all of them were lost
            )
            .order_by(schema.series.c.last_instance_at, schema.series.c.id)
        )
        with self._read() as connection:
            found = [to_series(row) for row in connection.execute(query)]
        return tuple(series for series in found if series.series_instance_uid not in excluding)

    def instance_uids(self, series_instance_uid: str) -> frozenset[str]:
        """SOP Instance UIDs of a series whose files are on the disk, conflicts left out."""
        instances, series = schema.instances, schema.series
        query = (
            sa.select(instances.c.sop_instance_uid)
            .join_from(instances, series)
            .where(series.c.series_instance_uid == series_instance_uid, instances.c.purged_at.is_(None))
        )
        with self._read() as connection:
            return frozenset(connection.scalars(query))

    def complete_series(self, series: Series, jobs: Sequence[NewJob], note: str | None) -> None:
        """RECEIVING -> COMPLETE with its jobs QUEUED, in one transaction.

        Raises:
            StaleJob: an instance came meanwhile (state or number of instances is not what `series` says).
        """
        at = self._clock.now()
        with self._write() as connection:
            detail = note or f"{series.number_of_instances} instances"
            move_series(connection, series, SeriesEvent.QUIET, at=at, detail=detail, changes={"note": note})
            asked = _asked_priority(connection, series)
            for job in jobs:
                self._add_job(connection, series, replace(job, priority=Priority(max(job.priority, asked))), at)

    def instance_paths(self, series_instance_uid: str) -> tuple[str, ...]:
        """Paths of the instances in use (no conflicts), relative to the storage directory, in order of arrival."""
        query = (
            sa.select(schema.instances.c.path)
            .join_from(schema.instances, schema.series)
            .where(schema.series.c.series_instance_uid == series_instance_uid)
            .order_by(schema.instances.c.id)
        )
        with self._read() as connection:
            return tuple(connection.scalars(query))

    def images_sha256(self, series_instance_uid: str) -> str:
        """One digest of the data sets of all instances in use, whatever their order; purged ones are part of it."""
        query = (
            sa.select(schema.instances.c.sha256)
            .join_from(schema.instances, schema.series)
            .where(schema.series.c.series_instance_uid == series_instance_uid)
        )
        with self._read() as connection:
            digests = sorted(connection.scalars(query))
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def study_paths(self, series_instance_uid: str) -> tuple[str, ...]:
        """Path of the first instance of every series of the same study, relative to the storage directory."""
        own = schema.series.alias()
        first_of_each = (
            sa.select(sa.func.min(schema.instances.c.id))
            .join_from(schema.instances, schema.series)
            .join(own, own.c.study_instance_uid == schema.series.c.study_instance_uid)
            .where(own.c.series_instance_uid == series_instance_uid, schema.instances.c.purged_at.is_(None))
            .group_by(schema.series.c.id)
        )
        query = (
            sa.select(schema.instances.c.path)
            .where(schema.instances.c.id.in_(first_of_each))
            .order_by(schema.instances.c.id)
        )
        with self._read() as connection:
            return tuple(connection.scalars(query))

    def _add_to_series(self, connection: Connection, instance: StoredInstance, series: Series | None) -> int:
        """Count the instance in its series; the id of the series row."""
        at = self._clock.now()
        newest: dict[str, Any] = {
            "calling_ae_title": instance.calling_ae_title,
            "last_instance_at": instance.received_at,
        }
        if series is None:
            return self._add_series(connection, instance, at)
        reopened = series.state is SeriesState.COMPLETE
        if reopened:
            newest |= {"revision": series.revision + 1, "note": None}
        detail = f"{instance.sop_instance_uid} from {instance.calling_ae_title}"
        if reopened:
            detail += f" reopens the series as revision {series.revision + 1}"
        move_series(
            connection,
            series,
            SeriesEvent.INSTANCE,
            at=at,
            detail=detail,
            changes={"number_of_instances": series.number_of_instances + 1, **newest},
        )
        if reopened:
            supersede_jobs(connection, series.id, at=at)
        return series.id

    def _add_series(self, connection: Connection, instance: StoredInstance, at: datetime) -> int:
        series_id = add_row(
            connection,
            schema.series,
            study_instance_uid=instance.study_instance_uid,
            series_instance_uid=instance.series_instance_uid,
            modality=instance.modality,
            calling_ae_title=instance.calling_ae_title,
            state=SeriesState.RECEIVING.value,
            revision=1,
            number_of_instances=1,
            last_instance_at=instance.received_at,
            updated_at=at,
        )
        add_event(
            connection,
            instance.study_instance_uid,
            instance.series_instance_uid,
            at=at,
            subject="series",
            event=SeriesEvent.INSTANCE.value,
            state=SeriesState.RECEIVING.value,
            detail=f"{instance.sop_instance_uid} from {instance.calling_ae_title} is the first of the series",
        )
        return series_id

    def _add_job(self, connection: Connection, series: Series, job: NewJob, at: datetime) -> None:
        job_id = add_row(
            connection,
            schema.jobs,
            series_id=series.id,
            revision=series.revision,
            pipeline=job.pipeline,
            destinations=list(job.destinations),
            state=JobState.QUEUED.value,
            attempts=0,
            priority=job.priority.value,
            created_at=at,
            updated_at=at,
        )
        add_event(
            connection,
            series.study_instance_uid,
            series.series_instance_uid,
            at=at,
            subject=f"job {job_id}",
            event="queued",
            state=JobState.QUEUED.value,
            detail=f"{job.pipeline} for {', '.join(job.destinations) or 'no destination'}",
        )

    def _present_again(self, connection: Connection, known: AnyRow, instance: StoredInstance) -> None:
        """A purged instance that was sent again has its file again; that alone is no reason to analyse it again.

        Other bytes may have come in between and have the name that it had. Its series counts as touched, or the next
        purge would take it at once.
        """
        if known.purged_at is None:
            return
        table, series = schema.instances, schema.series
        again = {"purged_at": None, "path": instance.path}
        connection.execute(table.update().where(table.c.id == known.id).values(again))
        connection.execute(series.update().where(series.c.id == known.series_id).values(updated_at=self._clock.now()))

    def _add_conflict(
        self, connection: Connection, instance: StoredInstance, study_instance_uid: str, series_instance_uid: str
    ) -> None:
        """One event for each set of other bytes, in the history of what is in use; sent again it adds nothing."""
        detail = (
            f"{instance.sop_instance_uid} came from {instance.calling_ae_title} in study {instance.study_instance_uid},"
            f" series {instance.series_instance_uid}, unlike what is in use;{KEPT_ASIDE}{instance.path}"
        )
        table = schema.events
        seen = sa.select(table.c.id).where(
            table.c.study_instance_uid == study_instance_uid, table.c.event == "conflict", table.c.detail == detail
        )
        if connection.execute(seen.limit(1)).first() is None:
            add_event(
                connection,
                study_instance_uid,
                series_instance_uid,
                at=self._clock.now(),
                subject="instance",
                event="conflict",
                state=None,
                detail=detail,
            )


def _asked_priority(connection: Connection, series: Series) -> int:
    """The priority that an operator asked for the study."""
    table = schema.series
    of_study = sa.select(table.c.priority).where(table.c.study_instance_uid == series.study_instance_uid)
    return max(connection.scalars(of_study), default=0)


def _known_instance(connection: Connection, sop_instance_uid: str) -> AnyRow | None:
    return connection.execute(_KNOWN_INSTANCE, {"uid": sop_instance_uid}).first()


def _series(connection: Connection, series_instance_uid: str) -> Series | None:
    row = connection.execute(_SERIES, {"uid": series_instance_uid}).first()
    return None if row is None else to_series(row)


def conflict_paths(connection: Connection, study_instance_uid: str | None = None) -> set[str]:
    """Paths of the bytes that were kept aside, of all studies or of one; relative to storage."""
    events = schema.events
    query = sa.select(events.c.detail).where(events.c.event == "conflict")
    if study_instance_uid is not None:
        query = query.where(events.c.study_instance_uid == study_instance_uid)
    return {detail.rpartition(KEPT_ASIDE)[2] for detail in connection.scalars(query) if detail}


def _is_same(known: AnyRow, instance: StoredInstance) -> bool:
    return (known.sha256, known.study_instance_uid, known.series_instance_uid) == (
        instance.sha256,
        instance.study_instance_uid,
        instance.series_instance_uid,
    )


def _tally(
    instances: Sequence[StoredInstance], outcomes: Sequence[InstanceOutcome]
) -> dict[tuple[str, str], tuple[int, int]]:
    """Instances and bytes by calling AE title and outcome."""
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for instance, outcome in zip(instances, outcomes, strict=True):
        key = (instance.calling_ae_title, outcome.value)
        number, size_bytes = counts.get(key, (0, 0))
        counts[key] = (number + 1, size_bytes + instance.size_bytes)
    return counts
