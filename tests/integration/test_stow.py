"""STOW-RS: what a DICOMweb server answers, and what becomes of the result; against a scripted server and Orthanc."""

from __future__ import annotations

import email
import email.policy
import json
import ssl
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from pulmo_node import orthanc
from pulmo_node.app import Node, build_result_sender
from pulmo_node.config import Config, resolve
from pulmo_node.deliver import StowSender
from pulmo_node.domain.deliveries import Peer, PeerTls, ResultObject
from pulmo_node.errors import ConfigError, Permanent, Transient
from pulmo_node.health import run_checks
from pulmo_node.orthanc import OrthancProcess
from tests.certificates import authority
from tests.fake_pipeline import fake_pipeline
from tests.integration.test_node import configuration, in_state, send, series_files, wait_for
from tests.network_factory import ct_slice, part10

__all__ = ["fake_pipeline"]

SLICE = ct_slice(1)
UID = str(SLICE.SOPInstanceUID)


def module(*, kept: str | None = None, failed: str | None = None, reason: int | None = None) -> bytes:
    """A Store Instances Response."""
    item: dict[str, Any] = {"00081155": {"vr": "UI", "Value": [kept or failed]}}
    if reason is not None:
        item["00081196" if kept else "00081197"] = {"vr": "US", "Value": [reason]}
    return json.dumps({"00081199" if kept else "00081198": {"vr": "SQ", "Value": [item]}}).encode()


