"""DICOM audit messages at a syslog server of our own, which takes the frames apart as RFC 5424, 5425 and 5426 say; the
elements are held against the schema of PS3.15 A.5.1.1."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from pynetdicom import AE
from typer.testing import CliRunner

from pulmo_node.app import SystemClock
from pulmo_node.atna import SyslogAudit, SyslogServer, parse_server
from pulmo_node.auditing import open_trail
from pulmo_node.cli import app
from pulmo_node.config import resolve
from pulmo_node.domain.deliveries import PeerTls
from pulmo_node.orthanc import free_port
from pulmo_node.testing import SmallPacs
from tests.certificates import Identity, authority
from tests.fake_pipeline import fake_pipeline
from tests.integration.test_node import in_state, running, send, series_files, wait_for
from tests.network_factory import ct_slice, encoded, part10, watched

__all__ = ["fake_pipeline"]
HEADER = re.compile(rb"<(\d+)>1 (\S+) (\S+) pulmo-node (\d+) DICOM\+RFC3881 - \xef\xbb\xbf(.*)", re.DOTALL)
CODED = {"csd-code", "codeSystemName", "originalText"}


class Collector:
    """A syslog server on loopback: one datagram a message, or octet counting on a stream."""

    def __init__(self, transport: str, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
        self.socket = socket.socket(socket.AF_INET, kind)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(("127.0.0.1", port))
        self.port = int(self.socket.getsockname()[1])
        self.frames: list[bytes] = []
        self.subjects: list[Any] = []
        self.changed = threading.Condition()
        self._tls = tls
        if transport != "udp":
            self.socket.listen()
        threading.Thread(target=self._datagrams if transport == "udp" else self._streams, daemon=True).start()

    def _keep(self, frame: bytes) -> None:
        with self.changed:
            self.frames.append(frame)
            self.changed.notify_all()

    def _datagrams(self) -> None:
        while True:
            try:
                self._keep(self.socket.recv(65536))
            except OSError:
                return

    def _streams(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
                if self._tls is not None:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                    self.subjects.append(connection.getpeercert())
            except ssl.SSLError:
                continue
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                while length := self._length(stream):
                    self._keep(stream.read(length))

    @staticmethod
    def _length(stream: Any) -> int:
        digits = b""
        while (byte := stream.read(1)) not in (b" ", b""):
            digits += byte
        return int(digits or b"0")

    def messages(self, number: int) -> list[ElementTree.Element]:
        """The first so many, each held against the schema."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.frames) >= number, 180.0), len(self.frames)
        return [checked(frame) for frame in self.frames]


@contextmanager
def collecting(transport: str = "tcp", tls: ssl.SSLContext | None = None) -> Iterator[Collector]:
    collector = Collector(transport, tls)
    yield collector
    collector.socket.close()


def checked(frame: bytes) -> ElementTree.Element:
    """The message of a frame, as the schema has it: elements in their order, attributes that must and may be there."""
    header = HEADER.fullmatch(frame)
    assert header is not None, frame
    assert header[1] == b"85"  # security/authorization, notice
    assert datetime.fromisoformat(header[2].decode()).tzinfo is not None
    root = ElementTree.fromstring(header[5])  # noqa: S314 - written by the node itself
    names = [child.tag for child in root]
    order = ["EventIdentification", "ActiveParticipant", "AuditSourceIdentification", "ParticipantObjectIdentification"]
    assert root.tag == "AuditMessage"
    assert sorted(names, key=order.index) == names
    assert names.count("EventIdentification") == names.count("AuditSourceIdentification") == 1
    assert "ActiveParticipant" in names
    event = root[0]
    assert set(event.attrib) == {"EventActionCode", "EventDateTime", "EventOutcomeIndicator"}
    assert event.attrib["EventActionCode"] in "CRUDE"
    assert event.attrib["EventOutcomeIndicator"] in ("0", "4", "8", "12")
    assert datetime.fromisoformat(event.attrib["EventDateTime"]).tzinfo is not None
    assert event[0].tag == "EventID"
    for person in root.findall("ActiveParticipant"):
        may = {"UserID", "AlternativeUserID", "UserIsRequestor", "NetworkAccessPointID", "NetworkAccessPointTypeCode"}
        assert {"UserID", "UserIsRequestor"} <= set(person.attrib) <= may
        assert person.attrib["UserIsRequestor"] in ("true", "false")
        assert person.attrib.get("NetworkAccessPointTypeCode", "1") in ("1", "2")
        assert {child.tag for child in person} <= {"RoleIDCode"}
    source = root.find("AuditSourceIdentification")
    assert source is not None
    assert source.attrib["AuditSourceID"]
    for thing in root.findall("ParticipantObjectIdentification"):
        assert [child.tag for child in thing][:2] == ["ParticipantObjectIDTypeCode", "ParticipantObjectName"]
        assert thing.attrib["ParticipantObjectID"]
        assert thing.attrib["ParticipantObjectTypeCode"] in ("1", "2")
    coded = ("EventID", "EventTypeCode", "RoleIDCode", "ParticipantObjectIDTypeCode")
    assert all(set(element.attrib) == CODED for element in root.iter() if element.tag in coded)
    return root


