"""Storage commitment as SCU: what peers report on the results that were sent to them (PS3.4 J.3.3).

Input: N-EVENT-REPORT, on the association of the request or on one that the peer opens to the receiver. Output: the
deliveries COMMITTED, or to be sent again; committed in the database before the report is answered with Success.
The Transaction UID is a random number that only the peer was told, so it is what a report is accepted by.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from datetime import datetime
from typing import cast

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.dimse_primitives import N_EVENT_REPORT

from pulmo_node.commitment.refused import Refused
from pulmo_node.dimse import STORAGE_COMMITMENT_INSTANCE, DimseStatus
from pulmo_node.domain.deliveries import Delivery, DeliveryState
from pulmo_node.domain.retry import Defer, RetryPolicy, decide
from pulmo_node.errors import PulmoError, StaleJob, Transient
from pulmo_node.ports import AwaitingStore, Clock

log = logging.getLogger(__name__)

_EVENT_TYPES = (1, 2)  # all stored; failures exist: PS3.4 table J.3-2
_REMEMBERED = 1024  # transactions, for those who wait for a report at this moment
_UNKNOWN_FAILURE = 0x0110


class CommitmentScu:
    """Takes reports (port `CommitmentReports`); safe to share between associations."""

    def __init__(self, store: AwaitingStore, clock: Clock, retry: RetryPolicy) -> None:
        """`retry` is the policy of the deliveries."""
        self._store = store
        self._clock = clock
        self._retry = retry
        self._chance = random.SystemRandom()
        self._told: deque[str] = deque(maxlen=_REMEMBERED)
        self._changed = threading.Condition()

    def on_n_event_report(self, event: evt.Event) -> tuple[int, None]:
        """Handler of the receiver and of the sender: keep what the peer says. The status of the answer."""
        calling_ae_title = str(event.assoc.remote["ae_title"]).strip()
        try:
            transaction_uid, stored, failed = _parse(event)
        except Refused as exc:
            log.warning("report on storage commitment by %s refused: %s", calling_ae_title, exc)
            return int(exc.status), None
        try:
            deliveries = self._store.deliveries_of_transaction(transaction_uid)
            if not deliveries:
                log.warning("report on storage commitment by %s refused: nothing waits for it", calling_ae_title)
                return int(DimseStatus.INVALID_ARGUMENT), None
            for delivery in deliveries:
                if delivery.state is DeliveryState.SENT:
                    self._take(delivery, stored, failed)
        except PulmoError as exc:
            log.error("report on storage commitment by %s not taken: %s", calling_ae_title, exc)
            return int(DimseStatus.PROCESSING_FAILURE), None
        with self._changed:
            self._told.append(transaction_uid)
            self._changed.notify_all()
        return int(DimseStatus.SUCCESS), None

    def wait(self, transaction_uid: str, seconds: float) -> bool:
        """Until the report on that transaction was taken; False where it was not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: transaction_uid in self._told, seconds)

    def not_committed(self, delivery: Delivery, why: str) -> None:
        """Send it again by the delays of a delivery, or give it up where that was done as often as configured."""
        now, attempts = self._clock.now(), delivery.attempts + 1
        decision = decide(self._retry, Transient(why), attempts=attempts, now=now, chance=self._chance.random())
        again: datetime | None = decision.not_before if isinstance(decision, Defer) else None
        reason = why if isinstance(decision, Defer) else decision.reason
        try:
            if self._store.delivery_not_committed(delivery, reason, again):
                log.warning("delivery %d to %s not committed: %s", delivery.id, delivery.destination, reason)
        except StaleJob as exc:
            log.info("delivery %d: no longer waited for: %s", delivery.id, exc)

    def _take(self, delivery: Delivery, stored: set[tuple[str, str]], failed: dict[str, int]) -> None:
        result = delivery.result
        if result.sop_instance_uid in failed:
            self.not_committed(delivery, f"storage commitment failed with 0x{failed[result.sop_instance_uid]:04X}")
        elif (result.sop_class_uid, result.sop_instance_uid) in stored:
            try:
                self._store.delivery_committed(delivery)
            except StaleJob as exc:
                log.info("delivery %d: no longer waited for: %s", delivery.id, exc)
                return
            log.info("delivery %d committed by %s", delivery.id, delivery.destination)
        else:
            self.not_committed(delivery, "the report on storage commitment does not name it")


def _parse(event: evt.Event) -> tuple[str, set[tuple[str, str]], dict[str, int]]:
    """Transaction UID, pairs of class and instance that are kept, failure reasons by instance. Raises `Refused`."""
    if cast(N_EVENT_REPORT, event.request).AffectedSOPInstanceUID != STORAGE_COMMITMENT_INSTANCE:
        raise Refused(DimseStatus.INVALID_SOP_INSTANCE, "not the well-known instance")
    if event.event_type not in _EVENT_TYPES:
        raise Refused(DimseStatus.NO_SUCH_EVENT_TYPE, "another event than a report")
    try:
        information: Dataset = event.event_information
        stored = {
            (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
            for item in information.get("ReferencedSOPSequence") or ()
        }
        failed = {
            str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason") or _UNKNOWN_FAILURE)
            for item in information.get("FailedSOPSequence") or ()
        }
        return str(information.TransactionUID), stored, failed
    except Exception as exc:
        # Boundary: bytes of a stranger. Whatever the parser raises on them, they are no report.
        raise Refused(DimseStatus.INVALID_ARGUMENT, "it cannot be understood") from exc
