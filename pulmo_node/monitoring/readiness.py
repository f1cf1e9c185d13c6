"""Whether the node can work at this moment: database, disk, models, worker. Quick enough to be asked every second."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pulmo_node.errors import PulmoError
from pulmo_node.monitoring.observed import Model, Observed


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One thing that must be right."""

    name: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Disk:
    """The disk that the storage lies on."""

    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """Asks for each condition when it is called."""

    ask_database: Callable[[], object]  # raises `PulmoError`
    storage: Path
    min_free_bytes: int
    pipelines: Sequence[str]  # that must be usable
    loads_first: bool  # whether they are loaded at the start, not with the first series
    observed: Observed
    alive: Callable[[], bool]

    def conditions(self) -> tuple[Condition, ...]:
        """All of them; the node is ready where each is right."""
        return (self._database(), self._disk(), self._models(), self._worker())

    def _database(self) -> Condition:
        try:
            self.ask_database()
        except PulmoError as exc:
            return Condition(name="database", ok=False, detail=str(exc))
        return Condition(name="database", ok=True)

    def _disk(self) -> Condition:
        disk = disk_of(self.storage)
        if disk is None or not os.access(self.storage, os.W_OK):
            return Condition(name="disk", ok=False, detail="the storage directory cannot be written")
        if disk.free_bytes < self.min_free_bytes:
            detail = f"only {disk.free_bytes / 1024**3:.1f} GiB free, nothing new is accepted"
            return Condition(name="disk", ok=False, detail=detail)
        return Condition(name="disk", ok=True, detail=f"{disk.free_bytes / 1024**3:.1f} GiB free")

    def _models(self) -> Condition:
        models = self.observed.now().models
        not_asked = Model(problem="not loaded yet" if self.loads_first else "")
        problems = {label: models.get(label, not_asked).problem for label in self.pipelines}
        told = [f"{label}: {problem}" for label, problem in problems.items() if problem]
        return Condition(name="models", ok=not told, detail="; ".join(told))

    def _worker(self) -> Condition:
        alive = self.alive()
        return Condition(name="worker", ok=alive, detail="" if alive else "its duties do not run")


def disk_of(storage: Path) -> Disk | None:
    """The disk of a folder; None where it cannot be asked."""
    try:
        usage = shutil.disk_usage(storage)
    except OSError:
        return None
    return Disk(free_bytes=usage.free, total_bytes=usage.total)
