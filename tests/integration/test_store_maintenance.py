"""Priority, erasure, purge, backup: what an operator does to the store, and what the audit tells of it."""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from pulmo_node.audit import AuditTrail
from pulmo_node.domain.jobs import JobState
from pulmo_node.domain.priority import Priority
from pulmo_node.domain.series import InstanceOutcome
from pulmo_node.errors import Permanent, StaleJob, Transient
from pulmo_node.outbox import FileOutbox
from pulmo_node.retention import Purge, erase_study
from pulmo_node.store import SqlStore
from pulmo_node.store.schema import HEAD_REVISION
from tests.integration.store_scene import FINDINGS, Scene, SetClock, result


@pytest.fixture
def scene(database_url: str, tmp_path: Path) -> Iterator[Scene]:
    clock = SetClock()
    with SqlStore(database_url, clock) as store:
        store.journal = AuditTrail(tmp_path / "audit.jsonl", "node TEST", clock)
        yield Scene(store, clock)


@pytest.fixture
def audit(tmp_path: Path) -> AuditTrail:
    return AuditTrail(tmp_path / "audit.jsonl", "operator", SetClock())


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


def on_disk(scene: Scene, folder: Path, study: str) -> list[Path]:
    """The files that the rows of a study name, each with something in it."""
    files = scene.store.study_files(study)
    assert files is not None
    paths = [folder / path for path in (*files.instances, *files.results)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (folder / "incoming").mkdir(exist_ok=True)
    return paths


def done(scene: Scene, study: str, series: str) -> None:
    job = scene.queued(study=study, series=series)
    one = replace(result("sr", f"2.25.{study}"), path=f"outbox/key-{study}/{study}.dcm")
    scene.store.job_encoded(job, [one], FINDINGS)
    scene.deliver()


class TestPriority:
    def test_stat_goes_first_and_equals_by_age(self, scene: Scene) -> None:
        for number in (1, 2, 3, 4):
            scene.receive(study=f"{number}", series=f"{number}.1")
            scene.complete(study=f"{number}", series=f"{number}.1")
        assert [scene.store.set_priority(uid, Priority.STAT) for uid in ("4", "3")] == [1, 1]
        assert [scene.claim().study_instance_uid for _ in range(4)] == ["3", "4", "1", "2"]

    def test_also_series_that_are_complete_later(self, scene: Scene) -> None:
        scene.receive(study="1", series="1.1")
        scene.store.set_priority("1", Priority.STAT)
        scene.receive(study="1", series="1.2")
        scene.complete(study="1", series="1.2")
        assert scene.job("1").priority is Priority.STAT

    def test_deliveries_follow(self, scene: Scene) -> None:
        for number in (1, 2):
            job = scene.queued(study=f"{number}", series=f"{number}.1")
            scene.store.job_encoded(job, [result("sr", f"2.25.{number}")], FINDINGS)
        scene.store.set_priority("2", Priority.STAT)
        assert [scene.claim_deliveries()[0].result.sop_instance_uid for _ in range(2)] == ["2.25.2", "2.25.1"]

    def test_routine_again_and_an_unknown_study(self, scene: Scene) -> None:
        scene.receive()
        scene.complete()
        uid = scene.job().study_instance_uid
        scene.store.set_priority(uid, Priority.STAT)
        scene.store.set_priority(uid, Priority.ROUTINE)
        assert scene.job().priority is Priority.ROUTINE
        assert [row.detail for row in scene.study().events if row.event == "priority"] == ["STAT", "ROUTINE"]
        assert scene.store.set_priority("9", Priority.STAT) == 0


class TestErase:
    def test_nothing_is_left_but_the_audit(self, scene: Scene, tmp_path: Path, audit: AuditTrail) -> None:
        done(scene, "1", "1.1")
        done(scene, "2", "2.1")
        gone, kept = (on_disk(scene, tmp_path, study) for study in ("1", "2"))
        conflict = gone[0].with_name("1.1.1.conflict-b.dcm")
        conflict.write_bytes(b"x")
        files = erase_study(tmp_path, scene.store, audit, "1")
        assert files is not None
        assert scene.store.study("1") is None
        assert not any(path.exists() for path in (*gone, conflict))
        assert list((tmp_path / "incoming").iterdir()) == []
        assert all(path.exists() for path in kept)
        assert scene.state("2") == "DONE"
        with scene.store._read() as connection:
            for table in ("series", "instances", "jobs", "results", "deliveries", "findings", "events"):
                rows = connection.exec_driver_sql(f"SELECT * FROM {table}").fetchall()  # noqa: S608
                assert not any("1.1.1" in map(str, row) or "2.25.1" in map(str, row) for row in rows), table
        entry = lines(tmp_path)[-1]
        assert (entry["action"], entry["who"], entry["study_instance_uid"]) == ("deleted", "operator", "1")
        assert (entry["series"], entry["images"], entry["results"]) == (1, 1, 1)

    def test_what_is_still_arriving_is_refused_and_untouched(
        self, scene: Scene, tmp_path: Path, audit: AuditTrail
    ) -> None:
        scene.receive()
        with pytest.raises(Transient, match="still being received"):
            erase_study(tmp_path, scene.store, audit, scene.study().summary.study_instance_uid)
        assert scene.study().summary.instances == 1

    def test_one_whose_files_are_gone_already(self, scene: Scene, tmp_path: Path, audit: AuditTrail) -> None:
        """As after a power cut within an erasure: the next start drops the rows, and the series waits for images."""
        done(scene, "1", "1.1")
        image, sr = on_disk(scene, tmp_path, "1")
        image.unlink()
        scene.store.drop_lost([image.relative_to(tmp_path).as_posix()])
        assert scene.state("1") == "RECEIVING"
        assert erase_study(tmp_path, scene.store, audit, "1") is not None
        assert scene.store.study("1") is None
        assert not sr.exists()

    def test_whoever_works_on_it_is_too_late(self, scene: Scene, tmp_path: Path, audit: AuditTrail) -> None:
        job = scene.queued(study="1", series="1.1")
        encoded = scene.queued(study="2", series="2.1")
        one = replace(result(), path="outbox/key/2.25.1.dcm")
        scene.store.job_encoded(encoded, [one], FINDINGS)
        (delivery,) = scene.claim_deliveries()
        for study in ("1", "2"):
            on_disk(scene, tmp_path, study)
            erase_study(tmp_path, scene.store, audit, study)
        with pytest.raises(StaleJob):
            scene.store.job_encoded(job, [result()], FINDINGS)
        with pytest.raises(StaleJob):
            scene.store.delivery_sent(delivery, "0x0000")
        assert not scene.store.extend_job_lease(job, scene.clock.now())
        assert not scene.store.job_exists(job)

    def test_the_same_images_can_come_again(self, scene: Scene, tmp_path: Path, audit: AuditTrail) -> None:
        done(scene, "1", "1.1")
        on_disk(scene, tmp_path, "1")
        erase_study(tmp_path, scene.store, audit, "1")
        assert scene.receive(study="1", series="1.1") is InstanceOutcome.NEW
        assert scene.state("1") == "RECEIVING"

    @pytest.mark.parametrize(
        "path", ["instances/1.dcm", "instances/../x/y.dcm", "../1/2/3.dcm", "outbox/1.dcm", "/a/b/c"]
    )
    def test_nothing_above_a_study_is_ever_removed(
        self, scene: Scene, tmp_path: Path, audit: AuditTrail, path: str
    ) -> None:
        done(scene, "1", "1.1")
        with scene.store._write() as connection:
            connection.exec_driver_sql(f"UPDATE instances SET path = '{path}'")  # noqa: S608
        with pytest.raises(Permanent, match="nothing is removed"):
            erase_study(tmp_path, scene.store, audit, "1")
        assert scene.state("1") == "DONE"

    def test_an_unknown_study_leaves_no_entry(self, scene: Scene, tmp_path: Path, audit: AuditTrail) -> None:
        assert erase_study(tmp_path, scene.store, audit, "9") is None
        assert not (tmp_path / "audit.jsonl").exists()


class TestPurge:
    def purge(self, scene: Scene, folder: Path, *, days: float = 0, gib: float = 0) -> Purge:
        return Purge(folder, scene.store, scene.clock, delivered_days=days, max_gib=gib)

    def test_by_age_only_what_is_through(self, scene: Scene, tmp_path: Path) -> None:
        done(scene, "1", "1.1")
        scene.queued(study="2", series="2.1")  # to be analysed
        scene.store.job_encoded(scene.queued(study="3", series="3.1"), [result()], FINDINGS)  # to be delivered
        scene.store.job_failed(scene.queued(study="4", series="4.1"), "GAVE_UP", "busy")  # to be looked at
        scene.receive(study="5", series="5.1")  # to be completed
        scene.store.job_rejected(scene.queued(study="6", series="6.1"), "NOT_AXIAL", "x", [result("report")])
        uncommitted = scene.queued(study="7", series="7.1", destinations=("archive",))
        scene.store.job_rejected(uncommitted, "NOT_AXIAL", "x", [result("report", "2.25.77")])
        (delivery,) = scene.claim_deliveries("archive")
        scene.store.delivery_sent(delivery, "0x0000", scene.clock.now() + timedelta(days=30))
        purge = self.purge(scene, tmp_path, days=7)
        scene.clock.advance(days=6.9)
        assert purge.due() == ()
        scene.clock.advance(days=0.2)
        assert purge.due() == ("1",)
        image, sr = on_disk(scene, tmp_path, "1")
        assert purge.run() == 1
        assert (image.exists(), sr.exists()) == (False, True)
        assert purge.due() == ()
        assert scene.state("1") == "DONE"
        assert [row.event for row in scene.study("1").events][-1] == "purged"

    def test_what_a_crash_left_is_removed_at_the_next_start(self, scene: Scene, tmp_path: Path) -> None:
        done(scene, "1", "1.1")
        done(scene, "2", "2.1")
        image, _ = on_disk(scene, tmp_path, "1")
        kept, _ = on_disk(scene, tmp_path, "2")
        scene.store.purge("1")  # and no file is removed
        self.purge(scene, tmp_path).sweep()
        assert (image.exists(), kept.exists()) == (False, True)

    def test_what_a_kill_left_half_written_goes_while_the_node_runs(self, scene: Scene, tmp_path: Path) -> None:
        """At the start that follows at once it is too young to be told from what another process is writing."""
        incoming = tmp_path / "incoming"
        incoming.mkdir()
        (incoming / "image.part").write_bytes(b"x")
        FileOutbox(tmp_path)
        (incoming / "young.part").write_bytes(b"x")
        an_hour_ago = time.time() - 3601
        os.utime(incoming / "image.part", (an_hour_ago, an_hour_ago))
        self.purge(scene, tmp_path).run()
        assert [path.name for path in incoming.iterdir()] == ["young.part"]

    def test_by_size_the_longest_untouched_first(self, scene: Scene, tmp_path: Path) -> None:
        for study in ("1", "2", "3"):
            done(scene, study, f"{study}.1")
            on_disk(scene, tmp_path, study)
            scene.clock.advance(minutes=1)
        each = scene.store.stored_bytes() / 3 / 1024**3
        assert self.purge(scene, tmp_path, gib=3.5 * each).due() == ()
        assert self.purge(scene, tmp_path, gib=1.5 * each).due() == ("1", "2")
        assert self.purge(scene, tmp_path, gib=2.5 * each).run() == 1
        assert scene.store.stored_bytes() == pytest.approx(2 * each * 1024**3)

    def test_without_limits_nothing_is(self, scene: Scene, tmp_path: Path) -> None:
        done(scene, "1", "1.1")
        scene.clock.advance(days=10_000)
        assert self.purge(scene, tmp_path).run() == 0

    def test_what_to_send_again_until_it_has_come(self, scene: Scene, tmp_path: Path) -> None:
        done(scene, "1", "1.1")
        assert scene.store.purged_series("1") == ()
        scene.store.purge("1")
        (series,) = scene.store.purged_series("1")
        assert (series.series_instance_uid, series.calling_ae_title, series.images) == ("1.1", "SCANNER", 1)
        assert scene.store.recorded_paths()[0] == set()  # the start of the node does not miss them
        assert scene.receive(study="1", series="1.1") is InstanceOutcome.DUPLICATE  # no new analysis by itself
        assert scene.store.purged_series("1") == ()
        assert scene.store.requeue(study_instance_uid="1") == 1
        assert scene.job("1").state is JobState.QUEUED

    def test_what_was_sent_again_stays_as_long_as_what_is_new(self, scene: Scene, tmp_path: Path) -> None:
        """Otherwise the next purge, a minute later, would take it from who was told to send it again."""
        done(scene, "1", "1.1")
        scene.clock.advance(days=8)
        purge = self.purge(scene, tmp_path, days=7)
        assert purge.run() == 1
        scene.clock.advance(days=30)
        done(scene, "2", "2.1")
        scene.clock.advance(hours=1)
        scene.receive(study="1", series="1.1")
        assert purge.due() == ()
        assert self.purge(scene, tmp_path, gib=1.5 * scene.store.stored_bytes() / 2 / 1024**3).due() == ("2",)
        scene.clock.advance(days=7.1)
        assert purge.due() == ("2", "1")

    def test_a_series_that_lost_all_its_files_holds_up_nothing(self, scene: Scene, tmp_path: Path) -> None:
        done(scene, "1", "1.1")
        scene.receive(study="1", series="1.2")
        scene.clock.advance(days=8)
        purge = self.purge(scene, tmp_path, days=7)
        assert purge.due() == (), "it is still arriving"
        lost = {path for path in scene.store.recorded_paths()[0] if "1.2" in Path(path).parts}
        assert scene.store.drop_lost(lost) == ("1.2",)
        assert purge.due() == ("1",)

    def test_one_that_was_requeued_meanwhile_is_left(self, scene: Scene) -> None:
        done(scene, "1", "1.1")
        assert scene.store.requeue(study_instance_uid="1") == 1
        assert scene.store.purge("1") == ()
        assert scene.store.purged_series("1") == ()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_backup_of_postgresql_is_its_own_affair(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(Permanent, match="pg_dump"):
        scene.store.backup(tmp_path / "copy.sqlite")
    assert scene.store.check() == HEAD_REVISION


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
class TestBackup:
    def test_a_copy_while_a_writer_is_at_work(self, scene: Scene, tmp_path: Path) -> None:
        scene.encoded("sr", "seg")
        before = scene.study()
        with scene.store._write() as connection:
            connection.exec_driver_sql("DELETE FROM events")
            scene.store.backup(tmp_path / "copy.sqlite")
        with SqlStore(f"sqlite:///{tmp_path / 'copy.sqlite'}", scene.clock) as copy:
            assert copy.study(before.summary.study_instance_uid) == before
        assert sorted(path.name for path in tmp_path.glob("copy*")) == ["copy.sqlite"]

    def test_no_file_is_overwritten(self, scene: Scene, tmp_path: Path) -> None:
        (tmp_path / "copy.sqlite").write_bytes(b"mine")
        with pytest.raises(Permanent, match="a file already"):
            scene.store.backup(tmp_path / "copy.sqlite")
        assert (tmp_path / "copy.sqlite").read_bytes() == b"mine"

    def test_a_damaged_database_is_told_and_leaves_no_copy(self, scene: Scene, tmp_path: Path) -> None:
        scene.encoded()
        with sqlite3.connect(tmp_path / "pulmo.sqlite") as other:
            other.execute("PRAGMA foreign_keys = OFF")
            other.execute("DELETE FROM series")
        with pytest.raises(Permanent, match="refers to one that is not there"):
            scene.store.backup(tmp_path / "copy.sqlite")
        assert not (tmp_path / "copy.sqlite").exists()
        with pytest.raises(Permanent, match="refers to one that is not there"):
            scene.store.check()


class TestAudit:
    def test_every_transition_that_was_committed(self, scene: Scene, tmp_path: Path) -> None:
        job = scene.encoded()
        scene.deliver()
        actions = [entry["action"] for entry in lines(tmp_path)]
        assert actions == [
            "series instance", "series quiet", f"job {job.id} queued", f"job {job.id} encoded",
            f"delivery {scene.study().deliveries[0].id} sent", f"job {job.id} delivered",
        ]  # fmt: skip
        assert all(entry["who"] == "node TEST" for entry in lines(tmp_path))
        assert all(entry["study_instance_uid"] == job.study_instance_uid for entry in lines(tmp_path))

    def test_nothing_of_what_was_rolled_back(self, scene: Scene, tmp_path: Path) -> None:
        job = scene.queued()
        before = lines(tmp_path)
        scene.store.cancel(job.study_instance_uid)
        with pytest.raises(StaleJob):
            scene.store.job_encoded(job, [result()], FINDINGS)
        assert len(lines(tmp_path)) == len(before) + 1

    def test_a_rotation_between_two_lines(self, tmp_path: Path, audit: AuditTrail) -> None:
        audit.record([{"action": "one"}])
        (tmp_path / "audit.jsonl").rename(tmp_path / "audit.jsonl.1")
        audit.record([{"action": "two"}], durable=True)
        assert [entry["action"] for entry in lines(tmp_path)] == ["two"]

    def test_a_disk_that_is_full_within_a_batch_is_told_and_spoils_no_later_line(
        self, tmp_path: Path, audit: AuditTrail
    ) -> None:
        batch = [{"action": f"number {number}"} for number in range(50)]
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            with pytest.raises(Transient, match="audit"):
                audit.record(batch)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        audit.record([{"action": "after"}])
        audit.record([{"action": "last"}])
        *_, cut, after, last = (tmp_path / "audit.jsonl").read_text().splitlines()
        assert not cut.endswith("}")
        assert [json.loads(line)["action"] for line in (after, last)] == ["after", "last"]

    def test_an_audit_that_cannot_be_written_stops_no_transition(self, scene: Scene, tmp_path: Path) -> None:
        (tmp_path / "audit.jsonl").mkdir()
        scene.receive()
        assert scene.study().summary.instances == 1


def test_an_outbox_can_be_discarded(tmp_path: Path) -> None:
    outbox = FileOutbox(tmp_path)
    outbox.put("key", [], "{}")
    outbox.discard("key")
    outbox.discard("key")
    assert outbox.get("key") is None
