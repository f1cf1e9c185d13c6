"""The table of job states: a class for each state, a test for each event."""

from __future__ import annotations

from typing import ClassVar

import pytest

from pulmo_node.domain.jobs import OPEN_STATES, JobEvent, JobState, transition
from pulmo_node.errors import InvalidTransition


class EveryEvent:
    """`allowed` is the whole row of the table; every other event is refused."""

    state: ClassVar[JobState]
    allowed: ClassVar[dict[str, str]]

    @pytest.mark.parametrize("event", list(JobEvent))
    def test_event(self, event: JobEvent) -> None:
        if event.value in self.allowed:
            assert transition(self.state, event).value == self.allowed[event.value]
        else:
            with pytest.raises(InvalidTransition, match=f"{self.state.value} does not allow {event.value}"):
                transition(self.state, event)

    def test_the_row_names_known_events(self) -> None:
        assert set(self.allowed) <= {event.value for event in JobEvent}


class TestQueued(EveryEvent):
    state = JobState.QUEUED
    allowed: ClassVar = {
        "encoded": "ENCODED",
        "rejected": "REJECTED",
        "failed": "FAILED",
        "quarantined": "QUARANTINED",
        "deferred": "QUEUED",
        "released": "QUEUED",
        "superseded": "SUPERSEDED",
        "cancelled": "CANCELLED",
    }


class TestEncoded(EveryEvent):
    state = JobState.ENCODED
    allowed: ClassVar = {
        "delivered": "DONE",
        "undeliverable": "FAILED",
        "superseded": "SUPERSEDED",
        "cancelled": "CANCELLED",
    }


class TestDone(EveryEvent):
    state = JobState.DONE
    allowed: ClassVar = {"requeued": "QUEUED", "redelivered": "ENCODED"}


class TestRejected(EveryEvent):
    state = JobState.REJECTED
    allowed: ClassVar = {"requeued": "QUEUED"}


class TestFailed(EveryEvent):
    state = JobState.FAILED
    allowed: ClassVar = {"requeued": "QUEUED", "redelivered": "ENCODED"}


class TestQuarantined(EveryEvent):
    state = JobState.QUARANTINED
    allowed: ClassVar = {"requeued": "QUEUED"}


class TestSuperseded(EveryEvent):
    state = JobState.SUPERSEDED
    allowed: ClassVar = {}


class TestCancelled(EveryEvent):
    state = JobState.CANCELLED
    allowed: ClassVar = {"requeued": "QUEUED"}


def test_every_state_has_its_class() -> None:
    assert {row.state for row in EveryEvent.__subclasses__()} == set(JobState)


def test_open_states_are_those_that_can_be_superseded() -> None:
    assert {state.value for state in OPEN_STATES} == {"QUEUED", "ENCODED"}
