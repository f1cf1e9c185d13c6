"""Composes the stages: completes quiet series, runs the analysis of queued jobs, delivers what lies in the outbox.

In the order of the data: `ahead` (what can be done before there is a job), `series` (quiet series to jobs), `jobs`
(jobs to result objects) with `progress`, `deliveries` (result objects to destinations); `adapters` is what they need
of the outside.

Each duty does one thing to the end and records it; none of them loops or waits (that is the scheduler's part).
A crash at any moment leaves states that are true: the lease of the job or delivery expires and it is taken up again.
"""

from __future__ import annotations

import logging
import threading
from datetime import datetime, timedelta

from pulmo_node.attempt import Analysis
from pulmo_node.config import Config
from pulmo_node.errors import PulmoError
from pulmo_node.worker.adapters import Adapters
from pulmo_node.worker.ahead import AheadDuty
from pulmo_node.worker.deliveries import DeliveryDuty
from pulmo_node.worker.jobs import JobDuty
from pulmo_node.worker.series import complete_quiet_series, next_quiet_at

log = logging.getLogger(__name__)


class Worker:
    """One worker of the node; several may share a database, each with a `worker_id` of its own."""

    def __init__(self, config: Config, adapters: Adapters, analysis: Analysis, worker_id: str) -> None:
        self._config = config
        self._ports = adapters
        self._analysis = analysis
        self._worker_id = worker_id
        self._stopping = threading.Event()
        self._warming = threading.Event()
        self._jobs = JobDuty(config, adapters, analysis, worker_id)
        self._ahead = AheadDuty(config, adapters, analysis)
        self._deliveries = DeliveryDuty(config, adapters, worker_id, self._stopping)

    def stop(self) -> None:
        """Begin nothing more: what is between two steps ends there, and warming up at once."""
        self._stopping.set()
        if self._warming.is_set():
            self._analysis.stop()

    def break_off(self) -> None:
        """End the analysis that is running; its job stays queued."""
        self._stopping.set()
        self._analysis.stop()

    def release(self) -> None:
        """Give back what this worker holds, so that the next start need not wait for its leases to expire.

        A database that does not take it stops nobody from ending.
        """
        self._analysis.close()
        try:
            released = self._ports.jobs.release_leases(self._worker_id)
        except PulmoError as exc:
            log.error("leases not given back, they expire: %s", exc)
            return
        if released:
            log.info("%d leases given back", released)

    def warm_up(self) -> None:
        """Load the networks and let them run once, where the configuration says so: the first study then need not
        wait for that."""
        if not self._config.analysis.warm_up:
            return
        self._warming.set()
        try:
            if not self._stopping.is_set():
                self._ahead.warm_up()
        finally:
            self._warming.clear()

    def read_ahead(self) -> bool:
        """Read images of a series that is still arriving, for a moment; False where there is nothing to do now."""
        return self._ahead.read_ahead()

    def next_quiet_at(self, within: timedelta) -> datetime | None:
        """When the next series becomes quiet that does so within that time; None where none does."""
        return next_quiet_at(self._config, self._ports, within)

    def complete_quiet_series(self) -> int:
        """Complete every series that is quiet, and queue its jobs; the number of jobs queued."""
        return complete_quiet_series(self._config, self._ports)

    def analyse_next(self) -> bool:
        """Take the next queued job through assembly, analysis and encoding; False where there was none."""
        return self._jobs.analyse_next()

    def deliver_next(self, destination: str) -> bool:
        """Send the due objects of one job to one destination; False where there was nothing to do, or it is not tried.

        A destination that cannot be reached is left alone for a while: what waits for it loses neither time nor
        attempts to it. All of that is due at once when it answers again.
        """
        return self._deliveries.deliver_next(destination)


__all__ = ["Adapters", "Worker"]
