"""The surface of the receiver: who is let in, how much each may take, and that strangers keep nobody out."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.fsm import StateMachine
from pynetdicom.pdu import P_DATA_TF

from pulmo_node.errors import Transient
from pulmo_node.network.access import Access
from pulmo_node.network.limits import MOST_HALF_OPEN, Limits
from pulmo_node.network.storing import StoreAnswer
from pulmo_node.receive.arrival import Arrival
from tests.network_factory import ReceivingNode, associate_request, association, ct_slice, part10, receiving_node

ABORT = b"\x07\x00\x00\x00\x00\x04\x00\x00"
WAIT_SECONDS = 120.0


def connect(node: ReceivingNode) -> socket.socket:
    return socket.create_connection(("127.0.0.1", node.port), timeout=WAIT_SECONDS)


def received(sock: socket.socket) -> bytes:
    """Everything until the node closes the connection."""
    parts = []
    try:
        while part := sock.recv(4096):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


@pytest.fixture(scope="module")
def request_bytes() -> bytes:
    contexts = [build_context(CTImageStorage, ExplicitVRLittleEndian), build_context("1.2.840.10008.1.1")]
    return associate_request(contexts, calling="LORIS")


def raw_association(node: ReceivingNode, request_bytes: bytes) -> socket.socket:
    """An established association on a bare socket."""
    sock = connect(node)
    sock.sendall(request_bytes)
    answer = sock.recv(65536)
    assert answer[0] == 2, "A-ASSOCIATE-AC"
    return sock


def store_pdus(data_set: bytes, fragment_bytes: int = 64) -> list[bytes]:
    """P-DATA-TF PDUs of a C-STORE request on presentation context 1."""
    primitive = C_STORE()
    primitive.MessageID = 1
    primitive.Priority = 2
    primitive.AffectedSOPClassUID = CTImageStorage
    primitive.AffectedSOPInstanceUID = "1.2.3.4"
    primitive.DataSet = BytesIO(data_set)
    message = C_STORE_RQ()
    message.primitive_to_message(primitive)
    return [P_DATA_TF(part).encode() for part in message.encode_msg(1, fragment_bytes)]


def echo_pdu() -> bytes:
    primitive = C_ECHO()
    primitive.MessageID = 1
    primitive.AffectedSOPClassUID = "1.2.840.10008.1.1"
    message = C_ECHO_RQ()
    message.primitive_to_message(primitive)
    (part,) = message.encode_msg(3, 16384)
    return bytes(P_DATA_TF(part).encode())


def is_served(node: ReceivingNode, folder: Path) -> bool:
    with association(node.port) as sender:
        return bool(sender.is_established) and sender.send_c_store(part10(folder / "s.dcm", ct_slice())).Status == 0


class TestAccess:
    def test_an_address_outside_the_networks_is_not_answered(self, tmp_path: Path) -> None:
        with receiving_node(tmp_path, access=Access(networks=("192.0.2.0/24",))) as node:
            with connect(node) as stranger:
                assert received(stranger) == b""
            node.log.wait_for("connection from 127.0.0.1 refused: not in the networks that may connect")

    def test_an_address_of_the_networks_is_served(self, tmp_path: Path) -> None:
        with receiving_node(tmp_path, access=Access(networks=("192.0.2.0/24", "127.0.0.0/8"))) as node:
            assert is_served(node, tmp_path)

    def test_who_is_kept_out_does_not_fill_the_log(self, tmp_path: Path) -> None:
        with receiving_node(tmp_path, access=Access(networks=("192.0.2.1",))) as node:
            for _ in range(50):
                with connect(node) as stranger:
                    assert received(stranger) == b""
            assert sum("refused" in line for line in node.log.lines) == 1

    def test_called_titles_of_the_list(self, tmp_path: Path) -> None:
        with receiving_node(tmp_path, access=Access(called=("PULMO", "OLDNAME"))) as node:
            with association(node.port, called="OLDNAME") as sender:
                assert sender.is_established
            with association(node.port, called="OTHER") as sender:
                assert sender.acceptor.primitive.diagnostic == 7

    def test_a_calling_title_cannot_forge_a_line_of_the_log(self, tmp_path: Path, request_bytes: bytes) -> None:
        forged = request_bytes[:26] + b"A\nERROR forged \x1b" + request_bytes[42:]
        with receiving_node(tmp_path, access=Access(calling=("CT1",))) as node:
            with connect(node) as stranger:
                stranger.sendall(forged)
                assert received(stranger).startswith(ABORT)
            node.log.wait_for("closed: a request that cannot be decoded")
            assert not any("forged" in line for line in node.log.lines)


class TestLimits:
    def test_one_peer_cannot_take_every_slot(self, tmp_path: Path) -> None:
        limits = Limits(associations=5, associations_per_peer=2)
        with receiving_node(tmp_path, limits=limits) as node, association(node.port), association(node.port):
            with association(node.port) as third:
                assert third.is_rejected
                assert third.acceptor.primitive.result == 2
            node.log.wait_for("too many associations of this address")

    def test_a_hundred_beyond_the_limit_are_rejected_and_the_first_go_on(self, tmp_path: Path) -> None:
        file = part10(tmp_path / "a.dcm", ct_slice())
        with receiving_node(tmp_path, limits=Limits(associations=3)) as node, ExitStack() as stack:
            first = [stack.enter_context(association(node.port)) for _ in range(3)]
            for _ in range(100):
                with association(node.port) as refused:
                    assert refused.is_rejected
                    assert refused.acceptor.primitive.diagnostic == 2
            assert [sender.send_c_store(file).Status for sender in first] == [0, 0, 0]
            assert not any(isinstance(thread, Association) and thread.is_acceptor for thread in extra_threads(3))

    def test_more_connections_in_a_minute_are_not_answered(self, tmp_path: Path) -> None:
        with receiving_node(tmp_path, limits=Limits(connections_per_minute=3)) as node:
            for _ in range(3):
                with association(node.port) as sender:
                    assert sender.is_established
            with connect(node) as one_more:
                assert received(one_more) == b""
            node.log.wait_for("too many connections in a minute")

    @pytest.mark.parametrize(
        ("limits", "reason"),
        [
            (Limits(association_bytes=2000), "too many bytes in one association"),
            (Limits(message_bytes=2000), "an instance is too large"),
        ],
    )
    def test_bytes(self, tmp_path: Path, request_bytes: bytes, limits: Limits, reason: str) -> None:
        with receiving_node(tmp_path, limits=limits) as node:
            with raw_association(node, request_bytes) as greedy:
                send_all_that_is_taken(greedy, store_pdus(bytes(100_000)))
                assert received(greedy).startswith(ABORT)
            node.log.wait_for(f"association from LORIS aborted: {reason}")

    def test_seconds(self, tmp_path: Path, request_bytes: bytes) -> None:
        with receiving_node(tmp_path, limits=Limits(association_seconds=4)) as node:
            with raw_association(node, request_bytes) as lasting:
                assert received(lasting) == b""
            node.log.wait_for("association from LORIS aborted: the association lasts too long")
            assert is_served(node, tmp_path)

    def test_a_pdu_that_claims_gigabytes_is_not_read(self, tmp_path: Path, request_bytes: bytes) -> None:
        with receiving_node(tmp_path) as node:
            with raw_association(node, request_bytes) as claiming:
                claiming.sendall(struct.pack(">BBL", 4, 0, 0xFFFFFFF0))
                assert received(claiming).startswith(ABORT)
            node.log.wait_for("aborted: a PDU of 4294967280 bytes")

    def test_requests_ahead_of_the_answers(
        self, tmp_path: Path, request_bytes: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing is read behind an instance that is being stored; afterwards they may not pile up either."""
        go_on = threading.Event()
        with receiving_node(tmp_path) as node:
            monkeypatch.setattr(Arrival, "finish", lambda _: go_on.wait(WAIT_SECONDS) and StoreAnswer(status=0))
            with raw_association(node, request_bytes) as hasty:
                send_all_that_is_taken(hasty, [*store_pdus(bytes(10)), *[echo_pdu()] * 1000])
                assert not any("aborted" in line for line in node.log.lines)
                go_on.set()
                node.log.wait_for("aborted: requests are sent without waiting for the answers")


