"""A node in a process of its own that can be killed, measured and started again, and what its database says."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from pulmo_node.domain.deliveries import Peer
from pulmo_node.orthanc import free_port
from tests.conftest import ROOT

AE_TITLE = "PULMO"
START_SECONDS = 120.0
_POLL_SECONDS = 0.02
_LISTENING = "0A"  # in /proc/net/tcp


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the node and the processes below it hold at one moment."""

    rss_bytes: int
    peak_rss_bytes: int  # the sum of each process's own peak, an upper limit of the peak of all
    descriptors: int
    threads: int


class NodeProcess:
    """`pulmo-node serve` on a fixed port of loopback. A context manager that starts it, and ends it with SIGTERM."""

    def __init__(
        self,
        folder: Path,
        changes: Mapping[str, Mapping[str, Any]],
        *,
        peers: Sequence[Peer],
        port: int | None = None,
        program: str = "tests.faults.served",
    ) -> None:
        """`folder` takes configuration, storage (unless `changes` say otherwise) and log.

        `changes` are keys of the configuration by section; each result goes to all the `peers`. `program` is the
        module that is run: by default the node with a pipeline without networks.
        """
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.log = folder / "node.log"
        self.storage = Path(changes.get("node", {}).get("storage", folder / "storage"))
        self._program = program
        # One thread where no network computes; the real node sets its threads itself.
        self._environment = {"OMP_NUM_THREADS": "1"} if program == "tests.faults.served" else {}
        self._configuration = folder / "node.toml"
        self._configuration.write_text(tomlkit.dumps(self._settings(changes, peers)))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def peer(self) -> Peer:
        """How a sender addresses it."""
        return Peer(name="node", ae_title=AE_TITLE, host="127.0.0.1", port=self.port)

    @property
    def running(self) -> bool:
        """Whether the process that was started last is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        assert self._process is not None
        return self._process.pid

    def launch(self) -> None:
        """Start the process and return at once."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._program, "serve", "--config", str(self._configuration)],
                cwd=ROOT,
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def start(self) -> None:
        """Start the process and return when its port is open."""
        self.launch()
        self.wait_until_open()

    def wait_until_open(self) -> None:
        """Return when the port is open; fails where the process ends before."""
        wait_for(lambda: self.open or not self.running, START_SECONDS, "the port of the node")
        assert self.running, self.log.read_text()[-3000:]

    @property
    def open(self) -> bool:
        """Whether somebody listens on its port; asked of the kernel, so that the node does not notice."""
        wanted = f"0100007F:{self.port:04X}"
        rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
        return any(row[1] == wanted and row[3] == _LISTENING for row in rows)

    def kill(self) -> None:
        """SIGKILL to the node itself; what it had started must end by itself."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self, seconds: float = 60.0) -> int:
        """SIGTERM; the exit status. SIGKILL where it does not end in time."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def __enter__(self) -> NodeProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.stop()

    def descendants(self) -> list[int]:
        """Process ids of what it started, and what they started."""
        found = [self.pid]
        for parent in found:
            found += _children(parent)
        return found[1:]

    def resources(self) -> Resources:
        """What it and its descendants hold now."""
        each = [_resources(pid) for pid in (self.pid, *self.descendants())]
        present = [found for found in each if found is not None]
        return Resources(
            rss_bytes=sum(found.rss_bytes for found in present),
            peak_rss_bytes=sum(found.peak_rss_bytes for found in present),
            descriptors=sum(found.descriptors for found in present),
            threads=sum(found.threads for found in present),
        )

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Rows of its database, read past its own code."""
        with closing(
            sqlite3.connect(f"file:{self.storage / 'pulmo.sqlite'}?mode=ro", uri=True, timeout=120)
        ) as database:
            return database.execute(statement).fetchall()

    def _settings(self, changes: Mapping[str, Mapping[str, Any]], peers: Sequence[Peer]) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "node": {"port": self.port, "storage": str(self.storage)},
            "receive": {"quiet_seconds": 1.0},
            "results": {"key_images": False},
            "peers": {peer.name: {"ae_title": peer.ae_title, "host": peer.host, "port": peer.port} for peer in peers},
            "rules": [{"modality": "CT", "pipelines": ["ct-nodules"], "destinations": [peer.name for peer in peers]}],
        }
        for section, keys in changes.items():
            settings.setdefault(section, {}).update(keys)
        return settings


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Return when the condition holds; fails where it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(_POLL_SECONDS)


def alive(pid: int) -> bool:
    """Whether the process is there and has not ended yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def kill(pid: int) -> bool:
    """SIGKILL; False where it was gone already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _resources(pid: int) -> Resources | None:
    """None where the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
        return Resources(
            rss_bytes=int(status["VmRSS"][0]) * 1024,
            peak_rss_bytes=int(status["VmHWM"][0]) * 1024,
            descriptors=len(os.listdir(f"/proc/{pid}/fd")),
            threads=int(status["Threads"][0]),
        )
    except (FileNotFoundError, ProcessLookupError, KeyError):
        return None
