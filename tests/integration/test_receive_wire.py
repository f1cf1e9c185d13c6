"""C-STORE as bytes on the wire: however a peer cuts and packs its messages, what lies on disk is what it sent."""

from __future__ import annotations

import hashlib
import itertools
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.presentation import PresentationContext

from pulmo_node.network.limits import Limits
from tests.network_factory import (
    ReceivingNode,
    associate_request,
    association,
    ct_slice,
    data_set_part,
    encoded,
    part10,
    receiving_node,
)

SERIES = "1.2.826.0.1.3680043.8.498.77"
WAIT_SECONDS = 120.0
CT, DEFLATED, VERIFICATION = 1, 3, 5  # presentation contexts
COMMAND, LAST = 1, 2
ABORT = b"\x07\x00\x00\x00\x00\x04"
RELEASE_RQ = struct.pack(">BBII", 5, 0, 4, 0)

Value = tuple[int, int, bytes]  # presentation context, control header, fragment


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ReceivingNode]:
    with receiving_node(tmp_path) as running:
        yield running


class Wire:
    """An established association on a bare socket."""

    def __init__(self, node: ReceivingNode, *, most_bytes: int = 16_382, calling: str = "WIRE") -> None:
        self.socket = socket.create_connection(("127.0.0.1", node.port), timeout=WAIT_SECONDS)
        self.stream = self.socket.makefile("rb")
        self.socket.sendall(associate_request(contexts(), calling=calling, most_bytes=most_bytes))
        assert self.read_pdu()[0] == 2, "A-ASSOCIATE-AC"

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self.socket.close()

    def send(self, *pdus: bytes) -> None:
        self.socket.sendall(b"".join(pdus))

    def read_pdu(self) -> bytes:
        header = self.stream.read(6)
        return header + (self.stream.read(struct.unpack(">2xI", header)[0]) if len(header) == 6 else b"")

    def answer(self) -> DIMSEMessage:
        """The next whole message from the node."""
        message = DIMSEMessage()
        while True:
            pdu = P_DATA_TF()
            pdu.decode(self.read_pdu())
            if message.decode_msg(pdu.to_primitive()):
                return message

    def status(self) -> int:
        """Of the answer to a C-STORE."""
        command = self.answer().command_set
        assert command.CommandField == 0x8001
        return int(command.Status)

    def release(self) -> None:
        self.send(RELEASE_RQ)
        assert self.read_pdu()[0] == 6, "A-RELEASE-RP"


def contexts() -> list[PresentationContext]:
    """In the order of CT, DEFLATED and VERIFICATION."""
    return [
        build_context(CTImageStorage, ExplicitVRLittleEndian),
        build_context(CTImageStorage, DeflatedExplicitVRLittleEndian),
        build_context("1.2.840.10008.1.1"),
    ]


def command(sop_instance_uid: str, message_id: int = 1) -> bytes:
    """Command set of a C-STORE request, as pynetdicom encodes it."""
    request, message = C_STORE(), C_STORE_RQ()
    request.MessageID, request.Priority = message_id, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CTImageStorage, sop_instance_uid
    request.DataSet = BytesIO(b"\0\0")
    message.primitive_to_message(request)
    return bytes(next(message.encode_msg(CT, 0)).presentation_data_value_list[0][1][1:])


def echo() -> Value:
    request, message = C_ECHO(), C_ECHO_RQ()
    request.MessageID, request.AffectedSOPClassUID = 7, "1.2.840.10008.1.1"
    message.primitive_to_message(request)
    (data,) = message.encode_msg(VERIFICATION, 0)
    return VERIFICATION, COMMAND | LAST, data.presentation_data_value_list[0][1][1:]


def pieces(context: int, kind: int, content: bytes, sizes: Iterator[int]) -> list[Value]:
    """Values of a command set (`kind` COMMAND) or a data set (0), cut at these sizes; the last one is marked."""
    values: list[Value] = []
    at = 0
    while at < len(content):
        size = next(sizes)
        values.append((context, kind, content[at : at + size]))
        at += size
    values[-1] = (context, kind | LAST, values[-1][2])
    return values


def pdu(*values: Value) -> bytes:
    """P-DATA-TF."""
    items = b"".join(
        struct.pack(">IBB", len(content) + 2, context, kind) + content for context, kind, content in values
    )
    return struct.pack(">BxI", 4, len(items)) + items


def request(data_set: bytes, uid: str, *, context: int = CT, message_id: int = 1, size: int = 16_000) -> list[Value]:
    """Values of a whole C-STORE request."""
    whole = pieces(context, COMMAND, command(uid, message_id), itertools.repeat(4096))
    return whole + pieces(context, 0, data_set, itertools.repeat(size))


def image(number: int = 1, pixel_bytes: int = 20_001 * 2) -> tuple[str, bytes]:
    """SOP Instance UID and data set of a slice whose bytes tell where they belong."""
    data_set = ct_slice(number, series=SERIES)
    data_set.PixelData = random.Random(number).randbytes(pixel_bytes)
    return str(data_set.SOPInstanceUID), encoded(data_set)