class TestSlowLoris:
    """Connections that say nothing, or a byte now and then, hold no slot and end."""

    def test_silent_connections_hold_no_slot(self, tmp_path: Path) -> None:
        with receiving_node(tmp_path, limits=Limits(associations=2)) as node, ExitStack() as stack:
            for _ in range(MOST_HALF_OPEN):
                stack.enter_context(connect(node))
            before = len(extra_threads(0))
            assert is_served(node, tmp_path)
            assert before == 0, "no reactor runs for a connection without a request"

    def test_the_oldest_silent_connection_makes_room(self, tmp_path: Path) -> None:
        with receiving_node(tmp_path) as node, ExitStack() as stack:
            oldest = stack.enter_context(connect(node))
            for _ in range(MOST_HALF_OPEN):
                stack.enter_context(connect(node))
            assert received(oldest) == b""
            assert is_served(node, tmp_path)

    @pytest.mark.parametrize("first", [b"", b"\x01", b"\x01\x00\x00\x00\x00\xce"])
    def test_a_request_must_come_in_time(self, tmp_path: Path, first: bytes) -> None:
        with receiving_node(tmp_path, limits=Limits(request_seconds=0.3)) as node, connect(node) as slow:
            slow.sendall(first)
            assert received(slow) == b""

    def test_a_dribbled_request_ends_in_time_however_often_a_byte_comes(
        self, tmp_path: Path, request_bytes: bytes
    ) -> None:
        with receiving_node(tmp_path, limits=Limits(request_seconds=0.5)) as node, connect(node) as slow:
            assert dribble(slow, request_bytes, until=lambda sent: sent >= len(request_bytes)) < len(request_bytes)

    def test_a_dribbled_instance_ends_though_no_silence_is_long(self, tmp_path: Path, request_bytes: bytes) -> None:
        limits = Limits(silence_seconds=2.0, slowest_bytes_per_second=1000.0)
        with receiving_node(tmp_path, limits=limits) as node, raw_association(node, request_bytes) as slow:
            flood = b"".join(store_pdus(bytes(5000)))
            assert dribble(slow, flood, until=lambda sent: sent >= len(flood)) < len(flood)
            node.log.wait_for("association from LORIS aborted: an instance comes too slowly")
            assert is_served(node, tmp_path)

    def test_what_is_no_request_is_answered_with_an_abort(self, tmp_path: Path) -> None:
        with receiving_node(tmp_path) as node:
            for noise in (
                b"GET / HTTP/1.1\r\n\r\n",
                b"\x04\x00\x00\x00\x00\x10" + bytes(16),
                b"\x01\x00\xff\xff\xff\xff",
            ):
                with connect(node) as stranger:
                    stranger.sendall(noise)
                    assert received(stranger)[:8] in (ABORT, b"")
            assert is_served(node, tmp_path)

    def test_stop_does_not_wait_for_them(self, tmp_path: Path) -> None:
        with receiving_node(tmp_path) as node, connect(node) as silent:
            node.receiver.stop()
            assert received(silent) == b""


