"""C-STORE on the wire: its command, its answer, and the P-DATA-TF PDUs that carry them.

Governed by DICOM PS3.7 9.3.1 (C-STORE), 6.3.1 (command sets are Implicit VR Little Endian), PS3.8 9.3.5 (P-DATA-TF) and
E.2 (message control header).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from pynetdicom.association import Association

from pulmo_node.dimse import is_uid

P_DATA_TF = 0x04
COMMAND, LAST = 0x01, 0x02  # bits of the message control header

_C_STORE_RQ, _C_STORE_RSP = 0x0001, 0x8001
_NO_DATA_SET = 0x0101
_GROUP_LENGTH, _SOP_CLASS, _COMMAND_FIELD, _MESSAGE_ID = 0x0000, 0x0002, 0x0100, 0x0110
_ANSWERED_MESSAGE_ID, _DATA_SET_TYPE, _STATUS, _COMMENT, _SOP_INSTANCE = 0x0120, 0x0800, 0x0900, 0x0902, 0x1000
_PDU_HEADER = struct.Struct(">BxI")
_VALUE_HEADER = struct.Struct(">IBB")
_ELEMENT_HEADER = struct.Struct("<HHI")
_VALUE_OVERHEAD = 2  # presentation context ID and message control header are part of its length


class Malformed(Exception):
    """Bytes that are no command set or no presentation data values."""


@dataclass(frozen=True, kw_only=True)
class StoreRequest:
    """A C-STORE request whose data set is about to come."""

    association: Association
    context_id: int
    abstract_syntax: str
    transfer_syntax_uid: str
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, kw_only=True)
class StoreAnswer:
    """What a request is answered with."""

    status: int
    comment: str = ""  # as `dimse.error_comment` has it


class DataSetSink(Protocol):
    """Who takes the data set of one request. None of its calls raises."""

    def append(self, fragment: memoryview) -> None:
        """The next bytes; the memory is used again after the call."""
        ...

    def finish(self) -> StoreAnswer:
        """That was all: store it and say how it went."""
        ...

    def discard(self) -> None:
        """There is nothing more to do with it, or the rest will never come: leave nothing behind."""
        ...


@dataclass(frozen=True, kw_only=True)
class Command:
    """What decides who handles a message."""

    has_data_set: bool
    store: tuple[int, str, str] | None  # message ID, SOP Class and Instance UID of a well-formed C-STORE request


def parse_command(encoded: bytes) -> Command:
    """A whole command set.

    Raises:
        Malformed: it is none, or says neither that there is a data set nor that there is none.
    """
    values = dict(_elements(encoded))
    has_data_set = _number(values, _DATA_SET_TYPE) != _NO_DATA_SET
    if not has_data_set or _number(values, _COMMAND_FIELD) != _C_STORE_RQ:
        return Command(has_data_set=has_data_set, store=None)
    sop_class_uid, sop_instance_uid = (_text(values, element) for element in (_SOP_CLASS, _SOP_INSTANCE))
    if _MESSAGE_ID not in values or not (is_uid(sop_class_uid) and is_uid(sop_instance_uid)):
        return Command(has_data_set=True, store=None)
    return Command(has_data_set=True, store=(_number(values, _MESSAGE_ID), sop_class_uid, sop_instance_uid))


def _elements(encoded: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(encoded):
        if at + _ELEMENT_HEADER.size > len(encoded):
            raise Malformed("a command set that ends within an element")
        group, element, length = _ELEMENT_HEADER.unpack_from(encoded, at)
        at += _ELEMENT_HEADER.size
        if group != 0 or at + length > len(encoded):
            raise Malformed("a command set with an element that does not belong there, or is cut")
        yield element, encoded[at : at + length]
        at += length


def _number(values: dict[int, bytes], element: int) -> int:
    value = values.get(element, b"")
    if len(value) != 2:
        raise Malformed("a command set without a number that must be there")
    return int.from_bytes(value, "little")


def _text(values: dict[int, bytes], element: int) -> str:
    return values.get(element, b"").decode("ascii", "replace").rstrip("\0 ")


def split_values(pdu: memoryview) -> list[tuple[int, int, memoryview]]:
    """Presentation context ID, message control header and fragment of each value of a PDU (without its header).

    Raises:
        Malformed: the lengths do not add up.
    """
    values = []
    at, end = 0, len(pdu)
    while at < end:
        if at + _VALUE_HEADER.size > end:
            raise Malformed("a PDU that ends within the header of a value")
        length, context_id, control = _VALUE_HEADER.unpack_from(pdu, at)
        begin, at = at + _VALUE_HEADER.size, at + 4 + length
        if length < _VALUE_OVERHEAD or at > end:
            raise Malformed("a value that is longer than its PDU, or too short for its header")
        values.append((context_id, control, pdu[begin:at]))
    return values


def encode_value(context_id: int, control: int, fragment: bytes | memoryview) -> bytes:
    """A P-DATA-TF PDU with that one value."""
    length = len(fragment) + _VALUE_OVERHEAD
    return _PDU_HEADER.pack(P_DATA_TF, 4 + length) + _VALUE_HEADER.pack(length, context_id, control) + bytes(fragment)


def encode_answer(request: StoreRequest, answer: StoreAnswer, most_bytes: int) -> list[bytes]:
    """C-STORE-RSP as presentation data values, each with its control header, for PDUs of that many bytes; 0: any."""
    elements = [
        _element(_SOP_CLASS, request.sop_class_uid.encode("ascii"), b"\0"),
        _element(_COMMAND_FIELD, _C_STORE_RSP.to_bytes(2, "little")),
        _element(_ANSWERED_MESSAGE_ID, request.message_id.to_bytes(2, "little")),
        _element(_DATA_SET_TYPE, _NO_DATA_SET.to_bytes(2, "little")),
        _element(_STATUS, answer.status.to_bytes(2, "little")),
        *([_element(_COMMENT, answer.comment.encode("ascii"), b" ")] if answer.comment else []),
        _element(_SOP_INSTANCE, request.sop_instance_uid.encode("ascii"), b"\0"),
    ]
    body = b"".join(elements)
    command = _element(_GROUP_LENGTH, len(body).to_bytes(4, "little")) + body
    step = max(1, most_bytes - _VALUE_HEADER.size) if most_bytes else len(command)
    parts = [command[start : start + step] for start in range(0, len(command), step)]
    return [bytes([COMMAND]) + part for part in parts[:-1]] + [bytes([COMMAND | LAST]) + parts[-1]]


def _element(element: int, value: bytes, padding: bytes = b"") -> bytes:
    value += padding * (len(value) % 2)
    return _ELEMENT_HEADER.pack(0, element, len(value)) + value
