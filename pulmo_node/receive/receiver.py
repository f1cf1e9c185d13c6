"""The SCP: associations, their C-STORE and C-ECHO requests, and the answers."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol, cast

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE

from pulmo_node.dimse import (
    IMAGE_SOP_CLASSES,
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    STORAGE_COMMITMENT,
    VERIFICATION,
    DimseStatus,
    configure_pynetdicom,
    decodable_transfer_syntaxes,
    prepare_connection,
)
from pulmo_node.domain.series import InstanceOutcome, StoredInstance
from pulmo_node.errors import PulmoError, Transient
from pulmo_node.network.access import Access
from pulmo_node.network.limits import Limits
from pulmo_node.network.server import GuardedServer, listen_guarded
from pulmo_node.network.storing import StoreRequest
from pulmo_node.network.tls import ServerTls, ServerTlsSettings
from pulmo_node.ports import Clock, CommitmentReports, InstanceStore, Journal, ReceiveStore
from pulmo_node.receive.arrival import Arrival, Transfer
from pulmo_node.receive.front import Front

log = logging.getLogger(__name__)

_DRAIN_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class ReceiveSettings:
    """Who may send what, and within which limits."""

    ae_title: str
    bind: str = "127.0.0.1"
    port: int = 11112  # 0: any free port
    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)
    max_pdu: int = 131_072  # bytes, offered at negotiation
    tls: ServerTlsSettings | None = None  # None: in the clear


class CommitmentHandler(Protocol):
    """Who takes requests for storage commitment (PS3.4 J)."""

    def on_n_action(self, event: evt.Event) -> tuple[int, None]:
        """Status of the answer."""
        ...

    def on_message(self, event: evt.Event) -> None:
        """Sees every message that comes."""
        ...


class Receiver:
    """The SCP. Also knows which series are arriving at this moment (port `Transfers`)."""

    def __init__(
        self,
        settings: ReceiveSettings,
        store: ReceiveStore,
        instances: InstanceStore,
        clock: Clock,
        commitment: CommitmentHandler | None = None,
        reports: CommitmentReports | None = None,
    ) -> None:
        """Storage commitment is offered where there is somebody who answers the requests, or takes the reports."""
        self._commitment = commitment
        self._reports = reports
        self._settings = settings
        self._store = store
        self._instances = instances
        self._clock = clock
        self._server: GuardedServer | None = None
        self._front = Front(self)
        self._transfers: dict[Association, Transfer] = {}
        self._lock = threading.Lock()
        self.journal: Journal | None = None
        """Is told of every association, where there is one."""

    @property
    def port(self) -> int:
        """The TCP port it listens on; only after `start`."""
        if self._server is None:
            raise RuntimeError("the receiver was not started")
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Listen and return.

        Raises:
            Transient: the address is in use or not one of this machine.
            ConfigError: certificate or key cannot be used.
        """
        configure_pynetdicom()
        settings = self._settings
        tls = None if settings.tls is None else ServerTls(settings.tls)
        front = self._front
        try:
            self._server = listen_guarded(
                self._application_entity(),
                (settings.bind, settings.port),
                [
                    (evt.EVT_CONN_OPEN, lambda event: front.call(lambda one: one._on_opened(event))),
                    (evt.EVT_ESTABLISHED, lambda event: front.call(lambda one: one._on_established(event))),
                    (evt.EVT_C_ECHO, lambda event: DimseStatus.SUCCESS),
                    (evt.EVT_C_STORE, lambda event: front.call(lambda one: one._on_c_store(event))),
                    (evt.EVT_N_ACTION, lambda event: front.call(lambda one: one._on_n_action(event))),
                    (evt.EVT_N_EVENT_REPORT, lambda event: front.call(lambda one: one._on_n_event_report(event))),
                    (evt.EVT_DIMSE_RECV, lambda event: front.call(lambda one: one._on_message(event))),
                    (evt.EVT_RELEASED, lambda event: front.call(lambda one: one._on_end(event, "released"))),
                    (evt.EVT_ABORTED, lambda event: front.call(lambda one: one._on_end(event, "aborted"))),
                ],
                access=settings.access,
                limits=settings.limits,
                tls=tls,
                on_rejected=lambda *what: front.call(lambda one: one._on_rejected(*what)),
                open_sink=lambda request: front.call(lambda one: one._open_sink(request)),
            )
        except OSError as exc:
            where = f"{self._settings.bind}:{self._settings.port}"
            raise Transient(f"cannot listen on {where}: {exc.strerror or exc}") from exc

    def listens_like(self, other: Receiver) -> bool:
        """Whether it would open the very port that the other one has open: same address and TLS files."""
        mine, its = self._settings, other._settings
        return other._server is not None and (mine.bind, mine.port, mine.tls) == (its.bind, its.port, its.tls)

    def take_over(self, other: Receiver, drain_seconds: float = _DRAIN_SECONDS) -> None:
        """Take the open port and the associations in progress of another receiver, which then has none.

        New associations are judged by the settings of this one; those in progress keep the limits that they began
        with, and what they send next is kept by this one. Waits for what the other one is keeping at this moment.
        """
        server = other._server
        if server is None:
            raise RuntimeError("the other receiver was not started")
        server.adopt(self._application_entity(), self._settings.access, self._settings.limits)
        self._server, self._front, self._transfers, self._lock = server, other._front, other._transfers, other._lock
        other._server = None
        self._front.replace(self, drain_seconds)

    def stop(self, drain_seconds: float = _DRAIN_SECONDS) -> None:
        """Accept nothing more, give open associations that long to finish, then abort them."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.shutdown()
        server.end_half_open()
        deadline = time.monotonic() + drain_seconds
        for association in server.active_associations:
            association.join(max(0.0, deadline - time.monotonic()))
            if association.is_alive():
                association.abort()

    def series_in_transfer(self) -> Collection[str]:
        """Series Instance UIDs whose instance was the latest on an open association."""
        with self._lock:
            return {
                transfer.series_instance_uid
                for association, transfer in self._transfers.items()
                if transfer.series_instance_uid and association.is_established and association.is_alive()
            }

    def _application_entity(self) -> AE:
        settings = self._settings
        entity = AE(ae_title=settings.ae_title)
        entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        entity.maximum_associations = sys.maxsize  # the guarded server counts them
        entity.maximum_pdu_size = settings.max_pdu
        entity.network_timeout = settings.limits.silence_seconds
        entity.acse_timeout = settings.limits.silence_seconds
        entity.dimse_timeout = settings.limits.silence_seconds
        entity.add_supported_context(VERIFICATION)
        if self._commitment is not None or self._reports is not None:
            # Both ways: who calls may ask for commitment, or report on what the node asked for (PS3.7 D.3.3.4).
            entity.add_supported_context(STORAGE_COMMITMENT, scu_role=True, scp_role=True)
        transfer_syntaxes = list(decodable_transfer_syntaxes())
        for sop_class in IMAGE_SOP_CLASSES:
            entity.add_supported_context(sop_class, transfer_syntaxes)
        return entity

    def _on_established(self, event: evt.Event) -> None:
        transfer = Transfer(calling_ae_title=str(event.assoc.requestor.ae_title).strip())
        with self._lock:
            # An association whose connection broke in an unusual way ends without an event.
            for association in [known for known in self._transfers if not known.is_alive()]:
                del self._transfers[association]
            self._transfers[event.assoc] = transfer
        self._audit("association accepted", transfer.calling_ae_title, _address(event))

    def _on_rejected(self, calling_ae_title: str, address: str, reason: str) -> None:
        self._audit("association rejected", calling_ae_title, address, reason=reason)

    def _audit(self, action: str, calling_ae_title: str, address: str, **more: object) -> None:
        """One line; a journal that cannot be written is told in the log and stops nothing."""
        if self.journal is None:
            return
        entry = {"action": action, "calling_ae_title": calling_ae_title, "address": address, **more}
        try:
            self.journal.record([entry])
        except PulmoError as exc:
            log.error("%s", exc)

    def _on_end(self, event: evt.Event, how: str) -> None:
        with self._lock:
            transfer = self._transfers.pop(event.assoc, None)
        if transfer is not None:
            what = {**transfer.counts, "studies": dict(transfer.studies)} if transfer.studies else transfer.counts
            self._audit(f"association {how}", transfer.calling_ae_title, _address(event), **what)
            counts = ", ".join(f"{number} {what}" for what, number in sorted(transfer.counts.items()))
            log.info("association from %s %s: %s", transfer.calling_ae_title, how, counts or "no instance")

    def _on_opened(self, event: evt.Event) -> None:
        prepare_connection(event, self._settings.limits.silence_seconds)

    def _on_n_action(self, event: evt.Event) -> tuple[int, None]:
        if self._commitment is None:
            return DimseStatus.PROCESSING_FAILURE, None
        return self._commitment.on_n_action(event)

    def _on_n_event_report(self, event: evt.Event) -> tuple[int, None]:
        if self._reports is None:
            return DimseStatus.PROCESSING_FAILURE, None
        return self._reports.on_n_event_report(event)

    def _on_message(self, event: evt.Event) -> None:
        if self._commitment is not None:
            self._commitment.on_message(event)

    def _open_sink(self, request: StoreRequest) -> Arrival | None:
        """Who takes the data set of a request as it comes; None where it is left to pynetdicom and `_on_c_store`."""
        transfer = self._transfers.get(request.association)
        if transfer is None or request.abstract_syntax not in IMAGE_SOP_CLASSES:
            return None
        return Arrival(request, transfer, self._instances, self._record, self._clock)

    def _record(self, instance: StoredInstance) -> InstanceOutcome:
        """By the receiver of that moment: another one may have taken over since the instance began to come."""
        return self._front.call(lambda one: one._store.record_instance(instance))

    def _on_c_store(self, event: evt.Event) -> int | Dataset:
        """A request that is unusual enough for pynetdicom to have read it, its data set in one piece."""
        command = cast(C_STORE, event.request)
        request = StoreRequest(
            association=event.assoc,
            context_id=event.context.context_id,
            abstract_syntax=str(event.context.abstract_syntax),
            transfer_syntax_uid=str(event.context.transfer_syntax),
            message_id=int(command.MessageID or 0),
            sop_class_uid=str(command.AffectedSOPClassUID),
            sop_instance_uid=str(command.AffectedSOPInstanceUID),
        )
        arrival = self._open_sink(request)
        if arrival is None:  # being aborted by `stop`; nobody reads the answer
            return DimseStatus.OUT_OF_RESOURCES
        arrival.append(event.encoded_dataset(include_meta=False))
        answered = arrival.finish()
        arrival.discard()
        answer = Dataset()
        answer.Status = answered.status
        if answered.comment:
            answer.ErrorComment = answered.comment
        return answer


def _address(event: evt.Event) -> str:
    return str(event.assoc.requestor.address)
