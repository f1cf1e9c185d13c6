"""Storage SCPs to compare the node's receiver with, each in a process of its own that listens on loopback only.

They stay up from the first round to the last. What each has promised once it answers Success is part of the result.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tomlkit

from pulmo_node.orthanc import OrthancProcess, available, free_port, loopback_library

_START_SECONDS = 120.0
_TICKS = os.sysconf("SC_CLK_TCK")
_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Server:
    """One that runs."""

    name: str
    ae_title: str
    port: int
    pid: int
    promise: str  # of its Success
    log: Path
    stored: Callable[[], int]  # instances that it keeps
    clear: Callable[[], None]  # removes them, where it is known how

    def cpu_seconds(self) -> float:
        """Of all its processes until now."""
        return sum(_cpu_seconds(pid) for pid in self._processes())

    def forget_peak(self) -> float:
        """Resident memory of its processes now in MiB, from which on `peak_mib` counts."""
        for pid in self._processes():
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        return self._memory("VmRSS")

    def peak_mib(self) -> float:
        """The most that its processes that are there now had resident since `forget_peak`, each by itself."""
        return self._memory("VmHWM")

    def _memory(self, field: str) -> float:
        total_kib = 0
        for pid in self._processes():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(f"{field}:"):
                    total_kib += int(line.split()[1])
        return total_kib * 1024 / _MIB

    def _processes(self) -> list[int]:
        found = [self.pid]
        for parent in found:
            for task in Path(f"/proc/{parent}/task").glob("*/children"):
                found += [int(child) for child in task.read_text().split()]
        return found


@contextmanager
def node(folder: Path) -> Iterator[Server]:
    """`pulmo-node serve` with its defaults, but that no series is analysed in the middle of a measurement."""
    port = free_port()
    storage = folder / "storage"
    folder.mkdir(parents=True)
    configuration = folder / "node.toml"
    settings = {"node": {"port": port, "storage": str(storage)}, "receive": {"quiet_seconds": 100_000.0}}
    configuration.write_text(tomlkit.dumps(settings))
    command = [sys.executable, "-m", "pulmo_node", "serve", "--config", str(configuration)]
    with _running(command, port, folder / "node.log") as pid:
        yield Server(
            name="the node", ae_title="PULMO", port=port, pid=pid, log=folder / "node.log",
            promise="file, folder and row fsynced",
            stored=lambda: _files(storage / "instances"), clear=lambda: None,
        )  # fmt: skip


@contextmanager
def orthanc(folder: Path, *, synchronised: bool) -> Iterator[Server]:
    """Orthanc with its defaults; `SyncStorageArea`, the fsync of each file, is one of them."""
    with OrthancProcess(folder, extra={"SyncStorageArea": synchronised}) as process:

        def clear() -> None:
            for study in process.get("/studies"):
                process.delete(f"/studies/{study}")

        yield Server(
            name="Orthanc" if synchronised else "Orthanc without fsync",
            ae_title=process.ae_title, port=process.dicom_port, pid=process.pid, log=folder / "orthanc.log",
            promise="file fsynced; neither its folder nor, before a checkpoint, its row" if synchronised else "nothing",
            stored=lambda: len(process.get("/instances")), clear=clear,
        )  # fmt: skip


@contextmanager
def dcmtk(folder: Path) -> Iterator[Server]:
    """`storescp` of dcmtk, a process for each association; kept on loopback as Orthanc is."""
    files = folder / "files"
    files.mkdir(parents=True)
    port = free_port()
    command = [shutil.which("storescp") or "storescp", "--fork", "-od", str(files), str(port)]
    environment = {"LD_PRELOAD": str(loopback_library(folder)), "TCP_NODELAY": "1"}
    with _running(command, port, folder / "storescp.log", environment) as pid:
        yield Server(
            name="dcmtk storescp", ae_title="STORESCP", port=port, pid=pid, log=folder / "storescp.log",
            promise="nothing", stored=lambda: _files(files), clear=lambda: _empty(files),
        )  # fmt: skip


@contextmanager
def pynetdicom(folder: Path) -> Iterator[Server]:
    """`storescp` of pynetdicom, on whose network code the node's receiver stands."""
    files = folder / "files"
    files.mkdir(parents=True)
    port = free_port()
    command = [sys.executable, "-m", "pynetdicom", "storescp", "-q", "-ba", "127.0.0.1", "-od", str(files), str(port)]
    with _running(command, port, folder / "storescp.log") as pid:
        yield Server(
            name="pynetdicom storescp", ae_title="STORESCP", port=port, pid=pid, log=folder / "storescp.log",
            promise="nothing", stored=lambda: _files(files), clear=lambda: _empty(files),
        )  # fmt: skip


def missing() -> str | None:
    """What the comparison needs and this machine lacks, in words."""
    absent = [name for name in ("storescu", "storescp") if shutil.which(name) is None]
    return available() or (f"{' and '.join(absent)} of dcmtk" if absent else None)


@contextmanager
def _running(command: list[str], port: int, log: Path, environment: dict[str, str] | None = None) -> Iterator[int]:
    """The process id, once the port is open; SIGTERM at the end."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        give_up = time.monotonic() + _START_SECONDS
        while not _is_open(port):
            if process.poll() is not None or time.monotonic() > give_up:
                raise SystemExit(f"{command[0]} does not listen; see {log}")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process and of those that it has waited for (proc(5), stat, fields 14 to 17)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(value) for value in fields[11:15]) / _TICKS


def _files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
