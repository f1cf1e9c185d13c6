"""Wakes the quiet-period check, the analysis and the deliveries. Holds no state of its own.

Each duty is one APScheduler job that runs its step until there is nothing left to do. It runs once a second, and at
once when another duty made work for it. A duty never runs twice at the same time, and every destination has a duty
of its own, so a destination that is down delays nobody else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler

from pulmo_node import logs
from pulmo_node.errors import PulmoError
from pulmo_node.worker import Worker

log = logging.getLogger(__name__)

_INTERVAL_SECONDS = 1.0
_PURGE_SECONDS = 60.0
_OWN_DUTIES = ("complete", "analyse", "purge", "read ahead", "warm up")  # besides one a destination
_BETWEEN_SECONDS = 0.01  # so that a job takes the turn of reading ahead
_ALIVE_SECONDS = 90.0  # more than the database waits for a lock


class Scheduler:
    """The duties of a node in the background."""

    def __init__(self, worker: Worker, destinations: Sequence[str], purge: Callable[[], int]) -> None:
        self._worker = worker
        self._purge = purge
        self._stopping = threading.Event()
        self._checked_at = time.monotonic()  # when series were last looked at
        self._running = 0  # duties, guarded by `_ended`
        self._ended = threading.Condition()
        self._deliver = {f"deliver {name}": name for name in destinations}
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": ThreadPoolExecutor(len(_OWN_DUTIES) + len(self._deliver))},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

    def start(self) -> None:
        """Begin with every duty at once: what a crash left open is taken up."""
        # A duty that still runs when its second is over is no news; APScheduler would warn of it every time.
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        self._add("complete", self._complete)
        self._add("analyse", self._analyse)
        for duty, destination in self._deliver.items():
            self._add(duty, partial(self._deliver_to, destination))
        self._add("purge", self._remove_old, seconds=_PURGE_SECONDS)
        self._add("read ahead", self._read_ahead)
        self._scheduler.add_job(partial(self._run, "warm up", self._worker.warm_up), id="warm up")
        self._scheduler.start()

    def stop(self, drain_seconds: float) -> None:
        """Let the steps that are running finish and stop; an analysis that needs longer than that is broken off."""
        self._stopping.set()
        self._worker.stop()
        limit = threading.Timer(drain_seconds, self._worker.break_off)
        limit.daemon = True
        limit.start()
        if self._scheduler.running:
            # Its own waiting would hold a lock that a duty needs which is just waking another.
            self._scheduler.shutdown(wait=False)
        with self._ended:
            self._ended.wait_for(lambda: not self._running)
        limit.cancel()
        self._worker.release()

    @property
    def alive(self) -> bool:
        """Whether the duty that runs every second has come to its end lately: no lock holds it for ever."""
        return time.monotonic() - self._checked_at < _ALIVE_SECONDS

    def _add(self, duty: str, step: Callable[[], None], seconds: float = _INTERVAL_SECONDS) -> None:
        self._scheduler.add_job(
            partial(self._run, duty, step),
            "interval",
            seconds=seconds,
            id=duty,
            next_run_time=datetime.now(UTC),
        )

    def _run(self, duty: str, step: Callable[[], None]) -> None:
        with self._ended:
            if self._stopping.is_set():
                return
            self._running += 1
        try:
            step()
        except Exception as exc:  # noqa: BLE001
            # The boundary of one run of a duty: a locked database or a full disk must not end the duty for good.
            log.error("%s: unexpected error, tried again later: %s", duty, _told(exc))
        finally:
            with self._ended:
                self._running -= 1
                self._ended.notify_all()

    def _wake(self, *duties: str, at: datetime | None = None) -> None:
        for duty in duties:
            try:
                self._scheduler.modify_job(duty, next_run_time=at or datetime.now(UTC))
            except JobLookupError:
                return  # stopping

    def _remove_old(self) -> None:
        self._purge()

    def _complete(self) -> None:
        if self._worker.complete_quiet_series():
            self._wake("analyse")
        self._checked_at = time.monotonic()
        coming = self._worker.next_quiet_at(timedelta(seconds=_INTERVAL_SECONDS))
        if coming is not None:  # it is not left for the next second
            self._wake("complete", at=coming)

    def _read_ahead(self) -> None:
        while not self._stopping.is_set() and self._worker.read_ahead():
            self._stopping.wait(_BETWEEN_SECONDS)

    def _analyse(self) -> None:
        while not self._stopping.is_set() and self._worker.analyse_next():
            self._wake(*self._deliver)

    def _deliver_to(self, destination: str) -> None:
        while not self._stopping.is_set() and self._worker.deliver_next(destination):
            pass


def _told(exc: Exception) -> str:
    return str(exc) if isinstance(exc, PulmoError) else logs.places(exc)
