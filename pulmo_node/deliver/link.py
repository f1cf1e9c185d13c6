"""An open association to a destination: its C-STORE and N-ACTION requests, and what is made of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RSP

from pulmo_node.deliver.files import check_identity, reason
from pulmo_node.dimse import (
    REQUEST_COMMITMENT,
    STORAGE_COMMITMENT,
    STORAGE_COMMITMENT_INSTANCE,
    StatusKind,
    commitment_request,
    status_in_words,
    status_kind,
)
from pulmo_node.domain.deliveries import Peer, ResultObject
from pulmo_node.errors import Permanent, Transient

_SLOWEST_BYTES_PER_SECOND = 250_000  # a slower network counts as a peer that does not answer


class AssociationLink:
    """An open association to a peer (port `ResultLink`)."""

    def __init__(
        self, association: Association, peer: Peer, timeout_seconds: float, *, keep_comments: bool = False
    ) -> None:
        self._association = association
        self._peer = peer
        self._timeout_seconds = timeout_seconds
        self._keep_comments = keep_comments
        self._message_id = 0
        self._answered: tuple[int, str] | None = None  # what the latest answer says that it answers
        association.bind(evt.EVT_DIMSE_RECV, self._on_message)

    def store(self, file: Path, result: ResultObject) -> str:
        """C-STORE one result object; the status in words where the peer answered Success or a warning.

        Raises:
            Transient: association lost, no answer in time, peer out of resources.
            Permanent: the peer refused it, or did not accept its SOP class or transfer syntax; the file is not the
                object that `result` speaks of.
        """
        transfer_syntax_uid = check_identity(file, result)
        return self.store_file(file, UID(result.sop_class_uid), result.sop_instance_uid, transfer_syntax_uid)

    def store_file(self, file: Path, sop_class_uid: UID, sop_instance_uid: str, transfer_syntax_uid: UID) -> str:
        """C-STORE a Part 10 file under the UIDs of its meta header. Raises like `store`."""
        self._check_open()
        self._check_accepted(sop_class_uid, transfer_syntax_uid)
        self._message_id = self._message_id % 65535 + 1
        self._answered = None
        try:
            # pynetdicom queues the whole object at once, so its wait for the answer includes the sending.
            self._association.dimse_timeout = self._timeout_seconds + file.stat().st_size / _SLOWEST_BYTES_PER_SECOND
            answer = self._association.send_c_store(file, msg_id=self._message_id)
        except RuntimeError as exc:  # it ended since the check
            raise Transient(f"association with {self._peer.name} lost") from exc
        except OSError as exc:
            self._association.abort()  # a part of the object may be on its way
            raise Transient(f"{file.name} cannot be read: {reason(exc)}") from exc
        self._check_answered(sop_instance_uid)
        return self._read_answer(answer)

    def _on_message(self, event: evt.Event) -> None:
        if isinstance(event.message, C_STORE_RSP):
            command = event.message.command_set
            named = str(command.get("AffectedSOPInstanceUID") or "")  # may be left out: PS3.7 table 9.1-1
            self._answered = int(command.get("MessageIDBeingRespondedTo") or 0), named

    def _check_answered(self, sop_instance_uid: str) -> None:
        """Whether the answer is that to our request: another one proves nothing about our object."""
        if self._answered is None:
            return
        message_id, named = self._answered
        if message_id != self._message_id or named not in ("", sop_instance_uid):
            self._association.abort()  # what comes next on it cannot be trusted either
            raise Transient(f"{self._peer.name} answered for another object")

    @property
    def commits(self) -> bool:
        """Whether storage commitment was wanted and the peer offers it."""
        return self._peer.commitment and any(
            context.abstract_syntax == STORAGE_COMMITMENT for context in self._association.accepted_contexts
        )

    def request_commitment(self, transaction_uid: str, instances: Sequence[tuple[str, str]]) -> None:
        """N-ACTION (PS3.4 J.3.2) for pairs of SOP Class UID and SOP Instance UID.

        Raises:
            Transient: association lost, no answer in time.
            Permanent: the peer refused the request.
        """
        self._check_open()
        self._message_id = self._message_id % 65535 + 1
        try:
            answer, _ = self._association.send_n_action(
                commitment_request(transaction_uid, instances),
                REQUEST_COMMITMENT,
                STORAGE_COMMITMENT,
                STORAGE_COMMITMENT_INSTANCE,
                msg_id=self._message_id,
            )
        except RuntimeError as exc:  # it ended since the check
            raise Transient(f"association with {self._peer.name} lost") from exc
        status = status_of(answer, self._peer)
        if status_kind(status) not in (StatusKind.SUCCESS, StatusKind.WARNING):
            raise Permanent(f"storage commitment refused: {status_in_words(status)}")

    def _check_open(self) -> None:
        if not self._association.is_established:
            raise Transient(f"association with {self._peer.name} lost")

    def _check_accepted(self, sop_class_uid: UID, transfer_syntax_uid: UID) -> None:
        accepted = [
            context.transfer_syntax[0]
            for context in self._association.accepted_contexts
            if context.abstract_syntax == sop_class_uid
        ]
        if not accepted:
            raise Permanent(f"{self._peer.name} does not accept {sop_class_uid.name}")
        if transfer_syntax_uid not in accepted:
            raise Permanent(f"{self._peer.name} does not accept {sop_class_uid.name} in {transfer_syntax_uid.name}")

    def _read_answer(self, answer: Dataset) -> str:
        status = status_of(answer, self._peer)
        # Some systems quote patients in it, and it would stand in the log and in the database.
        comment = str(answer.get("ErrorComment") or "") if self._keep_comments else ""
        words = status_in_words(status, comment)
        match status_kind(status):
            case StatusKind.BUSY:
                raise Transient(f"{self._peer.name} is busy, {words}")
            case StatusKind.REFUSED:
                raise Permanent(f"{self._peer.name} refused, {words}")
            case _:
                return words


def status_of(answer: Dataset, peer: Peer) -> int:
    """Status of an answer of pynetdicom's. Raises `Transient` where there was none: the data set is empty."""
    if "Status" not in answer:
        raise Transient(f"{peer.name} did not answer: association lost or timed out")
    return int(answer.Status)
