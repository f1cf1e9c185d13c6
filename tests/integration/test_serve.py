"""`pulmo-node serve` as a service manager sees it: ready, a new configuration by SIGHUP, the watchdog, a clean end."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom import dcmread
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext

from pulmo_node.deliver import DicomSender
from pulmo_node.dimse import prepare_connection
from pulmo_node.domain.deliveries import Peer
from pulmo_node.errors import PulmoError
from pulmo_node.orthanc import free_port
from tests.conftest import ROOT
from tests.ct_factory import write_datasets
from tests.encode_factory import chest_datasets

WAIT_SECONDS = 180.0


def write(path: Path, port: int, ae_title: str = "PULMO", *, storage: str = "var", more: str = "") -> None:
    path.write_text(
        f'[node]\nae_title = "{ae_title}"\nport = {port}\nstorage = "{storage}"\n'
        f"[receive]\nrequire_called_ae_title = true\n{more}",
        encoding="utf-8",
    )


@dataclass
class Served:
    """A node under a service manager."""

    process: subprocess.Popen[str]
    manager: socket.socket
    log: Path

    def told(self, wanted: str) -> str:
        """The next message to the manager that begins so."""
        while True:
            message = self.manager.recv(4096).decode()
            if message.startswith(wanted):
                return message

    def reload(self) -> str:
        """The log of a SIGHUP."""
        before = len(self.log.read_text())
        self.process.send_signal(signal.SIGHUP)
        self.told("RELOADING=1\nMONOTONIC_USEC=")
        self.told("READY=1")
        return self.log.read_text()[before:]


@contextmanager
def served(folder: Path, config: Path, **environment: str) -> Iterator[Served]:
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(folder / "notify"))
    manager.settimeout(WAIT_SECONDS)
    log = folder / "log"
    with log.open("w") as output, manager:
        process = subprocess.Popen(
            [sys.executable, "-m", "pulmo_node", "serve", "--config", str(config)],
            cwd=ROOT,
            env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify"), **environment},
            stderr=output,
            text=True,
        )
        try:
            node = Served(process, manager, log)
            node.told("READY=1")
            yield node
        finally:
            process.terminate()
            process.wait(WAIT_SECONDS)


def answers(port: int, ae_title: str) -> bool:
    try:
        DicomSender("TESTER").echo(Peer(name="node", ae_title=ae_title, host="127.0.0.1", port=port))
    except PulmoError:
        return False
    return True


def associate(port: int, context: PresentationContext, called: str = "PULMO") -> Association:
    handlers: list[evt.EventHandlerType] = [(evt.EVT_CONN_OPEN, prepare_connection, [WAIT_SECONDS])]
    entity = AE(ae_title="SCANNER")
    return entity.associate("127.0.0.1", port, contexts=[context], ae_title=called, evt_handlers=handlers)


def test_ready_then_stopping_then_a_clean_end(tmp_path: Path) -> None:
    port = free_port()
    write(tmp_path / "node.toml", port)
    with served(tmp_path, tmp_path / "node.toml") as node:
        assert answers(port, "PULMO")
        node.process.send_signal(signal.SIGTERM)
        node.told("STOPPING=1")
        assert node.process.wait(WAIT_SECONDS) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_new_configuration_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    config, first, second = tmp_path / "node.toml", free_port(), free_port()
    write(config, first)
    with served(tmp_path, config) as node:
        write(config, second, "OTHER")
        assert "the configuration was replaced" in node.reload()
        assert answers(second, "OTHER")
        assert not answers(second, "PULMO")
        assert not answers(first, "PULMO")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"more": "quiet_seconds = -1\n[peers.x]\nport = 0\n"}, "receive.quiet_seconds"),
        ({"storage": "elsewhere"}, "node.storage: changing it needs a restart"),
        ({"more": '[database]\nurl = "sqlite:////tmp/no-such-folder/x.sqlite"\n'}, "database.url: changing it"),
        ({"port": 0}, "cannot listen"),
    ],
    ids=["wrong keys", "storage", "database", "port in use"],
)
def test_one_that_cannot_be_used_changes_nothing_at_all(tmp_path: Path, wrong: dict[str, object], words: str) -> None:
    config, port = tmp_path / "node.toml", free_port()
    write(config, port)
    with served(tmp_path, config) as node, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        values = {"port": free_port(), "ae_title": "OTHER", **wrong}
        if values["port"] == 0:
            values["port"] = taken.getsockname()[1]
        write(config, **values)  # type: ignore[arg-type]
        log = node.reload()
        assert words in log
        assert "stays as it was" in log
        assert answers(port, "PULMO")
        write(config, port, "LATER")
        assert "the configuration was replaced" in node.reload()
        assert answers(port, "LATER")


def test_an_audit_that_cannot_be_written_ends_no_node(tmp_path: Path) -> None:
    config, port = tmp_path / "node.toml", free_port()
    write(config, port)
    with served(tmp_path, config) as node:
        write(config, port, "OTHER", more=f'[audit]\nfile = "{config}/audit.jsonl"\n')
        log = node.reload()
        assert "the configuration was replaced" in log
        assert "audit" in log
        assert answers(port, "OTHER")


def test_a_port_that_stays_the_same_stays_open(tmp_path: Path) -> None:
    """An association in the middle of a series lives through a reload, and goes by the new configuration then."""
    config, port = tmp_path / "node.toml", free_port()
    write(config, port)
    first, second = (dcmread(path) for path in write_datasets(chest_datasets()[:2], tmp_path / "ct"))
    with served(tmp_path, config) as node:
        context = build_context(first.SOPClassUID, first.file_meta.TransferSyntaxUID)
        association = associate(port, context)
        assert association.send_c_store(first).Status == 0x0000
        write(config, port, "OTHER", more='accept_calling = ["TESTER"]\n')
        assert "the configuration was replaced" in node.reload()
        assert association.is_established
        assert association.send_c_store(second).Status == 0x0000
        association.release()
        assert answers(port, "OTHER")
        assert not answers(port, "PULMO")
        assert associate(port, context, "OTHER").is_rejected
        log = node.log.read_text()
        assert log.count("listens on") == 1
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert "association from SCANNER released: 2 new" in (tmp_path / "log").read_text()
    with sqlite3.connect(tmp_path / "var" / "pulmo.sqlite") as database:
        assert database.execute("SELECT count(*) FROM instances").fetchone() == (2,)
    database.close()


def test_with_another_limit_the_open_port_goes_by_it(tmp_path: Path) -> None:
    config, port = tmp_path / "node.toml", free_port()
    write(config, port)
    with served(tmp_path, config) as node:
        write(config, port, more="max_associations = 1\n")
        node.reload()
        context = build_context("1.2.840.10008.1.1")
        one = associate(port, context)
        assert one.is_established
        assert associate(port, context).is_rejected
        one.release()


def test_the_watchdog_is_told_while_the_duties_run(tmp_path: Path) -> None:
    write(tmp_path / "node.toml", free_port())
    with served(tmp_path, tmp_path / "node.toml", WATCHDOG_USEC="400000") as node:
        assert [node.told("WATCHDOG=1") for _ in range(3)] == ["WATCHDOG=1"] * 3
