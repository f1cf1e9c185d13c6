"""What erasure and purge need."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class StudyFiles:
    """What lies on disk of a study. Paths are relative to the storage directory."""

    series: int
    instances: tuple[str, ...]
    results: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PurgeableStudy:
    """A study of which nothing is unsent, failed or still to be done."""

    study_instance_uid: str
    size_bytes: int
    touched_at: datetime


@dataclass(frozen=True, kw_only=True)
class PurgedFiles:
    """What is to be removed of a purged study. Paths are relative to the storage directory."""

    paths: tuple[str, ...]
    all_gone: bool  # False: some of its images have come since


class MaintenanceStore(Protocol):
    """What erasure and purge need."""

    def study_files(self, study_instance_uid: str) -> StudyFiles | None:
        """What lies on disk of a study; None where it is unknown. Raises `Transient` while it is being received."""
        ...

    def erase(self, study_instance_uid: str, set_aside: Callable[[StudyFiles], None]) -> None:
        """Remove every row of a study, its files with `set_aside`. Raises `Transient` while it is being received."""
        ...

    def known_outbox_paths(self) -> set[str]:
        """Paths of all result objects that a row knows."""
        ...

    def purgeable(self) -> tuple[PurgeableStudy, ...]:
        """Studies whose images can go, the longest untouched first."""
        ...

    def purge(self, study_instance_uid: str) -> tuple[str, ...]:
        """Mark the images of a study as purged; their paths, none where that is no longer allowed."""
        ...

    def removing_purged(self, study_instance_uid: str) -> AbstractContextManager[PurgedFiles]:
        """What of a purged study is still to be removed; no instance can be recorded until the block ends."""
        ...

    def purged_paths(self) -> tuple[str, ...]:
        """Paths of the images that were purged and have not come again."""
        ...

    def stored_bytes(self) -> int:
        """Size of the received images on disk, in bytes."""
        ...
