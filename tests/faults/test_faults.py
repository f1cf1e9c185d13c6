"""A short part of each fault with a fixed seed, and proof that the accounts notice what they are there for."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pulmo_node import orthanc
from tests.faults import destinations, full_disk, killing, load, soak
from tests.faults.node import NodeProcess
from tests.faults.peers import TroubledPacs
from tests.faults.soak import Sample
from tests.faults.studies import make_study, send
from tests.faults.table import Outcome, table

SEED = 7
_MIB = 1 << 20


def test_kill(tmp_path: Path) -> None:
    missing = orthanc.available()
    if missing is not None:
        pytest.skip(missing)
    assert killing.run(tmp_path, SEED, kills=5).failures == ()


def test_full_disk(tmp_path: Path) -> None:
    try:
        outcome = full_disk.run(tmp_path, SEED, rounds=1)
    except full_disk.CannotMount as exc:
        pytest.skip(f"no tmpfs can be mounted here: {exc}")
    assert outcome.failures == ()


def test_pacs_in_trouble(tmp_path: Path) -> None:
    assert destinations.run(tmp_path, SEED, rounds=1, attempt_seconds=3.0).failures == ()


def test_load(tmp_path: Path) -> None:
    outcome = load.run(tmp_path, SEED, studies=4, shape=(60, 128, 128), refused=100, most_rss_bytes=1024 * _MIB)
    assert outcome.failures == ()


@pytest.mark.soak
def test_soak(tmp_path: Path) -> None:
    assert soak.run(tmp_path, SEED, seconds=300.0, pause_seconds=2.0).failures == ()


def test_the_account_of_kills_notices_a_lost_and_a_changed_instance(tmp_path: Path) -> None:
    study = make_study(tmp_path / "studies", SEED, 0)
    with (
        TroubledPacs(tmp_path / "pacs", "healthy") as pacs,
        NodeProcess(tmp_path / "node", killing.CONFIGURATION, peers=[pacs.peer]) as node,
    ):
        send(node.peer, study.files)
    acknowledged = dict(zip(study.sop_instance_uids, study.files, strict=True))
    assert killing.lost(node, acknowledged) == []
    gone, changed, *_ = study.sop_instance_uids
    with closing(sqlite3.connect(node.storage / "pulmo.sqlite")) as database:
        (path,) = database.execute("SELECT path FROM instances WHERE sop_instance_uid = ?", (changed,)).fetchone()
        database.execute("DELETE FROM instances WHERE sop_instance_uid = ?", (gone,))
        database.commit()
    file = node.storage / path
    file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    found = killing.lost(node, acknowledged)
    assert len(found) == 2
    assert any(gone in sentence for sentence in found)
    assert any(changed in sentence for sentence in found)


def test_the_soak_notices_growth() -> None:
    def samples(rss_mib: int, descriptors: int, threads: int, wal_mib: int) -> list[Sample]:
        return [
            Sample(rss_bytes=rss_mib * _MIB, descriptors=descriptors, threads=threads, wal_bytes=wal_mib * _MIB)
        ] * 4  # fmt: skip

    before = samples(200, 30, 12, 4)
    assert soak.growth(before, samples(205, 31, 12, 4)) == []
    for after in (samples(230, 30, 12, 4), samples(200, 40, 12, 4), samples(200, 30, 20, 4), samples(200, 30, 12, 40)):
        assert len(soak.growth(before, after)) == 1


def test_the_table_shows_failures() -> None:
    printed = table([Outcome(fault="a", done="b", found="c"), Outcome(fault="d", done="e", found="f", failures=("g",))])
    assert printed.splitlines()[2:] == ["| a | b | c |", "| d | e | f **1 failures** |", "d: g"]
