"""Deliver: a DICOM storage and verification SCU.

Input: Part 10 files and a peer. Output: the peer's status in words. The bytes of a file are sent as they are, never
decoded or encoded again, so its transfer syntax must be one that the peer accepted for its SOP class.
Governed by DICOM PS3.4 B (storage), PS3.7 9.1.1 and C (statuses), PS3.8 9.3 (association).

Errors: `Transient` where the peer cannot be reached, rejects or aborts the association, does not answer in time or
is out of resources (0xA7xx); `Permanent` where it refuses the object. There is no retry here: `domain/retry.py`
decides.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RSP
from pynetdicom.dsutils import encode_file_meta, split_dataset
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext

from pulmo_node.dimse import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    RESULT_SOP_CLASSES,
    RESULT_TRANSFER_SYNTAXES,
    STORAGE_COMMITMENT,
    STORAGE_COMMITMENT_INSTANCE,
    VERIFICATION,
    DimseStatus,
    StatusKind,
    commitment_information,
    commitment_request,
    configure_pynetdicom,
    prepare_connection,
    status_in_words,
    status_kind,
)
from pulmo_node.domain.commitments import CommitmentReport
from pulmo_node.domain.deliveries import Peer, ResultObject
from pulmo_node.errors import Permanent, PulmoError, Transient
from pulmo_node.network.tls import client_context, handshake_failure
from pulmo_node.ports import CommitmentReports

_MOST_CONTEXTS = 128  # of one association (PS3.8 9.3.2.2: odd numbers of one byte)
_SLOWEST_BYTES_PER_SECOND = 250_000  # a slower network counts as a peer that does not answer
_REQUEST_COMMITMENT = 1  # Action Type ID
_IDENTITY = ("SOPClassUID", "SOPInstanceUID")


@dataclass(frozen=True, kw_only=True)
class SentFile:
    """What became of one file of `DicomSender.send_files`."""

    path: Path
    sop_instance_uid: str  # empty where the file is no DICOM instance
    status: str | None  # in words, where the peer stored it
    error: PulmoError | None  # why it did not


@dataclass(frozen=True, kw_only=True)
class _Instance:
    """A file as it will be named in the C-STORE command."""

    path: Path
    sop_class_uid: UID
    sop_instance_uid: UID
    transfer_syntax_uid: UID
    meta_agrees: bool  # the meta header is there and says the same


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
        try:
            meta = read_file_meta_info(file)
            named = meta.get("MediaStorageSOPClassUID"), meta.get("MediaStorageSOPInstanceUID")
            transfer_syntax_uid = UID(meta.TransferSyntaxUID)
        except (FileNotFoundError, InvalidDicomError, AttributeError, EOFError) as exc:
            raise Permanent(f"{file.name} cannot be read: {_reason(exc)}") from exc
        except OSError as exc:
            raise Transient(f"{file.name} cannot be read: {_reason(exc)}") from exc
        if named != (result.sop_class_uid, result.sop_instance_uid):
            raise Permanent(f"{file.name} is not {result.sop_instance_uid}")
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
            raise Transient(f"{file.name} cannot be read: {_reason(exc)}") from exc
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
                _REQUEST_COMMITMENT,
                STORAGE_COMMITMENT,
                STORAGE_COMMITMENT_INSTANCE,
                msg_id=self._message_id,
            )
        except RuntimeError as exc:  # it ended since the check
            raise Transient(f"association with {self._peer.name} lost") from exc
        if "Status" not in answer:
            raise Transient(f"{self._peer.name} did not answer: association lost or timed out")
        if status_kind(int(answer.Status)) not in (StatusKind.SUCCESS, StatusKind.WARNING):
            raise Permanent(f"storage commitment refused: {status_in_words(int(answer.Status))}")

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
        if "Status" not in answer:
            raise Transient(f"{self._peer.name} did not answer: association lost or timed out")
        status = int(answer.Status)
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


class DicomSender:
    """Opens associations (port `ResultSender`)."""

    def __init__(
        self,
        ae_title: str,
        *,
        timeout_seconds: float = 30.0,
        keep_comments: bool = False,
        reports: CommitmentReports | None = None,
    ) -> None:
        """`ae_title` is ours; the timeout holds for the connection, the negotiation and each answer.

        With `keep_comments` the Error Comment of a refusal is part of the error. `reports` takes what peers say on
        storage commitment on the association of the request.
        """
        self._reports = reports
        self._keep_comments = keep_comments
        configure_pynetdicom()
        self._timeout_seconds = timeout_seconds
        self._entity = AE(ae_title=ae_title)
        self._entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        self._entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        self._entity.connection_timeout = timeout_seconds
        self._entity.acse_timeout = timeout_seconds
        self._entity.dimse_timeout = timeout_seconds
        # Between two objects the association may rest for as long as the worker needs.
        self._entity.network_timeout = 10 * timeout_seconds

    @contextmanager
    def open(self, peer: Peer) -> Iterator[AssociationLink]:
        """An association that offers every kind of result object.

        Raises:
            Transient: the peer cannot be reached, rejects or aborts.
        """
        contexts = [
            build_context(sop_class, syntax) for sop_class in RESULT_SOP_CLASSES for syntax in RESULT_TRANSFER_SYNTAXES
        ]
        # With Verification a peer that takes none of them still accepts the association, and each object can be
        # refused by name.
        contexts.append(build_context(VERIFICATION))
        if peer.commitment:
            contexts.append(build_context(STORAGE_COMMITMENT))
        with self.associate(peer, contexts) as association:
            yield AssociationLink(association, peer, self._timeout_seconds, keep_comments=self._keep_comments)

    def echo(self, peer: Peer) -> float:
        """C-ECHO.

        Returns:
            Seconds from the request for the association to the answer.

        Raises:
            Transient: the peer cannot be reached, rejects, or does not answer with Success.
        """
        started = time.monotonic()
        with self.associate(peer, [build_context(VERIFICATION)]) as association:
            try:
                answer = association.send_c_echo()
            except (RuntimeError, ValueError) as exc:  # it ended since, or Verification was not accepted
                raise Transient(f"{peer.name} did not accept Verification") from exc
            if "Status" not in answer:
                raise Transient(f"{peer.name} did not answer: association lost or timed out")
            if answer.Status != DimseStatus.SUCCESS:
                raise Transient(f"{peer.name} answered {status_in_words(int(answer.Status))}")
            return time.monotonic() - started

    def report_commitment(self, peer: Peer, report: CommitmentReport) -> None:
        """N-EVENT-REPORT on a request for storage commitment, by an association of its own (PS3.4 J.3.3).

        Raises:
            Transient: the peer cannot be reached, rejects, or does not answer with Success.
        """
        event_type, information = commitment_information(report)
        # The one who calls is the SCP here, which must be said at negotiation (PS3.7 D.3.3.4).
        role = build_role(STORAGE_COMMITMENT, scp_role=True)
        contexts = [build_context(STORAGE_COMMITMENT)]
        with self.associate(peer, contexts, roles=[role]) as association:
            try:
                answer, _ = association.send_n_event_report(
                    information, event_type, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
                )
            except (RuntimeError, ValueError) as exc:  # it ended since
                raise Transient(f"association with {peer.name} lost") from exc
            if "Status" not in answer:
                raise Transient(f"{peer.name} did not answer: association lost or timed out")
            if answer.Status != DimseStatus.SUCCESS:
                raise Transient(f"{peer.name} answered {status_in_words(int(answer.Status))}")

    def send_files(self, peer: Peer, paths: Iterable[Path]) -> Iterator[SentFile]:
        """C-STORE any DICOM instances, each under the UIDs of its data set; one result a file, as they are sent.

        One association, or as many as the SOP classes and transfer syntaxes of the files need. A file that is no
        DICOM instance, or that is refused, does not stop the others.

        Raises:
            Transient: the peer cannot be reached, rejects, or the association was lost. What was sent is sent.
        """
        instances: list[_Instance] = []
        for path in paths:
            try:
                instances.append(_read_instance(path))
            except Permanent as exc:
                yield SentFile(path=path, sop_instance_uid="", status=None, error=exc)
        for batch in _batches(instances):
            kinds = sorted({(instance.sop_class_uid, instance.transfer_syntax_uid) for instance in batch})
            with self.associate(peer, [build_context(*kind) for kind in kinds]) as association:
                link = AssociationLink(association, peer, self._timeout_seconds, keep_comments=self._keep_comments)
                for instance in batch:
                    yield _send(link, instance)

    def _handlers(self) -> list[evt.EventHandlerType]:
        handlers: list[evt.EventHandlerType] = [(evt.EVT_CONN_OPEN, prepare_connection, [self._timeout_seconds])]
        if self._reports is not None:
            handlers.append((evt.EVT_N_EVENT_REPORT, self._reports.on_n_event_report))
        return handlers

    @contextmanager
    def associate(
        self, peer: Peer, contexts: list[PresentationContext], *, roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = ()
    ) -> Iterator[Association]:
        """An association with these contexts. Raises `Transient` where the peer cannot be reached, rejects, aborts."""
        tls_context = None if peer.tls is None else client_context(peer.tls)
        try:
            association = self._entity.associate(
                peer.host,
                peer.port,
                contexts=contexts,
                ae_title=peer.ae_title,
                ext_neg=list(roles),
                tls_args=None
                if tls_context is None or peer.tls is None
                else (tls_context, peer.tls.hostname or peer.host),
                evt_handlers=self._handlers(),
            )
        except OSError as exc:  # the name of the host cannot be resolved
            raise Transient(f"{peer.name} ({peer.host}:{peer.port}) cannot be reached: {_reason(exc)}") from exc
        if not association.is_established:
            failure = None if tls_context is None else handshake_failure(tls_context)
            raise Transient(_why_not(association, peer) if failure is None else f"{peer.name}: TLS: {failure}")
        try:
            yield association
        finally:
            association.release()


def _why_not(association: Association, peer: Peer) -> str:
    where = f"{peer.name} ({peer.host}:{peer.port})"
    answer = association.acceptor.primitive
    if association.is_rejected and answer is not None:
        return f"{where} rejected the association: {answer.reason_str.lower()}"
    if association.rejected_contexts and not association.accepted_contexts:
        return f"{where} accepts none of the SOP classes offered"
    own_address = association.requestor.address_info
    if own_address is not None and own_address.port == 0:  # a connection would have set it
        return f"{where} cannot be reached"
    return f"{where} aborted the association or did not answer"


def _reason(exc: Exception) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or type(exc).__name__


def _read_instance(path: Path) -> _Instance:
    """Identity of a file, also of one without preamble and meta header. Raises `Permanent`."""
    try:
        head = dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(_IDENTITY))
        sop_class_uid, sop_instance_uid = (UID(str(head.get(keyword) or "")) for keyword in _IDENTITY)
    except OSError as exc:
        raise Permanent(f"{path.name} cannot be read: {_reason(exc)}") from exc
    except Exception as exc:
        # Boundary: any file may lie in a folder. Whatever the parser raises on it, it is not one that can be sent.
        raise Permanent(f"{path.name} is no DICOM instance") from exc
    if not sop_class_uid or not sop_instance_uid:
        raise Permanent(f"{path.name} is no DICOM instance")
    meta = head.file_meta
    agrees = (sop_class_uid, sop_instance_uid) == (
        meta.get("MediaStorageSOPClassUID"),
        meta.get("MediaStorageSOPInstanceUID"),
    )
    return _Instance(
        path=path,
        sop_class_uid=sop_class_uid,
        sop_instance_uid=sop_instance_uid,
        transfer_syntax_uid=UID(str(meta.get("TransferSyntaxUID") or "")) or _encoding(head),
        meta_agrees=agrees and "TransferSyntaxUID" in meta,
    )


def _encoding(head: Dataset) -> UID:
    """Transfer syntax of a file without meta header, as the parser found it."""
    implicit, little = head.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _batches(instances: Sequence[_Instance]) -> list[list[_Instance]]:
    """Instances in their order, split where an association would need more than 128 presentation contexts."""
    kinds: dict[tuple[UID, UID], int] = {}
    for instance in instances:
        kinds.setdefault((instance.sop_class_uid, instance.transfer_syntax_uid), len(kinds) // _MOST_CONTEXTS)
    numbered = sorted(
        ((kinds[instance.sop_class_uid, instance.transfer_syntax_uid], instance) for instance in instances),
        key=lambda item: item[0],
    )
    return [[instance for _, instance in batch] for _, batch in groupby(numbered, key=lambda item: item[0])]


def _send(link: AssociationLink, instance: _Instance) -> SentFile:
    try:
        with _with_true_meta(instance) as file:
            status = link.store_file(
                file, instance.sop_class_uid, instance.sop_instance_uid, instance.transfer_syntax_uid
            )
    except Permanent as exc:
        return SentFile(path=instance.path, sop_instance_uid=instance.sop_instance_uid, status=None, error=exc)
    return SentFile(path=instance.path, sop_instance_uid=instance.sop_instance_uid, status=status, error=None)


@contextmanager
def _with_true_meta(instance: _Instance) -> Iterator[Path]:
    """The file, or a copy with a meta header that agrees with the data set, from which the command is made."""
    if instance.meta_agrees:
        yield instance.path
        return
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = instance.sop_class_uid
    meta.MediaStorageSOPInstanceUID = instance.sop_instance_uid
    meta.TransferSyntaxUID = instance.transfer_syntax_uid
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / instance.path.name
        copy.write_bytes(b"\x00" * 128 + b"DICM" + encode_file_meta(meta) + _data_set(instance.path))
        yield copy


def _data_set(path: Path) -> bytes:
    content = path.read_bytes()
    if content[128:132] != b"DICM":
        return content
    return content[split_dataset(path)[1] :]
