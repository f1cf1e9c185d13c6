"""A small Hugging Face hub on 127.0.0.1: the endpoints that a download of model files calls, and their faults.

As the real one does for files in large file storage, it answers ``/<repository>/resolve/<revision>/<file>`` with a
redirect to a store (here: a second server, so that it is another origin), and HEAD with commit, size and SHA-256 in
headers. The store serves ranges.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import close_session

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(kw_only=True)
class HubServer:
    """What the server knows and what it was asked; change it between requests."""

    repository: str
    files: dict[str, bytes]
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, COMMIT: COMMIT})
    gated: bool = False
    large_file_storage: bool = True  # otherwise the hub serves the bytes itself and its tag is no SHA-256
    honour_ranges: bool = True
    served: dict[str, bytes] = field(default_factory=dict)  # what the store gives instead of the announced bytes
    cuts: list[int] = field(default_factory=list)  # bytes after which the next transfers break
    asked: list[tuple[str, str, str, bool]] = field(default_factory=list)  # method, path, range, with a token
    endpoint: str = ""
    store: str = ""

    def transfers(self) -> list[tuple[str, str]]:
        """File and range of every transfer that began."""
        begun = "/store/" if self.large_file_storage else "/resolve/"
        return [
            (path.rsplit("/", 1)[1], bounds) for verb, path, bounds, _ in self.asked if verb == "GET" and begun in path
        ]


@contextmanager
def hub_server(repository: str, files: dict[str, Path]) -> Iterator[HubServer]:
    """A running hub with one repository."""
    hub = HubServer(repository=repository, files={name: path.read_bytes() for name, path in files.items()})
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ExitStack() as stack:
        addresses = []
        for _ in range(2):
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            addresses.append(f"http://127.0.0.1:{server.server_address[1]}")
        hub.endpoint, hub.store = addresses
        yield hub


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        bounds = self.headers.get("Range", "")
        self.hub.asked.append((self.command, self.path, bounds, "Authorization" in self.headers))
        if self.path.startswith("/store/"):
            self._bytes(self.path.rsplit("/", 1)[1], {})
            return
        found = re.fullmatch(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>[^/]+)", self.path)
        if found is None or found["repository"] != self.hub.repository:
            self._refuse(404, "RepoNotFound")
        elif self.hub.gated:
            self._refuse(403, "GatedRepo")
        elif found["revision"] not in self.hub.revisions:
            self._refuse(404, "RevisionNotFound")
        elif found["file"] not in self.hub.files:
            self._refuse(404, "EntryNotFound")
        else:
            self._resolve(found["file"], self.hub.revisions[found["revision"]])

    def _resolve(self, file: str, commit: str) -> None:
        content = self.hub.files[file]
        if not self.hub.large_file_storage:
            self._bytes(file, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})  # noqa: S324
            return
        self.send_response(302)
        self.send_header("Location", f"{self.hub.store}/store/{file}")
        self.send_header("X-Repo-Commit", commit)
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("X-Linked-ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _bytes(self, file: str, headers: dict[str, str]) -> None:
        content = self.hub.served.get(file, self.hub.files[file])
        bounds = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if self.hub.honour_ranges else None
        begin = int(bounds[1]) if bounds else 0
        self.send_response(206 if bounds else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content) - begin))
        if bounds:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.cuts:
            self.wfile.write(content[begin : begin + self.hub.cuts.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(content[begin:])

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def hub_in_use(monkeypatch: pytest.MonkeyPatch, files: dict[str, Path]) -> Iterator[HubServer]:
    """A running hub with ``ariyul/Pulmo`` that `huggingface_hub` asks, whatever proxy the machine has."""
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    close_session()
    with hub_server("ariyul/Pulmo", files) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running
    close_session()
