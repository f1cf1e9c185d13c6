"""Which series are read ahead, and when one is asked for again; how progress reaches a job's row and the log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from pulmo_node.attempt import ReadingAhead
from pulmo_node.config import resolve
from pulmo_node.domain.jobs import Job, JobState
from pulmo_node.domain.series import Series, SeriesState
from pulmo_node.errors import AnalysisLost, Permanent, Stopped, Transient
from pulmo_node.worker import Adapters
from pulmo_node.worker.ahead import AheadDuty
from pulmo_node.worker.progress import ProgressRecord
from pulmo_node.worker.series import next_quiet_at

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def series(number: int = 1, **changes: Any) -> Series:
    made = Series(
        id=number,
        study_instance_uid="1",
        series_instance_uid=f"1.{number}",
        modality="CT",
        calling_ae_title="CT",
        state=SeriesState.RECEIVING,
        revision=1,
        number_of_instances=10,
        last_instance_at=NOW,
    )
    return replace(made, **changes)


class Outside:
    """Store, clock and analysis in one: what arrives, and what was asked for."""

    def __init__(self, *arriving: Series, answer: ReadingAhead | Exception = ReadingAhead.DONE) -> None:
        self.arriving = list(arriving)
        self.answer = answer
        self.asked: list[str] = []
        self.warmed: list[Sequence[str]] = []

    def now(self) -> datetime:
        return NOW

    def quiet_series(self, *, before: datetime, excluding: Sequence[str]) -> tuple[Series, ...]:
        return tuple(each for each in self.arriving if each.last_instance_at < before)

    def instance_paths(self, series_instance_uid: str) -> tuple[str, ...]:
        return (series_instance_uid,)

    def absolute(self, path: str) -> Path:
        return Path("/") / path

    def read_ahead(self, paths: Sequence[Path]) -> ReadingAhead:
        self.asked += [path.name for path in paths]
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def warm_up(self, labels: Sequence[str]) -> None:
        self.warmed.append(labels)
        if isinstance(self.answer, Exception):
            raise self.answer

    @property
    def ports(self) -> Adapters:
        unused = cast(Any, None)
        me = cast(Any, self)
        return Adapters(clock=me, series=me, jobs=unused, instances=me, outbox=unused, sender=unused, transfers=unused)


def duty(outside: Outside, tmp_path: Path, **analysis: Any) -> AheadDuty:
    config = resolve({"node": {"storage": str(tmp_path)}, "analysis": analysis}, base=tmp_path)
    return AheadDuty(config, outside.ports, cast(Any, outside))


def test_a_series_is_asked_for_until_all_is_read_and_again_when_more_came(tmp_path: Path) -> None:
    outside = Outside(series(), answer=ReadingAhead.MORE)
    one = duty(outside, tmp_path)
    assert one.read_ahead()
    outside.answer = ReadingAhead.DONE
    assert not one.read_ahead()
    assert outside.asked == ["1.1", "1.1"]
    assert not one.read_ahead()
    assert len(outside.asked) == 2
    outside.arriving = [series(number_of_instances=11)]
    assert not one.read_ahead()
    assert len(outside.asked) == 3


def test_while_a_series_is_analysed_it_waits_and_is_asked_for_later(tmp_path: Path) -> None:
    outside = Outside(series(1), series(2), answer=ReadingAhead.BUSY)
    one = duty(outside, tmp_path)
    assert not one.read_ahead()
    assert outside.asked == ["1.1"]
    outside.answer = ReadingAhead.DONE
    assert not one.read_ahead()
    assert outside.asked == ["1.1", "1.1", "1.2"]


def test_a_series_that_cost_the_process_is_left_to_its_job(tmp_path: Path) -> None:
    outside = Outside(series(1), answer=AnalysisLost("the analysis process was ended by signal 11"))
    one = duty(outside, tmp_path)
    assert not one.read_ahead()
    assert not one.read_ahead()
    assert outside.asked == ["1.1"]


@pytest.mark.parametrize(("arriving", "analysis"), [(series(modality="DX"), {}), (series(), {"read_ahead_mib": 0})])
def test_what_is_not_read_ahead(tmp_path: Path, arriving: Series, analysis: dict[str, Any]) -> None:
    outside = Outside(arriving)
    assert not duty(outside, tmp_path, **analysis).read_ahead()
    assert outside.asked == []


def test_the_pipelines_of_the_rules_are_warmed_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outside = Outside()
    duty(outside, tmp_path).warm_up()
    assert outside.warmed == [("ct-nodules",)]
    for problem in (Permanent("weights missing"), Stopped("the node stops")):
        outside.answer = problem
        duty(outside, tmp_path).warm_up()
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "not warmed up: weights missing"
    ]


def test_the_next_series_to_be_quiet(tmp_path: Path) -> None:
    config = resolve({"node": {"storage": str(tmp_path)}, "receive": {"quiet_seconds": 10}}, base=tmp_path)
    ages = (30.0, 9.6, 9.2, 1.0)  # one is quiet and waits for a gap to be filled, one is still far from it
    outside = Outside(*(series(n, last_instance_at=NOW - timedelta(seconds=age)) for n, age in enumerate(ages)))
    assert next_quiet_at(config, outside.ports, timedelta(seconds=1)) == NOW + timedelta(seconds=0.4)
    outside.arriving = outside.arriving[:1]
    assert next_quiet_at(config, outside.ports, timedelta(seconds=1)) is None


class Rows:
    """Takes progress; refuses where it is told to."""

    def __init__(self) -> None:
        self.written: list[tuple[str, float]] = []
        self.locked = False

    def job_progress(self, job: Job, step: str, share: float) -> bool:
        if self.locked:
            raise Transient("the database is locked")
        self.written.append((step, share))
        return True


def test_progress_is_written_once_a_second_and_logged_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    job = cast(Job, type("Seen", (), {"id": 7, "series_instance_uid": "1.2", "state": JobState.QUEUED}))
    rows, seconds = Rows(), [0.0]
    record = ProgressRecord(cast(Any, rows), job, lambda: seconds[0])
    with caplog.at_level(logging.INFO):
        record("assemble", 0.0)
        for tenth in range(1, 25):
            seconds[0] = tenth / 10
            record("stage1", tenth / 100)
        assert rows.written == [("assemble", 0.0), ("stage1", 0.01), ("stage1", 0.11), ("stage1", 0.21)]
        assert caplog.messages == []
        rows.locked = True
        seconds[0] = 31.0
        record("stage1", 0.5)
    assert caplog.messages == ["job 7 of series 1.2: stage1 50%"]
