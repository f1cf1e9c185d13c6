"""Claims, leases, outcomes of jobs and deliveries; compare-and-set against everything that may happen meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from pulmo_node.domain.deliveries import DeliveryState
from pulmo_node.domain.jobs import DELIVERY_FAILED, Job, JobState
from pulmo_node.errors import InvalidTransition, StaleJob
from pulmo_node.store import SqlStore
from tests.integration.store_scene import FINDINGS, LEASE, STUDY, Scene, SetClock, result, run_threads


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


@pytest.fixture
def scene(url: str) -> Iterator[Scene]:
    clock = SetClock()
    with SqlStore(url, clock) as store:
        yield Scene(store, clock)


class TestClaim:
    def test_nothing_to_do(self, scene: Scene) -> None:
        assert scene.no_claim()
        scene.receive()
        assert scene.no_claim()

    def test_the_claim_is_a_lease(self, scene: Scene) -> None:
        job = scene.queued()
        assert (job.state, job.worker_id, job.attempts) == (JobState.QUEUED, "worker", 0)
        assert job.lease_until == scene.clock.now() + LEASE
        assert job == scene.job()
        assert scene.no_claim("another")

    def test_the_oldest_first(self, scene: Scene) -> None:
        for number in (2, 1, 3):
            scene.receive(series=f"1.{number}")
            scene.complete(series=f"1.{number}")
            scene.clock.advance(seconds=-5)  # a clock that is set back does not change the order
        assert [scene.claim().series_instance_uid for _ in range(3)] == ["1.2", "1.1", "1.3"]
        assert scene.no_claim()

    def test_a_deferred_job_waits_and_does_not_hold_up_the_next(self, scene: Scene) -> None:
        first = scene.queued()
        due = scene.clock.now() + timedelta(minutes=1)
        scene.store.job_deferred(first, "device out of memory", due)
        scene.receive(series="1.9")
        scene.complete(series="1.9")
        assert scene.claim().series_instance_uid == "1.9"
        assert scene.no_claim()
        scene.clock.advance(seconds=59.9)
        assert scene.no_claim()
        scene.clock.advance(seconds=0.1)
        again = scene.claim()
        assert (again.id, again.attempts, again.reason) == (first.id, 1, "device out of memory")

    def test_an_expired_lease_is_taken_over_which_is_no_attempt(self, scene: Scene) -> None:
        lost = scene.queued()
        scene.clock.advance(seconds=LEASE.total_seconds() - 1)
        assert scene.no_claim("next")
        scene.clock.advance(seconds=1)
        job = scene.claim("next")
        assert (job.id, job.worker_id, job.attempts, job.takeovers) == (lost.id, "next", 0, 1)
        assert scene.history(f"job {job.id}")[-1] == ("taken over", "QUEUED")
        scene.clock.advance(hours=1)
        again = scene.claim("third")
        assert (again.attempts, again.takeovers) == (0, 2)

    def test_a_requeued_job_starts_without_either(self, scene: Scene) -> None:
        scene.queued()
        scene.clock.advance(hours=1)
        scene.store.job_quarantined(scene.claim("next"), "the node ended too often")
        assert scene.job().takeovers == 1
        scene.store.requeue(study_instance_uid=STUDY)
        assert (scene.job().attempts, scene.job().takeovers) == (0, 0)

    def test_the_worker_itself_after_a_restart_counts_too(self, scene: Scene) -> None:
        lost = scene.queued()
        scene.clock.advance(hours=1)
        assert scene.claim(lost.worker_id or "").takeovers == 1
        with pytest.raises(StaleJob):
            scene.store.job_encoded(lost, [result()], FINDINGS)

    def test_a_heartbeat_keeps_the_lease(self, scene: Scene) -> None:
        job = scene.queued()
        scene.clock.advance(minutes=9)
        assert scene.store.extend_job_lease(job, scene.clock.now() + LEASE)
        scene.clock.advance(minutes=9)
        assert scene.no_claim("next")
        scene.store.job_encoded(job, [], FINDINGS)
        assert scene.job().state is JobState.DONE

    @pytest.mark.parametrize("happening", ["superseded", "cancelled", "taken over", "encoded"])
    def test_a_heartbeat_tells_that_the_job_is_lost(self, scene: Scene, happening: str) -> None:
        job = scene.queued()
        MEANWHILE[happening](scene, job)
        before = scene.study()
        assert not scene.store.extend_job_lease(job, scene.clock.now() + LEASE)
        assert scene.study() == before

    def test_progress_is_shown_until_the_lease_ends(self, scene: Scene) -> None:
        job = scene.queued()
        assert scene.store.job_progress(job, "stage1", 0.416)
        (summary,) = scene.store.studies()
        assert (summary.progress, scene.job().progress) == ("stage1 42%", "stage1 42%")
        assert scene.store.extend_job_lease(job, scene.clock.now() + LEASE)
        assert scene.job().step == "stage1"
        scene.clock.advance(hours=1)
        taken = scene.claim()
        assert taken.progress == ""
        assert not scene.store.job_progress(job, "stage2", 0.0)  # of the worker that lost it
        assert scene.store.job_progress(taken, "assemble", 0.0)
        assert scene.job().progress == "assemble"
        scene.store.job_encoded(taken, [result("sr", "2.25.1")], FINDINGS)
        assert scene.job().progress == ""

    def test_each_job_goes_to_one_of_many_workers(self, scene: Scene) -> None:
        for number in range(24):
            scene.receive(series=f"1.{number}")
            scene.complete(series=f"1.{number}")
        barrier = threading.Barrier(6)
        claimed: list[int] = []

        def work(name: str) -> None:
            barrier.wait(timeout=180)
            now = scene.clock.now()
            while (job := scene.store.claim_job(name, now=now, lease_until=now + LEASE)) is not None:
                claimed.append(job.id)

        run_threads([lambda name=f"worker {number}": work(name) for number in range(6)])
        assert len(claimed) == 24
        assert len(set(claimed)) == 24

    def test_two_processes_share_the_queue(self, scene: Scene, url: str) -> None:
        """A second store on the same file stands for another process."""
        for number in range(12):
            scene.receive(series=f"1.{number}")
            scene.complete(series=f"1.{number}")
        claimed: list[int] = []
        with SqlStore(url, scene.clock) as other:
            now = scene.clock.now()

            def work(store: SqlStore) -> None:
                while (job := store.claim_job("w", now=now, lease_until=now + LEASE)) is not None:
                    claimed.append(job.id)

            run_threads([lambda store=store: work(store) for store in (scene.store, other)])
        assert sorted(claimed) == sorted(set(claimed))
        assert len(claimed) == 12


def supersede(scene: Scene, job: Job) -> None:
    scene.receive(99)


def cancel(scene: Scene, job: Job) -> None:
    assert scene.store.cancel(STUDY) == 1


def take_over(scene: Scene, job: Job) -> None:
    scene.clock.advance(hours=1)
    scene.claim("another")


def encode(scene: Scene, job: Job) -> None:
    scene.store.job_encoded(job, [result()], FINDINGS)


def cancel_and_requeue(scene: Scene, job: Job) -> None:
    cancel(scene, job)
    assert scene.store.requeue(study_instance_uid=STUDY) == 1


MEANWHILE = {
    "superseded": supersede,
    "cancelled": cancel,
    "taken over": take_over,
    "encoded": encode,
    "requeued": cancel_and_requeue,
}

OUTCOMES: dict[str, Callable[[SqlStore, Job], None]] = {
    "encoded": lambda store, job: store.job_encoded(job, [result()], FINDINGS),
    "rejected": lambda store, job: store.job_rejected(job, "NOT_AXIAL", "not axial", [result("report")]),
    "failed": lambda store, job: store.job_failed(job, "CRASH", "it broke", [result("report")]),
    "quarantined": lambda store, job: store.job_quarantined(job, "took the worker down 3 times"),
    "deferred": lambda store, job: store.job_deferred(job, "busy", job.created_at + timedelta(minutes=1)),
}


class TestStale:
    """A result that comes too late changes nothing at all."""

    @pytest.mark.parametrize("happening", list(MEANWHILE))
    @pytest.mark.parametrize("outcome", list(OUTCOMES))
    def test_outcome_of_a_job_that_moved_on(self, scene: Scene, outcome: str, happening: str) -> None:
        job = scene.queued()
        MEANWHILE[happening](scene, job)
        before = scene.study()
        with pytest.raises(StaleJob, match=f"job {job.id} "):
            OUTCOMES[outcome](scene.store, job)
        assert scene.study() == before

    @pytest.mark.parametrize("outcome", list(OUTCOMES))
    def test_outcome_of_a_job_that_nobody_leased(self, scene: Scene, outcome: str) -> None:
        scene.receive()
        scene.complete()
        unclaimed = scene.job()
        cancel(scene, unclaimed)
        before = scene.study()
        with pytest.raises(StaleJob):
            OUTCOMES[outcome](scene.store, unclaimed)
        assert scene.study() == before

    def test_an_event_that_the_table_does_not_know(self, scene: Scene) -> None:
        with pytest.raises(InvalidTransition):
            scene.store.job_encoded(scene.encoded(), [result()], FINDINGS)


class TestOutcomes:
    def test_encoded(self, scene: Scene) -> None:
        job = scene.queued(destinations=("pacs", "archive"))
        at = scene.clock.advance(minutes=2)
        scene.store.job_encoded(job, [result("sr"), result("seg")], FINDINGS)
        after = scene.job()
        assert (after.state, after.findings, after.updated_at) == (JobState.ENCODED, FINDINGS, at)
        assert (after.worker_id, after.lease_until) == (None, None)
        assert scene.deliveries() == {(k, d): "PENDING" for k in ("sr", "seg") for d in ("pacs", "archive")}
        assert all(each.result in (result("sr"), result("seg")) for each in scene.study().deliveries)
        assert scene.history(f"job {job.id}") == [("queued", "QUEUED"), ("encoded", "ENCODED")]
        assert scene.state() == "ENCODED"

    @pytest.mark.parametrize(("destinations", "kinds"), [((), ["sr"]), (("pacs",), [])])
    def test_with_nothing_to_deliver_it_is_done_at_once(
        self, scene: Scene, destinations: tuple[str, ...], kinds: list[str]
    ) -> None:
        job = scene.queued(destinations=destinations)
        scene.store.job_encoded(job, [result(kind) for kind in kinds], FINDINGS)
        assert scene.job().state is JobState.DONE
        assert [event for event, _ in scene.history(f"job {job.id}")] == ["queued", "encoded", "delivered"]

    @pytest.mark.parametrize(
        ("outcome", "state", "code", "reason"),
        [
            ("rejected", "REJECTED", "NOT_AXIAL", "not axial"),
            ("failed", "FAILED", "CRASH", "it broke"),
            ("quarantined", "QUARANTINED", None, "took the worker down 3 times"),
        ],
    )
    def test_ended(self, scene: Scene, outcome: str, state: str, code: str | None, reason: str) -> None:
        job = scene.queued()
        OUTCOMES[outcome](scene.store, job)
        after = scene.job()
        assert (after.state.value, after.reason_code, after.reason, after.worker_id) == (state, code, reason, None)
        assert scene.history(f"job {job.id}")[-1] == (outcome, state)
        assert reason in (scene.study().events[-1].detail or "")
        assert scene.no_claim()
        assert scene.state() == state

    @pytest.mark.parametrize("outcome", ["rejected", "failed"])
    def test_the_report_of_an_ended_job_is_delivered(self, scene: Scene, outcome: str) -> None:
        OUTCOMES[outcome](scene.store, scene.queued())
        before = scene.job()
        assert scene.deliveries() == {("report", "pacs"): "PENDING"}
        scene.deliver()
        assert scene.deliveries() == {("report", "pacs"): "SENT"}
        assert scene.job() == before

    def test_a_report_that_fails_does_not_move_the_job(self, scene: Scene) -> None:
        OUTCOMES["rejected"](scene.store, scene.queued())
        before = scene.job()
        scene.fail_deliveries()
        assert scene.job() == before

    def test_deferred(self, scene: Scene) -> None:
        job = scene.queued()
        due = scene.clock.now() + timedelta(minutes=3)
        scene.store.job_deferred(job, "disk full", due)
        after = scene.job()
        assert (after.state, after.attempts, after.reason, after.not_before) == (JobState.QUEUED, 1, "disk full", due)
        assert (after.worker_id, after.lease_until) == (None, None)
        assert scene.history(f"job {job.id}")[-1] == ("deferred", "QUEUED")

    def test_success_clears_the_reason_of_earlier_attempts(self, scene: Scene) -> None:
        scene.store.job_deferred(scene.queued(), "disk full", scene.clock.now())
        scene.store.job_encoded(scene.claim(), [result()], FINDINGS)
        assert (scene.job().reason, scene.job().not_before, scene.job().attempts) == (None, None, 1)


class TestDeliveries:
    def test_claimed_by_destination_and_job(self, scene: Scene) -> None:
        jobs = []
        for number in (1, 2):
            job = scene.queued(series=f"1.{number}", destinations=("pacs", "archive"))
            objects = [result("sr", f"2.25.{number}1"), result("seg", f"2.25.{number}2")]
            scene.store.job_encoded(job, objects, FINDINGS)
            jobs.append(job)
        first = scene.claim_deliveries("pacs")
        assert [(each.job_id, each.result.kind, each.destination) for each in first] == [
            (jobs[0].id, "sr", "pacs"),
            (jobs[0].id, "seg", "pacs"),
        ]
        assert all((each.worker_id, each.lease_until) == ("sender", scene.clock.now() + LEASE) for each in first)
        assert {each.job_id for each in scene.claim_deliveries("pacs")} == {jobs[1].id}
        assert scene.claim_deliveries("pacs") == ()
        assert {each.job_id for each in scene.claim_deliveries("archive")} == {jobs[0].id}
        assert scene.claim_deliveries("elsewhere") == ()

    def test_the_last_one_ends_the_job(self, scene: Scene) -> None:
        job = scene.encoded("sr", "seg")
        sr, seg = scene.claim_deliveries()
        scene.store.delivery_sent(sr, "0x0000")
        assert scene.job().state is JobState.ENCODED
        at = scene.clock.advance(seconds=1)
        scene.store.delivery_sent(seg, "0xB000 coercion")
        assert (scene.job().state, scene.job().updated_at) == (JobState.DONE, at)
        assert scene.history(f"delivery {seg.id}") == [("sent", "SENT")]
        assert scene.history(f"job {job.id}")[-1] == ("delivered", "DONE")
        assert any("0xB000 coercion" in (row.detail or "") for row in scene.study().events)
        assert scene.state() == "DONE"

    def test_a_destination_that_stays_down_delays_no_other(self, scene: Scene) -> None:
        scene.encoded(destinations=("pacs", "archive"))
        (down,) = scene.claim_deliveries("archive")
        scene.store.delivery_deferred(down, "connection refused", scene.clock.now() + timedelta(minutes=1))
        scene.deliver("pacs")
        assert scene.deliveries() == {("sr", "pacs"): "SENT", ("sr", "archive"): "PENDING"}
        assert scene.claim_deliveries("archive") == ()
        scene.clock.advance(minutes=1)
        (again,) = scene.claim_deliveries("archive")
        assert (again.id, again.attempts, again.reason) == (down.id, 1, "connection refused")
        assert scene.history(f"delivery {down.id}") == [("deferred", "PENDING")]

    def test_one_that_failed_fails_the_job_when_all_have_ended(self, scene: Scene) -> None:
        job = scene.encoded(destinations=("pacs", "archive"))
        scene.fail_deliveries("archive", "0xA900 data set does not match SOP class")
        assert scene.job().state is JobState.ENCODED
        scene.deliver("pacs")
        after = scene.job()
        assert (after.state, after.reason_code) == (JobState.FAILED, DELIVERY_FAILED)
        assert "1 of 2" in (after.reason or "")
        assert "sr to archive: 0xA900 data set does not match SOP class" in (after.reason or "")
        assert scene.history(f"job {job.id}")[-1] == ("undeliverable", "FAILED")
        assert scene.deliveries() == {("sr", "pacs"): "SENT", ("sr", "archive"): "FAILED"}

    def test_an_expired_lease_is_taken_over_and_counts(self, scene: Scene) -> None:
        scene.encoded()
        (lost,) = scene.claim_deliveries(worker_id="first")
        scene.clock.advance(seconds=LEASE.total_seconds())
        (taken,) = scene.claim_deliveries(worker_id="second")
        assert (taken.id, taken.attempts, taken.worker_id) == (lost.id, 1, "second")
        assert scene.history(f"delivery {lost.id}") == [("taken over", "PENDING")]
        before = scene.study()
        with pytest.raises(StaleJob):
            scene.store.delivery_sent(lost, "0x0000")
        with pytest.raises(StaleJob):
            scene.store.delivery_deferred(lost, "busy", scene.clock.now())
        with pytest.raises(StaleJob):
            scene.store.delivery_failed(lost, "refused")
        assert scene.study() == before

    @pytest.mark.parametrize("happening", ["superseded", "cancelled"])
    def test_sent_after_the_job_ended_is_stale(self, scene: Scene, happening: str) -> None:
        scene.encoded()
        (delivery,) = scene.claim_deliveries()
        MEANWHILE[happening](scene, scene.job())
        with pytest.raises(StaleJob):
            scene.store.delivery_sent(delivery, "0x0000")
        assert scene.deliveries() == {("sr", "pacs"): "CANCELLED"}

    def test_what_ended_cannot_be_sent(self, scene: Scene) -> None:
        scene.encoded()
        scene.deliver()
        (sent,) = scene.study().deliveries
        assert sent.state is DeliveryState.SENT
        with pytest.raises(InvalidTransition):
            scene.store.delivery_sent(sent, "0x0000")

    def test_threads_end_the_job_once(self, scene: Scene) -> None:
        destinations = [f"peer {number}" for number in range(8)]
        job = scene.encoded("sr", "seg", destinations=destinations)
        run_threads([lambda peer=peer: scene.deliver(peer) for peer in destinations])
        assert scene.job().state is JobState.DONE
        assert [event for event, _ in scene.history(f"job {job.id}")].count("delivered") == 1


class TestAnalysedAgain:
    """Results of a job that was requeued replace those before, without a duplicate."""

    def requeued(self, scene: Scene) -> Job:
        assert scene.store.requeue(study_instance_uid=STUDY) == 1
        return scene.claim()

    def test_deliveries_are_requeued_not_duplicated(self, scene: Scene) -> None:
        scene.encoded("sr", "seg")
        scene.deliver()
        scene.store.job_encoded(self.requeued(scene), [result("sr"), result("seg")], FINDINGS)
        assert scene.deliveries() == {("sr", "pacs"): "PENDING", ("seg", "pacs"): "PENDING"}
        assert len(scene.study().deliveries) == 2
        scene.deliver()
        assert scene.job().state is JobState.DONE

    def test_deliveries_begin_afresh(self, scene: Scene) -> None:
        scene.encoded()
        (delivery,) = scene.claim_deliveries()
        scene.store.delivery_deferred(delivery, "connection refused", scene.clock.now())
        scene.fail_deliveries(reason="0xA900")
        (failed,) = scene.study().deliveries
        assert (failed.attempts, failed.reason) == (1, "0xA900")
        scene.store.job_encoded(self.requeued(scene), [result("sr")], FINDINGS)
        (again,) = scene.study().deliveries
        assert (again.id, again.attempts, again.reason, again.not_before) == (failed.id, 0, None, None)

    def test_an_object_that_is_no_longer_part_stays_out(self, scene: Scene) -> None:
        scene.encoded("sr", "seg")
        scene.fail_deliveries()
        assert scene.job().state is JobState.FAILED
        scene.store.job_encoded(self.requeued(scene), [result("sr")], FINDINGS)
        scene.deliver()
        assert scene.deliveries() == {("sr", "pacs"): "SENT", ("seg", "pacs"): "FAILED"}
        assert scene.job().state is JobState.DONE  # the failed SEG of the analysis before does not count

    def test_a_pending_report_waits_and_is_then_cancelled(self, scene: Scene) -> None:
        scene.store.job_rejected(scene.queued(), "GAP", "a slice is missing", [result("report")])
        job = self.requeued(scene)
        assert scene.deliveries() == {("report", "pacs"): "PENDING"}
        assert scene.claim_deliveries() == ()
        scene.store.job_encoded(job, [result("sr")], FINDINGS)
        assert scene.deliveries() == {("report", "pacs"): "CANCELLED", ("sr", "pacs"): "PENDING"}

    def test_a_pending_report_is_cancelled_by_quarantine_too(self, scene: Scene) -> None:
        scene.store.job_rejected(scene.queued(), "GAP", "a slice is missing", [result("report")])
        scene.store.job_quarantined(self.requeued(scene), "took the worker down 3 times")
        assert scene.deliveries() == {("report", "pacs"): "CANCELLED"}

    def test_the_same_report_again_is_not_duplicated(self, scene: Scene) -> None:
        scene.store.job_rejected(scene.queued(), "GAP", "a slice is missing", [result("report")])
        scene.store.job_rejected(self.requeued(scene), "GAP", "a slice is missing", [result("report")])
        assert scene.deliveries() == {("report", "pacs"): "PENDING"}
        assert len(scene.claim_deliveries()) == 1

    def test_sent_while_the_job_is_analysed_again(self, scene: Scene) -> None:
        scene.store.job_rejected(scene.queued(), "GAP", "a slice is missing", [result("report")])
        (delivery,) = scene.claim_deliveries()
        job = self.requeued(scene)
        scene.store.delivery_sent(delivery, "0x0000")
        assert scene.deliveries() == {("report", "pacs"): "SENT"}
        assert scene.job() == job

    def test_result_values_follow_the_newest_analysis(self, scene: Scene) -> None:
        scene.encoded("sr")
        scene.deliver()
        moved = replace(result("sr"), path="outbox/elsewhere.dcm")
        scene.store.job_encoded(self.requeued(scene), [moved], FINDINGS)
        assert [each.result for each in scene.claim_deliveries()] == [moved]


class TestClockSetBack:
    """By a day: a battery, a wrong time server. What was deferred or leased must not wait for that day to pass."""

    def test_a_deferred_job_and_delivery_are_due(self, scene: Scene) -> None:
        scene.encoded()
        (delivery,) = scene.claim_deliveries()
        scene.store.delivery_deferred(delivery, "refused", scene.clock.now() + timedelta(minutes=1))
        scene.receive(series="1.9")
        scene.complete(series="1.9")
        scene.store.job_deferred(scene.claim(), "busy", scene.clock.now() + timedelta(minutes=1))
        scene.clock.advance(minutes=-50)
        assert scene.no_claim()
        assert scene.claim_deliveries() == ()
        scene.clock.advance(days=-1)
        assert scene.claim().series_instance_uid == "1.9"
        assert [each.id for each in scene.claim_deliveries()] == [delivery.id]

    def test_a_lost_lease_is_taken_over(self, scene: Scene) -> None:
        job = scene.queued()
        scene.clock.advance(days=-1)
        assert scene.claim("next").id == job.id
        assert scene.no_claim("third")


class TestRelease:
    """A worker that stops gives back what it holds."""

    def test_a_job_is_due_at_once_and_no_attempt_is_counted(self, scene: Scene) -> None:
        job = scene.queued()
        assert scene.store.release_leases("another") == 0
        assert scene.no_claim("next")
        assert scene.store.release_leases(job.worker_id or "") == 1
        assert scene.history(f"job {job.id}")[-1] == ("released", "QUEUED")
        assert scene.claim("next").attempts == 0
        with pytest.raises(StaleJob):
            scene.store.job_encoded(job, [result()], FINDINGS)

    def test_deliveries_too(self, scene: Scene) -> None:
        scene.encoded("sr", "seg")
        sr, seg = scene.claim_deliveries()
        scene.store.delivery_sent(sr, "0x0000")
        assert scene.store.release_leases("sender") == 1
        (again,) = scene.claim_deliveries(worker_id="next")
        assert (again.id, again.attempts) == (seg.id, 0)
        with pytest.raises(StaleJob):
            scene.store.delivery_sent(seg, "0x0000")


class TestHasten:
    """A destination that answers again."""

    def test_what_was_deferred_is_due_at_once(self, scene: Scene) -> None:
        scene.encoded(destinations=("pacs", "archive"))
        due = scene.clock.now() + timedelta(hours=1)
        for destination in ("pacs", "archive"):
            (delivery,) = scene.claim_deliveries(destination)
            scene.store.delivery_deferred(delivery, "connection refused", due)
        assert scene.store.hasten_deliveries("pacs") == 1
        assert [each.attempts for each in scene.claim_deliveries("pacs")] == [1]
        assert scene.claim_deliveries("archive") == ()
        assert scene.store.hasten_deliveries("pacs") == 0  # being sent
