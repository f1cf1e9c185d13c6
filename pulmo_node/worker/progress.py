"""How far the analysis of a job is: to its row, where `show` and `studies` find it, and now and then to the log."""

from __future__ import annotations

import logging
from collections.abc import Callable

from pulmo_node.domain.jobs import Job, told_progress
from pulmo_node.errors import PulmoError
from pulmo_node.ports import JobStore

log = logging.getLogger(__name__)

_ROW_SECONDS = 1.0
_LOG_SECONDS = 30.0


class ProgressRecord:
    """Takes the progress of one job."""

    def __init__(self, jobs: JobStore, job: Job, monotonic_seconds: Callable[[], float]) -> None:
        self._jobs = jobs
        self._job = job
        self._seconds = monotonic_seconds
        self._step = ""
        self._row_at = self._log_at = monotonic_seconds()

    def __call__(self, step: str, share: float) -> None:
        """The running step and the share of it that is done. What cannot be written is not worth an error."""
        now = self._seconds()
        if step != self._step or now - self._row_at >= _ROW_SECONDS:
            self._step, self._row_at = step, now
            try:
                self._jobs.job_progress(self._job, step, share)
            except PulmoError as exc:
                log.debug("job %d: progress not recorded: %s", self._job.id, exc)
        if now - self._log_at >= _LOG_SECONDS:
            self._log_at = now
            log.info("job %d of series %s: %s", self._job.id, self._job.series_instance_uid, told_progress(step, share))
