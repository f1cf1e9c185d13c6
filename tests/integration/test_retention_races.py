"""Images that come in the moment in which their study is purged or erased: what was answered with Success is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pulmo_node.audit import AuditTrail
from pulmo_node.domain.jobs import NewJob
from pulmo_node.domain.series import InstanceOutcome, StoredInstance
from pulmo_node.errors import Transient
from pulmo_node.receive import Receiver, ReceiveSettings
from pulmo_node.retention import Purge, erase_study
from pulmo_node.store import SqlStore
from tests.network_factory import ReceivingNode, association, ct_slice, data_set_part, part10, receiving_node

STUDY = str(ct_slice().StudyInstanceUID)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ReceivingNode]:
    """A node with one rejected, so finished, series of two images."""
    with receiving_node(tmp_path) as running:
        assert send(running.receiver.port, tmp_path, 1, 2) == [0, 0]
        running.clock.advance(60)
        (series,) = running.store.quiet_series(before=running.clock.now(), excluding=())
        running.store.complete_series(series, (NewJob(pipeline="ct", destinations=()),), None)
        job = running.store.claim_job("worker", now=running.clock.now(), lease_until=running.clock.now())
        assert job is not None
        running.store.job_rejected(job, "NOT_AXIAL", "x")
        yield running


def send(port: int, folder: Path, *numbers: int, pixel: int | None = None) -> list[int]:
    statuses = []
    with association(port) as sender:
        for number in numbers:
            data_set = ct_slice(number)
            if pixel is not None:
                data_set.PixelData = bytes([pixel, 1] * 16)
            statuses.append(sender.send_c_store(part10(folder / "slice.dcm", data_set)).Status)
    return statuses


def kept(node: ReceivingNode) -> list[str]:
    """SOP Instance UIDs of what is in use and lies on the disk as it came."""
    with node.store._read() as connection:
        rows = connection.exec_driver_sql(
            "SELECT sop_instance_uid, path, sha256 FROM instances WHERE purged_at IS NULL ORDER BY id"
        ).fetchall()
    for uid, path, sha256 in rows:
        file = node.instances.absolute(path)
        assert file.is_file(), f"{uid} was answered with Success and its file is gone"
        assert hashlib.sha256(data_set_part(file)).hexdigest() == sha256, f"{uid} is in use with other bytes"
    return [str(uid).rpartition(".")[2] for uid, _, _ in rows]


def purge(node: ReceivingNode, store: object = None) -> Purge:
    return Purge(node.instances.absolute(""), store or node.store, node.clock, delivered_days=1, max_gib=0)  # type: ignore[arg-type]


class Meanwhile:
    """The store of a purge or an erasure, with something that happens right after or before one of its steps."""

    def __init__(self, store: SqlStore, step: str, happens: Callable[[], object], *, first: bool = False) -> None:
        self._store, self._step, self._happens, self._first = store, step, happens, first

    def __getattr__(self, name: str) -> object:
        real = getattr(self._store, name)
        if name != self._step:
            return real

        def step(*args: object) -> object:
            if self._first:
                self._happens()
            result = real(*args)
            if not self._first:
                self._happens()
            return result

        return step


class BeforeTheRow:
    """A `ReceiveStore` before whose first row something happens: the file is there already."""

    def __init__(self, store: SqlStore, happens: Callable[[], object]) -> None:
        self._store, self._happens = store, [happens]

    def record_instance(self, instance: StoredInstance) -> InstanceOutcome:
        if self._happens:
            self._happens.pop()()
        return self._store.record_instance(instance)


def send_with(node: ReceivingNode, folder: Path, happens: Callable[[], object], *numbers: int) -> list[int]:
    store = BeforeTheRow(node.store, happens)
    receiver = Receiver(ReceiveSettings(ae_title="PULMO", port=0), store, node.instances, node.clock)  # type: ignore[arg-type]
    receiver.start()
    try:
        return send(receiver.port, folder, *numbers)
    finally:
        receiver.stop()


def test_late_and_again_between_the_rows_and_the_files_of_a_purge(node: ReceivingNode, tmp_path: Path) -> None:
    node.clock.advance(2 * 86_400)
    statuses: list[int] = []
    store = Meanwhile(node.store, "purge", lambda: statuses.extend(send(node.receiver.port, tmp_path, 1, 3)))
    assert purge(node, store).run() == 1
    assert statuses == [0, 0]
    assert kept(node) == ["1", "3"]
    purge(node).sweep()
    assert kept(node) == ["1", "3"]


@pytest.mark.parametrize("number", [1, 3], ids=["again", "late"])
@pytest.mark.parametrize("how", ["purge", "erase"])
def test_the_study_goes_between_the_file_and_its_row(
    node: ReceivingNode, tmp_path: Path, number: int, how: str
) -> None:
    node.clock.advance(2 * 86_400)

    def goes() -> object:
        if how == "purge":
            return purge(node).run()
        return erase_study(
            node.instances.absolute(""), node.store, AuditTrail(tmp_path / "audit", "x", node.clock), STUDY
        )

    (status,) = send_with(node, tmp_path, goes, number)
    if status != 0:  # the sender tries again
        assert status == 0xA700
        assert send(node.receiver.port, tmp_path, number) == [0]
    assert kept(node) == [str(number)]


def test_an_erasure_that_comes_too_late_takes_no_file(node: ReceivingNode, tmp_path: Path) -> None:
    audit = AuditTrail(tmp_path / "audit", "x", node.clock)
    store = Meanwhile(node.store, "study_files", lambda: send(node.receiver.port, tmp_path, 3))
    with pytest.raises(Transient, match="still being received"):
        erase_study(node.instances.absolute(""), store, audit, STUDY)  # type: ignore[arg-type]
    assert kept(node) == ["1", "2", "3"]


def test_other_bytes_after_a_purge_never_stand_for_the_first(node: ReceivingNode, tmp_path: Path) -> None:
    node.clock.advance(2 * 86_400)
    purge(node).run()
    assert send(node.receiver.port, tmp_path, 1, pixel=9) == [0]  # kept aside
    image = ct_slice(1)
    plain = node.instances.path_of(STUDY, str(image.SeriesInstanceUID), str(image.SOPInstanceUID))
    aside = node.instances.absolute(plain)
    assert aside.is_file()
    purge(node).sweep()
    assert aside.is_file(), "it was answered with Success"
    assert send(node.receiver.port, tmp_path, 1) == [0]  # as it came first
    assert kept(node) == ["1"]
