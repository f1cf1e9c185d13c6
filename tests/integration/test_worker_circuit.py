"""A destination that does not answer is tried once at a time, whatever waits for it, and gets all when it answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pulmo_node.config import resolve
from pulmo_node.domain.deliveries import Peer, ResultObject
from pulmo_node.errors import Transient
from pulmo_node.files import FileInstanceStore
from pulmo_node.store import SqlStore
from pulmo_node.worker import Adapters, Worker
from tests.integration.store_scene import FINDINGS, Scene, SetClock, new_database, result


class Link:
    """An association on which everything succeeds, to a peer without storage commitment."""

    commits = False

    def __init__(self) -> None:
        self.sent: list[str] = []

    def store(self, file: Path, one: ResultObject) -> str:
        self.sent.append(one.sop_instance_uid)
        return "0x0000 Success"


class Sender:
    """A sender to a destination that is down until it is up."""

    def __init__(self) -> None:
        self.up = False
        self.tried = 0
        self.link = Link()

    @contextmanager
    def open(self, peer: Peer) -> Iterator[Link]:
        self.tried += 1
        if not self.up:
            raise Transient("connection refused")
        yield self.link


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    clock = SetClock()
    with SqlStore(new_database(tmp_path), clock) as store:
        made = Scene(store, clock)
        for number in range(10):
            job = made.queued(study=f"{number}", series=f"{number}.1")
            store.job_encoded(job, [result("sr", f"2.25.{number}")], FINDINGS)
        yield made


def attempts(scene: Scene) -> int:
    return sum(delivery.attempts for number in range(10) for delivery in scene.study(f"{number}").deliveries)


def test_one_attempt_at_a_time_and_everything_at_once_when_it_answers(scene: Scene, tmp_path: Path) -> None:
    peers = {"pacs": {"ae_title": "PACS", "host": "127.0.0.1", "port": 104}}
    delivery = {"first_delay_seconds": 10.0, "probe_seconds": 40.0, "jitter": 0.0}
    config = resolve({"peers": peers, "delivery": delivery, "rules": []}, base=tmp_path)
    sender, seconds = Sender(), [0.0]
    ports = Adapters(
        clock=scene.clock,
        series=scene.store,
        jobs=scene.store,
        instances=FileInstanceStore(tmp_path),
        outbox=cast(Any, SimpleNamespace(check=lambda result: None)),
        sender=cast(Any, sender),
        transfers=cast(Any, None),
        monotonic_seconds=lambda: seconds[0],
    )
    worker = Worker(config, ports, cast(Any, None), "worker")
    tried = []
    for now in range(0, 120, 2):  # the scheduler's part
        seconds[0] = float(now)
        while worker.deliver_next("pacs"):
            pass
        if sender.tried > len(tried):
            tried.append(now)
    assert tried == [0, 10, 30, 70, 110]  # after 10, 20, 40, 40 s
    assert attempts(scene) == 5
    sender.up, seconds[0] = True, 150.0
    while worker.deliver_next("pacs"):
        pass
    assert sorted(sender.link.sent) == [f"2.25.{number}" for number in range(10)]
    assert {scene.state(f"{number}") for number in range(10)} == {"DONE"}
