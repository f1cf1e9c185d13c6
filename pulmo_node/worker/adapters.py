"""The outside world of a worker, as the ports of its stages."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pulmo_node.commitment import CommitmentScu
from pulmo_node.gaps import GapRepair
from pulmo_node.ports import (
    Clock,
    InstanceStore,
    JobStore,
    Outbox,
    ReceiveStore,
    ResultSender,
    Transfers,
)


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """The outside world of a worker."""

    clock: Clock
    series: ReceiveStore
    jobs: JobStore
    instances: InstanceStore
    outbox: Outbox
    sender: ResultSender
    transfers: Transfers
    gaps: GapRepair | None = None  # None: what came is all there is
    commitment: CommitmentScu | None = None  # shared with receiver and sender, which bring it the reports of peers
    monotonic_seconds: Callable[[], float] = field(default=time.monotonic)  # never set, unlike `clock`

    def files_of(self, series_instance_uid: str) -> list[Path]:
        """The instances of a series that are in use, in order of arrival."""
        return [self.instances.absolute(path) for path in self.series.instance_paths(series_instance_uid)]
