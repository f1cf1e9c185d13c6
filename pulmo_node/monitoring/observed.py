"""What this process has seen of itself since it began. Safe to share between threads; writes nothing anywhere."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime

from pulmo_node.ports import Clock

BUCKETS_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)


@dataclass(frozen=True, kw_only=True)
class Durations:
    """How long one stage took, as a histogram."""

    counts: tuple[int, ...] = (0,) * (len(BUCKETS_SECONDS) + 1)  # a bucket each, not added up
    sum_seconds: float = 0.0

    def with_one(self, seconds: float) -> Durations:
        """One more."""
        at = bisect_left(BUCKETS_SECONDS, seconds)
        counts = tuple(number + (place == at) for place, number in enumerate(self.counts))
        return Durations(counts=counts, sum_seconds=self.sum_seconds + seconds)


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Whether a destination answers, as far as it was asked."""

    answered_at: datetime | None = None  # the last time
    down_since: datetime | None = None  # None: it answers, or was not asked yet
    reason: str = ""  # why it counts as down


@dataclass(frozen=True, kw_only=True)
class Model:
    """Whether a pipeline is loaded."""

    loaded_seconds: float | None = None  # how long that took; None: not loaded
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Everything at one moment."""

    stages: dict[str, Durations] = field(default_factory=dict)
    associations: dict[str, int] = field(default_factory=dict)  # by what became of them
    destinations: dict[str, Destination] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    version: int = 0  # grows with every destination that goes down or comes up


class Observed:
    """Where the watching adapters put what they see."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._stages: dict[str, Durations] = {}
        self._associations: Counter[str] = Counter()
        self._destinations: dict[str, Destination] = {}
        self._models: dict[str, Model] = {}
        self._version = 0

    def now(self) -> Seen:
        """A copy."""
        with self._lock:
            return Seen(
                stages=dict(self._stages),
                associations=dict(self._associations),
                destinations=dict(self._destinations),
                models=dict(self._models),
                version=self._version,
            )

    def stage_took(self, stage: str, seconds: float) -> None:
        """One more run of a stage."""
        with self._lock:
            self._stages[stage] = self._stages.get(stage, Durations()).with_one(seconds)

    def association(self, outcome: str) -> None:
        """One more association was accepted, rejected, released or aborted."""
        with self._lock:
            self._associations[outcome] += 1

    def destination_answered(self, name: str) -> None:
        """It took what it was sent, or an echo."""
        with self._lock:
            known = self._destinations.get(name)
            self._destinations[name] = Destination(answered_at=self._clock.now())
            self._version += known is None or known.down_since is not None

    def destination_failed(self, name: str, reason: str) -> None:
        """It could not be reached, or broke off."""
        with self._lock:
            known = self._destinations.get(name, Destination())
            since = known.down_since or self._clock.now()
            self._destinations[name] = replace(known, down_since=since, reason=reason)
            self._version += known.down_since is None

    def model_loaded(self, pipeline: str, seconds: float) -> None:
        """It can be used; the first loading counts, whatever asks again is answered at once."""
        with self._lock:
            if self._models.get(pipeline, Model()).loaded_seconds is None:
                self._models[pipeline] = Model(loaded_seconds=seconds)

    def model_failed(self, pipeline: str, problem: str) -> None:
        """It cannot be used."""
        with self._lock:
            self._models[pipeline] = Model(problem=problem)
