"""The table of series states: a class for each state, a test for each event."""

from __future__ import annotations

from typing import ClassVar

import pytest

from pulmo_node.domain.series import SeriesEvent, SeriesState, transition
from pulmo_node.errors import InvalidTransition


class EveryEvent:
    """`allowed` is the whole row of the table; every other event is refused."""

    state: ClassVar[SeriesState]
    allowed: ClassVar[dict[str, str]]

    @pytest.mark.parametrize("event", list(SeriesEvent))
    def test_event(self, event: SeriesEvent) -> None:
        if event.value in self.allowed:
            assert transition(self.state, event).value == self.allowed[event.value]
        else:
            with pytest.raises(InvalidTransition, match=f"{self.state.value} does not allow {event.value}"):
                transition(self.state, event)

    def test_the_row_names_known_events(self) -> None:
        assert set(self.allowed) <= {event.value for event in SeriesEvent}


class TestReceiving(EveryEvent):
    state = SeriesState.RECEIVING
    allowed: ClassVar = {"instance": "RECEIVING", "quiet": "COMPLETE", "lost": "RECEIVING"}


class TestComplete(EveryEvent):
    state = SeriesState.COMPLETE
    allowed: ClassVar = {"instance": "RECEIVING", "requeued": "RECEIVING", "lost": "RECEIVING"}


def test_every_state_has_its_class() -> None:
    assert {row.state for row in EveryEvent.__subclasses__()} == set(SeriesState)
