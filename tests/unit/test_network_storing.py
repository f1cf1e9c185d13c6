"""C-STORE on the wire against pynetdicom, which reads what is written here and writes what is read."""

from __future__ import annotations

from io import BytesIO
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import P_DATA

from pulmo_node.network.storing import (
    Malformed,
    StoreAnswer,
    StoreRequest,
    encode_answer,
    encode_value,
    parse_command,
    split_values,
)


def store_command(uid: str = "1.2.3.4") -> bytes:
    request, message = C_STORE(), C_STORE_RQ()
    request.MessageID, request.Priority = 513, 1
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CTImageStorage, uid
    request.MoveOriginatorApplicationEntityTitle, request.MoveOriginatorMessageID = "MOVER", 3
    request.DataSet = BytesIO(b"\0\0")
    message.primitive_to_message(request)
    return bytes(next(message.encode_msg(1, 0)).presentation_data_value_list[0][1][1:])


def a_request(uid: str = "1.2.3.4") -> StoreRequest:
    return StoreRequest(
        association=Mock(), context_id=5, abstract_syntax=CTImageStorage, transfer_syntax_uid="1.2.840.10008.1.2.1",
        message_id=513, sop_class_uid=CTImageStorage, sop_instance_uid=uid,
    )  # fmt: skip


def test_the_command_of_a_store() -> None:
    command = parse_command(store_command())
    assert command.has_data_set
    assert command.store == (513, CTImageStorage, "1.2.3.4")


def test_another_command() -> None:
    echo, message = C_ECHO(), C_ECHO_RQ()
    echo.MessageID, echo.AffectedSOPClassUID = 1, "1.2.840.10008.1.1"
    message.primitive_to_message(echo)
    (data,) = message.encode_msg(1, 0)
    command = parse_command(data.presentation_data_value_list[0][1][1:])
    assert (command.has_data_set, command.store) == (False, None)


@pytest.mark.parametrize(
    ("found", "put"),
    [
        (b"1.2.3.4\0", b"1.2.x.4\0"),  # no UID
        (b"1.2.3.4\0", bytes(8)),  # empty
        (b"\0\0\x10\x01\x02\0\0\0", b"\0\0\x11\x01\x02\0\0\0"),  # no message ID
    ],
)
def test_a_store_that_is_not_well_formed_is_left_to_pynetdicom(found: bytes, put: bytes) -> None:
    spoiled = store_command().replace(found, put)
    assert spoiled != store_command()
    assert parse_command(spoiled).store is None


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=400), st.integers(min_value=0, max_value=255))
def test_a_spoiled_command_is_malformed_or_read(at: int, byte: int) -> None:
    """Nothing but `Malformed` is ever raised."""
    content = bytearray(store_command())
    content[at % len(content)] = byte
    for spoiled in (bytes(content), bytes(content[: at % len(content)])):
        try:
            parse_command(spoiled)
        except Malformed:
            continue


@pytest.mark.parametrize("most_bytes", [0, 7, 20, 64, 16_382])
@pytest.mark.parametrize("answer", [StoreAnswer(status=0), StoreAnswer(status=0xA700, comment="try again later")])
def test_pynetdicom_reads_the_answer(answer: StoreAnswer, most_bytes: int) -> None:
    message = DIMSEMessage()
    values = encode_answer(a_request(), answer, most_bytes)
    for value in values:
        assert not most_bytes or len(value) + 5 <= most_bytes
        data = P_DATA()
        data.presentation_data_value_list.append((5, value))
        is_whole = message.decode_msg(data)
        assert is_whole == (value is values[-1])
    command = message.command_set
    assert (command.CommandField, command.MessageIDBeingRespondedTo, command.Status) == (0x8001, 513, answer.status)
    assert (command.AffectedSOPClassUID, command.AffectedSOPInstanceUID) == (CTImageStorage, "1.2.3.4")
    assert command.get("ErrorComment", "") == answer.comment


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 3, 5]), st.integers(0, 3), st.binary(max_size=50)), min_size=1))
def test_values_as_pynetdicom_reads_them(values: list[tuple[int, int, bytes]]) -> None:
    whole = b"".join(encode_value(*value)[6:] for value in values)
    assert [(context, control, bytes(part)) for context, control, part in split_values(memoryview(whole))] == values
    pdu = P_DATA_TF()
    pdu.decode(b"\x04\x00" + len(whole).to_bytes(4, "big") + whole)
    assert pdu.to_primitive().presentation_data_value_list == [
        (context, bytes([control]) + part) for context, control, part in values
    ]


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_other_bytes_are_malformed(noise: bytes) -> None:
    try:
        values = split_values(memoryview(noise))
    except Malformed:
        return
    assert sum(len(part) + 6 for _, _, part in values) == len(noise)
