"""The server for OHIF: its files, its configuration, and the way to Orthanc, against a stand-in for both."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pulmo_node.errors import Permanent
from pulmo_node.ohif import OhifServer, wait_for_ctrl_c


@dataclass
class Orthanc:
    """A stand-in that notes what it is asked, and answers in two ways."""

    port: int = 0
    asked: list[tuple[str, str, str, bytes]] = field(default_factory=list)  # method, path, Host, body


@pytest.fixture
def orthanc() -> Iterator[Orthanc]:
    stand_in = Orthanc()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            stand_in.asked.append((self.command, self.path, self.headers["Host"], body))
            self.send_response(404 if "missing" in self.path else 200)
            self.send_header("Content-Type", "application/dicom+json")
            if "parts" in self.path:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
            else:
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else b"[]")

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        stand_in.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield stand_in
        server.shutdown()
        thread.join()


@pytest.fixture
def ohif(orthanc: Orthanc, tmp_path: Path) -> Iterator[OhifServer]:
    dist = tmp_path / "dist"
    dist.mkdir()
    (dist / "index.html").write_text("<p>OHIF</p>")
    (dist / "app.js").write_text("run()")
    (dist / "decoder.wasm").write_bytes(b"\0asm")
    (dist / "app-config.js").write_text("OHIF's own, which must not be served")
    (tmp_path / "secret.txt").write_text("not to be served")
    with OhifServer(dist, orthanc.port) as server:
        yield server


@dataclass(frozen=True)
class Answer:
    status: int
    kind: str
    body: bytes
    response: HTTPResponse


def ask(ohif: OhifServer, path: str, method: str = "GET", *, host: str | None = None, body: bytes = b"") -> Answer:
    connection = HTTPConnection("127.0.0.1", int(ohif.url.rsplit(":", 1)[1]), timeout=180)
    connection.request(method, path, body or None, {} if host is None else {"Host": host})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return Answer(response.status, response.headers.get("Content-Type", ""), content, response)


@pytest.mark.parametrize("path", ["/", "/viewer?StudyInstanceUIDs=1.2.3", "/viewer/dicomweb"])
def test_pages_of_the_application_are_its_index(ohif: OhifServer, path: str) -> None:
    answer = ask(ohif, path)
    assert (answer.status, answer.body) == (200, b"<p>OHIF</p>")
    assert answer.kind.startswith("text/html")


def test_files_have_the_types_that_a_browser_insists_on(ohif: OhifServer) -> None:
    assert ask(ohif, "/app.js").kind == "text/javascript"
    assert ask(ohif, "/decoder.wasm").kind == "application/wasm"
    assert ask(ohif, "/app.js", "HEAD").response.headers["Content-Length"] == "5"


def test_a_missing_file_is_no_page(ohif: OhifServer) -> None:
    assert ask(ohif, "/missing.js").status == 404


@pytest.mark.parametrize("path", ["/../secret.txt", "/%2e%2e/secret.txt", "//../secret.txt", "/..%2fsecret.txt"])
def test_nothing_beside_the_distribution_is_served(ohif: OhifServer, path: str) -> None:
    assert b"not to be served" not in ask(ohif, path).body


def test_the_configuration_names_one_source_at_the_same_origin(ohif: OhifServer) -> None:
    text = ask(ohif, "/app-config.js").body.decode()
    settings = json.loads(text.removeprefix("window.config = ").rstrip(";\n"))
    (source,) = settings["dataSources"]
    assert source["sourceName"] == settings["defaultDataSourceName"]
    assert source["configuration"]["qidoRoot"] == source["configuration"]["wadoRoot"] == "/dicom-web"


@pytest.mark.parametrize("path", ["/init-service-worker.js", "/sw.js"])
def test_scripts_that_would_load_from_elsewhere_are_empty(ohif: OhifServer, path: str) -> None:
    answer = ask(ohif, path)
    assert (answer.status, answer.kind, answer.body) == (200, "text/javascript", b"")


def test_a_query_reaches_orthanc_with_plain_commas_and_the_host(ohif: OhifServer, orthanc: Orthanc) -> None:
    answer = ask(ohif, "/dicom-web/studies?includefield=00081030%2C00080060&PatientName=a%20b%2cc")
    assert (answer.status, answer.kind, answer.body) == (200, "application/dicom+json", b"[]")
    host = ohif.url.removeprefix("http://")
    path = "/dicom-web/studies?includefield=00081030,00080060&PatientName=a%20b,c"
    assert orthanc.asked == [("GET", path, host, b"")]


def test_answers_in_pieces_arrive_whole(ohif: OhifServer) -> None:
    assert ask(ohif, "/dicom-web/parts").body == b"onetwo"


def test_errors_of_orthanc_are_passed_on(ohif: OhifServer) -> None:
    assert ask(ohif, "/dicom-web/missing").status == 404


def test_a_body_is_passed_on(ohif: OhifServer, orthanc: Orthanc) -> None:
    assert ask(ohif, "/dicom-web/studies", "POST", body=b"part 10").status == 200
    assert orthanc.asked[0][0] == "POST"
    assert orthanc.asked[0][3] == b"part 10"


def test_head_has_the_length_and_no_body(ohif: OhifServer) -> None:
    answer = ask(ohif, "/dicom-web/studies", "HEAD")
    assert (answer.response.headers["Content-Length"], answer.body) == ("2", b"")


def test_another_name_for_this_machine_is_refused(ohif: OhifServer, orthanc: Orthanc) -> None:
    for path in ("/", "/dicom-web/studies"):
        assert ask(ohif, path, host="evil.example").status == 421
    assert orthanc.asked == []


def test_an_orthanc_that_is_gone_is_a_bad_gateway(tmp_path: Path) -> None:
    (tmp_path / "index.html").touch()
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        port = closed.server_port
    with OhifServer(tmp_path, port) as server:
        assert ask(server, "/dicom-web/studies").status == 502


def test_a_folder_without_ohif_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(Permanent, match=r"index\.html"):
        OhifServer(tmp_path, 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_waiting_ends_with_a_signal_and_puts_the_handlers_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def signal_once_it_is_caught() -> None:
        while signal.getsignal(number) is before:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=signal_once_it_is_caught)
    sender.start()
    wait_for_ctrl_c()
    sender.join()
    assert signal.getsignal(number) is before
