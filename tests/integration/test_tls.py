"""TLS on both sides: what is spoken, who is let in, certificates that are replaced while the node runs."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from pulmo_node.app import Node
from pulmo_node.config import resolve
from pulmo_node.deliver import DicomSender
from pulmo_node.domain.deliveries import Peer, PeerTls
from pulmo_node.errors import ConfigError, Transient
from pulmo_node.network.limits import MOST_HALF_OPEN, Limits
from pulmo_node.network.tls import ServerTlsSettings
from tests.certificates import Authority, Identity, authority
from tests.fake_pipeline import fake_pipeline
from tests.network_factory import ReceivingNode, ct_slice, data_set_part, part10, receiving_node

__all__ = ["fake_pipeline"]


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def server(ca: Authority) -> Identity:
    return ca.issue("node")


def settings(server: Identity, client_ca: Path | None = None) -> ServerTlsSettings:
    return ServerTlsSettings(certificate=server.certificate, private_key=server.private_key, client_ca=client_ca)


def peer(node: ReceivingNode, ca: Authority, client: Identity | None = None, *, hostname: str = "") -> Peer:
    own = (str(client.certificate), str(client.private_key)) if client else ("", "")
    tls = PeerTls(ca=str(ca.own.certificate), certificate=own[0], private_key=own[1], hostname=hostname)
    return Peer(name="node", ae_title="PULMO", host="127.0.0.1", port=node.port, tls=tls)


def test_instances_come_and_go_by_tls(tmp_path: Path, ca: Authority, server: Identity) -> None:
    large = ct_slice(1)
    large.Rows = large.Columns = 512
    large.PixelData = bytes(range(256)) * 2048
    files = [part10(tmp_path / "1.dcm", large), part10(tmp_path / "2.dcm", ct_slice(2))]
    with receiving_node(tmp_path, tls=settings(server)) as node:
        sent = list(DicomSender("CT").send_files(peer(node, ca), files))
        assert [one.status for one in sent] == ["0x0000: success"] * 2
        assert [data_set_part(path) for path in node.stored(ct_slice().SeriesInstanceUID)] == [
            data_set_part(file) for file in files
        ]


@pytest.mark.parametrize(
    ("option", "is_served"),
    [("+py", True), ("+px", True), ("+pa", False)],  # BCP 195 without and with downgrade; the retired AES profile
)
def test_storescu_of_dcmtk_by_its_profiles(
    tmp_path: Path, ca: Authority, server: Identity, option: str, is_served: bool
) -> None:
    if shutil.which("storescu") is None:
        pytest.skip("storescu (dcmtk) is not installed")
    client = ca.issue("modality")
    file = part10(tmp_path / "a.dcm", ct_slice())
    command = ["storescu", option, "+tls", str(client.private_key), str(client.certificate)]
    command += ["+cf", str(ca.own.certificate), "-aec", "PULMO", "127.0.0.1"]
    with receiving_node(tmp_path, tls=settings(server, ca.own.certificate)) as node:
        done = subprocess.run(
            [*command, str(node.port), str(file)],
            capture_output=True, text=True, check=False, timeout=300, env={**os.environ, "TCP_NODELAY": "1"},
        )  # fmt: skip
        assert (done.returncode == 0) is is_served, done.stderr
        assert len(node.stored(ct_slice().SeriesInstanceUID)) == is_served


def handshake(node: ReceivingNode, context: ssl.SSLContext) -> tuple[str, str]:
    """Version and cipher that come about."""
    with (
        socket.create_connection(("127.0.0.1", node.port), timeout=120) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as wrapped,
    ):
        return str(wrapped.version()), str((wrapped.cipher() or ("",))[0])


def client_context(ca: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca.own.certificate))


class TestProfile:
    def test_versions(self, tmp_path: Path, ca: Authority, server: Identity) -> None:
        with receiving_node(tmp_path, tls=settings(server)) as node:
            assert handshake(node, client_context(ca))[0] == "TLSv1.3"
            context = client_context(ca)
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            version, cipher = handshake(node, context)
            assert version == "TLSv1.2"
            assert cipher.startswith("ECDHE-ECDSA-AES")

    @pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
    def test_nothing_older(self, tmp_path: Path, ca: Authority, server: Identity) -> None:
        context = client_context(ca)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        with receiving_node(tmp_path, tls=settings(server)) as node, pytest.raises(OSError, match=r".*"):
            handshake(node, context)

    @pytest.mark.parametrize("cipher", ["ECDHE-ECDSA-AES256-SHA384", "ECDHE-ECDSA-AES128-SHA"])
    def test_no_weak_suite_of_tls_1_2(self, tmp_path: Path, ca: Authority, server: Identity, cipher: str) -> None:
        context = client_context(ca)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(cipher)
        with receiving_node(tmp_path, tls=settings(server)) as node, pytest.raises(ssl.SSLError):
            handshake(node, context)

    def test_in_the_clear_nothing_is_received(self, tmp_path: Path, server: Identity) -> None:
        with receiving_node(tmp_path, tls=settings(server)) as node:
            clear = Peer(name="node", ae_title="PULMO", host="127.0.0.1", port=node.port)
            with pytest.raises(Transient):
                DicomSender("CT").echo(clear)
            node.log.wait_for("connection from 127.0.0.1 refused: TLS: wrong version number")


class TestMutual:
    def test_a_certificate_of_our_issuer_is_asked_for(self, tmp_path: Path, ca: Authority, server: Identity) -> None:
        stranger = authority(tmp_path / "other").issue("stranger")
        with receiving_node(tmp_path, tls=settings(server, ca.own.certificate)) as node:
            assert DicomSender("CT").echo(peer(node, ca, ca.issue("modality"))) >= 0
            for client in (None, stranger):
                with pytest.raises(Transient):
                    DicomSender("CT").echo(peer(node, ca, client))
            node.log.wait_for("connection from 127.0.0.1 refused: TLS: peer did not return a certificate")

    def test_the_sender_checks_issuer_and_name(self, tmp_path: Path, ca: Authority, server: Identity) -> None:
        with receiving_node(tmp_path, tls=settings(server)) as node:
            other = authority(tmp_path / "other")
            with pytest.raises(Transient, match="node: TLS: certificate not accepted: unable to get local issuer"):
                DicomSender("CT").echo(peer(node, other))
            with pytest.raises(Transient, match="certificate not accepted: Hostname mismatch"):
                DicomSender("CT").echo(peer(node, ca, hostname="pacs.example"))
            assert DicomSender("CT").echo(peer(node, ca, hostname="localhost")) >= 0


class TestFiles:
    def test_a_replaced_certificate_is_used_for_the_next_connection(self, tmp_path: Path, ca: Authority) -> None:
        first, renewed = ca.issue("first"), authority(tmp_path / "new")
        live = ca.issue("live")
        with receiving_node(tmp_path, tls=settings(live)) as node:
            assert DicomSender("CT").echo(peer(node, ca)) >= 0
            second = renewed.issue("second")
            replace(second, live)
            assert DicomSender("CT").echo(peer(node, renewed)) >= 0
            node.log.wait_for("TLS certificate read again")
            live.certificate.write_text("no certificate")
            assert DicomSender("CT").echo(peer(node, renewed)) >= 0
            node.log.wait_for("the TLS certificate before stays in use: tls.certificate, tls.private_key:")
            replace(first, live)
            assert DicomSender("CT").echo(peer(node, ca)) >= 0

    def test_files_that_cannot_be_used_at_the_start(self, tmp_path: Path, ca: Authority, server: Identity) -> None:
        other_key = ca.issue("other").private_key
        for wrong, said in (
            (settings(Identity(certificate=tmp_path / "none.pem", private_key=other_key)), "No such file"),
            (settings(Identity(certificate=server.certificate, private_key=other_key)), "key values mismatch"),
            (settings(server, tmp_path / "none.pem"), "tls.client_ca: No such file"),
        ):
            with pytest.raises(ConfigError, match=said), receiving_node(tmp_path, tls=wrong):
                pass

    def test_an_encrypted_key_is_refused_without_a_question(self, tmp_path: Path, server: Identity) -> None:
        locked = tmp_path / "locked.key"
        command = ["openssl", "ec", "-aes256", "-passout", "pass:secret", "-in", str(server.private_key)]
        subprocess.run([*command, "-out", str(locked)], check=True, capture_output=True, timeout=300)
        wrong = settings(Identity(certificate=server.certificate, private_key=locked))
        with pytest.raises(ConfigError, match="the private key is encrypted"), receiving_node(tmp_path, tls=wrong):
            pass


def replace(source: Identity, target: Identity) -> None:
    """As a tool that renews certificates does: new files under the old names."""
    for kind in ("certificate", "private_key"):
        fresh = getattr(target, kind).with_suffix(".fresh")
        shutil.copy(getattr(source, kind), fresh)
        fresh.replace(getattr(target, kind))


def test_handshakes_that_stop_keep_nobody_out(tmp_path: Path, ca: Authority, server: Identity) -> None:
    silent: list[socket.socket] = []
    with receiving_node(tmp_path, tls=settings(server), limits=Limits(request_seconds=5.0)) as node:
        try:
            for _ in range(MOST_HALF_OPEN):
                silent.append(socket.create_connection(("127.0.0.1", node.port), timeout=120))
                silent[-1].sendall(b"\x16\x03\x01\x02")  # a ClientHello that does not go on
            assert DicomSender("CT").echo(peer(node, ca)) >= 0
            assert [sock.recv(100) for sock in silent][-1] == b""
        finally:
            for sock in silent:
                sock.close()


@pytest.mark.usefixtures("fake_pipeline")
def test_the_node_by_its_configuration(tmp_path: Path, ca: Authority, server: Identity) -> None:
    config = resolve(
        {
            "node": {"port": 0, "storage": "var"},
            "tls": {
                "certificate": str(server.certificate),
                "private_key": str(server.private_key),
                "client_ca": str(ca.own.certificate),
            },
            "analysis": {"isolated": False},
        },
        base=tmp_path,
    )
    with Node(config) as node:
        tls = PeerTls(
            ca=str(ca.own.certificate), certificate=str(server.certificate), private_key=str(server.private_key)
        )
        itself = Peer(name="self", ae_title="PULMO", host="127.0.0.1", port=node.receiver.port, tls=tls)
        assert DicomSender("PULMO").echo(itself) >= 0
