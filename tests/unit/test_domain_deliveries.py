"""The table of delivery states: a class for each state, a test for each event."""

from __future__ import annotations

from typing import ClassVar

import pytest

from pulmo_node.domain.deliveries import DeliveryEvent, DeliveryState, transition
from pulmo_node.errors import InvalidTransition


class EveryEvent:
    """`allowed` is the whole row of the table; every other event is refused."""

    state: ClassVar[DeliveryState]
    allowed: ClassVar[dict[str, str]]

    @pytest.mark.parametrize("event", list(DeliveryEvent))
    def test_event(self, event: DeliveryEvent) -> None:
        if event.value in self.allowed:
            assert transition(self.state, event).value == self.allowed[event.value]
        else:
            with pytest.raises(InvalidTransition, match=f"{self.state.value} does not allow {event.value}"):
                transition(self.state, event)

    def test_the_row_names_known_events(self) -> None:
        assert set(self.allowed) <= {event.value for event in DeliveryEvent}


class TestPending(EveryEvent):
    state = DeliveryState.PENDING
    allowed: ClassVar = {
        "sent": "SENT",
        "deferred": "PENDING",
        "released": "PENDING",
        "failed": "FAILED",
        "cancelled": "CANCELLED",
        "superseded": "CANCELLED",
        "left out": "CANCELLED",
    }


class TestSent(EveryEvent):
    state = DeliveryState.SENT
    allowed: ClassVar = {
        "committed": "COMMITTED",
        "not committed": "PENDING",
        "failed": "FAILED",
        "requeued": "PENDING",
    }


class TestCommitted(EveryEvent):
    state = DeliveryState.COMMITTED
    allowed: ClassVar = {"requeued": "PENDING"}


class TestFailed(EveryEvent):
    state = DeliveryState.FAILED
    allowed: ClassVar = {"requeued": "PENDING"}


class TestCancelled(EveryEvent):
    state = DeliveryState.CANCELLED
    allowed: ClassVar = {"requeued": "PENDING"}


def test_every_state_has_its_class() -> None:
    assert {row.state for row in EveryEvent.__subclasses__()} == set(DeliveryState)