class Server:
    """Answers by a script, then 200 with the object kept; keeps what it was sent."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.script: deque[tuple[int, bytes]] = deque()
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.requests.append((self.path, dict(self.headers), body))
                self._answer()

            def _answer(self) -> None:
                code, said = server.script.popleft() if server.script else (200, module(kept=UID))
                self.send_response(code)
                self.send_header("Content-Length", str(len(said)))
                self.send_header("Location", "http://192.0.2.1/")
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._scheme = "http" if tls is None else "https"

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}/dicom-web"

    @property
    def peer(self) -> Peer:
        return Peer(name="web", ae_title="", host="", port=0, stow_url=self.url, stow_authorization="Bearer s3cret")

    def __enter__(self) -> Server:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as one:
        yield one


def result_file(folder: Path) -> tuple[Path, ResultObject]:
    path = part10(folder / "slice.dcm", SLICE)
    result = ResultObject(
        kind="any",
        sop_class_uid=str(SLICE.SOPClassUID),
        sop_instance_uid=UID,
        series_instance_uid=str(SLICE.SeriesInstanceUID),
        path=path.name,
        sha256="",
    )
    return path, result


def store(peer: Peer, folder: Path) -> str:
    with StowSender(timeout_seconds=10.0).open(peer) as link:
        return link.store(*result_file(folder))


class TestRequest:
    def test_the_bytes_of_the_file_in_one_part(self, server: Server, tmp_path: Path) -> None:
        assert store(server.peer, tmp_path) == "HTTP 200 ok"
        ((path, headers, body),) = server.requests
        assert path == "/dicom-web/studies"
        assert headers["Authorization"] == "Bearer s3cret"
        assert headers["Accept"] == "application/dicom+json"
        assert "Transfer-Encoding" not in headers
        message = email.message_from_bytes(
            f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body, policy=email.policy.HTTP
        )
        assert message.get_content_type() == "multipart/related"
        assert message.get_param("type") == "application/dicom"
        (part,) = message.iter_parts()
        assert part.get_content_type() == "application/dicom"
        head = b"Content-Type: application/dicom\r\n\r\n"
        begin = body.index(head) + len(head)
        assert body[begin : body.rindex(b"\r\n--")] == (tmp_path / "slice.dcm").read_bytes()

    def test_the_file_must_be_the_object(self, server: Server, tmp_path: Path) -> None:
        path, result = result_file(tmp_path)
        part10(path, ct_slice(2))
        with StowSender().open(server.peer) as link, pytest.raises(Permanent, match="is not"):
            link.store(path, result)
        path.unlink()
        with StowSender().open(server.peer) as link, pytest.raises(Permanent, match="cannot be read"):
            link.store(path, result)
        assert server.requests == []


class TestAnswers:
    @pytest.mark.parametrize(
        ("code", "said", "words"),
        [
            (200, b"", "HTTP 200 ok"),
            (200, b"<NativeDicomModel/>", "HTTP 200 ok"),
            (200, module(kept=UID, reason=0xB000), "HTTP 200 ok, 0xB000: elements coerced"),
            (202, module(kept=UID, reason=0xB007), "HTTP 202 accepted, 0xB007: stored although not matching"),
        ],
    )
    def test_stored(self, server: Server, tmp_path: Path, code: int, said: bytes, words: str) -> None:
        server.script.append((code, said))
        assert store(server.peer, tmp_path) == words

    @pytest.mark.parametrize(
        ("code", "said"),
        [
            (401, b""),
            (403, b""),
            (404, b""),
            (429, b""),
            (500, b"Patient JANE^DOE"),
            (503, b""),
            (409, module(failed=UID, reason=0xA700)),
            (202, module(failed=UID, reason=0xA700)),
            (202, b""),
            (200, module(kept="1.2.3")),
        ],
    )
    def test_tried_again(self, server: Server, tmp_path: Path, code: int, said: bytes) -> None:
        server.script.append((code, said))
        with pytest.raises(Transient, match=r"^web ") as caught:
            store(server.peer, tmp_path)
        assert "JANE" not in str(caught.value)

    @pytest.mark.parametrize(
        ("code", "said", "words"),
        [
            (400, b"", "refused it: HTTP 400 bad request"),
            (415, b"", "refused it: HTTP 415"),
            (302, b"", "refused it: HTTP 302"),
            (409, module(failed=UID, reason=0xC000), "0xC000: cannot understand"),
            (409, module(failed=UID), "0x0110"),
            (200, module(failed=UID, reason=0x0122), "0x0122"),
            (409, b"[" * 100_000, "refused it: HTTP 409"),
            (409, b'{"00081198": 5}', "refused it: HTTP 409"),
        ],
    )
    def test_refused(self, server: Server, tmp_path: Path, code: int, said: bytes, words: str) -> None:
        server.script.append((code, said))
        with pytest.raises(Permanent, match=words):
            store(server.peer, tmp_path)

    def test_an_endless_answer_is_not_kept(self, server: Server, tmp_path: Path) -> None:
        server.script.append((202, module(kept=UID) + b" " * 2_000_000))
        with pytest.raises(Transient, match="does not say"):
            store(server.peer, tmp_path)

    def test_nobody_there(self, tmp_path: Path) -> None:
        with Server() as gone:
            peer = gone.peer
        with pytest.raises(Transient, match=r"^web did not answer: ConnectError"):
            store(peer, tmp_path)
        with pytest.raises(Transient, match=r"^web cannot be reached"):
            StowSender().echo(peer)


class TestEcho:
    def test_it_answers(self, server: Server) -> None:
        assert StowSender().echo(server.peer) > 0
        server.script.append((400, b""))
        assert StowSender().echo(server.peer) > 0
        assert [(path, len(body)) for path, _, body in server.requests] == [("/dicom-web/studies", 38)] * 2

    @pytest.mark.parametrize("code", [401, 403, 404, 503])
    def test_it_takes_nothing(self, server: Server, code: int) -> None:
        server.script.append((code, b""))
        with pytest.raises(Transient, match=f"web answered HTTP {code}"):
            StowSender().echo(server.peer)


def test_https_with_the_issuer_that_is_configured_and_no_other(tmp_path: Path) -> None:
    issuer, another = authority(tmp_path / "ca"), authority(tmp_path / "another")
    identity = issuer.issue("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.private_key)
    with Server(context) as server:
        trusting = replace(server.peer, tls=PeerTls(ca=str(issuer.own.certificate)))
        assert store(trusting, tmp_path) == "HTTP 200 ok"
        with pytest.raises(Transient, match="did not answer"):
            store(replace(server.peer, tls=PeerTls(ca=str(another.own.certificate))), tmp_path)
        with pytest.raises(Transient, match="did not answer"):
            store(replace(server.peer, tls=PeerTls()), tmp_path)
    assert len(server.requests) == 1


class TestConfiguration:
    def read(self, tmp_path: Path, **peer: Any) -> Config:
        return resolve({"peers": {"web": peer}}, base=tmp_path)

    def test_a_url_is_enough(self, tmp_path: Path) -> None:
        config = self.read(
            tmp_path, stow_url="https://pacs.example:8443/dicom-web/", stow_authorization="Bearer s3cret"
        )
        peer = config.peer("web")
        assert peer.tls == PeerTls()
        assert "s3cret" not in repr(peer)
        assert "s3cret" not in json.dumps(config.as_dict())
        assert self.read(tmp_path, stow_url="http://127.0.0.1/x", ae_title="CT").peer_of_ae_title("CT") == "web"

    @pytest.mark.parametrize(
        ("peer", "problem"),
        [
            ({"stow_url": "ftp://pacs.example/"}, "peers.web.stow_url: "),
            ({"stow_url": "https://user:word@pacs.example/"}, "peers.web.stow_url: "),
            ({"stow_url": "https://pacs.example/", "host": "h"}, "peers.web.host: means nothing beside stow_url"),
            ({"stow_url": "https://p/", "tls_hostname": "h"}, "peers.web.tls_hostname: means nothing"),
            ({"stow_url": "https://p/", "storage_commitment": "if_offered"}, "peers.web.storage_commitment: must be"),
            ({"stow_url": "http://p/", "tls_ca": "ca.pem"}, "peers.web.tls_ca: needs a stow_url with https"),
            ({"stow_url": "http://p/", "stow_authorization": "Basic x"}, "peers.web.stow_authorization: would be read"),
            (
                {"ae_title": "A", "host": "h", "port": 1, "stow_authorization": "Basic x"},
                "peers.web.stow_authorization: needs stow_url",
            ),
            ({"ae_title": "A"}, "peers.web.host: Field required"),
        ],
    )
    def test_what_does_not_go_together(self, tmp_path: Path, peer: dict[str, Any], problem: str) -> None:
        with pytest.raises(ConfigError) as caught:
            self.read(tmp_path, **peer)
        assert problem in str(caught.value)


def node_configuration(folder: Path, url: str) -> Config:
    rules = [{"modality": "CT", "pipelines": ["ct-nodules"], "destinations": ["web"]}]
    return resolve(configuration(folder).as_dict() | {"peers": {"web": {"stow_url": url}}, "rules": rules}, base=folder)


@pytest.mark.usefixtures("fake_pipeline")
def test_a_server_that_fails_at_first(tmp_path: Path) -> None:
    """The queue of a DICOMweb server is that of any destination: deferred, then all of it, once."""
    study, files = series_files(tmp_path / "ct")
    with Server() as server, Node(node_configuration(tmp_path, server.url)) as node:
        server.script.extend([(503, b""), (503, b""), (200, b""), (200, b"")])
        send(node, files)
        detail = wait_for(node, study, in_state("DONE"))
    assert {delivery.state.value for delivery in detail.deliveries} == {"SENT"}
    assert len(server.requests) == 4


@pytest.mark.usefixtures("fake_pipeline")
def test_orthanc_has_the_results_as_they_are(tmp_path: Path) -> None:
    missing = orthanc.available() or orthanc.dicomweb_available()
    if missing:
        pytest.skip(missing)
    study, files = series_files(tmp_path / "ct")
    with OrthancProcess(tmp_path / "orthanc", dicomweb=True) as server:
        config = node_configuration(tmp_path, server.url + "/dicom-web")
        assert build_result_sender(config).echo(config.peer("web")) > 0
        (check,) = [check for check in run_checks(config) if check.name == "peer web"]
        assert check.ok, check.detail
        with Node(config) as node:
            send(node, files)
            detail = wait_for(node, study, in_state("DONE"))
            results = {one.result.sop_instance_uid: config.storage / one.result.path for one in detail.deliveries}
        stored = server.objects(results)
    assert len(results) == 2
    assert {uid: part10_data_set(content) for uid, content in stored.items()} == {
        uid: part10_data_set(path.read_bytes()) for uid, path in results.items()
    }


def part10_data_set(content: bytes) -> bytes:
    """Behind preamble and meta header, which a server may write anew."""
    reader = dcmread(BytesIO(content), stop_before_pixels=True)
    return content[132 + 12 + int(reader.file_meta.FileMetaInformationGroupLength) :]


class TestOrthancRefuses:
    def test_what_is_no_object(self, tmp_path: Path) -> None:
        missing = orthanc.available() or orthanc.dicomweb_available()
        if missing:
            pytest.skip(missing)
        path, result = result_file(tmp_path)
        with path.open("r+b") as file:  # a meta header, and nothing behind it that could be indexed
            file.truncate(132 + 300)
        with OrthancProcess(tmp_path / "orthanc", dicomweb=True) as server:
            peer = Peer(name="web", ae_title="", host="", port=0, stow_url=server.url + "/dicom-web")
            with StowSender().open(peer) as link, pytest.raises((Permanent, Transient), match=r"^web "):
                link.store(path, result)
            assert server.get("/instances") == []
