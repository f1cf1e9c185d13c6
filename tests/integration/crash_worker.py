"""A worker that kills itself with SIGKILL at its n-th step; run by test_crash.py in a process of its own.

Every call of a port is a step, and it is counted before it begins and after it ended: a power cut between any two
durable actions of a job is thus one value of n. Prints the number of steps when it lives to the end.

    python -m tests.integration.crash_worker STORAGE PACS_PORT KILL_AT     (0: do not kill)
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from pulmo_node.app import Node
from pulmo_node.config import Config, resolve
from pulmo_node.deliver import AssociationLink, DicomSender
from pulmo_node.outbox import FileOutbox
from pulmo_node.store import SqlStore
from tests import fake_pipeline

STEPS = {
    SqlStore: (
        "record_instance", "quiet_series", "complete_series", "claim_job", "job_encoded", "claim_deliveries",
        "delivery_sent",
    ),
    FileOutbox: ("get", "put"),
    DicomSender: ("open",),
    AssociationLink: ("store",),
}  # fmt: skip


def configuration(storage: Path, pacs_port: int) -> Config:
    raw: dict[str, Any] = {
        "node": {"port": 0, "storage": str(storage)},
        "receive": {"quiet_seconds": 0.01},
        "analysis": {"isolated": False, "lease_seconds": 0.2, "max_attempts": 5},
        "delivery": {"lease_seconds": 0.2, "first_delay_seconds": 0.05, "timeout_seconds": 5.0},
        "peers": {"pacs": {"ae_title": "SMALLPACS", "host": "127.0.0.1", "port": pacs_port}},
        "results": {"key_images": False},  # every object is a few steps more, and no other kind of step
        "rules": [{"modality": "CT", "pipelines": ["ct-nodules"], "destinations": ["pacs"]}],
    }
    return resolve(raw, base=storage)


class Killer:
    """Counts steps and ends the process, as a power cut would, at one of them."""

    def __init__(self, kill_at: int) -> None:
        self.steps = 0
        self._kill_at = kill_at

    def step(self) -> None:
        self.steps += 1
        if self.steps == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, owner: type, name: str) -> None:
        method = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.step()
            result = method(*args, **kwargs)
            self.step()
            return result

        setattr(owner, name, counted)


def main(storage: Path, pacs_port: int, kill_at: int) -> None:
    fake_pipeline.install()
    killer = Killer(kill_at)
    for owner, names in STEPS.items():
        for name in names:
            killer.watch(owner, name)
    node = Node(configuration(storage, pacs_port))
    worker, pause = node.worker, threading.Event()
    for _ in range(200):  # the scheduler's part, in one thread, so that step n is the same in every run
        worker.complete_quiet_series()
        worker.analyse_next()
        worker.deliver_next("pacs")
        if all(study.state == "DONE" for study in node.store.studies()):
            break
        pause.wait(0.05)  # until the lease of the worker that was killed is over
    print(killer.steps)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
