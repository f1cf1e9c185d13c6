"""What all associations together may hold in memory: peers beyond it are slowed down, and everything arrives."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pulmo_node.deliver import DicomSender
from pulmo_node.domain.deliveries import Peer
from pulmo_node.network.limits import Ledger, Limits
from tests.network_factory import ct_slice, part10, receiving_node

INSTANCE_BYTES = 512 * 512 * 2
AT_ONCE = 6


def large(folder: Path, number: int) -> Path:
    dataset = ct_slice(number)
    dataset.Rows = dataset.Columns = 512
    dataset.PixelData = bytes(range(256)) * 2048
    return part10(folder / f"{number}.dcm", dataset)


def send_all(folder: Path, limits: Limits, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Several associations at once, three instances each; the most bytes that were in flight, and the times waited."""
    most, waited, lock = [0], [0], threading.Lock()
    wait_for_room = Ledger.wait_for_room

    def watched(ledger: Ledger, connection: object, seconds: float) -> bool:
        with lock:
            most[0] = max(most[0], sum(one.bytes_in_flight for one in ledger.all()))
            waited[0] += not ledger._has_room(connection)  # type: ignore[arg-type]
        return wait_for_room(ledger, connection, seconds)  # type: ignore[arg-type]

    monkeypatch.setattr(Ledger, "wait_for_room", watched)
    files = [[large(folder, 3 * sender + number) for number in range(3)] for sender in range(AT_ONCE)]
    with receiving_node(folder, limits=limits) as node, ThreadPoolExecutor(AT_ONCE) as pool:
        peer = Peer(name="node", ae_title="PULMO", host="127.0.0.1", port=node.port)
        sent = list(pool.map(lambda paths: list(DicomSender("CT").send_files(peer, paths)), files))
        assert [one.status for each in sent for one in each] == ["0x0000: success"] * 3 * AT_ONCE
    return most[0], waited[0]


def test_everything_arrives_and_memory_stays_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = INSTANCE_BYTES // 2
    most, waited = send_all(tmp_path, Limits(bytes_in_flight=limit), monkeypatch)
    assert waited > 0
    # One instance that may go on, and what each of the others had begun to read when there was still room.
    assert most <= limit + INSTANCE_BYTES + AT_ONCE * 65_536 + 4096


def test_nobody_waits_below_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most, waited = send_all(tmp_path, Limits(), monkeypatch)
    assert waited == 0
    assert most > INSTANCE_BYTES // 2  # otherwise the other test would show nothing
