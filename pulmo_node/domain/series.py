"""A series as it is received: still receiving, or complete after a quiet period."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pulmo_node.domain.machine import next_state


class SeriesState(StrEnum):
    """What is true and durable of a series."""

    RECEIVING = "RECEIVING"  # instances may still come
    COMPLETE = "COMPLETE"  # quiet; its jobs exist


class SeriesEvent(StrEnum):
    """What can happen to a series."""

    INSTANCE = "instance"  # a new instance was stored (a re-sent one is no event)
    QUIET = "quiet"  # nothing came for the quiet period and no association is sending it
    LOST = "lost"  # files of instances are gone from the disk; their rows were dropped, so they can be sent again
    REQUEUED = "requeued"  # an administrator wants the rules applied again to a series that got no job


TRANSITIONS: dict[tuple[SeriesState, SeriesEvent], SeriesState] = {
    (SeriesState.RECEIVING, SeriesEvent.INSTANCE): SeriesState.RECEIVING,
    (SeriesState.RECEIVING, SeriesEvent.QUIET): SeriesState.COMPLETE,
    (SeriesState.COMPLETE, SeriesEvent.INSTANCE): SeriesState.RECEIVING,  # revision + 1, open jobs superseded
    (SeriesState.RECEIVING, SeriesEvent.LOST): SeriesState.RECEIVING,
    (SeriesState.COMPLETE, SeriesEvent.LOST): SeriesState.RECEIVING,  # revision + 1, open jobs superseded
    (SeriesState.COMPLETE, SeriesEvent.REQUEUED): SeriesState.RECEIVING,  # the quiet check takes it from there
}


def transition(state: SeriesState, event: SeriesEvent) -> SeriesState:
    """The state after an event. Raises `InvalidTransition`."""
    return next_state(TRANSITIONS, state, event)


@dataclass(frozen=True, kw_only=True)
class StoredInstance:
    """One received instance, its bytes already durable on disk."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    modality: str
    calling_ae_title: str
    path: str  # relative to the storage directory
    sha256: str  # of the data set as the peer sent it
    size_bytes: int
    received_at: datetime


class InstanceOutcome(StrEnum):
    """What recording an instance came to."""

    NEW = "new"
    DUPLICATE = "duplicate"  # same SOP Instance UID, same bytes: no event
    CONFLICT = "conflict"  # same SOP Instance UID, other bytes: kept aside, the first bytes stay in use


@dataclass(frozen=True, kw_only=True)
class Series:
    """A row of the series table."""

    id: int
    study_instance_uid: str
    series_instance_uid: str
    modality: str
    calling_ae_title: str  # of the association that brought the newest instance
    state: SeriesState
    revision: int  # 1 for the first completion; + 1 each time a late instance reopens the series
    number_of_instances: int
    last_instance_at: datetime
    note: str | None = None  # why no pipeline took it
