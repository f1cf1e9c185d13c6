"""A job: one pipeline on one revision of one series. "Running" is a lease, not a state."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pulmo_node.domain.machine import next_state
from pulmo_node.domain.priority import Priority


class JobState(StrEnum):
    """What is true and durable of a job."""

    QUEUED = "QUEUED"  # to be analysed
    ENCODED = "ENCODED"  # every result object lies in the outbox, to be delivered
    DONE = "DONE"  # every delivery is delivered
    REJECTED = "REJECTED"  # the series is not what the pipeline is for; the code says why
    FAILED = "FAILED"  # analysis or delivery failed for good; the reason says why
    QUARANTINED = "QUARANTINED"  # it took the worker down too often
    SUPERSEDED = "SUPERSEDED"  # a later revision of the series took its place
    CANCELLED = "CANCELLED"  # by an administrator


class JobEvent(StrEnum):
    """What can happen to a job."""

    ENCODED = "encoded"
    REJECTED = "rejected"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    DEFERRED = "deferred"
    RELEASED = "released"  # its worker stopped and gave it back; no attempt
    DELIVERED = "delivered"  # the last of its deliveries is delivered
    UNDELIVERABLE = "undeliverable"  # all deliveries ended, at least one of them FAILED
    REQUEUED = "requeued"  # analyse again
    REDELIVERED = "redelivered"  # deliver again what is in the outbox
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"


OPEN_STATES = frozenset({JobState.QUEUED, JobState.ENCODED})
"""States in which the node still has something to do."""

DELIVERY_FAILED = "DELIVERY_FAILED"
"""Reason code of a job that failed after its objects had been encoded."""

TRANSITIONS: dict[tuple[JobState, JobEvent], JobState] = {
    (JobState.QUEUED, JobEvent.ENCODED): JobState.ENCODED,
    (JobState.QUEUED, JobEvent.REJECTED): JobState.REJECTED,
    (JobState.QUEUED, JobEvent.FAILED): JobState.FAILED,
    (JobState.QUEUED, JobEvent.QUARANTINED): JobState.QUARANTINED,
    (JobState.QUEUED, JobEvent.DEFERRED): JobState.QUEUED,  # attempts + 1, not_before
    (JobState.QUEUED, JobEvent.RELEASED): JobState.QUEUED,
    (JobState.ENCODED, JobEvent.DELIVERED): JobState.DONE,
    (JobState.ENCODED, JobEvent.UNDELIVERABLE): JobState.FAILED,
    (JobState.DONE, JobEvent.REDELIVERED): JobState.ENCODED,
    (JobState.FAILED, JobEvent.REDELIVERED): JobState.ENCODED,  # only with reason code DELIVERY_FAILED
    **{
        (state, JobEvent.REQUEUED): JobState.QUEUED
        for state in (JobState.FAILED, JobState.REJECTED, JobState.QUARANTINED, JobState.DONE, JobState.CANCELLED)
    },
    **{(state, JobEvent.SUPERSEDED): JobState.SUPERSEDED for state in OPEN_STATES},
    **{(state, JobEvent.CANCELLED): JobState.CANCELLED for state in OPEN_STATES},
}


def transition(state: JobState, event: JobEvent) -> JobState:
    """The state after an event. Raises `InvalidTransition`."""
    return next_state(TRANSITIONS, state, event)


def told_progress(step: str | None, share: float | None) -> str:
    """A running step and the share of it that is done, for people; "" without a step."""
    if step is None:
        return ""
    return f"{step} {share:.0%}" if share else step


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job to be queued when its series is complete."""

    pipeline: str
    destinations: tuple[str, ...]  # names of configured peers
    priority: Priority = Priority.ROUTINE


@dataclass(frozen=True, kw_only=True)
class Job:
    """A row of the job table with what a worker needs of its series."""

    id: int
    study_instance_uid: str
    series_instance_uid: str
    revision: int
    pipeline: str
    destinations: tuple[str, ...]
    state: JobState
    attempts: int  # analyses that failed and are tried again
    not_before: datetime | None
    reason_code: str | None
    reason: str | None
    worker_id: str | None
    lease_until: datetime | None
    created_at: datetime
    updated_at: datetime
    findings: str | None = None  # findings.json of the analysis
    priority: Priority = Priority.ROUTINE
    takeovers: int = 0  # leases that ended with their node
    step: str | None = None  # that is running under the lease
    share: float | None = None  # of that step, 0 to 1

    @property
    def progress(self) -> str:
        """How far its analysis is, for people; "" where none is running."""
        return told_progress(self.step, self.share)
