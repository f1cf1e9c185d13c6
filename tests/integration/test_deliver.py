"""The storage SCU against a small PACS, against our own receiver, and against nobody."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydicom
import pytest
from pydicom import uid
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import C_STORE, N_EVENT_REPORT
from pynetdicom.pdu_primitives import P_DATA

from pulmo_node.deliver import DicomSender
from pulmo_node.dimse import COMPRESSED, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
from pulmo_node.domain.deliveries import Peer, ResultObject
from pulmo_node.encode import ResultOptions, encode_findings
from pulmo_node.errors import Permanent, PulmoError, Transient
from pulmo_node.testing import Answer, Misbehaviour, SmallPacs
from tests.conftest import data_folder
from tests.encode_factory import chest_datasets, make_context, make_findings, make_nodule, write_volume
from tests.network_factory import ct_slice, data_set_part, part10, receiving_node

SYNTAXES = "ct_edge_cases/ct_chest_one_slice_all_syntaxes"


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[SmallPacs]:
    with SmallPacs(tmp_path / "pacs") as running:
        yield running


@pytest.fixture
def sender() -> DicomSender:
    return DicomSender("PULMO", timeout_seconds=120, keep_comments=True)


def result_file(
    folder: Path, number: int = 1, sop_class_uid: str = Comprehensive3DSRStorage, **meta: str
) -> tuple[Path, ResultObject]:
    """A small object of that class, as it would lie in the outbox."""
    data_set = ct_slice(number)
    data_set.SOPClassUID = sop_class_uid
    path = part10(folder / f"{number}.dcm", data_set, **meta)
    return path, ResultObject(
        kind="sr",
        sop_class_uid=sop_class_uid,
        sop_instance_uid=data_set.SOPInstanceUID,
        series_instance_uid=data_set.SeriesInstanceUID,
        path=path.name,
        sha256="",
    )


class TestStatuses:
    @pytest.mark.parametrize(
        ("status", "words"),
        [
            (0x0000, "0x0000: success"),
            (0x0111, "0x0111: duplicate SOP instance"),
            (0xB000, "0xB000: elements coerced"),
            (0xB006, "0xB006: elements discarded"),
            (0xB007, "0xB007: stored although not matching"),
        ],
    )
    def test_stored(self, pacs: SmallPacs, sender: DicomSender, tmp_path: Path, status: int, words: str) -> None:
        pacs.answer_next(Answer(status=status))
        with sender.open(pacs.peer) as link:
            assert link.store(*result_file(tmp_path)) == words
        assert len(pacs.stored) == 1

    @pytest.mark.parametrize("status", [0xA700, 0xA7FE, 0x0213])
    def test_busy(self, pacs: SmallPacs, sender: DicomSender, tmp_path: Path, status: int) -> None:
        pacs.answer_next(Answer(status=status, comment="disk full"))
        with sender.open(pacs.peer) as link:
            with pytest.raises(Transient, match=rf"smallpacs is busy, 0x{status:04X}: .*'disk full'"):
                link.store(*result_file(tmp_path))
            assert pacs.stored == ()
            assert link.store(*result_file(tmp_path)) == "0x0000: success"  # the association lives on

    @pytest.mark.parametrize(
        ("status", "words"),
        [
            (0xA900, "0xA900: data set does not match SOP class"),
            (0xA9FF, "0xA9FF: data set does not match SOP class"),
            (0xC000, "0xC000: cannot understand"),
            (0xC123, "0xC123: cannot understand"),
            (0x0110, "0x0110: processing failure"),
            (0x0117, "0x0117: invalid SOP instance"),
            (0x0122, "0x0122: SOP class not supported"),
            (0x0124, "0x0124: not authorised"),
        ],
    )
    def test_refused(self, pacs: SmallPacs, sender: DicomSender, tmp_path: Path, status: int, words: str) -> None:
        pacs.answer_next(Answer(status=status, comment="no thanks"))
        with sender.open(pacs.peer) as link, pytest.raises(Permanent) as caught:
            link.store(*result_file(tmp_path))
        assert str(caught.value) == f"smallpacs refused, {words}, 'no thanks'"

    def test_our_own_receiver_names_the_reason(self, sender: DicomSender, tmp_path: Path) -> None:
        data_set = ct_slice()
        del data_set.StudyInstanceUID
        with receiving_node(tmp_path) as node:
            peer = Peer(name="node", ae_title="PULMO", host="127.0.0.1", port=node.port)
            (result,) = sender.send_files(peer, [part10(tmp_path / "a.dcm", data_set)])
        assert isinstance(result.error, Permanent)
        assert str(result.error) == "node refused, 0xC000: cannot understand, 'Study Instance UID is missing'"

    def test_without_leave_the_comment_stays_out(self, pacs: SmallPacs, tmp_path: Path) -> None:
        pacs.answer_next(Answer(status=0xA900, comment="DOE^JOHN 4711 exists"), Answer(status=0xA700, comment="4711"))
        with DicomSender("PULMO", timeout_seconds=120).open(pacs.peer) as link:
            for status in ("0xA900: data set does not match SOP class", "0xA700: out of resources"):
                with pytest.raises(PulmoError) as caught:
                    link.store(*result_file(tmp_path))
                assert str(caught.value).endswith(status)

    @pytest.mark.parametrize(
        ("element", "value"), [("AffectedSOPInstanceUID", "1.2.3.4"), ("MessageIDBeingRespondedTo", 77)]
    )
    def test_an_answer_for_another_object_proves_nothing(
        self,
        pacs: SmallPacs,
        sender: DicomSender,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        element: str,
        value: object,
    ) -> None:
        send = DIMSEServiceProvider.send_msg

        def send_wrong(self: DIMSEServiceProvider, primitive: object, context_id: int) -> None:
            if isinstance(primitive, C_STORE) and primitive.MessageIDBeingRespondedTo is not None:
                setattr(primitive, element, value)
            send(self, primitive, context_id)  # type: ignore[arg-type]

        monkeypatch.setattr(DIMSEServiceProvider, "send_msg", send_wrong)
        with sender.open(pacs.peer) as link:
            with pytest.raises(Transient, match="smallpacs answered for another object"):
                link.store(*result_file(tmp_path))
            with pytest.raises(Transient, match="association with smallpacs lost"):
                link.store(*result_file(tmp_path))


class TestBytes:
    def test_sr_and_seg_arrive_as_they_lie_in_the_outbox(
        self, pacs: SmallPacs, sender: DicomSender, tmp_path: Path
    ) -> None:
        files = [
            result_file(tmp_path, 1, Comprehensive3DSRStorage),
            result_file(tmp_path, 2, SegmentationStorage),
            result_file(tmp_path, 3, uid.SecondaryCaptureImageStorage),
        ]
        with sender.open(pacs.peer) as link:
            for path, result in files:
                link.store(path, result)
        assert [stored.sop_instance_uid for stored in pacs.stored] == [result.sop_instance_uid for _, result in files]
        assert {stored.calling_ae_title for stored in pacs.stored} == {"PULMO"}
        for stored, (path, _) in zip(pacs.stored, files, strict=True):
            assert data_set_part(stored.path) == data_set_part(path)
            assert pydicom.dcmread(stored.path).file_meta.TransferSyntaxUID == uid.ExplicitVRLittleEndian

    def test_every_kind_of_result_is_offered_and_arrives(
        self, pacs: SmallPacs, sender: DicomSender, tmp_path: Path
    ) -> None:
        options = ResultOptions(segmentation="labelmap", presentation_states=True, pdf_report=True)
        volume = write_volume(chest_datasets(), tmp_path / "ct")
        objects = encode_findings(
            make_findings(volume, [make_nodule(volume, (3, 10, 12))]), volume, make_context(volume, options=options)
        )
        assert {each.kind for each in objects} == {"sr", "seg", "key-image", "gsps", "pdf"}
        with sender.open(pacs.peer) as link:
            for each in objects:
                path = tmp_path / f"{each.sop_instance_uid}.dcm"
                path.write_bytes(each.content)
                result = ResultObject(
                    kind=each.kind,
                    sop_class_uid=each.sop_class_uid,
                    sop_instance_uid=each.sop_instance_uid,
                    series_instance_uid=each.series_instance_uid,
                    path=path.name,
                    sha256="",
                )
                assert link.store(path, result) == "0x0000: success"
                assert data_set_part(pacs.stored[-1].path) == data_set_part(path)

    def test_an_object_of_many_pdus(self, pacs: SmallPacs, sender: DicomSender, tmp_path: Path) -> None:
        data_set = ct_slice()
        data_set.SOPClassUID = SegmentationStorage
        data_set.PixelData = bytes(range(256)) * 20_000  # 5 MB
        path = part10(tmp_path / "seg.dcm", data_set)
        _, result = result_file(tmp_path, 1, SegmentationStorage)
        with sender.open(pacs.peer) as link:
            link.store(path, result)
        assert data_set_part(pacs.stored[0].path) == data_set_part(path)


class TestRefusedHere:
    """What is known to be hopeless without asking the peer."""

    def test_sop_class_that_the_peer_does_not_accept(self, sender: DicomSender, tmp_path: Path) -> None:
        with receiving_node(tmp_path) as node:  # takes images only
            peer = Peer(name="node", ae_title="PULMO", host="127.0.0.1", port=node.port)
            with sender.open(peer) as link, pytest.raises(Permanent, match="node does not accept Comprehensive 3D SR"):
                link.store(*result_file(tmp_path))

    def test_transfer_syntax_that_was_not_accepted(self, pacs: SmallPacs, sender: DicomSender, tmp_path: Path) -> None:
        file = result_file(tmp_path, TransferSyntaxUID=uid.ExplicitVRBigEndian)
        with sender.open(pacs.peer) as link, pytest.raises(Permanent, match="in Explicit VR Big Endian"):
            link.store(*file)
        assert pacs.requests == 0

    def test_file_of_another_object(self, pacs: SmallPacs, sender: DicomSender, tmp_path: Path) -> None:
        path, _ = result_file(tmp_path, 1)
        _, other = result_file(tmp_path, 2)
        with (
            sender.open(pacs.peer) as link,
            pytest.raises(Permanent, match=f"{path.name} is not {other.sop_instance_uid}"),
        ):
            link.store(path, other)
        assert pacs.requests == 0

    @pytest.mark.parametrize("content", [None, b"", b"no DICOM at all" * 20])
    def test_unreadable_file(self, pacs: SmallPacs, sender: DicomSender, tmp_path: Path, content: bytes | None) -> None:
        _, result = result_file(tmp_path)
        path = tmp_path / "broken.dcm"
        if content is not None:
            path.write_bytes(content)
        with sender.open(pacs.peer) as link:
            with pytest.raises(Permanent, match=r"broken\.dcm cannot be read"):
                link.store(path, result)
            assert link.store(*result_file(tmp_path)) == "0x0000: success"

    @pytest.mark.parametrize(("place", "by"), [(b"\x02\x00\x02\x00UI", b"UJ"), (b"\x02\x00\x00\x00UL", b"UJ")])
    def test_a_damaged_file_is_no_unexpected_error(
        self, pacs: SmallPacs, sender: DicomSender, tmp_path: Path, place: bytes, by: bytes
    ) -> None:
        """Its delivery would be tried for ever, and none behind it in its job."""
        file, result = result_file(tmp_path)
        content = file.read_bytes()
        at = content.index(place) + 4
        file.write_bytes(content[:at] + by + content[at + 2 :])
        with sender.open(pacs.peer) as link, pytest.raises(Permanent, match=r"1\.dcm cannot be read"):
            link.store(file, result)


class TestDisk:
    """A disk that fails here is no verdict of the peer."""

    def test_before_sending(
        self, pacs: SmallPacs, sender: DicomSender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, result = result_file(tmp_path)

        def failing(_: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr("pulmo_node.deliver.files.read_file_meta_info", failing)
        with (
            sender.open(pacs.peer) as link,
            pytest.raises(Transient, match=r"1\.dcm cannot be read: Input/output error"),
        ):
            link.store(path, result)
        assert pacs.requests == 0

    def test_while_sending(self, pacs: SmallPacs, sender: DicomSender, tmp_path: Path) -> None:
        with sender.open(pacs.peer) as link:
            with pytest.raises(Transient, match=r"gone\.dcm cannot be read"):
                link.store_file(tmp_path / "gone.dcm", Comprehensive3DSRStorage, "1.2.3", uid.ExplicitVRLittleEndian)
            with pytest.raises(Transient, match="lost"):
                link.store(*result_file(tmp_path))
        assert pacs.requests == 0


class TestAssociation:
    def test_peer_down(self, sender: DicomSender, tmp_path: Path) -> None:
        pacs = SmallPacs(tmp_path / "pacs").start()
        peer = pacs.peer
        pacs.stop()
        with (
            pytest.raises(Transient, match=rf"smallpacs \(127\.0\.0\.1:{peer.port}\) cannot be reached"),
            sender.open(peer),
        ):
            pytest.fail("opened an association with nobody")
        with pytest.raises(Transient, match="cannot be reached"):
            sender.echo(peer)
        with pytest.raises(Transient, match="cannot be reached"):
            list(sender.send_files(peer, [result_file(tmp_path)[0]]))

    def test_peer_back_on_the_same_port(self, sender: DicomSender, tmp_path: Path) -> None:
        with SmallPacs(tmp_path / "pacs") as pacs:
            with sender.open(pacs.peer) as link:
                link.store(*result_file(tmp_path, 1))
            pacs.stop()
            with pytest.raises(Transient):
                sender.echo(pacs.peer)
            pacs.start()
            with sender.open(pacs.peer) as link:
                link.store(*result_file(tmp_path, 2))
            assert pacs.wait_for(2, timeout_seconds=120)
        assert [stored.path.name[:5] for stored in pacs.stored] == ["00001", "00002"]

    def test_unknown_host(self, sender: DicomSender) -> None:
        peer = Peer(name="pacs", ae_title="PACS", host="host.invalid", port=104)
        with pytest.raises(Transient, match=r"pacs \(host\.invalid:104\) cannot be reached"):
            sender.echo(peer)

    def test_rejected_calling_title(self, sender: DicomSender, tmp_path: Path) -> None:
        with (
            SmallPacs(tmp_path / "pacs", accept_calling=["OTHER"]) as pacs,
            pytest.raises(Transient, match="rejected the association: calling ae title not recognised"),
            sender.open(pacs.peer),
        ):
            pytest.fail("opened")

    def test_rejected_called_title(self, sender: DicomSender, tmp_path: Path) -> None:
        with SmallPacs(tmp_path / "pacs", accept_calling=["PULMO"]) as pacs:
            assert sender.echo(pacs.peer) >= 0
            wrong = Peer(name="pacs", ae_title="WRONG", host="127.0.0.1", port=pacs.port)
            with pytest.raises(Transient, match="rejected the association: called ae title not recognised"):
                sender.echo(wrong)

    def test_peer_aborts_in_the_middle(self, pacs: SmallPacs, sender: DicomSender, tmp_path: Path) -> None:
        pacs.answer_next(Answer(), Misbehaviour.ABORT)
        with sender.open(pacs.peer) as link:
            link.store(*result_file(tmp_path, 1))
            with pytest.raises(Transient, match="did not answer: association lost or timed out"):
                link.store(*result_file(tmp_path, 2))
            with pytest.raises(Transient, match="lost"):
                link.store(*result_file(tmp_path, 3))
        assert [stored.sop_instance_uid for stored in pacs.stored] == [result_file(tmp_path, 1)[1].sop_instance_uid]

    def test_peer_that_never_answers(self, pacs: SmallPacs, sender: DicomSender, tmp_path: Path) -> None:
        pacs.answer_next(Misbehaviour.SILENCE)
        with sender.open(pacs.peer) as link:
            link._timeout_seconds = 0.5  # of the answer: a busy machine may need longer to open the association
            with pytest.raises(Transient, match="did not answer"):
                link.store(*result_file(tmp_path))

    def test_an_answer_is_for_who_asked(
        self, pacs: SmallPacs, sender: DicomSender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """pynetdicom's other thread looks for messages once more while one waits for the answer, which is there."""
        with sender.open(pacs.peer) as link:
            dimse = link._association.dimse
            get_msg, messages = dimse.get_msg, dimse.msg_queue

            def late(block: bool = False) -> object:
                if block:
                    with messages.not_empty:
                        assert messages.not_empty.wait_for(lambda: messages.queue, 20)
                    get_msg(block=False)
                return get_msg(block)

            monkeypatch.setattr(dimse, "get_msg", late)
            assert link.store(*result_file(tmp_path)) == "0x0000: success"

    def test_messages_of_two_threads_do_not_mix(
        self, pacs: SmallPacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The answer to a report on storage commitment while an object is being sent."""
        report = N_EVENT_REPORT()
        report.MessageIDBeingRespondedTo, report.Status = 7, 0
        report.AffectedSOPClassUID, report.AffectedSOPInstanceUID = STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
        with DicomSender("PULMO", timeout_seconds=20).open(pacs.peer) as link:
            dimse, send_pdu = link._association.dimse, link._association.dul.send_pdu
            answering = threading.Thread(target=dimse.send_msg, args=(report, 255))
            sent = []

            def record(pdu: P_DATA) -> None:
                (value,) = pdu.presentation_data_value_list
                sent.append(value[0])
                if len(sent) == 1:  # the command of the object, whose data are still to come
                    answering.start()
                    answering.join(0.5)  # where nothing holds it, it is over by then
                if value[0] != 255:
                    send_pdu(pdu)

            with monkeypatch.context() as patch:
                patch.setattr(link._association.dul, "send_pdu", record)
                assert link.store(*result_file(tmp_path)) == "0x0000: success"
                answering.join(20)
        first_of_answer = sent.index(255)
        assert first_of_answer >= 2, "command and data of the object"
        assert set(sent[first_of_answer:]) == {255}

    def test_a_request_goes_out_though_a_report_was_answered(self, pacs: SmallPacs, tmp_path: Path) -> None:
        """pynetdicom's thread of an N-EVENT-REPORT ends while a request waits for the association's own to pause."""
        with DicomSender("PULMO", timeout_seconds=20).open(pacs.peer) as link, ThreadPoolExecutor() as pool:
            association = link._association
            association._reactor_checkpoint.clear()
            while not association._is_paused:
                time.sleep(0.001)
            association._is_paused = False  # what that thread leaves behind
            try:
                assert pool.submit(link.store, *result_file(tmp_path)).result(60) == "0x0000: success"
            finally:
                association._is_paused = True

    def test_a_port_that_accepts_and_says_nothing(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            peer = Peer(name="mute", ae_title="MUTE", host="127.0.0.1", port=silent.getsockname()[1])
            with pytest.raises(Transient, match="aborted the association or did not answer"):
                DicomSender("PULMO", timeout_seconds=0.5).echo(peer)

    def test_an_error_of_the_caller_passes_through_and_releases(
        self, pacs: SmallPacs, sender: DicomSender, tmp_path: Path
    ) -> None:
        opened = []

        def work() -> None:
            with sender.open(pacs.peer) as link:
                opened.append(link)
                raise KeyError("of the caller")

        with pytest.raises(KeyError):
            work()
        with pytest.raises(Transient, match="lost"):
            opened[0].store(*result_file(tmp_path))


class TestSendFiles:
    def test_a_folder_of_everything(self, pacs: SmallPacs, sender: DicomSender, tmp_path: Path) -> None:
        """Twelve transfer syntaxes, a meta header that names another instance, and what is no DICOM."""
        files = sorted(data_folder(SYNTAXES).iterdir())
        files.append(data_folder("ct_edge_cases/slice_increment_inconsistent/IM-0001-0007-0001.dcm"))
        readme = tmp_path / "README.txt"
        readme.write_text("not DICOM " * 100)
        empty = tmp_path / "empty"
        empty.touch()
        results = {result.path: result for result in sender.send_files(pacs.peer, [*files, readme, empty])}
        assert len(results) == len(files) + 2
        for path in (readme, empty):
            assert isinstance(results[path].error, Permanent)
            assert str(results[path].error) == f"{path.name} is no DICOM instance"
        assert {results[path].status for path in files} == {"0x0000: success"}
        for stored, path in zip(pacs.stored, files, strict=True):
            source = pydicom.dcmread(path, stop_before_pixels=True)
            assert stored.sop_instance_uid == source.SOPInstanceUID  # of the data set, whatever the meta header says
            assert stored.transfer_syntax_uid == source.file_meta.TransferSyntaxUID
            assert data_set_part(stored.path) == data_set_part(path)

    def test_a_file_without_preamble_and_meta_header(
        self, pacs: SmallPacs, sender: DicomSender, tmp_path: Path
    ) -> None:
        bare = tmp_path / "bare.dcm"
        bare.write_bytes(data_set_part(part10(tmp_path / "whole.dcm", ct_slice())))
        (result,) = sender.send_files(pacs.peer, [bare])
        assert result.status == "0x0000: success", result.error
        assert data_set_part(pacs.stored[0].path) == bare.read_bytes()
        assert pacs.stored[0].transfer_syntax_uid == uid.ExplicitVRLittleEndian

    def test_more_kinds_than_one_association_can_offer(
        self, pacs: SmallPacs, sender: DicomSender, tmp_path: Path
    ) -> None:
        classes = [
            uid.CTImageStorage,
            uid.MRImageStorage,
            uid.EnhancedCTImageStorage,
            uid.EnhancedMRImageStorage,
            uid.UltrasoundImageStorage,
            uid.SecondaryCaptureImageStorage,
            uid.ComputedRadiographyImageStorage,
            uid.DigitalXRayImageStorageForPresentation,
            uid.NuclearMedicineImageStorage,
            uid.RawDataStorage,
            uid.EncapsulatedPDFStorage,
        ]
        kinds = [(sop_class, syntax) for sop_class in classes for syntax in (uid.ExplicitVRLittleEndian, *COMPRESSED)]
        assert len(kinds) == 143  # 128 is the most
        files = []
        for number, (sop_class, syntax) in enumerate(kinds):
            data_set = ct_slice(number)
            data_set.SOPClassUID = sop_class
            files.append(part10(tmp_path / f"{number:03}.dcm", data_set, TransferSyntaxUID=syntax))
        results = list(sender.send_files(pacs.peer, files))
        assert {(result.status, result.error) for result in results} == {("0x0000: success", None)}
        assert [(stored.sop_class_uid, stored.transfer_syntax_uid) for stored in pacs.stored] == kinds

    def test_a_refused_file_does_not_stop_the_others(
        self, pacs: SmallPacs, sender: DicomSender, tmp_path: Path
    ) -> None:
        pacs.answer_next(Answer(), Answer(status=0xC000), Answer())
        files = [part10(tmp_path / f"{number}.dcm", ct_slice(number)) for number in (1, 2, 3)]
        results = list(sender.send_files(pacs.peer, files))
        assert [result.error is None for result in results] == [True, False, True]

    def test_a_lost_association_ends_it(self, pacs: SmallPacs, sender: DicomSender, tmp_path: Path) -> None:
        pacs.answer_next(Answer(), Misbehaviour.ABORT)
        files = [part10(tmp_path / f"{number}.dcm", ct_slice(number)) for number in (1, 2, 3)]
        sending = sender.send_files(pacs.peer, files)
        assert next(sending).error is None
        with pytest.raises(Transient, match="association lost"):
            next(sending)

    def test_nothing_to_send(self, pacs: SmallPacs, sender: DicomSender) -> None:
        assert list(sender.send_files(pacs.peer, [])) == []
