"""The metrics say what the database says, across a restart too, and Prometheus takes them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pulmo_models import registry
from pulmo_models.errors import WeightsMissing
from pulmo_node import scheduler
from pulmo_node.app import Node
from pulmo_node.deliver import DicomSender
from pulmo_node.domain.browsing import Counts, ReceivedCount
from pulmo_node.domain.deliveries import Peer
from pulmo_node.monitoring.gpu import Gpus
from pulmo_node.monitoring.observed import Observed
from pulmo_node.testing import ManualClock, SmallPacs
from pulmo_node.web.metrics import NodeCollector, render
from tests.ct_factory import write_datasets
from tests.encode_factory import chest_datasets
from tests.fake_pipeline import REJECTED_DESCRIPTION, fake_pipeline
from tests.web.served import (
    Samples,
    Visitor,
    deliver,
    page_configuration,
    running,
    scrape,
    send,
    wait_for,
    wait_for_state,
)

pytestmark = pytest.mark.usefixtures("fake_pipeline")
__all__ = ["fake_pipeline"]


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[SmallPacs]:
    with SmallPacs(tmp_path / "pacs") as started:
        yield started


def _rejected(dataset: Any) -> None:
    dataset.SeriesDescription = REJECTED_DESCRIPTION


def _checked(samples: Samples, node: Node) -> None:
    """Every count of the text is that of the tables."""
    counts = node.store.counts()
    assert samples["pulmo_instances_received_total"] == {
        (one.calling_ae_title, one.status): one.instances for one in counts.received
    }
    assert samples["pulmo_series"] == {("COMPLETE",): 2, ("RECEIVING",): 0}
    assert samples["pulmo_jobs"] == {("", "DONE"): 1, ("NO_LUNGS", "REJECTED"): 1}
    assert samples["pulmo_deliveries"][("pacs0", "SENT")] == counts.deliveries[("pacs0", "SENT")] == 2
    assert samples["pulmo_queue_length"] == {("pacs0",): 0}
    assert samples["pulmo_queue_oldest_seconds"] == {("pacs0",): 0}
    assert samples["pulmo_analysis_queue_length"] == {(): 0}


def test_the_counts_are_those_of_the_database_also_after_a_restart(tmp_path: Path, pacs: SmallPacs) -> None:
    config = page_configuration(tmp_path, pacs, receive={"accept_calling": ["SCANNER"]})
    with running(config, users=False) as node:
        study = send(node, tmp_path / "good")
        deliver(node, sorted((tmp_path / "good").iterdir()))  # the same again: duplicates
        rejected = send(node, tmp_path / "bad", _rejected)
        wait_for_state(node, study, "DONE")
        wait_for_state(node, rejected, "REJECTED")
        wait_for(lambda: scrape(node)[1]["pulmo_associations_total"][("released",)] == 3)
        text, samples = scrape(node)
        _checked(samples, node)
        received = samples["pulmo_instances_received_total"]
        assert received == {("SCANNER", "new"): 24, ("SCANNER", "duplicate"): 12}
        bytes_new = samples["pulmo_received_bytes_total"][("SCANNER", "new")]
        assert bytes_new == node.store.stored_bytes() > 0
        assert samples["pulmo_associations_total"][("accepted",)] == 3
        assert samples["pulmo_stage_seconds_count"][("assemble",)] == 1
        assert samples["pulmo_stage_seconds_count"][("deliver",)] == 2
        assert samples["pulmo_destination_up"] == {("pacs0",): 1}
        assert samples["pulmo_model_loaded"] == {("ct-nodules",): 1}
        assert samples["pulmo_disk_free_bytes"][()] > 0
        _prometheus_takes(text)
    with running(config, users=False) as node:
        _, again = scrape(node)
        _checked(again, node)
        assert again["pulmo_instances_received_total"] == received
        assert again["pulmo_received_bytes_total"] == samples["pulmo_received_bytes_total"]
        assert again["pulmo_associations_total"][("accepted",)] == 0


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_what_waits_is_counted_with_its_age_and_what_was_refused_too(tmp_path: Path, pacs: SmallPacs) -> None:
    pacs.stop()
    config = page_configuration(tmp_path, pacs, receive={"accept_calling": ["SCANNER"]})
    with running(config, users=False) as node:
        study = send(node, tmp_path / "ct")
        wait_for_state(node, study, "ENCODED")
        wait_for(lambda: scrape(node)[1].get("pulmo_destination_up") == {("pacs0",): 0})
        _, samples = scrape(node)
        assert samples["pulmo_queue_length"] == {("pacs0",): node.store.counts().queues[0].waiting}
        assert samples["pulmo_queue_length"][("pacs0",)] == 2
        assert 0 < samples["pulmo_queue_oldest_seconds"][("pacs0",)] < 60
        _send_refused(node, tmp_path / "refused")
        wait_for(lambda: scrape(node)[1]["pulmo_instances_received_total"].get(("SCANNER", "refused")) == 1)
        assert ("SCANNER", "refused") not in scrape(node)[1]["pulmo_received_bytes_total"]


def test_titles_that_somebody_made_up_are_one(tmp_path: Path) -> None:
    made_up = [(f"EVE{number}", status) for number in range(50) for status in ("new", "refused")]
    received = tuple(
        ReceivedCount(calling_ae_title=title, status=status, instances=1, size_bytes=2)
        for title, status in [*made_up, ("PACS", "new")]
    )
    counts = Counts(
        received=received, series={}, jobs={}, deliveries={}, queues=(), analysis_waiting=0, analysis_oldest_at=None,
        analysis_running=0,
    )  # fmt: skip
    clock = ManualClock()
    collector = NodeCollector(
        counts=lambda: counts, observed=Observed(clock), storage=tmp_path, destinations=(), callers=frozenset({"PACS"}),
        pipelines=(), gpus=Gpus("no-such-program"), clock=clock,
    )  # fmt: skip
    lines = [line for line in render(collector).decode().splitlines() if re.match(r"pulmo_(instances|received)_", line)]
    assert lines == [
        'pulmo_instances_received_total{calling_ae_title="other",status="new"} 50.0',
        'pulmo_instances_received_total{calling_ae_title="other",status="refused"} 50.0',
        'pulmo_instances_received_total{calling_ae_title="PACS",status="new"} 1.0',
        'pulmo_received_bytes_total{calling_ae_title="other",status="new"} 100.0',
        'pulmo_received_bytes_total{calling_ae_title="PACS",status="new"} 2.0',
    ]


def _send_refused(node: Node, folder: Path) -> None:
    """One instance whose study has no valid UID."""
    (dataset, *_) = chest_datasets()
    dataset.StudyInstanceUID = "not.a.uid"
    peer = Peer(name="node", ae_title="PULMO", host="127.0.0.1", port=node.receiver.port)
    (result,) = DicomSender("SCANNER").send_files(peer, write_datasets([dataset], folder))
    assert result.error is not None


def test_health_and_readiness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = page_configuration(tmp_path)
    with running(config, users=False) as node, Visitor(node) as probe:
        assert probe.get("/healthz").status_code == 200
        wait_for(lambda: probe.get("/readyz").status_code == 200)
        assert probe.get("/readyz").json() == {
            "ready": True, "database": True, "disk": True, "models": True, "worker": True,
        }  # fmt: skip
    full = page_configuration(tmp_path, receive={"min_free_bytes": 2**60})
    with running(full, users=False) as node, Visitor(node) as probe:
        wait_for(lambda: probe.get("/readyz").json()["models"])
        answer = probe.get("/readyz")
        assert (answer.status_code, answer.json()["ready"], answer.json()["disk"]) == (503, False, False)
        assert probe.get("/healthz").status_code == 200, "it lives"
        monkeypatch.setattr(scheduler, "_ALIVE_SECONDS", 0.0)  # a time that is put back is put right within a second
        assert probe.get("/readyz").json()["worker"] is False


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise WeightsMissing("they are not there")

    monkeypatch.setattr(registry, "build", missing)


@pytest.mark.usefixtures("no_weights")
def test_a_pipeline_that_cannot_be_loaded_is_not_ready(tmp_path: Path) -> None:
    with running(page_configuration(tmp_path), users=False) as node, Visitor(node) as probe:
        wait_for(lambda: node.observation.observed.now().models)
        assert probe.get("/readyz").json()["models"] is False
        assert scrape(node)[1]["pulmo_model_loaded"] == {("ct-nodules",): 0}


@pytest.mark.usefixtures("no_weights")
def test_without_warming_up_the_first_series_shows_whether_a_pipeline_can_be_loaded(tmp_path: Path) -> None:
    config = page_configuration(tmp_path, analysis={"warm_up": False})
    with running(config, users=False) as node, Visitor(node) as probe:
        assert probe.get("/readyz").json()["models"] is True
        wait_for_state(node, send(node, tmp_path / "ct"), "FAILED")
        assert probe.get("/readyz").json()["models"] is False


def test_the_memory_of_a_gpu_is_what_the_driver_says(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, 1024, 81920'\necho '1, [N/A], 81920'\necho\n")
    program.chmod(0o755)
    (gpu,) = Gpus(str(program)).memory()
    assert (gpu.index, gpu.used_bytes, gpu.total_bytes) == ("0", 2**30, 80 * 2**30)
    assert Gpus("no-such-program").memory() == ()
    program.write_text("#!/bin/sh\nexit 9\n")
    assert Gpus(str(program)).memory() == ()


def _prometheus_takes(text: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        assert re.search(r"^# HELP pulmo_series ", text, re.MULTILINE)
        pytest.skip("promtool is not installed (Debian package prometheus); all else passed")
    said = subprocess.run([program, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout + said.stderr) == (0, "")
