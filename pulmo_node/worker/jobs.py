"""From a queued job to result objects in the outbox: assembly, analysis and encoding under a lease."""

from __future__ import annotations

import hashlib
import logging
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from pulmo_node import encode, logs
from pulmo_node.attempt import Analysis, SeriesRequest, SeriesResult, outbox_item
from pulmo_node.config import Config
from pulmo_node.domain.deliveries import ResultObject
from pulmo_node.domain.jobs import Job
from pulmo_node.domain.retry import Defer, decide, quarantine_reason
from pulmo_node.errors import AnalysisLost, Permanent, PulmoError, Rejected, StaleJob, Stopped, Transient
from pulmo_node.worker.adapters import Adapters
from pulmo_node.worker.progress import ProgressRecord

log = logging.getLogger(__name__)


class JobDuty:
    """The analysis of queued jobs, one at a time."""

    def __init__(self, config: Config, adapters: Adapters, analysis: Analysis, worker_id: str) -> None:
        self._config = config
        self._ports = adapters
        self._analysis = analysis
        self._worker_id = worker_id
        self._unrecorded = False  # the database did not take the outcome of a job, which still holds its lease
        self._chance = random.SystemRandom()

    def analyse_next(self) -> bool:
        """Take the next queued job through assembly, analysis and encoding; False where there was none."""
        self._give_back()
        now = self._ports.clock.now()
        job = self._ports.jobs.claim_job(self._worker_id, now=now, lease_until=self._lease_end())
        if job is None:
            return False
        try:
            limits = self._config.analysis
            reason = quarantine_reason(
                attempts=job.attempts,
                max_attempts=limits.max_attempts,
                takeovers=job.takeovers,
                max_takeovers=limits.max_takeovers,
            )
            if reason is not None:
                self._ports.jobs.job_quarantined(job, reason)
                log.error("job %d of series %s quarantined: %s", job.id, job.series_instance_uid, reason)
                return True
            with self._heartbeat(job):
                self._analyse(job)
        except StaleJob as exc:
            log.info("job %d: late result thrown away: %s", job.id, exc)
        except PulmoError:
            self._unrecorded = True
            raise
        return True

    def _give_back(self) -> None:
        """Give up a lease that this worker still holds though it is through: no attempt was lost with it."""
        if self._unrecorded:
            self._ports.jobs.release_leases(self._worker_id, jobs=True, destinations=())
            self._unrecorded = False

    def _analyse(self, job: Job) -> None:
        try:
            result = self._results(job)
        except Stopped:
            log.info("job %d of series %s: broken off, the node stops", job.id, job.series_instance_uid)
        except Rejected as exc:
            wanted = self._config.results.report_rejected
            report = self._report(job, exc.code, exc.reason) if wanted else ()
            with self._kept_by(job, report):
                self._ports.jobs.job_rejected(job, exc.code, exc.reason, report)
            log.info("job %d of series %s rejected: %s", job.id, job.series_instance_uid, exc)
        except PulmoError as exc:
            self._attempt_failed(job, exc)
        except Exception as exc:  # noqa: BLE001
            # The boundary of one job: whatever a decoder or a network throws must not end the node.
            log.error("job %d of series %s: unexpected %s", job.id, job.series_instance_uid, logs.places(exc))
            self._attempt_failed(job, Permanent(f"unexpected {type(exc).__name__}; the log has the details"))
        else:
            try:
                with self._kept_by(job, result.objects):
                    self._ports.jobs.job_encoded(job, result.objects, result.findings_json)
            except Permanent as exc:  # it would come back at once, before all others
                self._attempt_failed(job, exc)
                return
            spent = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result.timings_seconds.items())
            number = len(result.objects)
            log.info("job %d of series %s encoded: %d objects; %s", job.id, job.series_instance_uid, number, spent)

    @contextmanager
    def _kept_by(self, job: Job, objects: Sequence[ResultObject]) -> Iterator[None]:
        """While the outcome of a job is recorded: where its study was erased, no object of it may stay."""
        try:
            yield
        except StaleJob:
            if objects and not self._ports.jobs.job_exists(job):
                self._ports.outbox.discard(Path(objects[0].path).parent.name)
            raise

    def _results(self, job: Job) -> SeriesResult:
        """Result objects of a job in the outbox, those of an earlier attempt where there are any."""
        info = self._analysis.info(job.pipeline)

        def key_of(context: encode.ResultContext) -> str:
            return context.uid("outbox", info.weights_sha256)

        context = self._context(job, key_of)
        key = key_of(context)
        present = self._ports.outbox.get(key)
        if present is not None:
            return SeriesResult(objects=present[0], findings_json=present[1], timings_seconds={})
        study = self._ports.series.study_paths(job.series_instance_uid)
        return self._analysis.run(
            SeriesRequest(
                pipeline=job.pipeline,
                paths=tuple(self._ports.files_of(job.series_instance_uid)),
                study_paths=tuple(self._ports.instances.absolute(path) for path in study),
                context=context,
                outbox_key=key,
            ),
            ProgressRecord(self._ports.jobs, job, self._ports.monotonic_seconds),
        )

    def _context(self, job: Job, key_of: Callable[[encode.ResultContext], str]) -> encode.ResultContext:
        """The context of what a job makes; `key_of` gives its key in the outbox.

        Its predecessor is the latest report on the series that is not this very result of an earlier run. So the same
        images, weights and settings give the same UIDs again, and anything else names what it replaces.
        """
        context = encode.ResultContext(
            series_instance_uid=job.series_instance_uid,
            revision=job.revision,
            pipeline=job.pipeline,
            settings_sha256=self._settings_sha256(job),
            content_datetime=self._ports.clock.now(),
            options=encode.ResultOptions(**self._config.results.options),
        )
        for report in self._ports.jobs.earlier_reports(job):
            present = self._ports.outbox.get(key_of(context))
            if present is None or report.sop_instance_uid not in {found.sop_instance_uid for found in present[0]}:
                predecessor = encode.Predecessor(
                    sop_class_uid=report.sop_class_uid,
                    sop_instance_uid=report.sop_instance_uid,
                    series_instance_uid=report.series_instance_uid,
                )
                context = replace(context, predecessors=(predecessor,))
        return context

    def _settings_sha256(self, job: Job) -> str:
        """Digest of the pipeline's settings and of the images.

        The revision alone does not tell these apart: a study that was deleted and is sent again begins with the first.
        """
        parts = self._analysis.settings_sha256(job.pipeline), self._ports.series.images_sha256(job.series_instance_uid)
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def _attempt_failed(self, job: Job, error: PulmoError) -> None:
        policy, attempts = self._config.analysis.retry, job.attempts + 1
        chance = self._chance.random()
        decision = decide(policy, error, attempts=attempts, now=self._ports.clock.now(), chance=chance)
        if isinstance(decision, Defer):
            self._ports.jobs.job_deferred(job, str(error), decision.not_before, counts=decision.counts)
            log.warning("job %d of series %s deferred: %s", job.id, job.series_instance_uid, error)
            return
        if isinstance(error, AnalysisLost):
            self._ports.jobs.job_quarantined(job, decision.reason)
            log.error("job %d of series %s quarantined: %s", job.id, job.series_instance_uid, decision.reason)
            return
        code = "GAVE_UP" if isinstance(error, Transient) else "ANALYSIS_FAILED"
        wanted = self._config.results.report_failed
        report = self._report(job, code, decision.reason) if wanted else ()
        with self._kept_by(job, report):
            self._ports.jobs.job_failed(job, code, decision.reason, report)
        log.error("job %d of series %s failed: %s", job.id, job.series_instance_uid, decision.reason)

    def _report(self, job: Job, code: str, reason: str) -> Sequence[ResultObject]:
        """The report that says why there are no findings; none where even that cannot be written."""

        def key_of(context: encode.ResultContext) -> str:
            return context.uid(f"outbox {code} {reason}", "")

        try:
            context = self._context(job, key_of)
            report = encode.encode_rejection(self._ports.files_of(job.series_instance_uid), code, reason, context)
            return self._ports.outbox.put(key_of(context), [outbox_item(report)], "")[0]
        except PulmoError as exc:
            log.warning("job %d: no report of %s: %s", job.id, code, exc)
            return ()

    def _lease_end(self) -> datetime:
        return self._ports.clock.now() + timedelta(seconds=self._config.analysis.lease_seconds)

    @contextmanager
    def _heartbeat(self, job: Job) -> Iterator[None]:
        """Extend the lease from a thread of its own while the analysis holds this one."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(self._config.analysis.lease_seconds / 3):
                try:
                    if not self._ports.jobs.extend_job_lease(job, self._lease_end()):
                        return  # superseded or cancelled: the result will be found stale
                except PulmoError as exc:
                    log.warning("job %d: lease not extended: %s", job.id, exc)

        thread = threading.Thread(target=beat, name=f"lease of job {job.id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
