"""kill -9 between every two steps of a job, then a restart: nothing is lost, nothing is there twice."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pydicom import dcmread

from pulmo_node.app import Node
from pulmo_node.deliver import DicomSender
from pulmo_node.domain.deliveries import Peer
from pulmo_node.testing import SmallPacs
from tests.conftest import ROOT
from tests.ct_factory import write_datasets
from tests.encode_factory import chest_datasets
from tests.integration.crash_worker import configuration


def run(storage: Path, pacs: SmallPacs, kill_at: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.integration.crash_worker", str(storage), str(pacs.port), str(kill_at)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def received(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a node that has just received a series and was stopped before it looked at it."""
    folder = tmp_path_factory.mktemp("received")
    files = write_datasets(chest_datasets(), folder / "ct")
    node = Node(configuration(folder / "storage", pacs_port=1))
    node.receiver.start()
    address = Peer(name="node", ae_title="PULMO", host="127.0.0.1", port=node.receiver.port)
    assert all(sent.error is None for sent in DicomSender("SCANNER").send_files(address, files))
    node.receiver.stop()
    node.store.close()
    return folder / "storage"


@pytest.fixture(scope="module")
def steps(received: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many steps an undisturbed run takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(received, folder / "storage")
    with SmallPacs(folder / "pacs") as pacs:
        done = run(folder / "storage", pacs, kill_at=0)
        assert done.returncode == 0, done.stderr
        assert len(pacs.stored) == 2
    return int(done.stdout)


def check(received: Path, folder: Path, kill_at: int) -> None:
    storage = folder / f"storage-{kill_at}"
    shutil.copytree(received, storage)
    with SmallPacs(folder / f"pacs-{kill_at}") as pacs:
        killed = run(storage, pacs, kill_at)
        assert killed.returncode == -signal.SIGKILL, f"step {kill_at}: {killed.stderr}"
        again = run(storage, pacs, kill_at=0)
        assert again.returncode == 0, f"step {kill_at}: {again.stderr}"
        contents: dict[str, set[bytes]] = {}
        for stored in pacs.stored:
            contents.setdefault(stored.sop_instance_uid, set()).add(stored.path.read_bytes())
        kinds = sorted(dcmread(stored.path).Modality for stored in pacs.stored[-2:])
    # An object may be sent twice, where the kill came before its delivery was recorded: the same bytes, the same UID.
    assert len(contents) == 2, f"step {kill_at}: {len(contents)} objects"
    assert all(len(versions) == 1 for versions in contents.values()), f"step {kill_at}: bytes changed under a UID"
    assert set(kinds) <= {"SEG", "SR"}
    node = Node(configuration(storage, pacs_port=1))
    (study,) = node.store.studies()
    detail = node.store.study(study.study_instance_uid)
    node.store.close()
    assert detail is not None
    assert [job.state.value for job in detail.jobs] == ["DONE"], f"step {kill_at}"
    assert [delivery.state.value for delivery in detail.deliveries] == ["SENT", "SENT"], f"step {kill_at}"


@pytest.mark.timeout(1800)
def test_kill_after_every_step(received: Path, steps: int, tmp_path: Path) -> None:
    """Right after each step; `test_kill_at_every_moment` adds the moments right before."""
    assert steps > 20
    for kill_at in range(2, steps + 1, 2):
        check(received, tmp_path, kill_at)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_at_every_moment(received: Path, steps: int, tmp_path: Path) -> None:
    for kill_at in range(1, steps + 1):
        check(received, tmp_path, kill_at)
