"""Storage commitment as SCP: what is really on the disk is what is promised, and the promise outlives a restart."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage, generate_uid
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association

from pulmo_node import orthanc
from pulmo_node.commitment import CommitmentScp
from pulmo_node.deliver import DicomSender
from pulmo_node.dimse import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE, listen, prepare_connection
from pulmo_node.domain.deliveries import Peer
from pulmo_node.domain.retry import RetryPolicy
from pulmo_node.files import FileInstanceStore
from pulmo_node.orthanc import OrthancProcess
from pulmo_node.receive import Receiver, ReceiveSettings
from pulmo_node.store import SqlStore
from pulmo_node.testing import ManualClock
from tests.network_factory import LogWatch, association, ct_slice, part10, watched

WAIT_SECONDS = 180.0
CT_SLICE_UIDS = [(CTImageStorage, f"1.2.826.0.1.3680043.8.498.2.{number}") for number in (1, 2, 3)]


@dataclass
class Modality:
    """A peer that listens for reports on a port of its own."""

    ae_title: str = "MODALITY"
    status: int = 0
    reports: Queue[tuple[int, Dataset]] = field(default_factory=Queue)

    def on_report(self, event: evt.Event) -> tuple[int, None]:
        self.reports.put((event.event_type, event.event_information))
        return self.status, None

    @contextmanager
    def listening(self) -> Iterator[Peer]:
        entity = AE(ae_title=self.ae_title)
        entity.add_supported_context(STORAGE_COMMITMENT, scu_role=False, scp_role=True)
        server = listen(entity, ("127.0.0.1", 0), [(evt.EVT_N_EVENT_REPORT, self.on_report)])
        try:
            yield Peer(name="modality", ae_title=self.ae_title, host="127.0.0.1", port=server.server_address[1])
        finally:
            server.shutdown()


@dataclass(frozen=True, kw_only=True)
class Committing:
    """A receiver with storage commitment and what lies behind it."""

    receiver: Receiver
    scp: CommitmentScp
    store: SqlStore
    instances: FileInstanceStore
    clock: ManualClock
    log: LogWatch

    def file_of(self, number: int) -> Path:
        (path,) = (
            path for path in self.store.instance_paths(ct_slice().SeriesInstanceUID) if path.endswith(f".{number}.dcm")
        )
        return self.instances.absolute(path)


@contextmanager
def committing(
    folder: Path, peer: Peer | None = None, *, answering: bool = True, attempts: int = 3
) -> Iterator[Committing]:
    clock = ManualClock()
    with SqlStore(f"sqlite:///{folder / 'node.sqlite'}", clock) as store, watched() as log:
        instances = FileInstanceStore(folder / "storage")
        retry = RetryPolicy(max_attempts=attempts, first_delay_seconds=10.0)
        scp = CommitmentScp(
            store,
            instances,
            DicomSender("PULMO", timeout_seconds=120.0),
            clock,
            peer_of=lambda ae_title: peer if peer is not None and ae_title == peer.ae_title else None,
            retry=retry,
        )
        receiver = Receiver(ReceiveSettings(ae_title="PULMO", port=0), store, instances, clock, scp)
        receiver.start()
        if answering:
            scp.start()
        try:
            yield Committing(receiver=receiver, scp=scp, store=store, instances=instances, clock=clock, log=log)
        finally:
            receiver.stop(drain_seconds=0.0)
            scp.stop()


CONTEXTS = ((CTImageStorage, ExplicitVRLittleEndian), (STORAGE_COMMITMENT, ImplicitVRLittleEndian))


def request(references: list[tuple[str, str]], transaction_uid: str) -> Dataset:
    information = Dataset()
    information.TransactionUID = transaction_uid
    information.ReferencedSOPSequence = []
    for sop_class, uid in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        information.ReferencedSOPSequence.append(item)
    return information


def ask(
    sender: Association,
    references: list[tuple[str, str]],
    transaction_uid: str | None = None,
    *,
    action: int = 1,
    instance: str = STORAGE_COMMITMENT_INSTANCE,
) -> int:
    information = request(references, transaction_uid or generate_uid())
    answer, _ = sender.send_n_action(information, action, STORAGE_COMMITMENT, instance)
    return int(answer.Status)


def send_slices(sender: Association, folder: Path, *numbers: int) -> None:
    for number in numbers:
        assert sender.send_c_store(part10(folder / "slice.dcm", ct_slice(number))).Status == 0


def stored(information: Dataset) -> set[str]:
    return {item.ReferencedSOPInstanceUID for item in information.get("ReferencedSOPSequence", [])}


def failures(information: Dataset) -> dict[str, int]:
    return {item.ReferencedSOPInstanceUID: item.FailureReason for item in information.get("FailedSOPSequence", [])}


class TestReport:
    """By a new association to the configured peer."""

    def test_what_was_sent_is_committed(self, tmp_path: Path) -> None:
        modality = Modality()
        with modality.listening() as peer, committing(tmp_path, peer) as node:
            transaction = generate_uid()
            with association(node.receiver.port, *CONTEXTS) as sender:
                send_slices(sender, tmp_path, 1, 2, 3)
                assert ask(sender, CT_SLICE_UIDS, transaction) == 0
            event_type, information = modality.reports.get(timeout=WAIT_SECONDS)
            assert event_type == 1
            assert information.TransactionUID == transaction
            assert stored(information) == {uid for _, uid in CT_SLICE_UIDS}
            assert "FailedSOPSequence" not in information
            node.log.wait_for("storage commitment: MODALITY told of 3 instances kept, 0 not")
            assert node.store.due_commitments(node.clock.now()) == ()

    def test_what_is_not_on_the_disk_as_it_came_is_not_committed(self, tmp_path: Path) -> None:
        modality = Modality()
        with modality.listening() as peer, committing(tmp_path, peer) as node:
            with association(node.receiver.port, *CONTEXTS) as sender:
                send_slices(sender, tmp_path, 1, 2, 3, 4)
                node.file_of(2).unlink()
                changed = bytearray(node.file_of(3).read_bytes())
                changed[-1] ^= 1
                node.file_of(3).write_bytes(changed)
                wrong_class = (MRImageStorage, f"{ct_slice().SeriesInstanceUID}.4")
                assert ask(sender, [*CT_SLICE_UIDS, wrong_class, (CTImageStorage, "1.2.3.4")]) == 0
            event_type, information = modality.reports.get(timeout=WAIT_SECONDS)
            assert event_type == 2
            assert stored(information) == {CT_SLICE_UIDS[0][1]}
            assert failures(information) == {
                CT_SLICE_UIDS[1][1]: 0x0112,  # no such object instance
                CT_SLICE_UIDS[2][1]: 0x0110,  # processing failure
                wrong_class[1]: 0x0119,  # class-instance conflict
                "1.2.3.4": 0x0112,
            }
            node.log.wait_for("not committed: its file is not what came")

    def test_a_peer_that_is_down_is_told_later_and_given_up_in_the_end(self, tmp_path: Path) -> None:
        modality = Modality()
        down = Peer(name="modality", ae_title="MODALITY", host="127.0.0.1", port=1)
        with committing(tmp_path, down, answering=False, attempts=2) as node:
            with association(node.receiver.port, *CONTEXTS) as sender:
                assert ask(sender, CT_SLICE_UIDS) == 0
            assert node.scp.answer_due() == 1
            assert node.scp.answer_due() == 0, "not before its delay is over"
            node.clock.advance(11)
            assert node.scp.answer_due() == 1
            node.log.wait_for("MODALITY not told, given up")
            node.clock.advance(100_000)
            assert node.scp.answer_due() == 0
        assert modality.reports.empty()

    def test_a_refused_report_is_tried_again(self, tmp_path: Path) -> None:
        modality = Modality(status=0x0110)
        with modality.listening() as peer, committing(tmp_path, peer, answering=False) as node:
            with association(node.receiver.port, *CONTEXTS) as sender:
                assert ask(sender, CT_SLICE_UIDS) == 0
            node.scp.answer_due()
            modality.status = 0
            node.clock.advance(11)
            node.scp.answer_due()
            assert modality.reports.qsize() == 2
            assert node.store.due_commitments(node.clock.now()) == ()

    def test_a_request_outlives_a_restart(self, tmp_path: Path) -> None:
        modality = Modality()
        with committing(tmp_path, answering=False) as node, association(node.receiver.port, *CONTEXTS) as sender:
            send_slices(sender, tmp_path, 1, 2, 3)
            assert ask(sender, CT_SLICE_UIDS) == 0
        with modality.listening() as peer, committing(tmp_path, peer):
            assert modality.reports.get(timeout=WAIT_SECONDS)[0] == 1


class TestSameAssociation:
    """Of a peer that is not configured, as long as it stays."""

    def asking(
        self, node: Committing, on_report: Callable[[evt.Event], tuple[int, None]], **options: int
    ) -> Association:
        """An association that is told in `on_report`."""
        entity = AE(ae_title="GUEST")
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = WAIT_SECONDS
        return entity.associate(
            "127.0.0.1",
            node.receiver.port,
            [build_context(*context) for context in CONTEXTS],
            ae_title="PULMO",
            evt_handlers=[
                (evt.EVT_CONN_OPEN, prepare_connection, [WAIT_SECONDS]),
                (evt.EVT_N_EVENT_REPORT, on_report),
            ],
            **options,
        )

    def test_it_is_told_while_it_waits(self, tmp_path: Path) -> None:
        with committing(tmp_path) as node:
            guest = Modality(ae_title="GUEST")
            sender = self.asking(node, guest.on_report)
            assert sender.is_established
            send_slices(sender, tmp_path, 1, 2)
            assert ask(sender, CT_SLICE_UIDS) == 0
            event_type, information = guest.reports.get(timeout=WAIT_SECONDS)
            assert event_type == 2
            assert stored(information) == {uid for _, uid in CT_SLICE_UIDS[:2]}
            node.log.wait_for("storage commitment: GUEST told of 2 instances kept, 1 not")
            send_slices(sender, tmp_path, 3)  # the association goes on
            assert ask(sender, CT_SLICE_UIDS) == 0
            assert guest.reports.get(timeout=WAIT_SECONDS)[0] == 1
            sender.release()

    def test_a_report_that_is_served_while_the_next_request_begins_holds_up_nobody(self, tmp_path: Path) -> None:
        """pynetdicom would wait for ever, in `release` too, for a thread that is paused already."""
        serving: Queue[threading.Thread] = Queue()

        def on_report(event: evt.Event) -> tuple[int, None]:
            checkpoint = event.assoc._reactor_checkpoint
            checkpoint.clear()  # as the next request does
            while not checkpoint._cond._waiters:  # the association's own thread is paused
                time.sleep(0.001)
            serving.put(threading.current_thread())
            return 0, None

        with committing(tmp_path) as node:
            sender = self.asking(node, on_report)
            assert ask(sender, CT_SLICE_UIDS) == 0
            serving.get(timeout=WAIT_SECONDS).join()
            releasing = threading.Thread(target=sender.release, daemon=True)
            releasing.start()
            releasing.join(20)
            assert not releasing.is_alive()
            assert sender.is_released

    def test_many_references_between_instances_that_keep_coming(self, tmp_path: Path) -> None:
        """A report of many PDUs does not mix with the answers to the instances that are sent at the same time."""
        with committing(tmp_path) as node:
            guest = Modality(ae_title="GUEST")
            sender = self.asking(node, guest.on_report, max_pdu=4096)
            many = [(CTImageStorage, f"{ct_slice().SeriesInstanceUID}.{number}") for number in range(1, 401)]
            assert ask(sender, many) == 0
            send_slices(sender, tmp_path, *range(1, 41))
            event_type, information = guest.reports.get(timeout=WAIT_SECONDS)
            assert event_type == 2
            assert stored(information) | set(failures(information)) == {uid for _, uid in many}
            send_slices(sender, tmp_path, 41)
            sender.release()

    def test_who_left_and_is_no_peer_is_not_told(self, tmp_path: Path) -> None:
        with committing(tmp_path, answering=False, attempts=1) as node:
            with association(node.receiver.port, *CONTEXTS, calling="GUEST") as sender:
                assert ask(sender, CT_SLICE_UIDS) == 0
            node.log.wait_for("association from GUEST released")
            node.scp.answer_due()
            node.log.wait_for("GUEST not told, given up: its association is over, and no peer has this AE title")


class TestRequests:
    @pytest.mark.parametrize(
        ("references", "changes", "status"),
        [
            (CT_SLICE_UIDS, {"action": 2}, 0x0123),
            (CT_SLICE_UIDS, {"instance": "1.2.3"}, 0x0117),
            (CT_SLICE_UIDS, {"transaction_uid": "1.2.x"}, 0x0115),
            ([], {}, 0x0115),
            ([(CTImageStorage, "../../etc/passwd")], {}, 0x0115),
            ([(CTImageStorage, "1." + "2" * 70)], {}, 0x0115),
        ],
    )
    @pytest.mark.filterwarnings("ignore:.*value for VR UI")
    def test_refused(
        self, tmp_path: Path, references: list[tuple[str, str]], changes: dict[str, Any], status: int
    ) -> None:
        with committing(tmp_path, answering=False) as node:
            with association(node.receiver.port, *CONTEXTS) as sender:
                assert ask(sender, references, **changes) == status
                assert ask(sender, CT_SLICE_UIDS) == 0, "the association goes on"
            assert len(node.store.due_commitments(node.clock.now())) == 1

    def test_a_transaction_uid_that_is_in_use(self, tmp_path: Path) -> None:
        transaction = generate_uid()
        with committing(tmp_path, answering=False) as node:
            with association(node.receiver.port, *CONTEXTS) as sender:
                assert ask(sender, CT_SLICE_UIDS, transaction) == 0
                assert ask(sender, CT_SLICE_UIDS, transaction) == 0, "the same request once more"
                assert ask(sender, CT_SLICE_UIDS[:1], transaction) == 0x0210
            assert len(node.store.due_commitments(node.clock.now())) == 1


def test_a_request_under_a_clock_that_was_set_back_is_answered(tmp_path: Path) -> None:
    with committing(tmp_path, answering=False) as node:
        with association(node.receiver.port, *CONTEXTS) as sender:
            assert ask(sender, CT_SLICE_UIDS) == 0
        assert node.store.due_commitments(node.clock.now() - timedelta(hours=1)) == ()
        assert len(node.store.due_commitments(node.clock.now() - timedelta(days=3650))) == 1


def test_orthanc_is_told(tmp_path: Path) -> None:
    """Orthanc sends a series, asks for commitment, and has the report in its own list."""
    missing = orthanc.available()
    if missing:
        pytest.skip(missing)
    with OrthancProcess(tmp_path / "orthanc") as pacs, committing(tmp_path, pacs.peer) as node:
        references = [[CTImageStorage, uid] for _, uid in CT_SLICE_UIDS]
        files = [part10(tmp_path / f"{number}.dcm", ct_slice(number)) for number in (1, 2, 3)]
        assert all(sent.error is None for sent in DicomSender("CT").send_files(pacs.peer, files))

        def post(path: str, body: object, method: str = "POST") -> Any:
            data = json.dumps(body).encode()
            call = urllib.request.Request(pacs.url + path, data=data, method=method)  # noqa: S310
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(call, timeout=WAIT_SECONDS) as answer:
                return json.loads(answer.read() or b"null")

        post("/modalities/pulmo", ["PULMO", "127.0.0.1", node.receiver.port], "PUT")
        sent = [identifier for _, uid in CT_SLICE_UIDS for identifier in pacs.find("Instance", {"SOPInstanceUID": uid})]
        post("/modalities/pulmo/store", sent[:2])
        asked = post("/modalities/pulmo/storage-commitment", {"DicomInstances": references})
        node.log.wait_for("storage commitment: ORTHANC told of 2 instances kept, 1 not")
        deadline = time.monotonic() + WAIT_SECONDS
        while (report := pacs.get(asked["Path"]))["Status"] == "Pending" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert report["Status"] == "Failure"
        assert {one["SOPInstanceUID"] for one in report["Success"]} == {uid for _, uid in CT_SLICE_UIDS[:2]}
        (failure,) = report["Failures"]
        assert failure["SOPInstanceUID"] == CT_SLICE_UIDS[2][1], failure
