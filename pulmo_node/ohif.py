"""OHIF on loopback for the demo and the viewer tests: its files, and a reverse proxy to an Orthanc with DICOMweb.

Browser, files and DICOMweb share one origin, so nothing of CORS is needed and no request leaves this machine. It is
no server for a hospital: no encryption, no log-in, loopback only.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pulmo_node.errors import Permanent

_FORWARDED = ("/dicom-web/", "/wado")
_CONFIGURATION_PATH = "/app-config.js"
# OHIF's own scripts of these names load a library from a content delivery network.
_EMPTY_SCRIPTS = ("/init-service-worker.js", "/sw.js")
_HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "content-length", "proxy-connection")
)
# Not the machine's own table: a script that is not declared as one is not run, and tables differ.
_CONTENT_TYPES = {
    ".css": "text/css",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".jpg": "image/jpeg",
    ".js": "text/javascript",
    ".json": "application/json",
    ".mjs": "text/javascript",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
    ".wasm": "application/wasm",
    ".woff2": "font/woff2",
}
_BLOCK_BYTES = 1 << 18
_TIMEOUT_SECONDS = 120.0


def configuration() -> str:
    """OHIF's `app-config.js`: one DICOMweb source, at the same origin."""
    source = {
        "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
        "sourceName": "orthanc",
        "configuration": {
            "friendlyName": "Orthanc",
            "name": "orthanc",
            "qidoRoot": "/dicom-web",
            "wadoRoot": "/dicom-web",
            "wadoUriRoot": "/wado",
            "qidoSupportsIncludeField": True,
            "supportsReject": False,
            "supportsFuzzyMatching": False,
            "supportsWildcard": True,
            "imageRendering": "wadors",
            "thumbnailRendering": "wadors",
            "enableStudyLazyLoad": True,
            "omitQuotationForMultipartRequest": True,
            "bulkDataURI": {"enabled": True},
        },
    }
    settings = {
        "name": "Pulmo Node demo",
        "routerBasename": None,
        "extensions": [],
        "modes": [],
        "showStudyList": True,
        "maxNumberOfWebWorkers": 2,
        "showWarningMessageForCrossOrigin": False,
        "showCPUFallbackMessage": False,
        "strictZSpacingForVolumeViewport": True,
        "groupEnabledModesFirst": True,
        "investigationalUseDialog": {"option": "never"},
        "maxNumRequests": {"interaction": 20, "thumbnail": 4, "prefetch": 8},
        "defaultDataSourceName": source["sourceName"],
        "dataSources": [source],
    }
    return f"window.config = {json.dumps(settings, indent=1)};\n"


def wait_for_ctrl_c() -> None:
    """Return at SIGINT or SIGTERM, without an exception, so that what was started can be ended in order."""
    told = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: told.set()) for number in numbers}
    try:
        told.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class OhifServer:
    """OHIF's distribution in `dist` over the Orthanc at `pacs_port`; a context manager."""

    def __init__(self, dist: Path, pacs_port: int, *, port: int = 0) -> None:
        """`dist` holds OHIF's `index.html`; `port` 0 is a free one.

        Raises:
            Permanent: there is no OHIF in the folder.
        """
        self.dist = dist.resolve()
        if not (self.dist / "index.html").is_file():
            raise Permanent(f"{dist} holds no OHIF distribution (no index.html)")
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.dist = self.dist
        self._server.pacs_port = pacs_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="ohif", daemon=True)

    @property
    def url(self) -> str:
        """The study list."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def study_url(self, study_instance_uid: str) -> str:
        """The page that opens a study."""
        return f"{self.url}/viewer?StudyInstanceUIDs={study_instance_uid}"

    def __enter__(self) -> OhifServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    dist: Path
    pacs_port: int
    # A browser opens many connections at once; the default backlog of 5 would make it wait for retries.
    request_queue_size = 64


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes; else each answer waits for an acknowledgement
    server: _Server

    def do_GET(self) -> None:
        """Answer a file of OHIF's, or what Orthanc answers."""
        if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in ("127.0.0.1", "localhost"):
            # A page of another site whose name was pointed at this machine must not read what Orthanc holds.
            self._say(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", b"this server is for this machine only\n")
            return
        path = unquote(urlsplit(self.path).path)
        if path.startswith(_FORWARDED):
            self._forward()
        elif path == _CONFIGURATION_PATH:
            self._say(HTTPStatus.OK, _CONTENT_TYPES[".js"], configuration().encode())
        elif path in _EMPTY_SCRIPTS:
            self._say(HTTPStatus.OK, _CONTENT_TYPES[".js"], b"")
        else:
            self._send_file(path)

    do_HEAD = do_GET
    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing is logged: a URL may hold a patient's name."""

    def _send_file(self, path: str) -> None:
        found = (self.server.dist / path.lstrip("/")).resolve()
        if not (found.is_relative_to(self.server.dist) and found.is_file()):
            if Path(path).suffix:
                self._say(HTTPStatus.NOT_FOUND, "text/plain", b"no such file\n")
                return
            found = self.server.dist / "index.html"  # a page of the application, which reads the address itself
        self._say(HTTPStatus.OK, _CONTENT_TYPES.get(found.suffix, "application/octet-stream"), found.read_bytes())

    def _say(self, status: HTTPStatus, content_type: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _forward(self) -> None:
        # The Host header goes along: Orthanc makes its URLs of it.
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
        path, _, query = self.path.partition("?")
        # Orthanc's DICOMweb plugin 1.7 does not decode the commas of `includefield`, which OHIF sends encoded.
        query = query.replace("%2C", ",").replace("%2c", ",")
        connection = HTTPConnection("127.0.0.1", self.server.pacs_port, timeout=_TIMEOUT_SECONDS)
        try:
            connection.request(self.command, f"{path}?{query}" if query else path, body, headers)
            answer = connection.getresponse()
        except (OSError, HTTPException):
            connection.close()
            self._say(HTTPStatus.BAD_GATEWAY, "text/plain", b"Orthanc does not answer\n")
            return
        try:
            self._pass_on(answer)
        except (OSError, HTTPException):
            self.close_connection = True  # a broken answer must not look like a whole one
        finally:
            connection.close()

    def _pass_on(self, answer: HTTPResponse) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        length = answer.headers.get("Content-Length")
        whole = self.command == "HEAD" or length is not None
        self.send_header(*(("Content-Length", length or "0") if whole else ("Transfer-Encoding", "chunked")))
        self.end_headers()
        if self.command == "HEAD":
            return
        for block in _blocks(answer):
            self.wfile.write(block if whole else b"%x\r\n%b\r\n" % (len(block), block))
        if not whole:
            self.wfile.write(b"0\r\n\r\n")


def _blocks(answer: HTTPResponse) -> Iterator[bytes]:
    while block := answer.read(_BLOCK_BYTES):
        yield block
