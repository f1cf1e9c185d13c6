"""The list of studies from the database: its states are those that the domain derives, on SQLite and on PostgreSQL."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa

from pulmo_node.domain.browsing import StudyFilter
from pulmo_node.domain.jobs import JobState
from pulmo_node.domain.series import SeriesState
from pulmo_node.domain.studies import STUDY_STATES, derive_study_state
from pulmo_node.store import SqlStore, schema
from tests.integration.store_scene import LEASE, STUDY, Scene, SetClock

STUDIES = 60
ALL = 1000


@pytest.fixture
def scene(database_url: str) -> Iterator[Scene]:
    clock = SetClock()
    with SqlStore(database_url, clock) as store:
        yield Scene(store, clock)


def _fill(scene: Scene) -> dict[str, str]:
    """Studies with one to three series of any state and jobs of any state, of this and of earlier revisions; the state
    that each has by the domain."""
    chance = random.Random(8)
    states: dict[str, tuple[list[SeriesState], list[JobState]]] = defaultdict(lambda: ([], []))
    series, jobs = [], []
    at = scene.clock.now()
    for number in range(STUDIES):
        for which in range(chance.randint(1, 3)):
            uid = f"1.2.{number}"
            state = chance.choices(list(SeriesState), (1, 3))[0]
            states[uid][0].append(state)
            series.append(
                {
                    "id": len(series) + 1, "study_instance_uid": uid, "series_instance_uid": f"{uid}.{which}",
                    "modality": "CT", "calling_ae_title": "CT", "state": state.value, "revision": 2,
                    "number_of_instances": 10, "last_instance_at": at, "updated_at": at + timedelta(seconds=number),
                }
            )  # fmt: skip
            for pipeline in range(chance.randint(0, 2)):
                job_state = chance.choice(list(JobState))
                revision = chance.randint(1, 2)
                if revision == 2:
                    states[uid][1].append(job_state)
                jobs.append(
                    {
                        "series_id": len(series), "revision": revision, "pipeline": f"p{pipeline}", "destinations": [],
                        "state": job_state.value, "attempts": 0, "created_at": at, "updated_at": at,
                    }
                )  # fmt: skip
    with scene.store._write() as connection:
        connection.execute(schema.series.insert(), series)
        connection.execute(schema.jobs.insert(), jobs)
    return {uid: derive_study_state(*found) for uid, found in states.items()}


def test_every_state_is_the_one_that_the_domain_derives(scene: Scene) -> None:
    expected = _fill(scene)
    page = scene.store.browse(StudyFilter(), page=0, page_size=ALL)
    assert page.total == STUDIES
    assert {row.study_instance_uid: row.state for row in page.rows} == expected
    assert len(set(expected.values())) >= 7, "the studies show nearly every state"
    summaries = {summary.study_instance_uid: summary for summary in scene.store.studies()}
    for row in page.rows:
        summary = summaries[row.study_instance_uid]
        assert (row.series, row.instances, row.jobs) == (summary.series, summary.instances, summary.jobs)
        assert row.updated_at == summary.updated_at
    for state in STUDY_STATES:
        found = scene.store.browse(StudyFilter(state=state), page=0, page_size=ALL)
        assert {row.study_instance_uid for row in found.rows} == {uid for uid, one in expected.items() if one == state}
        assert found.total == len(found.rows)


def test_pages_follow_one_another_without_gap_or_overlap(scene: Scene) -> None:
    _fill(scene)
    whole = scene.store.browse(StudyFilter(), page=0, page_size=ALL).rows
    pages = [scene.store.browse(StudyFilter(), page=number, page_size=7) for number in range(10)]
    assert [row for page in pages for row in page.rows] == list(whole)
    assert {page.total for page in pages} == {STUDIES}, "also beyond the last"
    assert [row.study_instance_uid for row in whole[:2]] == ["1.2.59", "1.2.58"], "the newest first"


def test_a_uid_is_searched_by_its_beginning_taken_literally(scene: Scene) -> None:
    scene.receive(study="1.2.840.1", series="1.9.1")
    scene.receive(study="1.2.8401.1", series="1.9.2")
    found = {
        text: [row.study_instance_uid for row in scene.store.browse(StudyFilter(uid=text), page=0, page_size=9).rows]
        for text in ("1.2.840.", "1.2.840", "1.9.2", "1_2", "%")
    }
    assert found == {
        "1.2.840.": ["1.2.840.1"], "1.2.840": ["1.2.8401.1", "1.2.840.1"], "1.9.2": ["1.2.8401.1"], "1_2": [], "%": [],
    }  # fmt: skip


def test_the_catalogue_takes_each_series_once_and_goes_with_its_study(scene: Scene) -> None:
    scene.receive(series="1.1")
    scene.receive(series="1.2")
    found = scene.store.uncatalogued(after=0, limit=9)
    assert len(found) == 2
    scene.store.add_to_catalogue([(found[0][0], "d" * 64, "20260101"), (999, "x", "")])
    assert scene.store.uncatalogued(after=0, limit=9) == found[1:]
    assert scene.store.uncatalogued(after=found[1][0], limit=9) == ()
    by_date = StudyFilter(date_from="20260101", date_to="20260101")
    (row,) = scene.store.browse(by_date, page=0, page_size=9).rows
    assert (row.study_date, row.series) == ("20260101", 2), "the study whole, not the series alone"
    for series in ("1.1", "1.2"):
        scene.complete(series=series, pipelines=())
    scene.store.erase(STUDY)
    with scene.store._read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(schema.catalogue)) == 0


def test_what_was_received_is_counted_for_good(scene: Scene) -> None:
    scene.receive(1)
    scene.receive(1)
    scene.receive(1, content="b")
    scene.store.count_refused("SCANNER", 3)
    counts = {one.status: (one.instances, one.size_bytes) for one in scene.store.counts().received}
    assert counts == {
        "new": (1, 527_000), "duplicate": (1, 527_000), "conflict": (1, 527_000), "refused": (3, 0),
    }  # fmt: skip
    scene.complete(pipelines=())
    scene.store.erase(STUDY)
    assert {one.status for one in scene.store.counts().received} == counts.keys()


def test_a_job_runs_while_it_is_held_and_has_told_how_far_it_is(scene: Scene) -> None:
    scene.receive()
    scene.complete()
    job = scene.claim()
    assert (scene.store.running_jobs(), scene.store.counts().analysis_running) == ((), 0)
    scene.store.job_progress(job, "stage1", 0.42)
    (running,) = scene.store.running_jobs()
    assert (running.study_instance_uid, running.progress) == (STUDY, "stage1 42%")
    assert scene.store.counts().analysis_running == 1
    scene.clock.advance(seconds=LEASE.total_seconds() + 1)
    assert (scene.store.running_jobs(), scene.store.counts().analysis_running) == ((), 0), "its node is gone"


def test_the_numbers_of_an_empty_node_are_nothing(scene: Scene) -> None:
    counts = scene.store.counts()
    assert (counts.series, counts.jobs, counts.deliveries) == ({}, {}, {})
    assert (counts.received, counts.queues, counts.analysis_waiting, counts.analysis_oldest_at) == ((), (), 0, None)
