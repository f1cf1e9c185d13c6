"""What the page shows of many studies: which of them, in which order, a page at a time; and how much of everything."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class StudyFilter:
    """Which studies; an empty field asks for nothing."""

    state: str = ""  # one of `STUDY_STATES`
    uid: str = ""  # beginning of a Study or Series Instance UID
    accession_digest: str = ""  # of a whole accession number, see `catalogue`
    date_from: str = ""  # Study Date, YYYYMMDD
    date_to: str = ""


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """One line of the list."""

    study_instance_uid: str
    state: str
    series: int
    instances: int
    jobs: int
    study_date: str  # YYYYMMDD, empty where the images do not say
    updated_at: datetime


@dataclass(frozen=True, kw_only=True)
class StudyPage:
    """A page of the list, the last changed first."""

    rows: tuple[StudyRow, ...]
    total: int  # studies that the filter lets through


@dataclass(frozen=True, kw_only=True)
class ReceivedCount:
    """What one peer has sent since the node was set up, whatever became of it later."""

    calling_ae_title: str
    status: str  # "new", "duplicate", "conflict", "refused"
    instances: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class QueueCount:
    """What waits for one destination."""

    destination: str
    waiting: int
    oldest_at: datetime | None  # when the oldest of it was put there


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How much there is of everything, at one moment of the database."""

    received: tuple[ReceivedCount, ...]
    series: dict[str, int]  # by state
    jobs: dict[tuple[str, str], int]  # by state and code; the code is empty where there is none
    deliveries: dict[tuple[str, str], int]  # by destination and state
    queues: tuple[QueueCount, ...]
    analysis_waiting: int
    analysis_oldest_at: datetime | None
    analysis_running: int
