"""Instances, duplicates, conflicts, completion and late instances."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest

from pulmo_node.domain.jobs import JobState, NewJob
from pulmo_node.domain.series import InstanceOutcome, SeriesState
from pulmo_node.errors import Permanent, StaleJob
from pulmo_node.store import SqlStore
from tests.integration.store_scene import SERIES, STUDY, Scene, SetClock, instance, result, run_threads

OTHER_SERIES = "1.2.840.1.2"


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


@pytest.fixture
def scene(url: str) -> Iterator[Scene]:
    clock = SetClock()
    with SqlStore(url, clock) as store:
        yield Scene(store, clock)


def test_a_character_that_postgresql_does_not_take_stops_no_series(scene: Scene) -> None:
    """A peer may put NUL into any text, and reasons quote some of them."""
    scene.store.record_instance(replace(instance(), modality="C\0T"))
    scene.store.complete_series(scene.series(), [NewJob(pipeline="ct", destinations=())], "no C\0T")
    scene.store.job_failed(scene.claim(), "ANALYSIS_FAILED", "C\0T is no modality")
    assert scene.series().modality.replace("?", "\0") == "C\0T"
    assert (scene.job().reason or "").replace("?", "\0") == "C\0T is no modality"


class TestInstances:
    def test_the_first_makes_the_series(self, scene: Scene) -> None:
        assert scene.receive() is InstanceOutcome.NEW
        series = scene.series()
        assert (series.state, series.revision, series.number_of_instances) == (SeriesState.RECEIVING, 1, 1)
        assert (series.study_instance_uid, series.modality, series.calling_ae_title) == (STUDY, "CT", "SCANNER")
        assert series.last_instance_at == instance().received_at
        assert series.last_instance_at.utcoffset() == timedelta(0)
        assert scene.history("series") == [("instance", "RECEIVING")]
        assert scene.state() == "RECEIVING"

    def test_the_next_ones_are_counted(self, scene: Scene) -> None:
        scene.receive(1)
        late = scene.clock.advance(seconds=7)
        scene.store.record_instance(replace(instance(2), received_at=late, calling_ae_title="ARCHIVE"))
        series = scene.series()
        assert (series.number_of_instances, series.last_instance_at, series.calling_ae_title) == (2, late, "ARCHIVE")
        assert scene.study().summary.instances == 2
        assert len(scene.history("series")) == 2

    def test_paths_come_in_order_of_arrival(self, scene: Scene) -> None:
        for number in (3, 1, 2):
            scene.receive(number)
        scene.receive(1, series=OTHER_SERIES)
        assert scene.store.instance_paths(SERIES) == tuple(instance(number).path for number in (3, 1, 2))
        assert scene.store.instance_paths("1.2.3") == ()

    def test_one_path_of_every_series_of_the_study(self, scene: Scene) -> None:
        for number in (3, 1):
            scene.receive(number)
            scene.receive(number, series=OTHER_SERIES)
        scene.store.record_instance(instance(1, study="1.2.840.2", series="1.2.840.2.1"))
        expected = (instance(3).path, instance(3, series=OTHER_SERIES).path)
        assert scene.store.study_paths(SERIES) == scene.store.study_paths(OTHER_SERIES) == expected
        assert scene.store.study_paths("1.2.3") == ()

    def test_sent_again_with_equal_bytes_changes_nothing(self, scene: Scene) -> None:
        scene.receive()
        before = scene.study()
        later = scene.clock.advance(minutes=1)
        again = replace(instance(), received_at=later, calling_ae_title="ARCHIVE")
        assert scene.store.record_instance(again) is InstanceOutcome.DUPLICATE
        assert scene.study() == before

    def test_sent_again_after_completion_changes_nothing(self, scene: Scene) -> None:
        scene.queued()
        before = scene.study()
        scene.clock.advance(minutes=1)
        assert scene.receive() is InstanceOutcome.DUPLICATE
        assert scene.study() == before

    @pytest.mark.parametrize("complete", [False, True])
    def test_other_bytes_leave_only_an_event(self, scene: Scene, complete: bool) -> None:
        scene.receive()
        if complete:
            scene.complete()
        before = scene.study()
        scene.clock.advance(minutes=1)
        assert scene.receive(content="b") is InstanceOutcome.CONFLICT
        after = scene.study()
        assert replace(after, events=before.events) == before
        (event,) = after.events[len(before.events) :]
        assert (event.subject, event.event, event.state) == ("instance", "conflict", None)
        assert event.detail is not None
        assert instance(content="b").path in event.detail
        assert scene.store.instance_paths(SERIES) == (instance().path,)

    def test_the_same_conflict_again_adds_no_event(self, scene: Scene) -> None:
        scene.receive()
        for content in "bbcb":
            assert scene.receive(content=content) is InstanceOutcome.CONFLICT
        assert scene.history("instance") == [("conflict", None)] * 2

    @pytest.mark.parametrize(("study", "series"), [(STUDY, OTHER_SERIES), ("1.2.840.2", SERIES), ("1.9", "1.9.1")])
    def test_one_sop_instance_uid_in_another_series_is_a_conflict(self, scene: Scene, study: str, series: str) -> None:
        scene.receive()
        moved = replace(instance(), study_instance_uid=study, series_instance_uid=series)
        assert scene.store.record_instance(moved) is InstanceOutcome.CONFLICT
        assert [summary.study_instance_uid for summary in scene.store.studies()] == [STUDY]
        assert scene.series().number_of_instances == 1
        assert scene.history("instance") == [("conflict", None)]

    def test_one_series_in_two_studies_is_a_conflict(self, scene: Scene) -> None:
        scene.receive(1)
        assert scene.receive(2, study="1.2.840.2") is InstanceOutcome.CONFLICT
        assert scene.series().number_of_instances == 1
        assert scene.history("instance") == [("conflict", None)]

    def test_two_studies_interleaved(self, scene: Scene) -> None:
        for number in range(1, 6):
            scene.receive(number)
            scene.receive(number, study="1.2.840.2", series="1.2.840.2.1")
        assert {each.study_instance_uid: each.instances for each in scene.store.studies()} == {STUDY: 5, "1.2.840.2": 5}

    def test_a_naive_time_is_refused(self, scene: Scene) -> None:
        naive = replace(instance(), received_at=instance().received_at.replace(tzinfo=None))
        with pytest.raises(Permanent, match="without a time zone"):
            scene.store.record_instance(naive)
        assert scene.store.studies() == ()

    def test_many_threads_lose_nothing(self, scene: Scene) -> None:
        outcomes: list[InstanceOutcome] = []

        def send(thread: int) -> None:
            outcomes.extend(scene.receive(number) for number in range(thread * 10, thread * 10 + 20))

        run_threads([partial(send, thread) for thread in range(6)])
        assert outcomes.count(InstanceOutcome.NEW) == 70
        assert outcomes.count(InstanceOutcome.DUPLICATE) == 50
        assert scene.series().number_of_instances == 70
        assert len(scene.store.instance_paths(SERIES)) == 70
        assert len(scene.history("series")) == 70


class TestQuiet:
    def test_only_what_is_quiet_and_not_excluded(self, scene: Scene) -> None:
        start = scene.clock.now()
        for seconds, series in ((0, "1.1"), (1, "1.2"), (2, "1.3")):
            at = start + timedelta(seconds=seconds)
            scene.store.record_instance(replace(instance(series=series), received_at=at))
        boundary = start + timedelta(seconds=2)

        def quiet(*excluding: str) -> list[str]:
            found = scene.store.quiet_series(before=boundary, excluding=excluding)
            return [series.series_instance_uid for series in found]

        assert quiet() == ["1.1", "1.2"]
        assert quiet("1.1", "1.9") == ["1.2"]

    def test_a_complete_series_is_no_longer_found(self, scene: Scene) -> None:
        scene.queued()
        assert scene.store.quiet_series(before=scene.clock.advance(hours=1), excluding=()) == ()


class TestCompletion:
    def test_jobs_are_queued(self, scene: Scene) -> None:
        scene.receive()
        at = scene.clock.advance(seconds=30)
        scene.complete(pipelines=("ct", "retina"), destinations=("pacs", "archive"))
        assert scene.series().state is SeriesState.COMPLETE
        jobs = scene.study().jobs
        assert [(job.pipeline, job.destinations, job.state) for job in jobs] == [
            ("ct", ("pacs", "archive"), JobState.QUEUED),
            ("retina", ("pacs", "archive"), JobState.QUEUED),
        ]
        assert all((job.revision, job.attempts, job.created_at, job.updated_at) == (1, 0, at, at) for job in jobs)
        assert all((job.study_instance_uid, job.series_instance_uid) == (STUDY, SERIES) for job in jobs)
        assert scene.history("series")[-1] == ("quiet", "COMPLETE")
        assert scene.history(f"job {jobs[0].id}") == [("queued", "QUEUED")]
        assert scene.state() == "QUEUED"

    def test_without_a_pipeline_the_note_says_why(self, scene: Scene) -> None:
        scene.receive()
        scene.complete(pipelines=())
        assert scene.series().note == "no rule matches"
        assert scene.study().events[-1].detail == "no rule matches"
        assert scene.state() == "NO_PIPELINE"

    def test_an_instance_that_came_meanwhile_wins(self, scene: Scene) -> None:
        scene.receive(1)
        seen = scene.series()
        scene.receive(2)
        with pytest.raises(StaleJob):
            scene.store.complete_series(seen, [NewJob(pipeline="ct", destinations=())], None)
        assert scene.series().state is SeriesState.RECEIVING
        assert scene.study().jobs == ()
        assert "quiet" not in dict(scene.history("series"))

    def test_completed_by_another_meanwhile(self, scene: Scene) -> None:
        scene.receive()
        seen = scene.series()
        scene.complete()
        with pytest.raises(StaleJob):
            scene.store.complete_series(seen, [NewJob(pipeline="ct", destinations=())], None)
        assert len(scene.study().jobs) == 1


class TestLateInstance:
    def test_reopens_the_series_and_supersedes_its_open_job(self, scene: Scene) -> None:
        job = scene.queued()
        scene.receive(2)
        series = scene.series()
        assert (series.state, series.revision, series.number_of_instances) == (SeriesState.RECEIVING, 2, 2)
        assert scene.job().state is JobState.SUPERSEDED
        assert scene.job().worker_id is None
        assert scene.history(f"job {job.id}")[-1] == ("superseded", "SUPERSEDED")
        assert scene.state() == "RECEIVING"

    def test_the_next_revision_has_a_job_of_its_own(self, scene: Scene) -> None:
        scene.queued()
        scene.receive(2)
        scene.complete()
        assert [(job.revision, job.state) for job in scene.study().jobs] == [
            (1, JobState.SUPERSEDED),
            (2, JobState.QUEUED),
        ]
        assert scene.state() == "QUEUED"
        assert scene.study().summary.jobs == 1

    def test_what_was_not_yet_sent_is_cancelled(self, scene: Scene) -> None:
        scene.encoded("sr", "seg", destinations=("pacs", "archive"))
        scene.deliver("pacs")
        scene.receive(2)
        assert scene.job().state is JobState.SUPERSEDED
        assert scene.deliveries() == {
            ("sr", "pacs"): "SENT",
            ("seg", "pacs"): "SENT",
            ("sr", "archive"): "CANCELLED",
            ("seg", "archive"): "CANCELLED",
        }
        assert scene.claim_deliveries("archive") == ()

    def test_a_job_that_is_done_stays_so(self, scene: Scene) -> None:
        scene.encoded()
        scene.deliver()
        scene.receive(2)
        assert scene.job().state is JobState.DONE
        assert scene.state() == "RECEIVING"

    def test_an_earlier_failure_does_not_hide_the_next_revision(self, scene: Scene) -> None:
        scene.store.job_failed(scene.queued(), "CRASH", "it broke")
        assert scene.state() == "FAILED"
        scene.receive(2)
        assert scene.state() == "RECEIVING"
        scene.complete()
        assert scene.state() == "QUEUED"

    def test_the_note_of_the_revision_before_is_gone(self, scene: Scene) -> None:
        scene.receive(1)
        scene.complete(pipelines=())
        scene.receive(2)
        assert scene.series().note is None

    def test_the_report_of_a_rejected_job_is_not_sent_any_more(self, scene: Scene) -> None:
        """It speaks of fewer images than there are."""
        scene.store.job_rejected(scene.queued(), "GAP", "a slice is missing", [result("report")])
        scene.receive(2)
        assert scene.job().state is JobState.REJECTED
        assert scene.deliveries() == {("report", "pacs"): "CANCELLED"}


def test_a_series_that_came_before_the_clock_was_set_back_is_quiet(url: str) -> None:
    clock = SetClock()
    with SqlStore(url, clock) as store:
        scene = Scene(store, clock)
        scene.receive()
        clock.advance(minutes=-30)
        assert store.quiet_series(before=clock.now() - timedelta(seconds=10), excluding=()) == ()
        clock.advance(days=-1)
        (series,) = store.quiet_series(before=clock.now() - timedelta(seconds=10), excluding=())
        assert series.series_instance_uid == SERIES
