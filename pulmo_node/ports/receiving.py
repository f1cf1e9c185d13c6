"""What the receiver, the quiet-period check and the comparison at the start need."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from pulmo_node.domain.jobs import NewJob
from pulmo_node.domain.series import InstanceOutcome, Series, StoredInstance


@dataclass(frozen=True, kw_only=True)
class WrittenInstance:
    """Bytes of an instance that are durable on disk."""

    path: str  # relative to the storage directory
    sha256: str  # of the data set as the peer sent it, without preamble and meta header
    size_bytes: int


class IncomingInstance(Protocol):
    """The file of an instance while it arrives. Memory is that of one fragment."""

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Write the next bytes of the data set.

        Raises:
            StorageFull: there is too little space by now.
            Transient: the disk refuses.
        """
        ...

    def finish(self) -> WrittenInstance:
        """That was all: file fsynced, named, folder fsynced on return.

        A file that is already there under that SOP Instance UID with the same data set is kept. One with other
        bytes is kept too, and the new bytes are put beside it under a name of their own (a conflict).

        Raises:
            StorageFull: it is new and there is too little space.
            Transient: the disk refuses.
        """
        ...

    def discard(self) -> None:
        """Leave nothing of what is not finished; called at the end in any case."""
        ...


class InstanceStore(Protocol):
    """Received Part 10 files, one per SOP instance, as the peer sent them."""

    def begin(
        self, *, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str, meta: bytes
    ) -> IncomingInstance:
        """Begin a file with preamble and meta header (`meta`).

        Raises:
            StorageFull: it is new and there is too little space.
            Transient: the disk refuses.
        """
        ...

    def digest(self, path: str) -> str | None:
        """sha256 of the data set in a file as it is now; None where there is no such file, or no whole one.

        Raises:
            Transient: it cannot be read.
        """
        ...

    def absolute(self, path: str) -> Path:
        """A path of `WrittenInstance` or `ResultObject` on this machine."""
        ...


class ReceiveStore(Protocol):
    """What the receiver and the quiet-period check need."""

    def record_instance(self, instance: StoredInstance) -> InstanceOutcome:
        """One transaction: the instance row, the series row and its event.

        A new instance of a COMPLETE series reopens it: revision + 1, its open jobs SUPERSEDED, their pending
        deliveries CANCELLED. On return the row is committed.
        """
        ...

    def quiet_series(self, *, before: datetime, excluding: Collection[str]) -> tuple[Series, ...]:
        """RECEIVING series whose last instance came before that time, without those Series Instance UIDs."""
        ...

    def complete_series(self, series: Series, jobs: Sequence[NewJob], note: str | None) -> None:
        """RECEIVING -> COMPLETE with its jobs QUEUED, in one transaction.

        Raises:
            StaleJob: an instance came meanwhile (state or number of instances is not what `series` says).
        """
        ...

    def instance_paths(self, series_instance_uid: str) -> tuple[str, ...]:
        """Paths of the instances in use (no conflicts), relative to the storage directory, in order of arrival."""
        ...

    def images_sha256(self, series_instance_uid: str) -> str:
        """One digest of the data sets of all instances in use, whatever their order."""
        ...

    def study_paths(self, series_instance_uid: str) -> tuple[str, ...]:
        """Path of the first instance of every series of the same study, the series itself among them."""
        ...


class ReconcileStore(Protocol):
    """What the comparison of disk and database at the start of the node needs."""

    def recorded_paths(self) -> tuple[set[str], set[str]]:
        """Paths of the instances in use, and those of conflicts and of purged instances; relative to storage."""
        ...

    def record_instance(self, instance: StoredInstance) -> InstanceOutcome:
        """As `ReceiveStore` has it."""
        ...

    def drop_lost(self, paths: Collection[str]) -> tuple[str, ...]:
        """Drop the rows of instances in use whose file is gone, one transaction a series; these Series Instance UIDs.

        The series goes back to RECEIVING with what is left; a COMPLETE one as a new revision, as for a late instance.
        """
        ...


class Transfers(Protocol):
    """What is arriving right now."""

    def series_in_transfer(self) -> Collection[str]:
        """Series Instance UIDs whose instance was the latest on an open association."""
        ...
