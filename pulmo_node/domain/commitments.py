"""Storage commitment as the node gives it: a peer asks whether the node keeps what it was sent (PS3.4 J)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class FailureReason(IntEnum):
    """Why an instance is not committed, (0008,1197): PS3.3 C.14.1.1."""

    PROCESSING_FAILURE = 0x0110
    NO_SUCH_INSTANCE = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119


@dataclass(frozen=True, kw_only=True)
class Commitment:
    """A request that is still to be answered."""

    id: int
    transaction_uid: str
    calling_ae_title: str
    instances: tuple[tuple[str, str], ...]  # SOP Class UID, SOP Instance UID
    attempts: int


@dataclass(frozen=True, kw_only=True)
class CommitmentReport:
    """The answer: what is on disk as it came, and what is not."""

    transaction_uid: str
    stored: tuple[tuple[str, str], ...]  # SOP Class UID, SOP Instance UID
    failed: tuple[tuple[str, str, FailureReason], ...]


@dataclass(frozen=True, kw_only=True)
class KeptInstance:
    """What the database says of an instance in use."""

    sop_class_uid: str
    path: str  # relative to the storage directory
    sha256: str  # of the data set as the peer sent it
