"""Mutual TLS where the node is the one who calls: results by STOW-RS, reports of storage commitment."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pulmo_node.deliver import DicomSender
from pulmo_node.domain.commitments import CommitmentReport
from pulmo_node.domain.deliveries import Peer, PeerTls
from pulmo_node.errors import Transient
from pulmo_node.files import FileInstanceStore
from pulmo_node.network.tls import ServerTlsSettings
from pulmo_node.receive import Receiver, ReceiveSettings
from pulmo_node.store import SqlStore
from pulmo_node.testing import ManualClock
from tests.certificates import Authority, Identity, authority
from tests.integration.test_stow import Server, store


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("ca"))


def client_tls(ca: Authority, own: Identity | None) -> PeerTls:
    files = (str(own.certificate), str(own.private_key)) if own else ("", "")
    return PeerTls(ca=str(ca.own.certificate), certificate=files[0], private_key=files[1])


def test_stow_shows_the_certificate_of_the_node(tmp_path: Path, ca: Authority) -> None:
    theirs, ours, stranger = ca.issue("web"), ca.issue("node"), authority(tmp_path / "other").issue("stranger")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(theirs.certificate, theirs.private_key)
    context.load_verify_locations(ca.own.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    with Server(context) as server:
        assert store(replace(server.peer, tls=client_tls(ca, ours)), tmp_path) == "HTTP 200 ok"
        for wrong in (None, stranger):
            with pytest.raises(Transient, match="did not answer"):
                store(replace(server.peer, tls=client_tls(ca, wrong)), tmp_path)
    assert len(server.requests) == 1


class Reports:
    """Takes what peers report on storage commitment."""

    def __init__(self) -> None:
        self.transactions: list[str] = []

    def on_n_event_report(self, event: Any) -> tuple[int, None]:
        self.transactions.append(str(event.event_information.TransactionUID))
        return 0x0000, None


def test_a_report_of_storage_commitment_by_mutual_tls(tmp_path: Path, ca: Authority) -> None:
    theirs, ours = ca.issue("receiver"), ca.issue("reporter")
    tls = ServerTlsSettings(
        certificate=theirs.certificate, private_key=theirs.private_key, client_ca=ca.own.certificate
    )
    reports, clock = Reports(), ManualClock()
    report = CommitmentReport(transaction_uid="2.25.4711", stored=(("1.2.840.10008.5.1.4.1.1.2", "1.2.3"),), failed=())
    with SqlStore(f"sqlite:///{tmp_path / 'node.sqlite'}", clock) as database:
        settings = ReceiveSettings(ae_title="PULMO", port=0, tls=tls)
        receiver = Receiver(settings, database, FileInstanceStore(tmp_path / "storage"), clock, None, reports)
        receiver.start()
        peer = Peer(name="node", ae_title="PULMO", host="127.0.0.1", port=receiver.port, tls=client_tls(ca, ours))
        DicomSender("PACS").report_commitment(peer, report)
        with pytest.raises(Transient):
            DicomSender("PACS").report_commitment(replace(peer, tls=client_tls(ca, None)), report)
        receiver.stop(drain_seconds=0.0)
    assert reports.transactions == ["2.25.4711"]
