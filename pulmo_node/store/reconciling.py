"""Port `ReconcileStore`: what the database knows of the files, and rows that have lost theirs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, TypeVar

import sqlalchemy as sa

from pulmo_node.domain.series import SeriesEvent, SeriesState
from pulmo_node.store import schema
from pulmo_node.store.database import Database
from pulmo_node.store.moves import move_series, supersede_jobs
from pulmo_node.store.receiving import conflict_paths
from pulmo_node.store.rows import to_series

_AT_ONCE = 500  # values in one statement; SQLite takes 32,766


_T = TypeVar("_T")


class SqlReconcileStore(Database):
    """What the comparison of disk and database needs."""

    def recorded_paths(self) -> tuple[set[str], set[str]]:
        """Paths of the instances in use, and those of conflicts and of purged instances; relative to storage."""
        paths, purged_at = schema.instances.c.path, schema.instances.c.purged_at
        with self._read() as connection:
            in_use = set(connection.scalars(sa.select(paths).where(purged_at.is_(None))))
            purged = set(connection.scalars(sa.select(paths).where(purged_at.is_not(None))))
            return in_use, purged | conflict_paths(connection)

    def drop_lost(self, paths: Collection[str]) -> tuple[str, ...]:
        """Drop the rows of instances in use whose file is gone, one transaction a series; these Series Instance UIDs.

        The series goes back to RECEIVING with what is left; a COMPLETE one as a new revision, as for a late instance.
        """
        lost: dict[int, list[int]] = {}
        table = schema.instances
        with self._read() as connection:
            for some in _portions(paths):
                query = sa.select(table.c.id, table.c.series_id).where(table.c.path.in_(some))
                for row in connection.execute(query):
                    lost.setdefault(row.series_id, []).append(row.id)
        return tuple(self._drop(series_id, rows) for series_id, rows in lost.items())

    def _drop(self, series_id: int, instance_ids: list[int]) -> str:
        at = self._clock.now()
        with self._write() as connection:
            series = to_series(connection.execute(schema.series.select().where(schema.series.c.id == series_id)).one())
            for some in _portions(instance_ids):
                connection.execute(schema.instances.delete().where(schema.instances.c.id.in_(some)))
            left = series.number_of_instances - len(instance_ids)
            changes: dict[str, Any] = {"number_of_instances": left, "last_instance_at": at}
            if series.state is SeriesState.COMPLETE:
                changes |= {"revision": series.revision + 1, "note": None}
            detail = (
                f"the files of {len(instance_ids)} instances are gone from the disk, {left} are left; send them again"
            )
            move_series(connection, series, SeriesEvent.LOST, at=at, detail=detail, changes=changes)
            supersede_jobs(connection, series_id, at=at)
        return series.series_instance_uid


def _portions(values: Collection[_T]) -> Iterator[list[_T]]:
    listed = list(values)
    return (listed[start : start + _AT_ONCE] for start in range(0, len(listed), _AT_ONCE))
