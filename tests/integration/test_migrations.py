"""A database of every released schema comes forward, and all that was in it stays. The files are dumps that each
version of the node itself wrote (0003, which was never committed alone, the one of 0004 without that migration); a new
schema gets its own once there is a later one."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from pulmo_node.domain.deliveries import DeliveryState
from pulmo_node.domain.jobs import JobState
from pulmo_node.domain.priority import Priority
from pulmo_node.store import SqlStore, schema
from pulmo_node.store.schema import HEAD_REVISION
from tests.conftest import ROOT
from tests.integration.store_scene import FINDINGS, LEASE, Scene, SetClock, result

RELEASED = sorted((ROOT / "tests" / "data" / "schemas").glob("*.sql"))
STATES = {
    "1": "DONE", "2": "ENCODED", "3": "REJECTED", "4": "FAILED", "5": "QUARANTINED", "6": "RECEIVING", "7": "QUEUED",
    "8": "NO_PIPELINE",
}  # fmt: skip
AWAITING = {"9": "ENCODED"}
"""Sent and to be committed: only from the schema on that knows of storage commitment as SCU."""


@pytest.fixture(params=RELEASED, ids=lambda path: path.stem)
def revision(request: pytest.FixtureRequest) -> str:
    return str(request.param.stem)


@pytest.fixture
def url(revision: str, tmp_path: Path) -> str:
    path = tmp_path / "pulmo.sqlite"
    dump = next(each for each in RELEASED if each.stem == revision)
    with sqlite3.connect(path) as connection:
        connection.executescript(dump.read_text(encoding="utf-8"))
    connection.close()
    return f"sqlite:///{path}"


def test_there_is_a_file_of_every_schema_before_this_one() -> None:
    assert [path.stem for path in RELEASED] == [f"{number:04d}" for number in range(1, int(HEAD_REVISION))]


def test_every_study_stays_what_it_was(url: str, revision: str) -> None:
    with SqlStore(url, SetClock()) as store:
        assert store.check() == HEAD_REVISION
        assert {study.study_instance_uid: study.state for study in store.studies()} == (
            STATES | AWAITING if revision >= "0005" else STATES
        )
        done = store.study("1")
        assert done is not None
        assert [delivery.state for delivery in done.deliveries] == [DeliveryState.SENT] * 2
        assert all(job.priority is Priority.ROUTINE for job in done.jobs)
        assert [finding.long_axis_mm for finding in store.findings(done.jobs[0].id)] == [14.21, 14.21]
        late = store.study("6")
        assert late is not None
        assert [job.state for job in late.jobs] == [JobState.SUPERSEDED]
        assert "conflict" in [event.event for event in late.events]
        assert store.recorded_paths()[0] >= {"instances/1/1.1/1.1.1.dcm"}


def test_what_later_schemas_brought_stays(url: str, revision: str) -> None:
    clock = SetClock()
    with SqlStore(url, clock) as store:
        if revision >= "0003":
            hastened = store.study("2")
            assert hastened is not None
            assert [job.priority for job in hastened.jobs] == [Priority.STAT]
            assert [series.images for series in store.purged_series("3")] == [1]
        if revision >= "0004":
            assert [one.transaction_uid for one in store.due_commitments(clock.now())] == ["2.25.99"]
        if revision >= "0005":
            (delivery,) = store.deliveries_of_transaction("2.25.98")
            store.delivery_committed(delivery)
            assert Scene(store, clock).state("9") == "DONE"
        if revision >= "0006":
            queued = store.study("7")
            assert queued is not None
            assert [job.takeovers for job in queued.jobs] == [1]
        if revision >= "0007":
            running = store.study("7")
            assert running is not None
            assert running.jobs[0].progress == "stage1 42%"
        with store._read() as connection:  # what 0008 brings: what lies there counts as received
            instances = connection.scalar(sa.select(sa.func.count()).select_from(schema.instances))
            assert connection.scalar(sa.select(sa.func.sum(schema.received.c.instances))) == instances > 0


def test_the_work_goes_on(url: str) -> None:
    clock = SetClock()
    clock.advance(hours=1)
    with SqlStore(url, clock) as store:
        scene = Scene(store, clock)
        job = store.claim_job("worker", now=clock.now(), lease_until=clock.now() + LEASE)
        assert job is not None
        assert job.study_instance_uid == "7"
        store.job_encoded(job, [result("sr", "2.25.71")], FINDINGS)
        scene.deliver()
        scene.deliver()
        assert (scene.state("2"), scene.state("7")) == ("DONE", "DONE")
        assert store.requeue(study_instance_uid="5") == 1
        assert scene.claim().study_instance_uid == "5"
        assert store.set_priority("1", Priority.STAT) == 1
        assert store.purge("1") == ("instances/1/1.1/1.1.1.dcm",)
