"""Disk and database at the start of the node: files without rows, rows without files, and what is nobody's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pulmo_node.domain.jobs import NewJob
from pulmo_node.domain.series import InstanceOutcome, StoredInstance
from pulmo_node.errors import Transient
from pulmo_node.receive import Receiver, ReceiveSettings
from pulmo_node.reconcile import Reconciled, reconcile
from tests.network_factory import ReceivingNode, association, ct_slice, data_set_part, part10, receiving_node

SERIES = "1.2.826.0.1.3680043.8.498.10"
OTHER = "1.2.826.0.1.3680043.8.498.20"
STUDY = str(ct_slice().StudyInstanceUID)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ReceivingNode]:
    with receiving_node(tmp_path) as running:
        yield running


def compare(node: ReceivingNode) -> Reconciled:
    return reconcile(node.instances, node.store, node.clock)


def send(port: int, folder: Path, *numbers: int, series: str = SERIES, pixel: int | None = None) -> list[int]:
    """The statuses of those slices; `pixel` makes other bytes of them."""
    statuses = []
    with association(port) as sender:
        for number in numbers:
            data_set = ct_slice(number, series=series)
            if pixel is not None:
                data_set.PixelData = bytes([pixel, 1] * 16)
            statuses.append(sender.send_c_store(part10(folder / "slice.dcm", data_set)).Status)
    return statuses


class NoRows:
    """A database that is locked whenever an instance is to be recorded: only the files come about."""

    def record_instance(self, instance: StoredInstance) -> InstanceOutcome:
        raise Transient("locked")


def send_without_rows(node: ReceivingNode, folder: Path, *numbers: int, pixel: int | None = None) -> None:
    receiver = Receiver(ReceiveSettings(ae_title="PULMO", port=0), NoRows(), node.instances, node.clock)  # type: ignore[arg-type]
    receiver.start()
    try:
        assert set(send(receiver.port, folder, *numbers, pixel=pixel)) == {0xA700}
    finally:
        receiver.stop()


def complete(node: ReceivingNode) -> None:
    node.clock.advance(60)
    (series,) = node.store.quiet_series(before=node.clock.now(), excluding=())
    node.store.complete_series(series, (NewJob(pipeline="ct-nodules", destinations=()),), None)


def test_nothing_to_do(node: ReceivingNode, tmp_path: Path) -> None:
    send(node.port, tmp_path, 1, 2)
    assert compare(node) == Reconciled(files=2, adopted=0, foreign=0, lost=0, reopened=())


def test_a_file_without_row_is_adopted_with_everything_that_the_row_says(node: ReceivingNode, tmp_path: Path) -> None:
    send_without_rows(node, tmp_path, 1, 2)
    assert node.stored(SERIES) == []
    assert compare(node).adopted == 2
    adopted = node.stored(SERIES)
    assert [path.name for path in adopted] == [f"{SERIES}.1.dcm", f"{SERIES}.2.dcm"]
    node.clock.advance(60)
    (series,) = node.store.quiet_series(before=node.clock.now(), excluding=())
    assert (series.modality, series.calling_ae_title, series.number_of_instances) == ("CT", "MODALITY", 2)
    assert compare(node).adopted == 0
    # Sent again, it is the same instance: digest and UIDs are those that receiving it would have given.
    assert send(node.port, tmp_path, 1, 2) == [0, 0]
    node.log.wait_for("released: 2 duplicate")


def test_an_adopted_file_reopens_its_complete_series(node: ReceivingNode, tmp_path: Path) -> None:
    send(node.port, tmp_path, 1)
    complete(node)
    send_without_rows(node, tmp_path, 2)
    compare(node)
    study = node.store.study(STUDY)
    assert study is not None
    assert [(one.state, one.revision, one.number_of_instances) for one in study.series] == [("RECEIVING", 2, 2)]
    assert [job.state for job in study.jobs] == ["SUPERSEDED"]


def test_rows_without_files_are_dropped_and_their_series_reopened(node: ReceivingNode, tmp_path: Path) -> None:
    send(node.port, tmp_path, 1, 2, 3)
    complete(node)
    for path in node.stored(SERIES)[:2]:
        path.unlink()
    result = compare(node)
    assert (result.lost, result.reopened) == (2, (SERIES,))
    study = node.store.study(STUDY)
    assert study is not None
    assert [(one.state, one.revision, one.number_of_instances) for one in study.series] == [("RECEIVING", 2, 1)]
    assert [job.state for job in study.jobs] == ["SUPERSEDED"]
    (event,) = (event for event in study.events if event.event == "lost")
    assert event.detail == "the files of 2 instances are gone from the disk, 1 are left; send them again"
    node.log.wait_for(f"series {SERIES} reopened: files are gone from the disk")
    assert compare(node).lost == 0
    assert send(node.port, tmp_path, 1, 2) == [0, 0]
    node.log.wait_for("released: 2 new")
    assert len(node.stored(SERIES)) == 3


def test_a_series_without_any_file_waits_for_them(node: ReceivingNode, tmp_path: Path) -> None:
    send(node.port, tmp_path, 1)
    complete(node)
    shutil.rmtree(tmp_path / "storage" / "instances" / STUDY)
    assert compare(node).reopened == (SERIES,)
    node.clock.advance(60)
    assert node.store.quiet_series(before=node.clock.now(), excluding=()) == ()
    send(node.port, tmp_path, 1)
    node.clock.advance(60)
    (series,) = node.store.quiet_series(before=node.clock.now(), excluding=())
    assert series.number_of_instances == 1


def test_known_conflicts_are_no_files_without_rows(node: ReceivingNode, tmp_path: Path) -> None:
    send(node.port, tmp_path, 1)
    send(node.port, tmp_path, 1, pixel=7)
    node.log.wait_for("released: 1 conflict")
    assert compare(node) == Reconciled(files=2, adopted=0, foreign=0, lost=0, reopened=())


def test_a_conflict_that_was_not_recorded_is_told_and_the_first_bytes_stay(node: ReceivingNode, tmp_path: Path) -> None:
    send(node.port, tmp_path, 1)
    (in_use,) = node.stored(SERIES)
    before = data_set_part(in_use)
    send_without_rows(node, tmp_path, 1, pixel=7)
    assert compare(node).adopted == 1
    assert node.stored(SERIES) == [in_use]
    assert data_set_part(in_use) == before
    study = node.store.study(STUDY)
    assert study is not None
    assert [event.event for event in study.events].count("conflict") == 1
    assert compare(node).adopted == 0


def test_what_is_not_ours_is_told_and_left_alone(node: ReceivingNode, tmp_path: Path) -> None:
    send(node.port, tmp_path, 1)
    (own,) = node.stored(SERIES)
    renamed = own.with_name("1.2.3.dcm")
    shutil.copy(own, renamed)
    noise = own.with_name("noise.dcm")
    noise.write_bytes(b"no DICOM" * 100)
    cut = own.with_name(f"{SERIES}.9.dcm")
    cut.write_bytes(own.read_bytes()[:200])
    elsewhere = own.parent.parent / OTHER
    elsewhere.mkdir()
    shutil.copy(own, elsewhere / own.name)
    (own.parent / "README.txt").write_text("no instance")
    result = compare(node)
    assert (result.files, result.adopted, result.foreign, result.lost) == (5, 0, 4, 0)
    assert renamed.exists()
    assert noise.exists()
    assert node.stored(SERIES) == [own]


def test_the_node_compares_before_it_listens(tmp_path: Path) -> None:
    from pulmo_node.app import Node  # noqa: PLC0415
    from pulmo_node.config import resolve  # noqa: PLC0415

    raw = {"node": {"port": 0, "storage": str(tmp_path / "var")}, "analysis": {"isolated": False}}
    with Node(resolve(raw, base=tmp_path)) as node:
        send(node.receiver.port, tmp_path, 1, 2)
    gone = tmp_path / "var" / "instances" / STUDY / SERIES / f"{SERIES}.1.dcm"
    gone.unlink()
    with Node(resolve(raw, base=tmp_path)) as node:
        assert [Path(path).name for path in node.store.instance_paths(SERIES)] == [f"{SERIES}.2.dcm"]