def kind(message: ElementTree.Element) -> tuple[str, str, str]:
    """Event, type and outcome."""
    event, detail = message[0].find("EventID"), message[0].find("EventTypeCode")
    assert event is not None
    outcome = message[0].attrib["EventOutcomeIndicator"]
    return event.attrib["csd-code"], "" if detail is None else detail.attrib["csd-code"], outcome


def objects(message: ElementTree.Element) -> dict[str, str]:
    return {
        thing.attrib["ParticipantObjectTypeCodeRole"]: thing.attrib["ParticipantObjectID"]
        for thing in message.findall("ParticipantObjectIdentification")
    }


def roles(message: ElementTree.Element) -> dict[str, str]:
    """AE title of source and destination."""
    found = {}
    for person in message.findall("ActiveParticipant"):
        role = person.find("RoleIDCode")
        if role is not None:
            found[role.attrib["csd-code"]] = person.attrib["UserID"]
    return found


@pytest.mark.usefixtures("fake_pipeline")
@pytest.mark.parametrize("patients", [False, True])
def test_the_life_of_a_study(tmp_path: Path, patients: bool) -> None:
    study, files = series_files(tmp_path / "ct")
    with collecting("tcp") as server, SmallPacs(tmp_path / "pacs") as pacs:
        audit = {"syslog": f"tcp://127.0.0.1:{server.port}", "syslog_patients": patients, "site": "Hospital <1>"}
        receive = {"accept_calling": ["SCANNER"]}
        with running(tmp_path, pacs, audit=audit, receive=receive) as node:
            stranger = AE(ae_title="STRANGER")
            stranger.add_requested_context("1.2.840.10008.1.1")
            assert stranger.associate("127.0.0.1", node.receiver.port).is_rejected
            send(node, files)
            wait_for(node, study, in_state("DONE"))
        messages = server.messages(6)
        config = tmp_path / "node.toml"
        config.write_text(
            f'[node]\nstorage = "node"\n[audit]\nsyslog = "{audit["syslog"]}"\n'
            f"syslog_patients = {str(patients).lower()}\n[[rules]]\ndestinations = []\n"
        )
        assert CliRunner().invoke(app, ["delete", study, "--yes", "--config", str(config)]).exit_code == 0
        deleted = server.messages(7)[-1]
    assert [kind(message) for message in messages] == [
        ("110100", "110120", "0"),  # started
        ("110113", "110126", "4"),  # the stranger
        ("110104", "", "0"),  # received
        ("110104", "", "0"),  # SR and SEG delivered
        ("110104", "", "0"),
        ("110100", "110121", "0"),  # stopped
    ]
    received, sent = messages[2], messages[3]
    assert roles(received) == {"110153": "SCANNER", "110152": "PULMO"}
    assert roles(sent) == {"110153": "PULMO", "110152": "SMALLPACS"}
    number = received.find("ParticipantObjectIdentification/ParticipantObjectDescription/SOPClass")
    assert number is not None
    assert number.attrib["NumberOfInstances"] == str(len(files))
    assert kind(deleted) == ("110105", "", "0")
    wanted = {"3": study} | ({"1": "PHANTOM-1"} if patients else {})
    assert [objects(message) for message in (received, sent, deleted)] == [wanted] * 3
    assert any(b"PHANTOM-1" in frame for frame in server.frames) == patients
    source = messages[0].find("AuditSourceIdentification")
    assert source is not None
    assert source.attrib["AuditEnterpriseSiteID"] == "Hospital <1>"


