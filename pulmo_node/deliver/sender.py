"""Opens associations to peers, as storage and verification SCU, and sends over them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydicom.dataset import Dataset
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext

from pulmo_node.deliver.files import Instance, SentFile, batches, read_instance, reason, with_true_meta
from pulmo_node.deliver.link import AssociationLink, status_of
from pulmo_node.dimse import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    RESULT_SOP_CLASSES,
    RESULT_TRANSFER_SYNTAXES,
    STORAGE_COMMITMENT,
    STORAGE_COMMITMENT_INSTANCE,
    VERIFICATION,
    DimseStatus,
    commitment_information,
    configure_pynetdicom,
    prepare_connection,
    status_in_words,
)
from pulmo_node.domain.commitments import CommitmentReport
from pulmo_node.domain.deliveries import Peer
from pulmo_node.errors import Permanent, Transient
from pulmo_node.network.tls import client_context, handshake_failure
from pulmo_node.ports import CommitmentReports


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
            _check_success(answer, peer)
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
            _check_success(answer, peer)

    def send_files(self, peer: Peer, paths: Iterable[Path]) -> Iterator[SentFile]:
        """C-STORE any DICOM instances, each under the UIDs of its data set; one result a file, as they are sent.

        One association, or as many as the SOP classes and transfer syntaxes of the files need. A file that is no
        DICOM instance, or that is refused, does not stop the others.

        Raises:
            Transient: the peer cannot be reached, rejects, or the association was lost. What was sent is sent.
        """
        instances: list[Instance] = []
        for path in paths:
            try:
                instances.append(read_instance(path))
            except Permanent as exc:
                yield SentFile(path=path, sop_instance_uid="", status=None, error=exc)
        for batch in batches(instances):
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
            raise Transient(f"{peer.name} ({peer.host}:{peer.port}) cannot be reached: {reason(exc)}") from exc
        if not association.is_established:
            failure = None if tls_context is None else handshake_failure(tls_context)
            raise Transient(_why_not(association, peer) if failure is None else f"{peer.name}: TLS: {failure}")
        try:
            yield association
        finally:
            association.release()


def _check_success(answer: Dataset, peer: Peer) -> None:
    status = status_of(answer, peer)
    if status != DimseStatus.SUCCESS:
        raise Transient(f"{peer.name} answered {status_in_words(status)}")


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


def _send(link: AssociationLink, instance: Instance) -> SentFile:
    try:
        with with_true_meta(instance) as file:
            status = link.store_file(
                file, instance.sop_class_uid, instance.sop_instance_uid, instance.transfer_syntax_uid
            )
    except Permanent as exc:
        return SentFile(path=instance.path, sop_instance_uid=instance.sop_instance_uid, status=None, error=exc)
    return SentFile(path=instance.path, sop_instance_uid=instance.sop_instance_uid, status=status, error=None)