def kept(node: ReceivingNode) -> list[bytes]:
    """Data sets in use, in order of arrival."""
    return [data_set_part(path) for path in node.stored(SERIES)]


def nothing_half_done(node: ReceivingNode) -> bool:
    """Whether there is no part of a file in storage."""
    return not list(node.instances.absolute("incoming").iterdir())


class TestPacking:
    @pytest.mark.parametrize("in_pdu", [1, 2, 7])
    @pytest.mark.parametrize("sizes", [[1000], [1, 2, 3, 5, 4099], [16_384], [100_000], [7, 1, 30_000, 2]])
    def test_however_the_message_is_cut(self, node: ReceivingNode, sizes: list[int], in_pdu: int) -> None:
        uid, data_set = image()
        values = pieces(CT, COMMAND, command(uid), itertools.cycle(sizes))
        values += pieces(CT, 0, data_set, itertools.cycle(sizes))
        with Wire(node) as wire:
            wire.send(*(pdu(*values[start : start + in_pdu]) for start in range(0, len(values), in_pdu)))
            assert wire.status() == 0
            wire.release()
        assert kept(node) == [data_set]
        (path,) = node.store.instance_paths(SERIES)
        assert node.instances.digest(path) == hashlib.sha256(data_set).hexdigest()
        assert nothing_half_done(node)

    def test_command_and_data_set_in_one_pdu(self, node: ReceivingNode) -> None:
        uid, data_set = image()
        with Wire(node) as wire:
            wire.send(pdu(*request(data_set, uid)))
            assert wire.status() == 0
        assert kept(node) == [data_set]

    def test_two_messages_in_one_pdu_are_both_answered(self, node: ReceivingNode) -> None:
        (one, first), (two, second) = image(1), image(2)
        with Wire(node) as wire:
            wire.send(pdu(*request(first, one, message_id=11), *request(second, two, message_id=12)))
            answers = [wire.answer().command_set for _ in range(2)]
        assert [(a.MessageIDBeingRespondedTo, a.AffectedSOPInstanceUID, a.Status) for a in answers] == [
            (11, one, 0), (12, two, 0),
        ]  # fmt: skip
        assert kept(node) == [first, second]

    def test_a_byte_at_a_time(self, node: ReceivingNode) -> None:
        uid, data_set = image(pixel_bytes=200)
        with Wire(node) as wire:
            for byte in b"".join(pdu(value) for value in request(data_set, uid, size=50)):
                wire.socket.send(bytes([byte]))
            assert wire.status() == 0
        assert kept(node) == [data_set]

    def test_an_echo_between_and_beside_instances(self, node: ReceivingNode) -> None:
        (one, first), (two, second) = image(1), image(2)
        with Wire(node) as wire:
            wire.send(pdu(*request(first, one)), pdu(echo()), pdu(*request(second, two), echo()))
            fields = sorted(int(wire.answer().command_set.CommandField) for _ in range(4))
        assert fields == [0x8001, 0x8001, 0x8030, 0x8030]
        assert kept(node) == [first, second]

    def test_associations_in_turn_of_single_pdus(self, node: ReceivingNode) -> None:
        images = [image(number) for number in range(1, 5)]
        wires = [Wire(node, calling=f"WIRE{number}") for number in range(4)]
        messages = [[pdu(value) for value in request(data_set, uid, size=3001)] for uid, data_set in images]
        for turn in itertools.zip_longest(*messages):
            for wire, part in zip(wires, turn, strict=True):
                wire.send(part or b"")
        assert [wire.status() for wire in wires] == [0, 0, 0, 0]
        for wire in wires:
            wire.socket.close()
        assert sorted(kept(node)) == sorted(data_set for _, data_set in images)

    def test_a_peer_that_takes_small_pdus_only(self, node: ReceivingNode) -> None:
        uid, data_set = image()
        with Wire(node, most_bytes=64) as wire:
            wire.send(*(pdu(value) for value in request(data_set, uid)))
            first = wire.read_pdu()
            assert struct.unpack(">2xI", first[:6])[0] <= 64
            rest = P_DATA_TF()
            rest.decode(first)
            message = DIMSEMessage()
            while not message.decode_msg(rest.to_primitive()):
                rest = P_DATA_TF()
                rest.decode(wire.read_pdu())
            assert message.command_set.Status == 0


