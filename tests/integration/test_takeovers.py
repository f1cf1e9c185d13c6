"""Leases of nodes that ended in the middle of an analysis: no attempt, but not without end either."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from pulmo_node.app import Node
from pulmo_node.deliver import DicomSender
from pulmo_node.domain.deliveries import Peer
from pulmo_node.domain.jobs import Job
from tests.ct_factory import write_datasets
from tests.encode_factory import chest_datasets
from tests.fake_pipeline import fake_pipeline
from tests.integration.crash_worker import configuration

__all__ = ["fake_pipeline"]

pytestmark = pytest.mark.usefixtures("fake_pipeline")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node with one queued job; nothing of it runs by itself."""
    config = configuration(tmp_path / "storage", pacs_port=1)
    config = replace(config, analysis=replace(config.analysis, max_attempts=1, max_takeovers=4))
    node = Node(config)
    node.receiver.start()
    address = Peer(name="node", ae_title="PULMO", host="127.0.0.1", port=node.receiver.port)
    files = write_datasets(chest_datasets(), tmp_path / "ct")
    assert all(sent.error is None for sent in DicomSender("SCANNER").send_files(address, files))
    node.receiver.stop()
    while not node.worker.complete_quiet_series():
        pass
    return node


def end_during_analysis(node: Node, number: int) -> None:
    """As many nodes as that claimed the job and were never heard of again."""
    for worker in range(number):
        now = node.store.studies()[0].updated_at
        claimed = node.store.claim_job(f"dead {worker}", now=now, lease_until=now - timedelta(seconds=1))
        assert claimed is not None


def the_job(node: Node) -> Job:
    (study,) = node.store.studies()
    detail = node.store.study(study.study_instance_uid)
    assert detail is not None
    return detail.jobs[-1]


def test_power_cuts_cost_no_attempt(node: Node) -> None:
    end_during_analysis(node, 3)
    assert node.worker.analyse_next()
    assert (the_job(node).state, the_job(node).attempts, the_job(node).takeovers) == ("ENCODED", 0, 3)
    node.store.close()


def test_what_always_takes_the_node_down_is_quarantined(node: Node) -> None:
    end_during_analysis(node, 4)
    assert node.worker.analyse_next()
    job = the_job(node)
    assert (job.state, job.reason) == ("QUARANTINED", "the node ended 4 times during its analysis")
    assert not node.worker.analyse_next()
    node.store.close()
