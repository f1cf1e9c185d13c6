"""The one function that all three state tables share."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from pulmo_node.errors import InvalidTransition

State = TypeVar("State", bound=StrEnum)
Event = TypeVar("Event", bound=StrEnum)


def next_state(table: Mapping[tuple[State, Event], State], state: State, event: Event) -> State:
    """The state after an event.

    Raises:
        InvalidTransition: the table has no row for the pair.
    """
    try:
        return table[state, event]
    except KeyError:
        raise InvalidTransition(f"{type(state).__name__} {state.value} does not allow {event.value}") from None
