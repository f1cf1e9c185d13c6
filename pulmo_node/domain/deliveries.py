"""A delivery: one result object to one destination."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal

from pulmo_node.domain.machine import next_state


class DeliveryState(StrEnum):
    """What is true and durable of a delivery."""

    PENDING = "PENDING"  # to be sent
    SENT = "SENT"  # the peer answered Success or a warning
    COMMITTED = "COMMITTED"  # the peer took over responsibility (storage commitment)
    FAILED = "FAILED"  # refused, or tried as often as configured
    CANCELLED = "CANCELLED"  # its job was cancelled or superseded first, or the destination is not to have it


class DeliveryEvent(StrEnum):
    """What can happen to a delivery."""

    SENT = "sent"
    COMMITTED = "committed"
    NOT_COMMITTED = "not committed"  # refused, or no word of it in time: it is sent again
    DEFERRED = "deferred"
    RELEASED = "released"  # its sender stopped and gave it back; no attempt
    FAILED = "failed"
    REQUEUED = "requeued"
    CANCELLED = "cancelled"
    LEFT_OUT = "left out"  # of a kind that the destination is not to have
    SUPERSEDED = "superseded"


TRANSITIONS: dict[tuple[DeliveryState, DeliveryEvent], DeliveryState] = {
    (DeliveryState.PENDING, DeliveryEvent.SENT): DeliveryState.SENT,
    (DeliveryState.PENDING, DeliveryEvent.DEFERRED): DeliveryState.PENDING,  # attempts + 1, not_before
    (DeliveryState.PENDING, DeliveryEvent.RELEASED): DeliveryState.PENDING,
    (DeliveryState.PENDING, DeliveryEvent.FAILED): DeliveryState.FAILED,
    (DeliveryState.PENDING, DeliveryEvent.CANCELLED): DeliveryState.CANCELLED,
    (DeliveryState.PENDING, DeliveryEvent.SUPERSEDED): DeliveryState.CANCELLED,
    (DeliveryState.PENDING, DeliveryEvent.LEFT_OUT): DeliveryState.CANCELLED,
    (DeliveryState.SENT, DeliveryEvent.COMMITTED): DeliveryState.COMMITTED,
    (DeliveryState.SENT, DeliveryEvent.NOT_COMMITTED): DeliveryState.PENDING,  # attempts + 1, not_before
    (DeliveryState.SENT, DeliveryEvent.FAILED): DeliveryState.FAILED,  # not committed as often as configured
    **{
        (state, DeliveryEvent.REQUEUED): DeliveryState.PENDING
        for state in (DeliveryState.SENT, DeliveryState.COMMITTED, DeliveryState.FAILED, DeliveryState.CANCELLED)
    },
}


def transition(state: DeliveryState, event: DeliveryEvent) -> DeliveryState:
    """The state after an event. Raises `InvalidTransition`."""
    return next_state(TRANSITIONS, state, event)


@dataclass(frozen=True, kw_only=True)
class PeerTls:
    """How a peer is spoken to by TLS; paths of PEM files, empty where there is none."""

    ca: str = ""  # issuers of the peer's certificate; empty: those that the system trusts
    certificate: str = ""  # the node's own, for a peer that asks for one
    private_key: str = ""
    hostname: str = ""  # that the peer's certificate must name; empty: the peer's host


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A DICOM application entity or a DICOMweb server that results are sent to."""

    name: str  # key in the configuration
    ae_title: str
    host: str
    port: int
    tls: PeerTls | None = None  # None: in the clear
    commitment: bool = False  # storage commitment is asked for where the peer offers it
    deidentify: Literal["remove_dates", "keep_dates"] | None = (
        None  # results go to it without the patient; None: as are
    )
    stow_url: str = ""  # of a DICOMweb server, which is spoken to instead; empty: a DICOM node
    stow_authorization: str = field(default="", repr=False)  # value of the HTTP header; a secret


REPORT_KIND = "sr"
"""Kind of the report of a job: of its findings, or of why there are none."""


@dataclass(frozen=True, kw_only=True)
class ResultObject:
    """An encoded object in the outbox."""

    kind: str  # "sr", "seg", "key-image", "gsps", "pdf"
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str  # of the object's own series
    path: str  # relative to the storage directory
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A row of the delivery table with the object that it is to send."""

    id: int
    job_id: int
    result: ResultObject
    destination: str  # name of a configured peer
    state: DeliveryState
    attempts: int
    not_before: datetime | None
    reason: str | None
    worker_id: str | None
    lease_until: datetime | None
    updated_at: datetime
    commitment_uid: str | None = None  # Transaction UID of the latest request for storage commitment
    commitment_until: datetime | None = None  # SENT, but delivered only once committed; None: SENT is delivered
