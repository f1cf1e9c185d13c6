"""Port `MaintenanceStore`: erasure and purge of studies, backup, integrity."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from pulmo_node.domain.deliveries import DeliveryState
from pulmo_node.domain.jobs import OPEN_STATES, JobState
from pulmo_node.domain.series import SeriesState
from pulmo_node.durable import fsync_folder
from pulmo_node.errors import Permanent, Transient
from pulmo_node.ports import PurgeableStudy, PurgedFiles, PurgedSeries, StudyFiles
from pulmo_node.store import schema
from pulmo_node.store.database import Database, check_sqlite
from pulmo_node.store.moves import add_event
from pulmo_node.store.receiving import conflict_paths

_KEEPS = (*OPEN_STATES, JobState.FAILED, JobState.QUARANTINED)
"""Job states in which there is still something to do or to look at."""

_UNSENT = (DeliveryState.PENDING, DeliveryState.FAILED)


class SqlMaintenanceStore(Database):
    """What keeps the node's storage in order."""

    def study_files(self, study_instance_uid: str) -> StudyFiles | None:
        """What lies on disk of a study, or None where the node does not know it.

        Raises:
            Transient: it is still being received.
        """
        with self._read() as connection:
            return _study_files(connection, study_instance_uid)

    def erase(self, study_instance_uid: str, set_aside: Callable[[StudyFiles], None] = lambda files: None) -> None:
        """Remove every row of a study, its history included; whoever works on it finds its job stale.

        `set_aside` takes the files away while no instance can be recorded: none of these is of a later one.

        Raises:
            Transient: it is still being received.
        """
        series, jobs, results = schema.series, schema.jobs, schema.results
        with self._write() as connection:
            files = _study_files(connection, study_instance_uid)
            if files is None:
                return
            set_aside(files)
            of_study = sa.select(series.c.id).where(series.c.study_instance_uid == study_instance_uid)
            of_jobs = sa.select(jobs.c.id).where(jobs.c.series_id.in_(of_study))
            for table in (schema.findings, schema.deliveries, results):
                connection.execute(table.delete().where(table.c.job_id.in_(of_jobs)))
            connection.execute(jobs.delete().where(jobs.c.series_id.in_(of_study)))
            connection.execute(schema.instances.delete().where(schema.instances.c.series_id.in_(of_study)))
            for table in (schema.events, series):
                connection.execute(table.delete().where(table.c.study_instance_uid == study_instance_uid))

    def known_outbox_paths(self) -> set[str]:
        """Paths of all result objects that a row knows."""
        with self._read() as connection:
            return set(connection.scalars(sa.select(schema.results.c.path)))

    def purgeable(self) -> tuple[PurgeableStudy, ...]:
        """Studies whose images can go, the longest untouched first: nothing is unsent, failed or still to be done."""
        with self._read() as connection:
            return _purgeable(connection, None)

    def purge(self, study_instance_uid: str) -> tuple[str, ...]:
        """Mark the images of a study as purged; their paths. Nothing, where that is no longer allowed."""
        instances, series = schema.instances, schema.series
        at = self._clock.now()
        with self._write() as connection:
            if not _purgeable(connection, study_instance_uid):
                return ()
            of_study = sa.select(series.c.id).where(series.c.study_instance_uid == study_instance_uid)
            present = (instances.c.series_id.in_(of_study), instances.c.purged_at.is_(None))
            paths = tuple(connection.scalars(sa.select(instances.c.path).where(*present)))
            connection.execute(instances.update().where(*present).values(purged_at=at))
            values = {"at": at, "subject": "study", "event": "purged", "state": None, "detail": f"{len(paths)} images"}
            add_event(connection, study_instance_uid, None, **values)
        return paths

    def purged_series(
        self, study_instance_uid: str | None = None, series_instance_uid: str | None = None
    ) -> tuple[PurgedSeries, ...]:
        """Series whose images were purged and have not come again: of a study, or that one."""
        instances, series = schema.instances, schema.series
        wanted = (series.c.study_instance_uid, study_instance_uid), (series.c.series_instance_uid, series_instance_uid)
        query = (
            sa.select(series.c.series_instance_uid, series.c.calling_ae_title, sa.func.count(instances.c.id))
            .join_from(series, instances)
            .where(instances.c.purged_at.is_not(None), *(column == uid for column, uid in wanted if uid is not None))
            .group_by(series.c.id, series.c.series_instance_uid, series.c.calling_ae_title)
            .order_by(series.c.id)
        )
        with self._read() as connection:
            return tuple(
                PurgedSeries(series_instance_uid=uid, calling_ae_title=sender, images=count)
                for uid, sender, count in connection.execute(query)
            )

    def purged_paths(self) -> tuple[str, ...]:
        """Paths of the images that were purged and have not come again, without those that other bytes have now."""
        instances = schema.instances
        with self._read() as connection:
            purged = connection.scalars(sa.select(instances.c.path).where(instances.c.purged_at.is_not(None))).all()
            taken = conflict_paths(connection)
        return tuple(path for path in purged if path not in taken)

    @contextmanager
    def removing_purged(self, study_instance_uid: str) -> Iterator[PurgedFiles]:
        """What of a purged study is still to be removed; no instance can be recorded until the block ends."""
        instances, series = schema.instances, schema.series
        of_study = series.c.study_instance_uid == study_instance_uid
        query = sa.select(instances.c.path, instances.c.purged_at).join_from(instances, series).where(of_study)
        with self._write() as connection:
            rows = connection.execute(query).all()
            taken = conflict_paths(connection, study_instance_uid)
            yield PurgedFiles(
                paths=tuple(row.path for row in rows if row.purged_at is not None and row.path not in taken),
                all_gone=all(row.purged_at is not None for row in rows),
            )

    def stored_bytes(self) -> int:
        """Size of the received images on disk, in bytes."""
        total = sa.select(sa.func.sum(schema.instances.c.size_bytes)).where(schema.instances.c.purged_at.is_(None))
        with self._read() as connection:
            return int(connection.scalar(total) or 0)

    def backup(self, target: Path) -> None:
        """Copy the database as it is at one moment, while the node runs; checked, and durable on return (SQLite).

        Raises:
            Permanent: there is a file already, the copy is damaged, or the database is not SQLite.
            Transient: the disk refuses.
        """
        if self._engine.dialect.name != "sqlite":
            raise Permanent("database: backup copies SQLite; PostgreSQL has pg_dump for it")
        if target.exists():
            raise Permanent(f"{target}: there is a file already")
        part = target.with_name(f"{target.name}.part")
        try:
            part.unlink(missing_ok=True)
            self._copy(part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.rename(target)
            fsync_folder(target.parent)
        except (OSError, sqlite3.Error) as exc:
            part.unlink(missing_ok=True)
            raise Transient(f"{target}: {exc}") from exc

    def _copy(self, part: Path) -> None:
        connection: Any = self._engine.raw_connection()
        copy = sqlite3.connect(part)
        try:
            connection.driver_connection.backup(copy)  # in one step: readers of a WAL hold up no writer
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a WAL beside it
            check_sqlite(copy.execute)
        finally:
            copy.close()
            connection.close()


def _study_files(connection: Connection, study_instance_uid: str) -> StudyFiles | None:
    series, instances, jobs, results = schema.series, schema.instances, schema.jobs, schema.results
    of_study = series.c.study_instance_uid == study_instance_uid
    found = connection.execute(sa.select(series.c.state, series.c.number_of_instances).where(of_study)).all()
    if not found:
        return None
    # One without any image has lost all of them: none need ever come.
    if any(row.state == SeriesState.RECEIVING.value and row.number_of_instances for row in found):
        raise Transient(f"study {study_instance_uid} is still being received")
    images = sa.select(instances.c.path).join_from(instances, series).where(of_study)
    objects = sa.select(results.c.path).join_from(results, jobs).join(series, jobs.c.series_id == series.c.id)
    return StudyFiles(
        series=len(found),
        instances=tuple(connection.scalars(images)),
        results=tuple(connection.scalars(objects.where(of_study))),
    )


def _purgeable(connection: Connection, study_instance_uid: str | None) -> tuple[PurgeableStudy, ...]:
    series, instances, jobs, deliveries = schema.series, schema.instances, schema.jobs, schema.deliveries
    other = series.alias()
    same_study = other.c.study_instance_uid == series.c.study_instance_uid
    receiving = sa.select(other.c.id).where(
        same_study,
        other.c.state != SeriesState.COMPLETE.value,
        other.c.number_of_instances > 0,  # none where all of them were lost, perhaps never to be sent again
    )
    working = (
        sa.select(jobs.c.id).join(other, jobs.c.series_id == other.c.id).where(same_study, _in(jobs.c.state, _KEEPS))
    )
    unsent = (
        sa.select(deliveries.c.id)
        .join(jobs, deliveries.c.job_id == jobs.c.id)
        .join(other, jobs.c.series_id == other.c.id)
        .where(same_study, sa.or_(_in(deliveries.c.state, _UNSENT), deliveries.c.commitment_until.is_not(None)))
    )
    touched = sa.func.max(series.c.updated_at, type_=schema.UtcDateTime()).label("touched_at")
    query = (
        sa.select(series.c.study_instance_uid, sa.func.sum(instances.c.size_bytes).label("bytes"), touched)
        .join_from(series, instances)
        .where(instances.c.purged_at.is_(None), ~receiving.exists(), ~working.exists(), ~unsent.exists())
        .group_by(series.c.study_instance_uid)
        .order_by(sa.literal_column("touched_at"), series.c.study_instance_uid)
    )
    if study_instance_uid is not None:
        query = query.where(series.c.study_instance_uid == study_instance_uid)
    found = []
    for uid, size_bytes, touched_at in connection.execute(query).all():
        done = sa.select(sa.func.max(jobs.c.updated_at, type_=schema.UtcDateTime())).join_from(jobs, series)
        done_at: datetime | None = connection.scalar(done.where(series.c.study_instance_uid == uid))
        at = max(touched_at, done_at or touched_at)
        found.append(PurgeableStudy(study_instance_uid=uid, size_bytes=int(size_bytes), touched_at=at))
    return tuple(sorted(found, key=lambda study: (study.touched_at, study.study_instance_uid)))


def _in(column: sa.Column[Any], states: Sequence[JobState | DeliveryState]) -> sa.ColumnElement[bool]:
    return column.in_([state.value for state in states])