def test_a_patient_id_that_cannot_be_read_stops_nothing(tmp_path: Path) -> None:
    """What was committed is told to the audit: an error there would come to whoever committed it."""
    image = ct_slice()
    content = encoded(image)
    at = content.index(b"\x10\x00\x20\x00LO") + 4
    folder = tmp_path / "instances" / image.StudyInstanceUID / image.SeriesInstanceUID
    folder.mkdir(parents=True)
    part10(folder / "1.dcm", content[:at] + b"ZZ" + content[at + 2 :], MediaStorageSOPInstanceUID="1.2.3")
    part10(folder / "2.dcm", content[:at] + b"UN" + content[at + 2 :], MediaStorageSOPInstanceUID="1.2.3")  # the rest
    with collecting("udp") as server:
        audit = {"syslog": f"udp://127.0.0.1:{server.port}", "syslog_patients": True}
        raw = {"node": {"storage": str(tmp_path)}, "audit": audit, "rules": []}
        trail = open_trail(resolve(raw, base=tmp_path), "tester", SystemClock())
        sent = {"action": "delivery 1 sent", "study_instance_uid": str(image.StudyInstanceUID), "detail": "sr to pacs"}
        trail.record([sent])
        (message,) = server.messages(1)
        trail.close()
    assert len(objects(message).get("1", "")) <= 64  # as long as a Patient ID can be


def one(entry: Any) -> Iterator[bytes]:
    yield f"<AuditMessage>{entry['action']}</AuditMessage>".encode()


def bodies(server: Collector, number: int) -> list[bytes]:
    with server.changed:
        assert server.changed.wait_for(lambda: len(server.frames) >= number, 180.0), server.frames
    return [frame.partition(b"\xef\xbb\xbf")[2] for frame in server.frames]


def test_datagrams() -> None:
    with collecting("udp") as server:
        audit = SyslogAudit(SyslogServer(transport="udp", host="127.0.0.1", port=server.port), one)
        audit.record([{"action": "a"}, {"action": "b"}])
        assert bodies(server, 2) == [b"<AuditMessage>a</AuditMessage>", b"<AuditMessage>b</AuditMessage>"]
        audit.close()


@pytest.mark.parametrize("trusted", [True, False])
def test_tls_shows_and_checks_certificates(tmp_path: Path, trusted: bool) -> None:
    issuer, other = authority(tmp_path / "ca"), authority(tmp_path / "other")
    theirs, ours = issuer.issue("syslog"), issuer.issue("node")
    with collecting("tls", server_side(theirs, issuer.own)) as server, watched("pulmo_node.atna") as log:
        tls = PeerTls(
            ca=str((issuer if trusted else other).own.certificate),
            certificate=str(ours.certificate),
            private_key=str(ours.private_key),
        )
        audit = SyslogAudit(SyslogServer(transport="tls", host="127.0.0.1", port=server.port, tls=tls), one)
        audit.record([{"action": "a"}], durable=True)
        if trusted:
            assert bodies(server, 1) == [b"<AuditMessage>a</AuditMessage>"]
            assert server.subjects[0]["subject"] == ((("commonName", "node"),),)
        else:
            log.wait_for("does not take audit messages: SSLCertVerificationError")
            assert server.frames == []
        audit.close()


def server_side(identity: Identity, issuer: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.private_key)
    context.load_verify_locations(issuer.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def test_what_a_server_does_not_take_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pulmo_node.atna.syslog._FIRST_DELAY_SECONDS", 0.05)
    port = free_port()
    audit = SyslogAudit(SyslogServer(transport="tcp", host="127.0.0.1", port=port), one)
    audit.record([{"action": str(number)} for number in range(3)])  # nobody listens: returns at once
    server = Collector("tcp", port=port)
    assert len(bodies(server, 3)) == 3
    audit.close()
    server.socket.close()


def test_the_oldest_is_dropped_and_nobody_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pulmo_node.atna.syslog._FIRST_DELAY_SECONDS", 0.05)
    monkeypatch.setattr("pulmo_node.atna.syslog._MOST_WAITING", 5)
    port = free_port()
    audit = SyslogAudit(SyslogServer(transport="tcp", host="127.0.0.1", port=port), one)
    audit.record([{"action": str(number)} for number in range(20)])
    server = Collector("tcp", port=port)
    kept = bodies(server, 5)
    assert kept[-1] == b"<AuditMessage>19</AuditMessage>"
    assert len(kept) in (5, 6)  # one may have been in hand
    audit.close()
    server.socket.close()
    assert re.search(r"\d+ audit messages were dropped", caplog.text)


@pytest.mark.parametrize(
    "wrong", ["host:514", "http://host:1", "udp://host:0", "tcp://host:70000", "tls://", "udp://:514"]
)
def test_addresses_that_are_none(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"must be|needs a host|invalid"):
        parse_server(wrong, PeerTls())


def test_addresses() -> None:
    assert parse_server("tls://audit.example", PeerTls()).port == 6514
    assert parse_server("udp://[2001:db8::1]:5140", PeerTls()).host == "2001:db8::1"
    assert parse_server("udp://[2001:db8::1]", PeerTls()).port == 514
