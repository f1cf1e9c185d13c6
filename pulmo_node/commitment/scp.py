"""Storage commitment as SCP: peers ask whether the node keeps what they sent, and are told from what is on the disk.

Input: N-ACTION requests of the Storage Commitment Push Model (PS3.4 J.3). Output: N-EVENT-REPORT, by a new association
to the peer of that AE title where one is configured, otherwise on the association of the request. A request is a
committed row before it is answered with Success, so a restart forgets none.

Each data set is read again and its digest compared with the one taken when it came. A missing or changed file, or an
unknown instance, is reported as failed. Statuses of N-ACTION: PS3.7 10.1.4.1.10. Errors: none leave the thread; what
cannot be told is tried again by the delays of a delivery, and given up with a line in the log.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from io import BytesIO
from typing import cast

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import N_EVENT_REPORT_RSP
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT
from pynetdicom.dsutils import encode

from pulmo_node.commitment.refused import Refused
from pulmo_node.dimse import (
    REQUEST_COMMITMENT,
    STORAGE_COMMITMENT,
    STORAGE_COMMITMENT_INSTANCE,
    DimseStatus,
    commitment_information,
    is_uid,
)
from pulmo_node.domain.commitments import Commitment, CommitmentReport, FailureReason
from pulmo_node.domain.deliveries import Peer
from pulmo_node.domain.retry import Defer, RetryPolicy, decide
from pulmo_node.errors import PulmoError, Transient
from pulmo_node.ports import Clock, CommitmentSender, CommitmentStore, InstanceStore

log = logging.getLogger(__name__)

_LARGEST_REQUEST_BYTES = 16 * 1024 * 1024  # some hundred thousand references
_LOOK_SECONDS = 5.0
_ANSWER_SECONDS = 30.0


class CommitmentScp:
    """Takes requests from the receiver and answers them in a thread of its own."""

    def __init__(
        self,
        store: CommitmentStore,
        instances: InstanceStore,
        sender: CommitmentSender,
        clock: Clock,
        *,
        peer_of: Callable[[str], Peer | None],
        retry: RetryPolicy,
    ) -> None:
        """`peer_of` is the configured peer of a calling AE title."""
        self._store = store
        self._instances = instances
        self._sender = sender
        self._clock = clock
        self._peer_of = peer_of
        self._retry = retry
        self._associations: weakref.WeakValueDictionary[str, Association] = weakref.WeakValueDictionary()
        self._answers: weakref.WeakKeyDictionary[Association, _Answer] = weakref.WeakKeyDictionary()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to answer, with what was left over first; also again after `stop`."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="commitment", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish the report that is being sent and stop."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def on_n_action(self, event: evt.Event) -> tuple[int, None]:
        """Handler of the receiver: keep the request."""
        calling_ae_title = str(event.assoc.requestor.ae_title).strip()
        try:
            transaction_uid, instances = _parse(event)
            if not self._store.add_commitment(transaction_uid, calling_ae_title, instances, at=self._clock.now()):
                raise Refused(DimseStatus.DUPLICATE_INVOCATION, "the transaction UID is in use")
        except Refused as exc:
            log.warning("storage commitment for %s refused: %s", calling_ae_title, exc)
            return int(exc.status), None
        except PulmoError as exc:
            log.error("storage commitment for %s not taken: %s", calling_ae_title, exc)
            return int(DimseStatus.RESOURCE_LIMITATION), None
        self._associations[transaction_uid] = event.assoc
        self._wake.set()
        return int(DimseStatus.SUCCESS), None

    def on_message(self, event: evt.Event) -> None:
        """Handler of the receiver: what the peer says to a report on its own association."""
        message = event.message
        if isinstance(message, N_EVENT_REPORT_RSP):
            answer = self._answers.get(event.assoc)
            if answer is not None:
                answer.status = int(message.command_set.get("Status", DimseStatus.PROCESSING_FAILURE))
                answer.came.set()

    def answer_due(self) -> int:
        """Answer every request that is due; their number."""
        due = self._store.due_commitments(self._clock.now())
        for commitment in due:
            if self._stopping.is_set():
                break
            self._answer(commitment)
        return len(due)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.answer_due()
            except PulmoError as exc:
                log.error("storage commitment: %s; tried again", exc)
            self._wake.wait(_LOOK_SECONDS)
            self._wake.clear()

    def _answer(self, commitment: Commitment) -> None:
        who = commitment.calling_ae_title
        report = self._report(commitment)
        try:
            self._tell(commitment, report)
        except PulmoError as exc:
            attempts = commitment.attempts + 1
            decision = decide(self._retry, exc, attempts=attempts, now=self._clock.now())
            if isinstance(decision, Defer):
                self._store.commitment_deferred(commitment, decision.not_before)
                log.warning("storage commitment: %s not told: %s", who, exc)
                return
            self._store.commitment_ended(commitment)
            log.error("storage commitment: %s not told, given up: %s", who, decision.reason)
        else:
            self._store.commitment_ended(commitment)
            log.info(
                "storage commitment: %s told of %d instances kept, %d not", who, len(report.stored), len(report.failed)
            )

    def _report(self, commitment: Commitment) -> CommitmentReport:
        checked = [(*pair, self._failure(*pair)) for pair in commitment.instances]
        return CommitmentReport(
            transaction_uid=commitment.transaction_uid,
            stored=tuple((sop_class, uid) for sop_class, uid, failure in checked if failure is None),
            failed=tuple((sop_class, uid, failure) for sop_class, uid, failure in checked if failure is not None),
        )

    def _failure(self, sop_class_uid: str, sop_instance_uid: str) -> FailureReason | None:
        """Why that instance cannot be committed; None where it is on the disk as it came."""
        kept = self._store.kept_instance(sop_instance_uid)
        if kept is None:
            return FailureReason.NO_SUCH_INSTANCE
        if kept.sop_class_uid != sop_class_uid:
            return FailureReason.CLASS_INSTANCE_CONFLICT
        try:
            digest = self._instances.digest(kept.path)
        except Transient as exc:
            log.error("instance %s not committed: %s", sop_instance_uid, exc)
            return FailureReason.PROCESSING_FAILURE
        if digest is None:
            log.error("instance %s not committed: its file is gone", sop_instance_uid)
            return FailureReason.NO_SUCH_INSTANCE
        if digest != kept.sha256:
            log.error("instance %s not committed: its file is not what came", sop_instance_uid)
            return FailureReason.PROCESSING_FAILURE
        return None

    def _tell(self, commitment: Commitment, report: CommitmentReport) -> None:
        peer = self._peer_of(commitment.calling_ae_title)
        if peer is not None:
            self._sender.report_commitment(peer, report)
            return
        association = self._associations.get(commitment.transaction_uid)
        if association is None or not association.is_established:
            raise Transient("its association is over, and no peer has this AE title")
        answer = self._answers[association] = _Answer()
        _send_on(association, report)
        if not answer.came.wait(_ANSWER_SECONDS):
            raise Transient("no answer to the report")
        if answer.status != DimseStatus.SUCCESS:
            raise Transient(f"the report was answered with 0x{answer.status:04X}")


class _Answer:
    """What a peer said to a report."""

    def __init__(self) -> None:
        self.came = threading.Event()
        self.status = 0


def _send_on(association: Association, report: CommitmentReport) -> None:
    """N-EVENT-REPORT on the association of the request.

    Not by pynetdicom's `send_n_event_report`, which takes the next message for the answer: the peer may be sending
    instances here at the same time. The reactor is paused only so that two messages do not mix.
    """
    event_type, information = commitment_information(report)
    context = next(one for one in association.accepted_contexts if one.abstract_syntax == STORAGE_COMMITMENT)
    syntax = context.transfer_syntax[0]
    encoded = encode(information, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
    request = N_EVENT_REPORT()
    request.MessageID = 1
    request.AffectedSOPClassUID = STORAGE_COMMITMENT
    request.AffectedSOPInstanceUID = STORAGE_COMMITMENT_INSTANCE
    request.EventTypeID = event_type
    request.EventInformation = BytesIO(encoded or b"")
    association._reactor_checkpoint.clear()
    try:
        while not association._is_paused and association.is_alive():
            threading.Event().wait(0.001)
        association.dimse.send_msg(request, cast(int, context.context_id))
    finally:
        association._reactor_checkpoint.set()


def _parse(event: evt.Event) -> tuple[str, list[tuple[str, str]]]:
    """Transaction UID and references of a request. Raises `Refused`."""
    request = cast(N_ACTION, event.request)
    if request.RequestedSOPInstanceUID != STORAGE_COMMITMENT_INSTANCE:
        raise Refused(DimseStatus.INVALID_SOP_INSTANCE, "not the well-known instance")
    if request.ActionTypeID != REQUEST_COMMITMENT:
        raise Refused(DimseStatus.NO_SUCH_ACTION, "another action than a request")
    encoded = request.ActionInformation
    if encoded is None or len(encoded.getbuffer()) > _LARGEST_REQUEST_BYTES:
        raise Refused(DimseStatus.RESOURCE_LIMITATION, "too many references, or none")
    try:
        information: Dataset = event.action_information
        transaction_uid = str(information.TransactionUID)
        references = [
            (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
            for item in information.ReferencedSOPSequence
        ]
    except Exception as exc:
        # Boundary: bytes of a stranger. Whatever the parser raises on them, they are no request.
        raise Refused(DimseStatus.INVALID_ARGUMENT, "the request cannot be understood") from exc
    uids = [transaction_uid, *(uid for pair in references for uid in pair)]
    if not references or not all(is_uid(uid) for uid in uids):
        raise Refused(DimseStatus.INVALID_ARGUMENT, "a UID is missing or none")
    return transaction_uid, references
