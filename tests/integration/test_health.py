"""The checks of storage and receiver by themselves."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from pulmo_node import health
from pulmo_node.config import Config, resolve
from pulmo_node.health import run_checks
from pulmo_node.network.access import Access
from pulmo_node.store import SqlStore
from tests.fake_pipeline import fake_pipeline
from tests.integration.store_scene import Scene, SetClock
from tests.network_factory import receiving_node

pytestmark = pytest.mark.usefixtures("fake_pipeline")
__all__ = ["fake_pipeline"]

ABOVE_ANY_DISK = 2**62


def check(name: str, config: Config) -> tuple[bool, str]:
    (found,) = (one for one in run_checks(config) if one.name == name)
    return found.ok, found.detail


def configuration(folder: Path, port: int = 0, **receive: int) -> Config:
    return resolve({"node": {"storage": str(folder / "var"), "port": port}, "receive": receive}, base=folder)


def test_storage(tmp_path: Path) -> None:
    ok, _ = check("storage", configuration(tmp_path, low_free_bytes=0, min_free_bytes=0))
    assert ok
    ok, detail = check("storage", configuration(tmp_path, low_free_bytes=ABOVE_ANY_DISK))
    assert not ok
    assert detail.endswith("GiB free")
    ok, detail = check("storage", configuration(tmp_path, min_free_bytes=ABOVE_ANY_DISK))
    assert not ok
    assert detail.endswith("nothing new is accepted")


def test_receiver(tmp_path: Path) -> None:
    with receiving_node(tmp_path) as node:
        config = configuration(tmp_path, node.port)
        assert check("receiver", config)[1].startswith(f"the node answers on port {node.port} in ")
    assert check("receiver", config)[1].endswith("the node is not running")
    with receiving_node(tmp_path, access=Access(calling=("CT1",))) as node:
        detail = check("receiver", configuration(tmp_path, node.port))[1]
        assert detail.startswith(f"the node listens on port {node.port} and does not let this machine in")
        assert "calling ae title not recogni" in detail


def test_a_check_that_a_file_refuses_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> str:
        raise PermissionError(errno.EACCES, "Permission denied", "weights")

    monkeypatch.setattr(health, "_decoders", refused)
    config = configuration(tmp_path)
    assert check("decoders", config) == (False, "[Errno 13] Permission denied: 'weights'")
    assert check("database", config)[0]


def test_results_for_a_peer_that_was_taken_out_are_told(tmp_path: Path) -> None:
    pacs = {"old": {"ae_title": "OLD", "host": "127.0.0.1", "port": 1}}
    config = resolve({"node": {"storage": str(tmp_path), "port": 0}, "peers": pacs}, base=tmp_path)
    clock = SetClock()
    with SqlStore(config.database_url, clock) as store:
        Scene(store=store, clock=clock).encoded("sr", "seg", destinations=("old",))
    assert check("database", config)[0]
    ok, detail = check("database", replace(config, peers={}))
    assert not ok
    assert detail.startswith("2 results for old wait, but the configuration has no such peer")
