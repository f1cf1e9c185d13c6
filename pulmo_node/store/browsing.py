"""Many studies, a page at a time, and what the list is searched by.

The state of a study is derived in the query as `domain.studies.derive_study_state` derives it: the smallest rank of
its series and of the jobs of their current revisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from pulmo_node.domain.browsing import StudyFilter, StudyPage, StudyRow
from pulmo_node.domain.deliveries import ResultObject
from pulmo_node.domain.jobs import JobState
from pulmo_node.domain.series import SeriesState
from pulmo_node.domain.studies import STATES_BY_RANK
from pulmo_node.store import schema
from pulmo_node.store.database import Database
from pulmo_node.store.rows import AnyRow, to_result

_RANKS = {state: rank for rank, state in enumerate(STATES_BY_RANK)}
_LAST_RANK = len(STATES_BY_RANK) - 1
_JOB_STATES = frozenset(state.value for state in JobState)


class SqlBrowseStore(Database):
    """What the list of studies needs."""

    def browse(self, wanted: StudyFilter, *, page: int, page_size: int) -> StudyPage:
        """A page of the studies that pass the filter, that with the newest series first; pages are numbered from 0."""
        chosen = _chosen(wanted).subquery()
        number = sa.func.count()
        query = sa.select(chosen.c.study_instance_uid, number.over().label("total")).order_by(chosen.c.newest.desc())
        with self._read() as connection:
            found = connection.execute(query.limit(page_size).offset(page * page_size)).all()
            uids = [row.study_instance_uid for row in found]
            if found or not page:
                total = found[0].total if found else 0
            else:  # a page beyond the last
                total = int(connection.scalar(sa.select(number).select_from(chosen)) or 0)
            rows = {row.study_instance_uid: row for row in connection.execute(_details(uids))}
            dates = _dates(connection, uids)
        return StudyPage(rows=tuple(_row(rows[uid], dates.get(uid, "")) for uid in uids), total=total)

    def job_results(self, job_id: int) -> tuple[ResultObject, ...]:
        """The result objects of a job that are in use."""
        results = schema.results
        query = results.select().where(results.c.job_id == job_id, results.c.in_use).order_by(results.c.id)
        with self._read() as connection:
            return tuple(to_result(row) for row in connection.execute(query))

    def uncatalogued(self, *, after: int, limit: int) -> tuple[tuple[int, str], ...]:
        """Series behind that id which are not in the catalogue: id, and path of one instance on disk (else empty)."""
        series, instances = schema.series, schema.instances
        first = (
            sa.select(sa.func.min(instances.c.path))
            .where(instances.c.series_id == series.c.id, instances.c.purged_at.is_(None))
            .scalar_subquery()
        )
        known = sa.select(schema.catalogue.c.series_id).where(schema.catalogue.c.series_id == series.c.id)
        query = (
            sa.select(series.c.id, first).where(series.c.id > after, ~known.exists()).order_by(series.c.id).limit(limit)
        )
        with self._read() as connection:
            return tuple((number, path or "") for number, path in connection.execute(query))

    def add_to_catalogue(self, entries: Sequence[tuple[int, str, str]]) -> None:
        """Entries of series id, digest of the accession number and study date; series since erased fall away."""
        with self._write() as connection:
            ids = [series_id for series_id, _, _ in entries]
            there = set(connection.scalars(sa.select(schema.series.c.id).where(schema.series.c.id.in_(ids))))
            rows = [
                {"series_id": series_id, "accession_digest": digest, "study_date": date}
                for series_id, digest, date in entries
                if series_id in there
            ]
            if rows:
                connection.execute(schema.catalogue.insert(), rows)

    def first_paths(self, studies: Sequence[str]) -> dict[str, str]:
        """Path of one image on disk of each of some studies."""
        series, instances = schema.series, schema.instances
        first = (
            sa.select(sa.func.min(instances.c.id))
            .join_from(instances, series)
            .where(series.c.study_instance_uid.in_(studies), instances.c.purged_at.is_(None))
            .group_by(series.c.study_instance_uid)
        )
        query = (
            sa.select(series.c.study_instance_uid, instances.c.path)
            .join_from(instances, series)
            .where(instances.c.id.in_(first))
        )
        with self._read() as connection:
            return {row.study_instance_uid: row.path for row in connection.execute(query)}


def _row(row: AnyRow, study_date: str) -> StudyRow:
    return StudyRow(
        study_instance_uid=row.study_instance_uid,
        state=STATES_BY_RANK[row.rank],
        series=row.series,
        instances=row.instances,
        jobs=row.jobs,
        study_date=study_date,
        updated_at=row.updated_at,
    )


def _rank() -> tuple[sa.ColumnElement[int], sa.ColumnElement[bool]]:
    """Rank of the state of a study, over its series and the jobs joined to them; the condition of that join."""
    series, jobs = schema.series, schema.jobs
    receiving = _RANKS[SeriesState.RECEIVING.value]
    of_series = sa.case((series.c.state == SeriesState.RECEIVING.value, receiving), else_=_LAST_RANK)
    of_job = sa.case(_RANKS, value=jobs.c.state, else_=_LAST_RANK)
    smaller = sa.case((of_job < of_series, of_job), else_=of_series)
    current = sa.and_(jobs.c.series_id == series.c.id, jobs.c.revision == series.c.revision)
    return sa.func.min(smaller, type_=sa.Integer()), current


def _chosen(wanted: StudyFilter) -> sa.Select[Any]:
    """The studies that pass: uid, and id of the newest of their series."""
    series, jobs = schema.series, schema.jobs
    uid = series.c.study_instance_uid
    query = sa.select(uid, sa.func.max(series.c.id).label("newest")).where(*_conditions(wanted)).group_by(uid)
    if not wanted.state:
        return query
    rank, current = _rank()
    if wanted.state in _JOB_STATES:
        having = sa.select(uid).join_from(jobs, series, current).where(jobs.c.state == wanted.state)
        query = query.where(uid.in_(having))
    elif wanted.state == SeriesState.RECEIVING.value:
        query = query.where(uid.in_(sa.select(uid).where(series.c.state == wanted.state)))
    return query.outerjoin_from(series, jobs, current).having(rank == _RANKS[wanted.state])


def _details(uids: Sequence[str]) -> sa.Select[Any]:
    """One row for each of some studies."""
    series, jobs = schema.series, schema.jobs
    rank, current = _rank()
    changed = sa.case((jobs.c.updated_at > series.c.updated_at, jobs.c.updated_at), else_=series.c.updated_at)
    own = series.alias()
    instances = (
        sa.select(sa.func.sum(own.c.number_of_instances))
        .where(own.c.study_instance_uid == series.c.study_instance_uid)
        .scalar_subquery()
    )
    return (
        sa.select(
            series.c.study_instance_uid,
            rank.label("rank"),
            sa.func.count(sa.distinct(series.c.id)).label("series"),
            instances.label("instances"),
            sa.func.count(jobs.c.id).label("jobs"),
            sa.func.max(changed, type_=schema.UtcDateTime()).label("updated_at"),
        )
        .outerjoin_from(series, jobs, current)
        .where(series.c.study_instance_uid.in_(uids))
        .group_by(series.c.study_instance_uid)
    )


def _conditions(wanted: StudyFilter) -> list[sa.ColumnElement[bool]]:
    """Conditions on the series of the studies that are looked for; all series of a study that has one of them."""
    series, catalogue = schema.series, schema.catalogue
    conditions: list[sa.ColumnElement[bool]] = []
    if wanted.uid:
        begins = sa.or_(
            series.c.study_instance_uid.startswith(wanted.uid, autoescape=True),
            series.c.series_instance_uid.startswith(wanted.uid, autoescape=True),
        )
        conditions.append(series.c.study_instance_uid.in_(sa.select(series.c.study_instance_uid).where(begins)))
    of_catalogue: list[sa.ColumnElement[bool]] = []
    if wanted.accession_digest:
        of_catalogue.append(catalogue.c.accession_digest == wanted.accession_digest)
    if wanted.date_from:
        of_catalogue.append(catalogue.c.study_date >= wanted.date_from)
    if wanted.date_to:
        of_catalogue += [catalogue.c.study_date <= wanted.date_to, catalogue.c.study_date != ""]
    if of_catalogue:
        own = series.alias()
        found = sa.select(own.c.study_instance_uid).join_from(catalogue, own).where(*of_catalogue)
        conditions.append(series.c.study_instance_uid.in_(found))
    return conditions


def _dates(connection: sa.Connection, studies: Sequence[str]) -> dict[str, str]:
    series, catalogue = schema.series, schema.catalogue
    query = (
        sa.select(series.c.study_instance_uid, sa.func.max(catalogue.c.study_date))
        .join_from(catalogue, series)
        .where(series.c.study_instance_uid.in_(studies))
        .group_by(series.c.study_instance_uid)
    )
    return {uid: date or "" for uid, date in connection.execute(query)}
