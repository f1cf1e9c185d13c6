"""From the outbox to the destinations: associations, storage commitment, and what is done when nobody answers."""

from __future__ import annotations

import logging
import random
import threading
import uuid
from datetime import timedelta

from pulmo_node.commitment import CommitmentScu
from pulmo_node.config import Config
from pulmo_node.domain.circuit import Circuit
from pulmo_node.domain.deliveries import Delivery
from pulmo_node.domain.retry import GiveUp, decide
from pulmo_node.errors import LeftOut, Permanent, PulmoError, StaleJob, Transient
from pulmo_node.ports import ResultLink
from pulmo_node.worker.adapters import Adapters

log = logging.getLogger(__name__)


class DeliveryDuty:
    """The deliveries to every destination; each is called from a thread of its own."""

    def __init__(self, config: Config, adapters: Adapters, worker_id: str, stopping: threading.Event) -> None:
        """Once `stopping` is set, no further object is sent."""
        self._config = config
        self._ports = adapters
        self._worker_id = worker_id
        self._stopping = stopping
        self._commitment = adapters.commitment or CommitmentScu(adapters.jobs, adapters.clock, config.delivery.retry)
        self._unrecorded: set[str] = set()  # destinations whose outcome the database did not take: leases are held
        self._circuits: dict[str, Circuit] = {}  # by destination, each changed by its own thread only
        self._chance = random.SystemRandom()

    def deliver_next(self, destination: str) -> bool:
        """Send the due objects of one job to one destination; False where nothing was to do, or it is not tried."""
        try:
            return self._deliver_due(destination)
        except PulmoError:
            self._unrecorded.add(destination)
            raise

    def _deliver_due(self, destination: str) -> bool:
        self._give_back(destination)
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

    def _give_back(self, destination: str) -> None:
        """Give up leases that this worker still holds though it is through: no attempt was lost with them."""
        if destination in self._unrecorded:
            self._ports.jobs.release_leases(self._worker_id, jobs=False, destinations=(destination,))
            self._unrecorded.discard(destination)

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
            self._ports.outbox.check(delivery.result)
            status = link.store(self._ports.instances.absolute(delivery.result.path), delivery.result)
        except LeftOut as exc:
            self._leave_out(delivery, exc)
            return
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

    def _leave_out(self, delivery: Delivery, why: LeftOut) -> None:
        try:
            self._ports.jobs.delivery_left_out(delivery, str(why))
        except StaleJob as exc:
            log.info("delivery %d: no longer wanted: %s", delivery.id, exc)
            return
        log.info("delivery %d: %s not sent to %s: %s", delivery.id, delivery.result.kind, delivery.destination, why)

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