class Entries:
    """A journal in memory, or one whose disk is full."""

    def __init__(self, *, full: bool = False) -> None:
        self.entries: list[Mapping[str, object]] = []
        self._full = full

    def record(self, entries: Sequence[Mapping[str, object]], *, durable: bool = False) -> None:
        if self._full:
            raise Transient("audit: no space left")
        self.entries += entries


class TestAudit:
    def test_every_association_is_told(self, tmp_path: Path) -> None:
        journal = Entries()
        image = ct_slice()
        with receiving_node(tmp_path, access=Access(calling=("CT1",)), journal=journal) as node:
            with association(node.port, calling="STRANGER"):
                pass
            with association(node.port, calling="CT1") as sender:
                sender.send_c_store(part10(tmp_path / "a.dcm", image))
            node.log.wait_for("association from CT1 released")
            with association(node.port, calling="CT1") as sender:
                sender.abort()
            node.log.wait_for("association from CT1 aborted")
        common = {"address": "127.0.0.1", "calling_ae_title": "CT1"}
        assert journal.entries == [
            {
                "action": "association rejected",
                "address": "127.0.0.1",
                "calling_ae_title": "STRANGER",
                "reason": "calling AE title not in the list",
            },
            {"action": "association accepted", **common},
            {"action": "association released", **common, "new": 1, "studies": {image.StudyInstanceUID: 1}},
            {"action": "association accepted", **common},
            {"action": "association aborted", **common},
        ]

    def test_a_journal_that_cannot_be_written_stops_nothing(self, tmp_path: Path) -> None:
        with receiving_node(tmp_path, journal=Entries(full=True)) as node:
            assert is_served(node, tmp_path)
            node.log.wait_for("audit: no space left")


