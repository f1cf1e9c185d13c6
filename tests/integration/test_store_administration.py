"""What the administrator sees and changes: studies, one study, requeue, cancel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from pulmo_node.domain.jobs import DELIVERY_FAILED, JobState
from pulmo_node.domain.series import SeriesState
from pulmo_node.store import SqlStore
from tests.integration.store_scene import FINDINGS, SERIES, STUDY, Scene, SetClock, result

OTHER_STUDY, OTHER_SERIES = "1.2.840.2", "1.2.840.2.1"


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


@pytest.fixture
def scene(url: str) -> Iterator[Scene]:
    clock = SetClock()
    with SqlStore(url, clock) as store:
        yield Scene(store, clock)


def bring_to(scene: Scene, state: str) -> None:
    """A study with one job in that state."""
    job = scene.queued()
    match state:
        case "QUEUED":
            scene.store.job_deferred(job, "busy", scene.clock.now())
        case "ENCODED" | "DONE" | "DELIVERY_FAILED":
            scene.store.job_encoded(job, [result()], FINDINGS)
        case "REJECTED":
            scene.store.job_rejected(job, "GAP", "a slice is missing")
        case "FAILED":
            scene.store.job_failed(job, "CRASH", "it broke")
        case "QUARANTINED":
            scene.store.job_quarantined(job, "took the worker down 3 times")
        case "CANCELLED":
            scene.store.cancel(STUDY)
        case "SUPERSEDED":
            scene.receive(2)
    if state == "DONE":
        scene.deliver()
    if state == "DELIVERY_FAILED":
        scene.fail_deliveries()


class TestStudies:
    def test_none(self, scene: Scene) -> None:
        assert scene.store.studies() == ()
        assert scene.store.study(STUDY) is None

    def test_the_last_changed_first(self, scene: Scene) -> None:
        for study in ("1.1", "1.2", "1.3"):
            scene.receive(study=study, series=f"{study}.1")
            scene.clock.advance(seconds=1)
        assert [each.study_instance_uid for each in scene.store.studies()] == ["1.3", "1.2", "1.1"]
        scene.complete(study="1.1", series="1.1.1")
        assert [each.study_instance_uid for each in scene.store.studies()] == ["1.1", "1.3", "1.2"]

    def test_a_delivery_counts_as_a_change(self, scene: Scene) -> None:
        scene.encoded(destinations=("pacs", "archive"))
        at = scene.clock.advance(minutes=5)
        scene.deliver("pacs")
        assert scene.job().updated_at < at
        assert scene.study().summary.updated_at == at

    def test_the_line_of_a_study(self, scene: Scene) -> None:
        for number in (1, 2, 3):
            scene.receive(number)
        scene.receive(series=f"{SERIES}.9")
        scene.complete(pipelines=("ct", "retina"))
        (line,) = scene.store.studies()
        assert (line.study_instance_uid, line.state, line.series, line.instances, line.jobs) == (
            STUDY,
            "RECEIVING",
            2,
            4,
            2,
        )
        assert line.updated_at == scene.clock.now()

    @pytest.mark.parametrize(
        ("state", "shown"),
        [
            ("QUEUED", "QUEUED"),
            ("ENCODED", "ENCODED"),
            ("DONE", "DONE"),
            ("DELIVERY_FAILED", "FAILED"),
            ("REJECTED", "REJECTED"),
            ("FAILED", "FAILED"),
            ("QUARANTINED", "QUARANTINED"),
            ("CANCELLED", "CANCELLED"),
            ("SUPERSEDED", "RECEIVING"),
        ],
    )
    def test_by_state(self, scene: Scene, state: str, shown: str) -> None:
        bring_to(scene, state)
        scene.receive(study=OTHER_STUDY, series=OTHER_SERIES)
        scene.complete(study=OTHER_STUDY, series=OTHER_SERIES, pipelines=())
        assert [each.study_instance_uid for each in scene.store.studies(state=shown)] == [STUDY]
        assert [each.study_instance_uid for each in scene.store.studies(state="NO_PIPELINE")] == [OTHER_STUDY]
        assert len(scene.store.studies()) == 2

    def test_everything_on_one_study_and_nothing_of_another(self, scene: Scene) -> None:
        scene.encoded("sr", "seg")
        scene.queued(study=OTHER_STUDY, series=OTHER_SERIES)
        detail = scene.study()
        assert [each.series_instance_uid for each in detail.series] == [SERIES]
        assert [each.study_instance_uid for each in detail.jobs] == [STUDY]
        assert [each.result for each in detail.deliveries] == [result("sr"), result("seg")]
        assert {each.study_instance_uid for each in detail.events} == {STUDY}
        assert [each.event for each in detail.events] == ["instance", "quiet", "queued", "encoded"]
        assert all(each.at == scene.clock.now() for each in detail.events)
        assert detail.summary == next(each for each in scene.store.studies() if each.study_instance_uid == STUDY)


class TestRequeue:
    @pytest.mark.parametrize("only_failed", [False, True])
    @pytest.mark.parametrize(
        "state",
        ["QUEUED", "ENCODED", "DONE", "REJECTED", "FAILED", "DELIVERY_FAILED", "QUARANTINED", "CANCELLED"],
    )
    def test_which_jobs_are_analysed_again(self, scene: Scene, state: str, only_failed: bool) -> None:
        bring_to(scene, state)
        before = scene.study()
        failed = state in {"FAILED", "DELIVERY_FAILED", "QUARANTINED"}
        expected = failed or (not only_failed and state in {"DONE", "REJECTED", "CANCELLED"})
        assert scene.store.requeue(study_instance_uid=STUDY, only_failed=only_failed) == int(expected)
        if not expected:
            assert scene.study() == before
            return
        job = scene.job()
        assert (job.state, job.attempts, job.not_before, job.worker_id) == (JobState.QUEUED, 0, None, None)
        assert (job.reason_code, job.reason) == (None, None)
        assert scene.history(f"job {job.id}")[-1] == ("requeued", "QUEUED")
        assert scene.study().deliveries == before.deliveries
        assert scene.claim().id == job.id

    def test_attempts_begin_again(self, scene: Scene) -> None:
        scene.queued()
        for _ in range(3):
            scene.clock.advance(hours=1)
            job = scene.claim()
        scene.store.job_quarantined(job, "took the worker down 3 times")
        scene.store.requeue(study_instance_uid=STUDY)
        assert scene.claim().attempts == 0

    def test_a_superseded_job_never(self, scene: Scene) -> None:
        bring_to(scene, "SUPERSEDED")
        scene.complete()
        before = scene.study()
        assert scene.store.requeue(study_instance_uid=STUDY) == 0
        assert scene.study() == before

    @pytest.mark.parametrize("redeliver", [False, True])
    def test_only_the_current_revision(self, scene: Scene, redeliver: bool) -> None:
        bring_to(scene, "DONE")
        scene.receive(2)
        assert scene.store.requeue(study_instance_uid=STUDY, redeliver=redeliver) == 0
        scene.complete()
        assert scene.store.requeue(study_instance_uid=STUDY, redeliver=redeliver) == 0
        assert [job.state for job in scene.study().jobs] == [JobState.DONE, JobState.QUEUED]

    def test_a_series_without_jobs_goes_through_the_rules_again(self, scene: Scene) -> None:
        scene.receive()
        scene.complete(pipelines=())
        assert scene.store.requeue(study_instance_uid=STUDY, only_failed=True) == 0
        assert scene.store.requeue(study_instance_uid=STUDY, redeliver=True) == 0
        assert scene.store.requeue(study_instance_uid=STUDY) == 1
        series = scene.series()
        assert (series.state, series.revision, series.note) == (SeriesState.RECEIVING, 1, None)
        assert scene.history("series")[-1] == ("requeued", "RECEIVING")
        later = scene.clock.now() + timedelta(minutes=1)
        assert scene.store.quiet_series(before=later, excluding=()) == (series,)
        scene.complete()
        assert scene.claim().revision == 1

    def test_a_series_that_is_still_receiving_is_left_alone(self, scene: Scene) -> None:
        scene.receive()
        before = scene.study()
        assert scene.store.requeue(study_instance_uid=STUDY) == 0
        assert scene.study() == before

    def test_a_revision_without_jobs_after_one_with(self, scene: Scene) -> None:
        bring_to(scene, "DONE")
        scene.receive(2)
        scene.complete(pipelines=())
        assert scene.store.requeue(study_instance_uid=STUDY) == 1
        assert scene.series().state is SeriesState.RECEIVING

    def test_by_series_by_study_and_all(self, scene: Scene) -> None:
        for study in (STUDY, OTHER_STUDY):
            for number in (1, 2):
                job = scene.queued(study=study, series=f"{study}.{number}")
                scene.store.job_failed(job, "CRASH", "it broke")
        requeue = scene.store.requeue
        assert requeue(study_instance_uid="1.9") == 0
        assert requeue(study_instance_uid=STUDY, series_instance_uid=f"{OTHER_STUDY}.1") == 0
        assert requeue(series_instance_uid=f"{STUDY}.2") == 1
        assert [job.state for job in scene.study().jobs] == [JobState.FAILED, JobState.QUEUED]
        assert requeue(study_instance_uid=OTHER_STUDY) == 2
        assert requeue(only_failed=True) == 1
        assert requeue(only_failed=True) == 0


class TestRedeliver:
    @pytest.mark.parametrize("state", ["DONE", "DELIVERY_FAILED"])
    def test_the_job_waits_for_its_deliveries_again(self, scene: Scene, state: str) -> None:
        bring_to(scene, state)
        before = scene.job()
        assert scene.store.requeue(study_instance_uid=STUDY, redeliver=True) == 1
        job = scene.job()
        assert (job.state, job.reason_code, job.reason) == (JobState.ENCODED, None, None)
        assert job.findings == before.findings
        assert scene.history(f"job {job.id}")[-1] == ("redelivered", "ENCODED")
        (delivery,) = scene.study().deliveries
        assert (delivery.state.value, delivery.attempts, delivery.reason) == ("PENDING", 0, None)
        assert scene.history(f"delivery {delivery.id}")[-1] == ("requeued", "PENDING")
        assert scene.no_claim()
        scene.deliver()
        assert scene.job().state is JobState.DONE

    @pytest.mark.parametrize("state", ["QUEUED", "ENCODED", "REJECTED", "FAILED", "QUARANTINED", "CANCELLED"])
    def test_nothing_to_deliver_again(self, scene: Scene, state: str) -> None:
        bring_to(scene, state)
        before = scene.study()
        assert scene.store.requeue(study_instance_uid=STUDY, redeliver=True) == 0
        assert scene.study() == before

    def test_a_job_without_destinations_stays_done(self, scene: Scene) -> None:
        scene.store.job_encoded(scene.queued(destinations=()), [result()], FINDINGS)
        assert scene.store.requeue(study_instance_uid=STUDY, redeliver=True) == 0
        assert scene.job().state is JobState.DONE

    def test_only_failed_leaves_what_arrived(self, scene: Scene) -> None:
        scene.encoded(destinations=("pacs", "archive"))
        scene.deliver("pacs")
        scene.fail_deliveries("archive")
        assert scene.job().reason_code == DELIVERY_FAILED
        assert scene.store.requeue(redeliver=True, only_failed=True) == 1
        assert scene.deliveries() == {("sr", "pacs"): "SENT", ("sr", "archive"): "PENDING"}
        assert scene.job().state is JobState.ENCODED
        scene.deliver("archive")
        assert scene.job().state is JobState.DONE
        assert scene.store.requeue(redeliver=True, only_failed=True) == 0

    def test_without_it_everything_goes_out_again(self, scene: Scene) -> None:
        scene.encoded(destinations=("pacs", "archive"))
        scene.deliver("pacs")
        scene.fail_deliveries("archive")
        assert scene.store.requeue(study_instance_uid=STUDY, redeliver=True) == 1
        assert set(scene.deliveries().values()) == {"PENDING"}

    def test_one_that_failed_while_another_is_still_pending(self, scene: Scene) -> None:
        scene.encoded(destinations=("pacs", "archive"))
        scene.fail_deliveries("archive")
        assert scene.store.requeue(study_instance_uid=STUDY, redeliver=True) == 1
        assert set(scene.deliveries().values()) == {"PENDING"}
        assert scene.job().state is JobState.ENCODED

    @pytest.mark.parametrize("ended", ["rejected", "failed"])
    def test_a_report_goes_out_again_and_the_job_stays(self, scene: Scene, ended: str) -> None:
        job = scene.queued()
        if ended == "rejected":
            scene.store.job_rejected(job, "GAP", "a slice is missing", [result("report")])
        else:
            scene.store.job_failed(job, "CRASH", "it broke", [result("report")])
        scene.fail_deliveries()
        before = scene.job()
        assert scene.store.requeue(study_instance_uid=STUDY, redeliver=True) == 1
        assert scene.deliveries() == {("report", "pacs"): "PENDING"}
        assert scene.job() == before

    def test_an_object_that_is_no_longer_part_stays_out(self, scene: Scene) -> None:
        scene.encoded("sr", "seg")
        scene.deliver()
        scene.store.requeue(study_instance_uid=STUDY)
        scene.store.job_encoded(scene.claim(), [result("sr")], FINDINGS)
        scene.deliver()
        scene.store.requeue(study_instance_uid=STUDY, redeliver=True)
        assert scene.deliveries() == {("sr", "pacs"): "PENDING", ("seg", "pacs"): "SENT"}


class TestCancel:
    @pytest.mark.parametrize("state", ["QUEUED", "ENCODED"])
    def test_open_jobs_end(self, scene: Scene, state: str) -> None:
        bring_to(scene, state)
        assert scene.store.cancel(STUDY) == 1
        job = scene.job()
        assert (job.state, job.worker_id, job.lease_until) == (JobState.CANCELLED, None, None)
        assert scene.history(f"job {job.id}")[-1] == ("cancelled", "CANCELLED")
        assert scene.no_claim()
        assert scene.claim_deliveries() == ()
        assert set(scene.deliveries().values()) <= {"CANCELLED"}
        assert scene.state() == "CANCELLED"

    @pytest.mark.parametrize("state", ["DONE", "REJECTED", "FAILED", "QUARANTINED", "CANCELLED", "SUPERSEDED"])
    def test_what_has_ended_stays(self, scene: Scene, state: str) -> None:
        bring_to(scene, state)
        before = scene.study()
        assert scene.store.cancel(STUDY) == 0
        assert scene.study() == before

    def test_only_that_study(self, scene: Scene) -> None:
        scene.queued()
        scene.queued(study=OTHER_STUDY, series=OTHER_SERIES)
        assert scene.store.cancel(OTHER_STUDY) == 1
        assert scene.state() == "QUEUED"

    def test_cancelled_after_encoding_and_requeued_delivers_anew(self, scene: Scene) -> None:
        scene.encoded()
        scene.store.cancel(STUDY)
        assert scene.store.requeue(study_instance_uid=STUDY) == 1
        scene.store.job_encoded(scene.claim(), [result()], FINDINGS)
        assert scene.deliveries() == {("sr", "pacs"): "PENDING"}
        scene.deliver()
        assert scene.state() == "DONE"


def test_the_command_line_and_the_node_at_once(scene: Scene, url: str) -> None:
    """A second store on the same file stands for `pulmo-node requeue` while `serve` runs."""
    bring_to(scene, "FAILED")
    with SqlStore(url, scene.clock) as command_line:
        assert command_line.requeue(study_instance_uid=STUDY) == 1
        job = scene.claim()
        assert command_line.cancel(STUDY) == 1
        assert not scene.store.extend_job_lease(job, scene.clock.now())
        assert command_line.study(STUDY) == scene.study()
        assert replace(scene.job(), state=JobState.QUEUED, worker_id=job.worker_id, lease_until=job.lease_until) == job
