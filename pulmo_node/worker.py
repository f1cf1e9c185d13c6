"""Composes the stages: completes quiet series, runs the analysis of queued jobs, delivers what lies in the outbox.

Each function does one thing to the end and records it; none of them loops or waits (that is the scheduler's part).
A crash at any moment leaves states that are true: the lease of the job or delivery expires and it is taken up again.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from pulmo_node import assemble, encode, logs, select
from pulmo_node.attempt import Analysis, SeriesRequest, SeriesResult, outbox_item
from pulmo_node.commitment_scu import CommitmentScu
from pulmo_node.config import Config
from pulmo_node.domain.circuit import Circuit
from pulmo_node.domain.deliveries import Delivery, ResultObject
from pulmo_node.domain.jobs import Job
from pulmo_node.domain.retry import Defer, GiveUp, decide
from pulmo_node.domain.series import Series
from pulmo_node.errors import AnalysisLost, Permanent, PulmoError, Rejected, StaleJob, Stopped, Transient
from pulmo_node.gaps import GapRepair
from pulmo_node.ports import (
    Clock,
    InstanceStore,
    JobStore,
    Outbox,
    ReceiveStore,
    ResultLink,
    ResultSender,
    Transfers,
)

log = logging.getLogger(__name__)

_ANALYSIS = ""  # a duty; every other one is the name of a destination


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


class Worker:
    """One worker of the node; several may share a database, each with a `worker_id` of its own."""

    def __init__(self, config: Config, adapters: Adapters, analysis: Analysis, worker_id: str) -> None:
        self._config = config
        self._ports = adapters
        self._analysis = analysis
        self._worker_id = worker_id
        self._commitment = adapters.commitment or CommitmentScu(adapters.jobs, adapters.clock, config.delivery.retry)
        self._stopping = threading.Event()
        self._unrecorded: set[str] = set()  # duties whose outcome the database did not take: they still hold a lease
        self._circuits: dict[str, Circuit] = {}  # by destination, each changed by its own duty only
        self._chance = random.SystemRandom()

    def stop(self) -> None:
        """Begin nothing more: what is between two steps ends there."""
        self._stopping.set()

    def break_off(self) -> None:
        """End the analysis that is running; its job stays queued."""
        self._stopping.set()
        self._analysis.stop()

    def release(self) -> None:
        """Give back what this worker holds, so that the next start need not wait for its leases to expire."""
        self._analysis.close()
        released = self._ports.jobs.release_leases(self._worker_id)
        if released:
            log.info("%d leases given back", released)

    def complete_quiet_series(self) -> int:
        """Complete every series that is quiet, and queue its jobs; the number of jobs queued."""
        before = self._ports.clock.now() - timedelta(seconds=self._config.receive.quiet_seconds)
        busy = self._ports.transfers.series_in_transfer()
        queued = 0
        for series in self._ports.series.quiet_series(before=before, excluding=busy):
            if self._ports.gaps is not None and self._ports.gaps.holds_back(series):
                continue
            selection = self._select(series)
            try:
                self._ports.series.complete_series(series, selection.jobs, selection.note)
            except StaleJob:
                continue  # an instance came meanwhile: the next check sees the series again
            queued += len(selection.jobs)
            log.info(
                "series %s revision %d complete: %d instances, %d jobs%s",
                series.series_instance_uid,
                series.revision,
                series.number_of_instances,
                len(selection.jobs),
                f" ({selection.note})" if selection.note else "",
            )
        return queued

    def _select(self, series: Series) -> select.Selection:
        paths = self._paths(series.series_instance_uid)
        missing = sum(not path.is_file() for path in paths)
        if missing:
            note = f"{missing} of {len(paths)} images were purged: send them again, then requeue the study"
            return select.Selection(jobs=(), note=note)
        try:
            description = assemble.describe(paths, series.calling_ae_title)
        except Rejected as exc:
            return select.Selection(jobs=(), note=str(exc))
        return select.select(self._config, description)

    def _paths(self, series_instance_uid: str) -> list[Path]:
        stored = self._ports.series.instance_paths(series_instance_uid)
        return [self._ports.instances.absolute(path) for path in stored]

    def analyse_next(self) -> bool:
        """Take the next queued job through assembly, analysis and encoding; False where there was none."""
        self._give_back(_ANALYSIS, jobs=True, destinations=())
        now = self._ports.clock.now()
        job = self._ports.jobs.claim_job(self._worker_id, now=now, lease_until=self._lease_end())
        if job is None:
            return False
        try:
            if job.attempts >= self._config.analysis.max_attempts:
                reason = f"{job.attempts} attempts ended without a result"
                self._ports.jobs.job_quarantined(job, reason)
                log.error("job %d of series %s quarantined: %s", job.id, job.series_instance_uid, reason)
                return True
            with self._heartbeat(job):
                self._analyse(job)
        except StaleJob as exc:
            log.info("job %d: late result thrown away: %s", job.id, exc)
        except PulmoError:
            self._unrecorded.add(_ANALYSIS)
            raise
        return True

    def _give_back(self, duty: str, *, jobs: bool, destinations: Sequence[str]) -> None:
        """Give up a lease that this worker still holds though it is through: no attempt was lost with it."""
        if duty in self._unrecorded:
            self._ports.jobs.release_leases(self._worker_id, jobs=jobs, destinations=destinations)
            self._unrecorded.discard(duty)

    def _analyse(self, job: Job) -> None:
        try:
            result = self._results(job)
        except Stopped:
            log.info("job %d of series %s: broken off, the node stops", job.id, job.series_instance_uid)
        except Rejected as exc:
            wanted = self._config.results.report_rejected
            report = self._report(job, exc.code, exc.reason) if wanted else ()
            self._ports.jobs.job_rejected(job, exc.code, exc.reason, report)
            log.info("job %d of series %s rejected: %s", job.id, job.series_instance_uid, exc)
        except PulmoError as exc:
            self._attempt_failed(job, exc)
        except Exception as exc:  # noqa: BLE001
            # The boundary of one job: whatever a decoder or a network throws must not end the node.
            log.error("job %d of series %s: unexpected %s", job.id, job.series_instance_uid, logs.places(exc))
            self._attempt_failed(job, Permanent(f"unexpected {type(exc).__name__}; the log has the details"))
        else:
            self._record(job, result)
            spent = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result.timings_seconds.items())
            number = len(result.objects)
            log.info("job %d of series %s encoded: %d objects; %s", job.id, job.series_instance_uid, number, spent)

    def _record(self, job: Job, result: SeriesResult) -> None:
        try:
            self._ports.jobs.job_encoded(job, result.objects, result.findings_json)
        except StaleJob:
            if result.objects and not self._ports.jobs.job_exists(job):  # erased: no object of it may stay
                self._ports.outbox.discard(Path(result.objects[0].path).parent.name)
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
                paths=tuple(self._paths(job.series_instance_uid)),
                study_paths=tuple(self._ports.instances.absolute(path) for path in study),
                context=context,
                outbox_key=key,
            )
        )

    def _context(self, job: Job, key_of: Callable[[encode.ResultContext], str]) -> encode.ResultContext:
        """The context of what a job makes; `key_of` gives its key in the outbox.

        Its predecessor is the latest report on the series that is not this very result of an earlier run. So the same
        series, weights and settings give the same UIDs again, and anything else names what it replaces.
        """
        context = encode.ResultContext(
            series_instance_uid=job.series_instance_uid,
            revision=job.revision,
            pipeline=job.pipeline,
            settings_sha256=self._analysis.settings_sha256(job.pipeline),
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
        self._ports.jobs.job_failed(job, code, decision.reason, report)
        log.error("job %d of series %s failed: %s", job.id, job.series_instance_uid, decision.reason)

    def _report(self, job: Job, code: str, reason: str) -> Sequence[ResultObject]:
        """The report that says why there are no findings; none where even that cannot be written."""

        def key_of(context: encode.ResultContext) -> str:
            return context.uid(f"outbox {code} {reason}", "")

        try:
            context = self._context(job, key_of)
            report = encode.encode_rejection(self._paths(job.series_instance_uid), code, reason, context)
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

    def deliver_next(self, destination: str) -> bool:
        """Send the due objects of one job to one destination; False where there was nothing to do, or it is not tried.

        A destination that cannot be reached is left alone for a while: what waits for it loses neither time nor
        attempts to it. All of that is due at once when it answers again.
        """
        try:
            return self._deliver_due(destination)
        except PulmoError:
            self._unrecorded.add(destination)
            raise

    def _deliver_due(self, destination: str) -> bool:
        self._give_back(destination, jobs=False, destinations=(destination,))
        now = self._ports.clock.now()
        for overdue in self._ports.jobs.overdue_commitments(destination, now):
            self._commitment.not_committed(overdue, "no storage commitment in time")
        circuit = self._circuits.get(destination, Circuit())
        if not circuit.allows(self._ports.monotonic_seconds()):
            return False
        lease = now + timedelta(seconds=self._config.delivery.lease_seconds)
        deliveries = self._ports.jobs.claim_deliveries(destination, self._worker_id, now=now, lease_until=lease)
        if not deliveries and not self._ports.jobs.uncommitted(destination):
            return False
        pending = list(deliveries)
        try:
            with self._ports.sender.open(self._config.peer(destination)) as link:
                while pending and not self._stopping.is_set():
                    self._deliver(link, pending[0])
                    pending.pop(0)
                self._request_commitment(link, destination)
        except Transient as exc:
            self._open_circuit(destination, circuit, exc)
            for delivery in pending:
                self._delivery_failed(delivery, exc)
        else:
            self._close_circuit(destination, circuit)
        return bool(deliveries)

    def _request_commitment(self, link: ResultLink, destination: str) -> None:
        """Ask for what was sent, also by an earlier association that was lost; the report may come much later."""
        jobs = self._ports.jobs
        if self._stopping.is_set() or not jobs.uncommitted(destination):
            return
        if not link.commits:
            log.warning("%s offers no storage commitment any more", destination)
            jobs.commitment_waived(destination)
            return
        transaction_uid = f"2.25.{uuid.uuid4().int}"
        asked = jobs.commitment_asked(destination, transaction_uid)
        instances = [(one.result.sop_class_uid, one.result.sop_instance_uid) for one in asked]
        try:
            link.request_commitment(transaction_uid, instances)
        except Permanent as exc:
            for delivery in asked:
                self._commitment.not_committed(delivery, str(exc))
        except Transient:
            jobs.commitment_not_asked(transaction_uid)
            raise
        else:  # the peer may answer on this association, if it is given the time
            self._commitment.wait(transaction_uid, self._config.delivery.commitment_linger_seconds)

    def _open_circuit(self, destination: str, circuit: Circuit, error: Transient) -> None:
        policy = self._config.delivery.probing
        opened = circuit.after_failure(policy, self._ports.monotonic_seconds(), self._chance.random())
        self._circuits[destination] = opened
        if circuit.failures == 0:
            log.warning("%s is left alone until it answers again: %s", destination, error)

    def _close_circuit(self, destination: str, circuit: Circuit) -> None:
        self._circuits[destination] = Circuit()
        if circuit.failures:
            due = self._ports.jobs.hasten_deliveries(destination)
            log.info("%s answers again after %d attempts; %d deliveries are due", destination, circuit.failures, due)

    def _deliver(self, link: ResultLink, delivery: Delivery) -> None:
        try:
            status = link.store(self._ports.instances.absolute(delivery.result.path), delivery.result)
        except Permanent as exc:
            self._delivery_failed(delivery, exc)
            return
        limit = timedelta(seconds=self._config.delivery.commitment_seconds)
        until = self._ports.clock.now() + limit if link.commits else None
        try:
            self._ports.jobs.delivery_sent(delivery, status, until)
        except StaleJob as exc:
            log.info("delivery %d: sent, but no longer wanted: %s", delivery.id, exc)
            return
        log.info(
            "delivery %d: %s %s sent to %s: %s",
            delivery.id,
            delivery.result.kind,
            delivery.result.sop_instance_uid,
            delivery.destination,
            status,
        )

    def _delivery_failed(self, delivery: Delivery, error: PulmoError) -> None:
        policy, attempts = self._config.delivery.retry, delivery.attempts + 1
        chance = self._chance.random()
        decision = decide(policy, error, attempts=attempts, now=self._ports.clock.now(), chance=chance)
        try:
            if isinstance(decision, GiveUp):
                self._ports.jobs.delivery_failed(delivery, decision.reason)
                log.error("delivery %d to %s failed: %s", delivery.id, delivery.destination, decision.reason)
            else:
                self._ports.jobs.delivery_deferred(delivery, str(error), decision.not_before, counts=decision.counts)
                log.warning("delivery %d to %s deferred: %s", delivery.id, delivery.destination, error)
        except StaleJob as exc:
            log.info("delivery %d: no longer wanted: %s", delivery.id, exc)