class TestSpoiled:
    def test_what_comes_ahead_of_the_answer_is_served_after_it(
        self, tmp_path: Path, request_bytes: bytes, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with receiving_node(tmp_path) as node:
            for _ in range(20):
                with connect(node) as hasty:
                    hasty.sendall(request_bytes + echo_pdu())
                    answer = b""
                    while b"\x04\x00" not in answer[6:] and (part := hasty.recv(4096)):
                        answer += part
                    assert answer[0] == 2, "A-ASSOCIATE-AC"
            assert extra_threads(0) == []
        assert "Traceback" not in capfd.readouterr().err

    def test_a_request_that_cannot_be_decoded_takes_no_slot(self, tmp_path: Path, request_bytes: bytes) -> None:
        items_cut = request_bytes[:74] + b"\x10\x00\xff\xff" + request_bytes[78:]
        with receiving_node(tmp_path, limits=Limits(associations=1)) as node, association(node.port) as only:
            with connect(node) as spoiled:
                spoiled.sendall(items_cut)
                assert received(spoiled).startswith(ABORT), "not A-ASSOCIATE-RJ, which tells that there is no slot"
            node.log.wait_for("closed: a request that cannot be decoded")
            assert only.is_established

    def test_an_error_in_a_thread_of_an_association_is_one_line_and_frees_the_slot(
        self, tmp_path: Path, request_bytes: bytes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError("a bug that quotes DOE^JOHN")

        with receiving_node(tmp_path, limits=Limits(associations=1, silence_seconds=600.0)) as node:
            with monkeypatch.context() as patched:
                patched.setattr(StateMachine, "do_action", broken)
                with connect(node) as unlucky:
                    unlucky.sendall(request_bytes)
                    assert received(unlucky) == b""
                node.log.wait_for("association from LORIS ended: unexpected RuntimeError")
            deadline = time.monotonic() + WAIT_SECONDS
            while not is_served(node, tmp_path):
                assert time.monotonic() < deadline
            assert not any("DOE" in line for line in node.log.lines)
        assert "Traceback" not in capfd.readouterr().err


def extra_threads(expected: int) -> list[threading.Thread]:
    """Association threads of the node, once there are no more than expected; what is left where it takes too long."""
    give_up = time.monotonic() + WAIT_SECONDS
    while True:
        alive = [one for one in threading.enumerate() if isinstance(one, Association) and one.is_acceptor]
        if len(alive) <= expected or time.monotonic() > give_up:
            return alive[expected:]
        threading.Event().wait(0.02)


def send_all_that_is_taken(sock: socket.socket, pdus: list[bytes]) -> None:
    try:
        for pdu in pdus:
            sock.sendall(pdu)
    except (ConnectionResetError, BrokenPipeError):
        pass


def dribble(sock: socket.socket, data: bytes, until: Callable[[int], bool]) -> int:
    """Send a byte every 10 ms until the node ends it; how many were sent."""
    sock.settimeout(0.01)
    for sent in range(len(data)):
        try:
            sock.send(data[sent : sent + 1])
            if not sock.recv(64):
                return sent
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            return sent
        if until(sent):
            break
    return len(data)
