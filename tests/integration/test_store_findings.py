"""The table of findings: written and replaced with the results; a database of the first schema gets it too."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

from pulmo_node.domain.findings import Finding, findings_of
from pulmo_node.domain.jobs import Job, JobState
from pulmo_node.errors import Permanent, StaleJob
from pulmo_node.store import SqlStore, database, schema
from pulmo_node.store.schema import HEAD_REVISION
from tests.integration.store_scene import (
    SERIES,
    STUDY,
    Scene,
    SetClock,
    findings_json,
    nodule,
    result,
)

TWO = findings_json(nodule(1), nodule(2, laterality="left", pleura_distance_mm=None))


@pytest.fixture
def scene(database_url: str) -> Iterator[Scene]:
    clock = SetClock()
    with SqlStore(database_url, clock) as store:
        yield Scene(store, clock)


def requeued(scene: Scene) -> Job:
    assert scene.store.requeue(study_instance_uid=STUDY) == 1
    return scene.claim()


class TestFindings:
    def test_the_columns_are_the_fields(self) -> None:
        assert list(schema.findings.c.keys()) == ["id", "job_id", *(field.name for field in fields(Finding))]

    def test_they_come_with_the_results_and_every_number_stays_as_it_is(self, scene: Scene) -> None:
        job = scene.queued()
        assert scene.store.findings(job.id) == ()
        scene.store.job_encoded(job, [result()], TWO)
        assert scene.store.findings(job.id) == findings_of(TWO)
        assert [finding.segment_number for finding in scene.store.findings(job.id)] == [1, 2]

    def test_a_second_analysis_replaces_them(self, scene: Scene) -> None:
        job = scene.queued(destinations=())
        scene.store.job_encoded(job, [result()], TWO)
        fewer = findings_json(nodule(1, volume_mm3=77.7))
        scene.store.job_encoded(requeued(scene), [result()], fewer)
        assert scene.store.findings(job.id) == findings_of(fewer)

    def test_each_job_has_its_own(self, scene: Scene) -> None:
        first = scene.queued(destinations=())
        scene.store.job_encoded(first, [result()], TWO)
        second = scene.queued(destinations=(), series="1.9")
        other = findings_json(nodule(1, tracking_uid="2.25.99"))
        scene.store.job_encoded(second, [result(uid="2.25.50")], other)
        assert scene.store.findings(first.id) == findings_of(TWO)
        assert scene.store.findings(second.id) == findings_of(other)

    @pytest.mark.parametrize("outcome", ["rejected", "failed", "quarantined"])
    def test_a_job_without_results_has_none(self, scene: Scene, outcome: str) -> None:
        """Analysed again under other settings, what was found before no longer holds."""
        scene.store.job_encoded(scene.queued(destinations=()), [result()], TWO)
        job = requeued(scene)
        reason = {"rejected": ("GAP", "a gap"), "failed": ("GAVE_UP", "it broke"), "quarantined": ("it died",)}[outcome]
        getattr(scene.store, f"job_{outcome}")(job, *reason)
        assert scene.store.findings(job.id) == ()
        assert scene.job().findings is None

    def test_a_result_that_comes_too_late_leaves_none(self, scene: Scene) -> None:
        job = scene.queued()
        scene.receive(2)  # supersedes it
        with pytest.raises(StaleJob):
            scene.store.job_encoded(job, [result()], TWO)
        assert scene.store.findings(job.id) == ()

    def test_one_transaction_with_the_results(self, scene: Scene) -> None:
        """Two findings of one number cannot be written: then there are no results either."""
        job = scene.queued()
        with pytest.raises(Permanent, match=r"(?i)unique"):
            scene.store.job_encoded(job, [result()], findings_json(nodule(1), nodule(1)))
        assert scene.store.findings(job.id) == ()
        assert scene.job() == job
        assert scene.study().deliveries == ()

    def test_a_damaged_findings_json_is_permanent_and_changes_nothing(self, scene: Scene) -> None:
        job = scene.queued()
        with pytest.raises(Permanent, match=f"findings.json of job {job.id} cannot be read") as refused:
            scene.store.job_encoded(job, [result()], "DOE^JANE")
        assert "DOE" not in str(refused.value)
        assert scene.job() == job


class TestEarlierReports:
    def reports(self, scene: Scene) -> list[str]:
        return [report.sop_instance_uid for report in scene.store.earlier_reports(scene.job())]

    def test_a_first_analysis_has_none(self, scene: Scene) -> None:
        assert scene.store.earlier_reports(scene.queued()) == ()

    def test_a_delivered_one_is_the_whole_object(self, scene: Scene) -> None:
        scene.encoded("sr", "seg")
        scene.deliver()
        assert scene.store.earlier_reports(requeued(scene)) == (result("sr"),)

    def test_it_stays_one_when_the_series_went_on(self, scene: Scene) -> None:
        scene.encoded("sr")
        scene.deliver()
        scene.receive(2)
        scene.complete()
        assert scene.job().revision == 2
        assert self.reports(scene) == ["2.25.1"]

    def test_what_nobody_ever_got_is_none(self, scene: Scene) -> None:
        scene.encoded("sr")
        assert self.reports(scene) == [], "still to be sent"
        scene.receive(2)  # supersedes it before it is delivered
        scene.complete()
        assert self.reports(scene) == []

    def test_what_was_refused_is_none(self, scene: Scene) -> None:
        scene.encoded("sr")
        scene.fail_deliveries()
        assert self.reports(scene) == []

    def test_one_of_two_destinations_is_enough(self, scene: Scene) -> None:
        scene.encoded("sr", destinations=("pacs", "archive"))
        scene.deliver("pacs")
        assert self.reports(scene) == ["2.25.1"]

    def test_without_destinations_what_is_in_use_counts(self, scene: Scene) -> None:
        scene.store.job_encoded(scene.queued(destinations=()), [result(uid="2.25.1")], TWO)
        assert self.reports(scene) == ["2.25.1"]
        scene.store.job_encoded(requeued(scene), [result(uid="2.25.8")], TWO)
        assert self.reports(scene) == ["2.25.8"]

    def test_oldest_first_and_also_what_is_no_longer_in_use(self, scene: Scene) -> None:
        scene.store.job_encoded(scene.queued(), [result(uid="2.25.7")], TWO)
        scene.deliver()
        scene.store.job_encoded(requeued(scene), [result(uid="2.25.3")], TWO)
        scene.deliver()
        assert self.reports(scene) == ["2.25.7", "2.25.3"]

    def test_the_report_of_a_rejection_counts(self, scene: Scene) -> None:
        scene.store.job_rejected(scene.queued(), "GAP", "a gap", [result("sr")])
        scene.deliver()
        assert self.reports(scene) == ["2.25.1"]

    def test_those_of_another_series_or_pipeline_do_not(self, scene: Scene) -> None:
        scene.receive()
        scene.complete(pipelines=("ct", "other"))
        for uid in ("2.25.1", "2.25.2"):
            scene.store.job_encoded(scene.claim(), [result(uid=uid)], TWO)
        scene.store.job_encoded(scene.queued(series="1.9"), [result(uid="2.25.3")], TWO)
        for _ in range(3):
            scene.deliver()
        found = [[report.sop_instance_uid for report in scene.store.earlier_reports(job)] for job in scene.study().jobs]
        assert found == [["2.25.1"], ["2.25.2"], ["2.25.3"]]


def first_schema(path: Path) -> str:
    """A database as the version before made it; its URL."""
    url = f"sqlite:///{path}"
    engine = database._engine(url)
    config = Config()
    config.set_main_option("script_location", str(database._MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    engine.dispose()
    return url


def content(path: Path) -> list[list[dict[str, object]]]:
    """What lies in the tables of the first schema, by column."""
    tables = ("series", "jobs", "results", "deliveries")
    with sqlite3.connect(path) as connection:
        connection.row_factory = sqlite3.Row
        return [[dict(row) for row in connection.execute(f"SELECT * FROM {table}")] for table in tables]  # noqa: S608


def assert_kept(before: list[list[dict[str, object]]], after: list[list[dict[str, object]]]) -> None:
    """Every row with every value that it had; a later schema may add columns."""
    for rows, later in zip(before, after, strict=True):
        assert [{key: new[key] for key in old} for old, new in zip(rows, later, strict=True)] == rows


class TestMigration:
    def fill(self, path: Path, *jobs: tuple[str, str | None]) -> None:
        """A series with a job of each state and findings.json, and a result that was delivered."""
        at = "2026-10-25 00:30:00.000000"
        with sqlite3.connect(path) as connection:
            connection.execute(
                "INSERT INTO series VALUES (1, ?, ?, 'CT', 'SCANNER', 'COMPLETE', 1, 1, ?, NULL, ?)",
                (STUDY, SERIES, at, at),
            )
            for number, (state, findings) in enumerate(jobs, start=1):
                connection.execute(
                    "INSERT INTO jobs VALUES (?, 1, ?, 'ct', ?, ?, 0, NULL, NULL, NULL, NULL, NULL, ?, ?, ?)",
                    (number, number, '["pacs"]', state, findings, at, at),
                )
            connection.execute("INSERT INTO results VALUES (1, 1, 'sr', '1.2', '2.25.1', '2.25.1.0', 'o', 'f', 1)")
            connection.execute(
                "INSERT INTO deliveries VALUES (1, 1, 1, 'pacs', 'SENT', 0, NULL, NULL, NULL, NULL, ?)", (at,)
            )

    def test_the_findings_of_every_version_come_in_and_all_else_stays(self, tmp_path: Path) -> None:
        old = nodule(1)
        for key in ("min_hu", "max_hu", "laterality", "pleura_distance_mm"):
            del old[key]
        oldest = old | {"cautions": ["A sentence."]}  # as version 1 had them
        path = tmp_path / "pulmo.sqlite"
        url = first_schema(path)
        self.fill(path, ("DONE", TWO), ("SUPERSEDED", findings_json(old)), ("ENCODED", findings_json(oldest)))
        before = content(path)
        with SqlStore(url, SetClock()) as store:
            assert store.check() == HEAD_REVISION
            assert store.findings(1) == findings_of(TWO)
            assert store.findings(2) == findings_of(findings_json(old))
            assert store.findings(3) == (replace(findings_of(findings_json(old))[0], cautions=["A sentence."]),)
            assert store.earlier_reports(Scene(store, SetClock()).job())[0].sop_instance_uid == "2.25.1"
        assert_kept(before, content(path))

    @pytest.mark.parametrize(
        ("state", "findings"),
        [
            ("QUEUED", None),
            ("REJECTED", TWO),
            ("QUARANTINED", TWO),
            ("DONE", "damaged"),
            ("DONE", json.dumps({"schema_version": 1})),
            ("DONE", json.dumps({"malignancy_bias": 0.0, "nodules": [{}]})),
        ],
    )
    def test_a_job_without_readable_results_gets_none_and_does_not_stop_it(
        self, tmp_path: Path, state: str, findings: str | None
    ) -> None:
        path = tmp_path / "pulmo.sqlite"
        url = first_schema(path)
        self.fill(path, (state, findings), ("DONE", TWO))
        with SqlStore(url, SetClock()) as store:
            assert store.findings(1) == ()
            assert store.findings(2) == findings_of(TWO)

    def test_the_job_goes_on_after_it(self, tmp_path: Path) -> None:
        path = tmp_path / "pulmo.sqlite"
        url = first_schema(path)
        self.fill(path, ("DONE", TWO))
        clock = SetClock()
        with SqlStore(url, clock) as store:
            scene = Scene(store, clock)
            store.job_encoded(requeued(scene), [result("sr")], findings_json(nodule(1)))
            assert scene.job().state is JobState.ENCODED
            assert store.findings(1) == findings_of(findings_json(nodule(1)))
