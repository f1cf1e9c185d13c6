"""The storage SCP against real peers: what lies on disk, what is answered, and what it survives."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydicom
import pytest
from pydicom import uid
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, SecondaryCaptureImageStorage
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA

from pulmo_node.deliver import DicomSender
from pulmo_node.dimse import IMPLEMENTATION_CLASS_UID
from pulmo_node.domain.deliveries import Peer
from pulmo_node.errors import Transient
from pulmo_node.network.access import Access
from pulmo_node.network.limits import Limits
from pulmo_node.receive import Receiver, ReceiveSettings
from pulmo_node.testing import ManualClock
from tests.conftest import data_folder
from tests.network_factory import (
    PATIENT_ID,
    PATIENT_NAME,
    ReceivingNode,
    UncommittedOnce,
    association,
    ct_slice,
    data_set_part,
    encoded,
    part10,
    receiving_node,
    watched,
)

SERIES_A = "1.2.826.0.1.3680043.8.498.10"
SERIES_B = "1.2.826.0.1.3680043.8.498.20"
ALL_SYNTAXES = "ct_edge_cases/ct_chest_one_slice_all_syntaxes"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ReceivingNode]:
    with receiving_node(tmp_path) as running:
        yield running


def as_peer(port: int, called: str = "PULMO") -> Peer:
    return Peer(name="node", ae_title=called, host="127.0.0.1", port=port)


def run_dcmtk(*command: str) -> subprocess.CompletedProcess[str]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} (dcmtk) is not installed")
    environment = {**os.environ, "TCP_NODELAY": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)


def fragments(sender: Association, file: Path, sop_class_uid: str = CTImageStorage) -> list[P_DATA]:
    """The PDUs of a C-STORE request of a file, several of them of its data set."""
    request = C_STORE()
    request.MessageID = 9
    request.Priority = 2
    request.AffectedSOPClassUID = sop_class_uid
    request.AffectedSOPInstanceUID = pydicom.dcmread(file).SOPInstanceUID
    request._dataset_path = (file, file.stat().st_size - len(data_set_part(file)))
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    (context,) = sender.accepted_contexts
    return list(message.encode_msg(context.context_id, 128))


class TestBytes:
    """The data set lies on disk as the peer sent it, in a valid Part 10 file."""

    @pytest.mark.parametrize(
        "relative",
        [
            f"{ALL_SYNTAXES}/BigEndianExplicit_1.2.840.10008.1.2.2.dcm",
            f"{ALL_SYNTAXES}/DeflatedExplicitVRLittleEndian_1.2.840.10008.1.2.1.99.dcm",
            f"{ALL_SYNTAXES}/JPEG2000LosslessOnly_1.2.840.10008.1.2.4.90.dcm",
            f"{ALL_SYNTAXES}/JPEG2000_1.2.840.10008.1.2.4.91.dcm",
            f"{ALL_SYNTAXES}/JPEGLSLossless_1.2.840.10008.1.2.4.80.dcm",
            f"{ALL_SYNTAXES}/JPEGLSLossy_1.2.840.10008.1.2.4.81.dcm",
            f"{ALL_SYNTAXES}/JPEGProcess14SV1_1.2.840.10008.1.2.4.70.dcm",
            f"{ALL_SYNTAXES}/JPEGProcess14_1.2.840.10008.1.2.4.57.dcm",
            f"{ALL_SYNTAXES}/JPEGProcess1_1.2.840.10008.1.2.4.50.dcm",
            f"{ALL_SYNTAXES}/LittleEndianImplicit_1.2.840.10008.1.2.dcm",
            f"{ALL_SYNTAXES}/RLELossless_1.2.840.10008.1.2.5.dcm",
            "ct_edge_cases/htj2k/CT1_JPH.dcm",
            "ct_edge_cases/enhanced_ct/dcmqi_24x38x3_multiframe.dcm",
            "ct_edge_cases/enhanced_ct/eCT_Supplemental.dcm",
            "ct_edge_cases/malformed/explicit_VR-UN.dcm",
            "cxr_dicom/cr_chest_pa_monochrome1_440_gdcm.dcm",
            "cxr_dicom/dx_chest_pa_monochrome1_j2k_966_fixed.dcm",
        ],
    )
    def test_every_syntax_and_class_as_sent(self, node: ReceivingNode, relative: str) -> None:
        source = data_folder(relative)
        (result,) = DicomSender("MODALITY").send_files(as_peer(node.port), [source])
        assert result.status == "0x0000: success", result.error

        expected = pydicom.dcmread(source, stop_before_pixels=True)
        (path,) = node.stored(expected.SeriesInstanceUID)
        assert data_set_part(path) == data_set_part(source)
        meta = pydicom.dcmread(path, force=False).file_meta
        assert meta.TransferSyntaxUID == expected.file_meta.TransferSyntaxUID
        assert meta.MediaStorageSOPClassUID == expected.SOPClassUID
        assert meta.MediaStorageSOPInstanceUID == expected.SOPInstanceUID
        assert meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
        assert meta.ImplementationVersionName.startswith("PULMO_")
        assert meta.SourceApplicationEntityTitle == "MODALITY"
        assert meta.FileMetaInformationVersion == b"\x00\x01"

    def test_the_row_says_what_came(self, node: ReceivingNode, tmp_path: Path) -> None:
        with association(node.port, calling="SCANNER1") as sender:
            assert sender.send_c_store(part10(tmp_path / "a.dcm", ct_slice())).Status == 0
        node.clock.advance(60)
        (series,) = node.store.quiet_series(before=node.clock.now(), excluding=())
        assert series.series_instance_uid == ct_slice().SeriesInstanceUID
        assert series.study_instance_uid == ct_slice().StudyInstanceUID
        assert series.modality == "CT"
        assert series.calling_ae_title == "SCANNER1"
        assert series.number_of_instances == 1

    @pytest.mark.parametrize(
        ("option", "relative"),
        [
            ("-xt", f"{ALL_SYNTAXES}/JPEGLSLossless_1.2.840.10008.1.2.4.80.dcm"),
            ("-xs", f"{ALL_SYNTAXES}/JPEGProcess14SV1_1.2.840.10008.1.2.4.70.dcm"),
            ("-xr", f"{ALL_SYNTAXES}/RLELossless_1.2.840.10008.1.2.5.dcm"),
            ("-xd", f"{ALL_SYNTAXES}/DeflatedExplicitVRLittleEndian_1.2.840.10008.1.2.1.99.dcm"),
            ("-xb", f"{ALL_SYNTAXES}/BigEndianExplicit_1.2.840.10008.1.2.2.dcm"),
            ("-xi", f"{ALL_SYNTAXES}/LittleEndianImplicit_1.2.840.10008.1.2.dcm"),
        ],
    )
    def test_storescu_of_dcmtk(self, node: ReceivingNode, option: str, relative: str) -> None:
        source = data_folder(relative)
        done = run_dcmtk("storescu", option, "-aec", "PULMO", "127.0.0.1", str(node.port), str(source))
        assert done.returncode == 0, done.stderr
        sent = pydicom.dcmread(source)
        (path,) = node.stored(sent.SeriesInstanceUID)
        kept = pydicom.dcmread(path)
        assert kept.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
        assert kept.PixelData == sent.PixelData

    def test_echoscu_of_dcmtk(self, node: ReceivingNode) -> None:
        assert run_dcmtk("echoscu", "-aec", "PULMO", "127.0.0.1", str(node.port)).returncode == 0


class TestNegotiation:
    def test_other_sop_classes_are_refused(self, node: ReceivingNode) -> None:
        offered = [
            (MRImageStorage, ExplicitVRLittleEndian),
            (SecondaryCaptureImageStorage, ExplicitVRLittleEndian),
            (uid.DigitalXRayImageStorageForProcessing, ExplicitVRLittleEndian),
            (CTImageStorage, ExplicitVRLittleEndian),
        ]
        with association(node.port, *offered) as sender:
            assert [context.abstract_syntax for context in sender.accepted_contexts] == [CTImageStorage]
            assert {context.result for context in sender.rejected_contexts} == {3}  # abstract syntax not supported

    def test_what_cannot_be_decoded_is_refused(self, node: ReceivingNode) -> None:
        offered = [(CTImageStorage, uid.MPEG2MPML), (CTImageStorage, uid.MPEG4HP41)]
        with association(node.port, *offered, (CTImageStorage, ExplicitVRLittleEndian)) as sender:
            assert len(sender.accepted_contexts) == 1
            assert {context.result for context in sender.rejected_contexts} == {4}  # transfer syntaxes not supported

    @pytest.mark.parametrize("syntax", [uid.HTJ2K, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.JPEG2000Lossless])
    def test_offered_alone_it_is_accepted(self, node: ReceivingNode, syntax: str) -> None:
        with association(node.port, (CTImageStorage, syntax)) as sender:
            (context,) = sender.accepted_contexts
            assert context.transfer_syntax == [syntax]

    def test_only_the_calling_titles_of_the_list(self, tmp_path: Path) -> None:
        with receiving_node(tmp_path, access=Access(calling=("CT1", "CT2"))) as node:
            with association(node.port, calling="CT2") as sender:
                assert sender.is_established
            with association(node.port, calling="STRANGER") as sender:
                assert sender.is_rejected
                answer = sender.acceptor.primitive
                assert (answer.result, answer.result_source, answer.diagnostic) == (1, 1, 3)
            node.log.wait_for("association from STRANGER at 127.0.0.1 rejected: calling AE title not in the list")

    def test_only_our_own_title_where_required(self, tmp_path: Path) -> None:
        with receiving_node(tmp_path, access=Access(called=("PULMO",))) as node:
            with association(node.port, called="PULMO") as sender:
                assert sender.is_established
            with association(node.port, called="OTHER") as sender:
                assert sender.is_rejected
                assert sender.acceptor.primitive.diagnostic == 7

    def test_associations_beyond_the_limit_are_rejected_for_now(self, tmp_path: Path) -> None:
        with receiving_node(tmp_path, limits=Limits(associations=1)) as node, association(node.port) as first:
            assert first.is_established
            with association(node.port) as second:
                assert second.is_rejected
                answer = second.acceptor.primitive
                assert (answer.result, answer.result_source, answer.diagnostic) == (2, 3, 2)  # local limit exceeded
            assert first.send_c_store(part10(tmp_path / "a.dcm", ct_slice())).Status == 0

    def test_a_burst_beyond_the_limit_is_answered_at_once(self, tmp_path: Path) -> None:
        """Every one of 40 simultaneous requests is accepted or rejected; none is aborted or left without answer."""
        file = part10(tmp_path / "a.dcm", ct_slice(series=SERIES_A))
        together = threading.Barrier(40)

        def attempt(_: int) -> str:
            together.wait()
            with association(node.port) as sender:
                if sender.is_rejected:
                    return "rejected" if sender.acceptor.primitive.diagnostic == 2 else "rejected for another reason"
                if not sender.is_established:
                    return "lost"
                return "stored" if sender.send_c_store(file).Status == 0 else "not stored"

        with receiving_node(tmp_path, limits=Limits(associations=5)) as node:
            with ThreadPoolExecutor(40) as pool:
                outcomes = set(pool.map(attempt, range(40)))
            assert outcomes <= {"stored", "rejected"}
            for thread in threading.enumerate():  # a released association counts until the node's own thread of it ends
                if isinstance(thread, Association) and thread.is_acceptor:
                    thread.join(20)
            with association(node.port) as sender:
                assert sender.is_established
                assert sender.send_c_store(file).Status == 0
            (path,) = node.stored(SERIES_A)
            assert data_set_part(path) == data_set_part(file)


class TestRefusals:
    """Each has its status and Error Comment, and the association goes on."""

    def refused(self, node: ReceivingNode, file: Path, *contexts: tuple[str, str]) -> tuple[int, str]:
        """Status and comment of that file; a good one sent before and after it is stored."""
        offered = contexts or ((CTImageStorage, ExplicitVRLittleEndian),)
        good = [part10(file.parent / f"good{n}.dcm", ct_slice(n, series=SERIES_A)) for n in (1, 2)]
        with association(node.port, *offered) as sender:
            assert sender.send_c_store(good[0]).Status == 0
            answer = sender.send_c_store(file)
            assert sender.send_c_store(good[1]).Status == 0
        assert len(node.stored(SERIES_A)) == 2
        node.log.wait_for("released: 2 new, 1 refused")
        assert len(answer.ErrorComment) <= 64
        return answer.Status, answer.ErrorComment

    def test_other_instance_uid_than_the_command(self, node: ReceivingNode, tmp_path: Path) -> None:
        file = part10(tmp_path / "x.dcm", ct_slice(series=SERIES_B), MediaStorageSOPInstanceUID="1.2.3.4")
        assert self.refused(node, file) == (0xA900, "SOP Instance UID differs between command and data set")
        assert node.stored(SERIES_B) == []

    def test_other_class_uid_than_the_command(self, node: ReceivingNode, tmp_path: Path) -> None:
        data_set = ct_slice(series=SERIES_B)
        data_set.SOPClassUID = MRImageStorage
        file = part10(tmp_path / "x.dcm", data_set, MediaStorageSOPClassUID=CTImageStorage)
        assert self.refused(node, file) == (0xA900, "SOP Class UID differs between command and data set")

    def test_command_of_another_class_than_negotiated(self, node: ReceivingNode, tmp_path: Path) -> None:
        file = part10(tmp_path / "x.dcm", ct_slice(series=SERIES_B))
        with association(node.port) as sender:
            for pdu in fragments(sender, file, sop_class_uid=uid.ComputedRadiographyImageStorage):
                sender.dul.send_pdu(pdu)
            node.log.wait_for("refused with 0xA900: SOP Class UID of the command is not the one negotiated")
        assert node.stored(SERIES_B) == []

    @pytest.mark.parametrize(
        ("keyword", "name"),
        [
            ("StudyInstanceUID", "Study Instance UID"),
            ("SeriesInstanceUID", "Series Instance UID"),
            ("SOPInstanceUID", "SOP Instance UID"),
            ("SOPClassUID", "SOP Class UID"),
        ],
    )
    def test_missing_uid(self, node: ReceivingNode, tmp_path: Path, keyword: str, name: str) -> None:
        data_set = ct_slice(series=SERIES_B)
        named = data_set.SOPInstanceUID
        delattr(data_set, keyword)
        file = part10(tmp_path / "x.dcm", data_set, MediaStorageSOPInstanceUID=named)
        assert self.refused(node, file) == (0xC000, f"{name} is missing")

    @pytest.mark.parametrize("value", ["../../../etc/passwd", "1.2.x", "1..2", "7", "DOE^JOHN"])
    def test_malformed_uid_is_no_path(self, node: ReceivingNode, tmp_path: Path, value: str) -> None:
        raw = encoded(ct_slice(series=SERIES_B)).replace(SERIES_B.encode(), value.encode().ljust(len(SERIES_B), b"\0"))
        file = part10(tmp_path / "x.dcm", raw, MediaStorageSOPInstanceUID="1.2.3")
        status, comment = self.refused(node, file)
        assert status == 0xC000
        assert comment == "Series Instance UID is no valid UID"
        assert not any(value in line for line in node.log.lines)

    @pytest.mark.parametrize("data_set", [b"\x00", b"\xff" * 300, bytes(range(256)) * 4, b"DICM" * 50])
    def test_noise(self, node: ReceivingNode, tmp_path: Path, data_set: bytes) -> None:
        file = part10(tmp_path / "x.dcm", data_set, MediaStorageSOPInstanceUID="1.2.3")
        assert self.refused(node, file)[0] == 0xC000

    def test_deflated_noise(self, node: ReceivingNode, tmp_path: Path) -> None:
        syntax = uid.DeflatedExplicitVRLittleEndian
        file = part10(
            tmp_path / "x.dcm", b"\xff" * 9, MediaStorageSOPInstanceUID="1.2.3", TransferSyntaxUID=str(syntax)
        )
        contexts = ((CTImageStorage, ExplicitVRLittleEndian), (CTImageStorage, syntax))
        assert self.refused(node, file, *contexts) == (0xC000, "data set cannot be parsed")

    def test_hashed_uids_of_a_real_file(self, node: ReceivingNode) -> None:
        """An anonymiser that writes hexadecimal digests into UIDs."""
        source = data_folder("ct_edge_cases/malformed/bad_sequence.dcm")
        (result,) = DicomSender("MODALITY").send_files(as_peer(node.port), [source])
        assert "0xC000" in str(result.error)

    def test_full_disk_then_recovery(
        self, node: ReceivingNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files = [part10(tmp_path / f"{n}.dcm", ct_slice(n, series=SERIES_A)) for n in (1, 2)]

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with association(node.port) as sender:
            assert sender.send_c_store(files[0]).Status == 0
            with monkeypatch.context() as patched:
                patched.setattr(os, "fsync", full)
                answer = sender.send_c_store(files[1])
            assert answer.Status == 0xA700
            assert answer.ErrorComment == "not stored, try again later"
            assert len(node.stored(SERIES_A)) == 1
            assert sender.send_c_store(files[1]).Status == 0
        assert [data_set_part(path) for path in node.stored(SERIES_A)] == [data_set_part(file) for file in files]

    def test_below_the_watermark_nothing_new_then_recovery(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files = [part10(tmp_path / f"{n}.dcm", ct_slice(n, series=SERIES_A)) for n in (1, 2)]
        usage = shutil.disk_usage(tmp_path)
        with receiving_node(tmp_path, min_free_bytes=1_000_000) as node, association(node.port) as sender:
            assert sender.send_c_store(files[0]).Status == 0
            with monkeypatch.context() as patched:
                patched.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
                for _ in range(3):
                    answer = sender.send_c_store(files[1])
                    assert (answer.Status, answer.ErrorComment) == (0xA700, "storage is almost full, try again later")
                assert sender.send_c_store(files[0]).Status == 0, "it is there already"
                patched.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_001 + 2000))
                assert sender.send_c_store(files[1]).Status == 0
            assert [data_set_part(path) for path in node.stored(SERIES_A)] == [data_set_part(file) for file in files]
        assert sum("nothing new is accepted" in line for line in node.log.lines) == 1
        assert sum("new instances are accepted again" in line for line in node.log.lines) == 1

    def test_row_not_committed_then_recovery(self, tmp_path: Path) -> None:
        with receiving_node(tmp_path) as node:
            flaky = UncommittedOnce(node.store)
            receiver = Receiver(ReceiveSettings(ae_title="PULMO", port=0), flaky, node.instances, node.clock)  # type: ignore[arg-type]
            receiver.start()
            file = part10(tmp_path / "a.dcm", ct_slice(series=SERIES_A))
            with association(receiver.port) as sender:
                assert sender.send_c_store(file).Status == 0xA700
                assert node.stored(SERIES_A) == []
                assert sender.send_c_store(file).Status == 0
            receiver.stop()
            (path,) = node.stored(SERIES_A)
            assert data_set_part(path) == data_set_part(file)
            assert sorted(path.parent.iterdir()) == [path]  # no second file, no conflict


class TestAgain:
    def test_equal_bytes_change_nothing(self, node: ReceivingNode, tmp_path: Path) -> None:
        file = part10(tmp_path / "a.dcm", ct_slice(series=SERIES_A))
        with association(node.port) as sender:
            assert [sender.send_c_store(file).Status for _ in range(3)] == [0, 0, 0]
        (path,) = node.stored(SERIES_A)
        assert sorted(path.parent.iterdir()) == [path]
        node.log.wait_for("released: 2 duplicate, 1 new")

    def test_other_bytes_are_kept_aside(self, node: ReceivingNode, tmp_path: Path) -> None:
        first = part10(tmp_path / "a.dcm", ct_slice(series=SERIES_A))
        changed = ct_slice(series=SERIES_A)
        changed.PixelData = b"\x07\x00" * 16
        second = part10(tmp_path / "b.dcm", changed)
        with association(node.port) as sender:
            assert [sender.send_c_store(file).Status for file in (first, second)] == [0, 0]
        (in_use,) = node.stored(SERIES_A)
        assert data_set_part(in_use) == data_set_part(first)
        (aside,) = set(in_use.parent.iterdir()) - {in_use}
        assert data_set_part(aside) == data_set_part(second)
        node.log.wait_for("released: 1 conflict, 1 new")


class TestTransfers:
    def test_two_series_interleaved_on_two_associations(self, node: ReceivingNode, tmp_path: Path) -> None:
        slices = {
            series: [part10(tmp_path / f"{series}.{n}.dcm", ct_slice(n, series=series)) for n in (1, 2, 3)]
            for series in (SERIES_A, SERIES_B)
        }
        assert node.receiver.series_in_transfer() == set()
        with association(node.port, calling="CT_A") as a, association(node.port, calling="CT_B") as b:
            assert node.receiver.series_in_transfer() == set()
            for file_a, file_b in zip(slices[SERIES_A], slices[SERIES_B], strict=True):
                assert a.send_c_store(file_a).Status == 0
                assert b.send_c_store(file_b).Status == 0
            assert node.receiver.series_in_transfer() == {SERIES_A, SERIES_B}
            a.release()
            node.log.wait_for("association from CT_A released: 3 new")
            assert node.receiver.series_in_transfer() == {SERIES_B}
        node.log.wait_for("association from CT_B released: 3 new")
        assert node.receiver.series_in_transfer() == set()
        for series, files in slices.items():
            assert [data_set_part(p) for p in node.stored(series)] == [data_set_part(p) for p in files]

    def test_only_the_latest_series_of_an_association(self, node: ReceivingNode, tmp_path: Path) -> None:
        with association(node.port) as sender:
            for series in (SERIES_A, SERIES_B):
                sender.send_c_store(part10(tmp_path / "a.dcm", ct_slice(series=series)))
            assert node.receiver.series_in_transfer() == {SERIES_B}

    @pytest.mark.parametrize("how", ["A-ABORT", "connection closed"])
    def test_lost_in_the_middle_of_an_instance(self, node: ReceivingNode, tmp_path: Path, how: str) -> None:
        files = [part10(tmp_path / f"{n}.dcm", ct_slice(n, series=SERIES_A)) for n in (1, 2, 3)]
        with association(node.port) as sender:
            for file in files[:2]:
                assert sender.send_c_store(file).Status == 0
            for pdu in fragments(sender, files[2])[:-1]:
                sender.dul.send_pdu(pdu)
            assert node.receiver.series_in_transfer() == {SERIES_A}
            if how == "A-ABORT":
                sender.abort()
            else:
                sender.dul.socket.socket.shutdown(socket.SHUT_RDWR)
            node.log.wait_for("association from MODALITY aborted: 2 new")
        assert node.receiver.series_in_transfer() == set()
        assert len(node.stored(SERIES_A)) == 2
        with association(node.port) as sender:
            assert [sender.send_c_store(file).Status for file in files] == [0, 0, 0]
        node.log.wait_for("released: 2 duplicate, 1 new")
        assert [data_set_part(p) for p in node.stored(SERIES_A)] == [data_set_part(p) for p in files]


def association_is_accepted(port: int) -> bool:
    with association(port) as attempt:
        return bool(attempt.is_established)


class TestLife:
    def test_a_peer_that_stops_in_the_middle_of_a_pdu_is_let_go(self, tmp_path: Path) -> None:
        with receiving_node(tmp_path, limits=Limits(silence_seconds=3.0, request_seconds=3.0)) as node:
            with socket.create_connection(("127.0.0.1", node.port), timeout=120) as stalled:
                stalled.sendall(b"\x01\x00\x00\x00\x10\x00half of a request")
                assert stalled.recv(1024) == b""  # closed by the node
            assert DicomSender("OTHER").echo(as_peer(node.port)) >= 0

    def test_stop_lets_an_open_association_finish(self, node: ReceivingNode, tmp_path: Path) -> None:
        files = [part10(tmp_path / f"{n}.dcm", ct_slice(n, series=SERIES_A)) for n in (1, 2)]
        port = node.port
        stopping = threading.Thread(target=node.receiver.stop, kwargs={"drain_seconds": 30.0})
        with association(port) as sender:
            assert sender.send_c_store(files[0]).Status == 0
            stopping.start()
            while association_is_accepted(port):
                pass
            assert sender.send_c_store(files[1]).Status == 0
        stopping.join()
        node.log.wait_for("released: 2 new")
        assert len(node.stored(SERIES_A)) == 2

    def test_stop_aborts_what_does_not_finish(self, node: ReceivingNode, tmp_path: Path) -> None:
        with association(node.port) as sender:
            assert sender.send_c_store(part10(tmp_path / "a.dcm", ct_slice(series=SERIES_A))).Status == 0
            node.receiver.stop(drain_seconds=0.0)
            node.log.wait_for("aborted: 1 new")
        assert node.receiver.series_in_transfer() == set()

    def test_restart_on_the_same_port(self, tmp_path: Path) -> None:
        with receiving_node(tmp_path) as node:
            peer = as_peer(node.port)
            node.receiver.stop()
            with pytest.raises(Transient, match="cannot be reached"):
                DicomSender("OTHER").echo(peer)
            again = Receiver(ReceiveSettings(ae_title="PULMO", port=peer.port), node.store, node.instances, node.clock)
            again.start()
            assert DicomSender("OTHER").echo(peer) >= 0
            again.stop()

    def test_port_in_use(self, node: ReceivingNode) -> None:
        second = Receiver(ReceiveSettings(ae_title="PULMO", port=node.port), node.store, node.instances, ManualClock())
        with pytest.raises(Transient, match=rf"cannot listen on 127\.0\.0\.1:{node.port}: Address already in use"):
            second.start()

    def test_it_listens_on_loopback_only_by_default(self) -> None:
        assert ReceiveSettings(ae_title="PULMO").bind == "127.0.0.1"

    def test_patient_data_never_reach_a_log_line(
        self, node: ReceivingNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stored = part10(tmp_path / "a.dcm", ct_slice(series=SERIES_A))
        refused = part10(tmp_path / "b.dcm", ct_slice(series=SERIES_B), MediaStorageSOPInstanceUID="1.2.3")

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError(f"a bug that quotes {PATIENT_NAME}")

        with watched("") as everything:
            with association(node.port) as sender:
                assert sender.send_c_store(stored).Status == 0
                assert sender.send_c_store(refused).Status == 0xA900
                monkeypatch.setattr(node.instances, "begin", broken)
                assert sender.send_c_store(stored).Status == 0xA700
            everything.wait_for("released: 1 new, 2 refused")
        text = "\n".join(everything.lines)
        assert "unexpected RuntimeError" in text
        assert PATIENT_NAME not in text
        assert PATIENT_ID not in text