class TestHead:
    def test_it_stands_behind_much_else(self, node: ReceivingNode) -> None:
        """200 kB of a private element before the UIDs of study and series."""
        data_set = ct_slice(series=SERIES)
        data_set.add_new(0x00090010, "LO", "SOMEBODY")
        data_set.add_new(0x00091001, "OB", bytes(200_000))
        content = encoded(data_set)
        with Wire(node) as wire:
            wire.send(*(pdu(value) for value in request(content, data_set.SOPInstanceUID)))
            assert wire.status() == 0
        assert kept(node) == [content]

    def test_nothing_stands_behind_it(self, node: ReceivingNode) -> None:
        data_set = ct_slice(series=SERIES)
        for element in [one for one in data_set if one.tag > 0x0020000E]:
            del data_set[element.tag]
        content = encoded(data_set)
        with Wire(node) as wire:
            wire.send(*(pdu(value) for value in request(content, data_set.SOPInstanceUID, size=9)))
            assert wire.status() == 0
        assert kept(node) == [content]

    def test_deflated(self, node: ReceivingNode) -> None:
        uid, data_set = image()
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        deflated = packer.compress(data_set) + packer.flush()
        with Wire(node) as wire:
            wire.send(*(pdu(value) for value in request(deflated, uid, context=DEFLATED, size=5000)))
            assert wire.status() == 0
        assert kept(node) == [deflated]

    def test_a_refused_one_is_read_to_its_end_and_the_next_is_kept(self, node: ReceivingNode) -> None:
        (one, first), (two, second) = image(1), image(2)
        with Wire(node) as wire:
            wire.send(*(pdu(value) for value in request(first, two, size=999)))  # the command names another instance
            answer = wire.answer().command_set
            assert (answer.Status, answer.AffectedSOPInstanceUID) == (0xA900, two)
            assert answer.ErrorComment == "SOP Instance UID differs between command and data set"
            wire.send(*(pdu(value) for value in request(second, two)))
            assert wire.status() == 0
        assert kept(node) == [second]
        assert nothing_half_done(node)
        assert one != two


class TestBrokenOff:
    @pytest.mark.parametrize("how", ["A-ABORT", "closed", "reset", "released", "in a PDU"])
    def test_halfway_leaves_nothing(self, node: ReceivingNode, tmp_path: Path, how: str) -> None:
        uid, data_set = image()
        values = request(data_set, uid, size=9000)
        with Wire(node) as wire:
            wire.send(*(pdu(value) for value in values[:-2]))
            if how == "A-ABORT":
                wire.send(b"\x07\x00\x00\x00\x00\x04\x00\x00\x00\x00")
            elif how == "reset":
                wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif how == "released":
                wire.send(RELEASE_RQ)
                wire.read_pdu()
            elif how == "in a PDU":
                wire.send(pdu(values[-2])[:-100])
        node.log.wait_for("association from WIRE ")
        self.ends_without_trace(node)
        with association(node.port) as sender:
            again = part10(tmp_path / "again.dcm", data_set, MediaStorageSOPInstanceUID=uid)
            assert sender.send_c_store(again).Status == 0
        assert kept(node) == [data_set]

    @pytest.mark.parametrize(
        "wrong",
        [
            struct.pack(">BxI", 4, 10) + struct.pack(">IBB", 200, CT, 0) + bytes(4),  # a value longer than its PDU
            struct.pack(">BxI", 4, 4) + struct.pack(">I", 0),  # a value without header
            struct.pack(">BxI", 4, 3) + bytes(3),
            struct.pack(">BxI", 9, 4) + bytes(4),  # no such PDU
            pdu((CT, COMMAND | LAST, command("1.2.3"))),  # a command within the data set
            pdu(*[(CT, COMMAND | LAST, command(uid)) for uid in ("1.2.3", "1.2.4")]),  # and one more behind it
        ],
    )
    def test_nonsense_in_the_middle_ends_the_association(self, node: ReceivingNode, wrong: bytes) -> None:
        uid, data_set = image()
        with Wire(node) as wire:
            wire.send(*(pdu(value) for value in request(data_set, uid, size=9000)[:3]), wrong)
            assert wire.read_pdu().startswith(ABORT)
        self.ends_without_trace(node)

    def test_the_node_stops_in_the_middle(self, node: ReceivingNode) -> None:
        uid, data_set = image()
        with Wire(node) as wire:
            wire.send(*(pdu(value) for value in request(data_set, uid, size=9000)[:3]))
            while not list(node.instances.absolute("incoming").iterdir()):
                pass
            node.receiver.stop(drain_seconds=0.0)
        self.ends_without_trace(node)

    def test_too_large(self, tmp_path: Path) -> None:
        uid, data_set = image()
        with receiving_node(tmp_path, limits=Limits(message_bytes=30_000)) as node, Wire(node) as wire:
            wire.send(*(pdu(value) for value in request(data_set, uid, size=9000)))
            assert wire.read_pdu().startswith(ABORT)
            node.log.wait_for("an instance is too large")
            self.ends_without_trace(node)

    def ends_without_trace(self, node: ReceivingNode) -> None:
        """Once the threads of the association are gone."""
        for thread in [one for one in threading.enumerate() if getattr(one, "is_acceptor", False)]:
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive(), "the association never ends"
        give_up = time.monotonic() + WAIT_SECONDS
        while not nothing_half_done(node):
            assert time.monotonic() < give_up, "a part of a file is left"
        assert list(node.instances.paths()) == []
