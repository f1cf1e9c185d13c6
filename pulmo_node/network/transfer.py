"""Data sets taken from the socket as they come, past pynetdicom's messages, and handed on in pieces.

pynetdicom polls twice a millisecond for what happens, copies each byte of a data set some ten times and hands it over
in one piece. Here the thread that reads the connection parses the command of a C-STORE request, gives each fragment
of its data set to a sink out of one buffer, and sends the sink's answer. Everything else (other messages, other PDUs,
whatever is malformed, and the states before and after data transfer) is put back and read by pynetdicom as ever.

Input: the PDUs of an established association. Output: calls of a `DataSetSink`, answers. Errors: none leave it.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from typing import Protocol, cast

from pynetdicom.association import Association
from pynetdicom.dimse_primitives import DimsePrimitiveType
from pynetdicom.pdu_primitives import P_DATA

from pulmo_node.network.storing import (
    COMMAND,
    LAST,
    P_DATA_TF,
    Command,
    DataSetSink,
    Malformed,
    StoreRequest,
    encode_answer,
    encode_value,
    parse_command,
    split_values,
)

_HEADER_BYTES = 6
_DATA_TRANSFER = "Sta6"  # PS3.8 table 9-3
_CONNECTION_CLOSED, _DATA_CAME, _NO_SUCH_PDU = "Evt17", "Evt10", "Evt19"  # PS3.8 table 9-10
_MOST_COMMAND_BYTES = 65_536
_SILENT_MOMENTS = 50  # of a millisecond each

OpenSink = Callable[[StoreRequest], DataSetSink | None]
"""Takes a request, or leaves it to pynetdicom's handler."""


class RereadableSocket(Protocol):
    """The socket of an association that takes bytes back."""

    on_silence: Callable[[], None]
    """Is called where nothing came for a millisecond."""
    on_end: Callable[[], None]
    """Is called where the connection is over without anything to read that would tell."""

    def recv(self, nr_bytes: int) -> bytearray:
        """That many bytes, fewer where the connection ended."""
        ...

    def recv_into(self, buffer: memoryview) -> int:
        """Fill the buffer; fewer bytes where the connection ended."""
        ...

    def admits(self, nr_bytes: int) -> bool:
        """Whether a PDU may have so many bytes."""
        ...

    def comes_within(self, seconds: float) -> bool:
        """Whether something can be read by then."""
        ...

    def put_back(self, data: bytes) -> None:
        """What the next `recv` gives."""
        ...

    def message_came(self, *, is_kept: bool) -> None:
        """A message is whole; one that `is_kept` counts until it is answered."""
        ...

    def answered(self) -> None:
        """The oldest of those is answered."""
        ...


class DataTransfer:
    """Reads one association; its methods run in the thread of pynetdicom that reads the connection."""

    def __init__(self, association: Association, sock: RereadableSocket, open_sink: OpenSink) -> None:
        """From now on the association reads through it."""
        self._association = association
        self._dul = association.dul
        self._socket = sock
        self._open_sink = open_sink
        self._buffer = bytearray()
        self._command: list[tuple[int, int, bytes]] = []  # values of a command set that is not whole yet
        self._request: StoreRequest | None = None  # whose data set is on its way ...
        self._sink: DataSetSink | None = None  # ... to here
        self._others = False  # the data set on its way belongs to a message of pynetdicom's
        self._sending = threading.Lock()
        self._send_message = association.dimse.send_msg
        association.dimse.send_msg = self._send_whole  # type: ignore[method-assign]
        self._paused = False  # the association's own thread
        self._silent = 0
        sock.on_silence = self.silence
        sock.on_end = self.wake
        self._read_by_pynetdicom = self._dul._read_pdu_data
        self._dul._read_pdu_data = self.read  # type: ignore[method-assign]

    def close(self) -> None:
        """The connection is over: leave nothing half done."""
        self.wake()
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.discard()

    def read(self) -> None:
        """One PDU, of which there is a first byte, and those of the same data set that follow at once."""
        if self._dul.state_machine.current_state != _DATA_TRANSFER:
            self.wake()
            self._read_by_pynetdicom()
            return
        # Not while somebody else is waited for, the disk: it starts again after this call.
        self._dul._idle_timer.stop()
        self._read_pdu()
        while self._sink is not None and self._dul.event_queue.empty() and self._socket.comes_within(0.0):
            self._read_pdu()

    def silence(self) -> None:
        """Nothing came for a moment."""
        self._silent += 1
        if self._silent >= _SILENT_MOMENTS:
            self.wake()

    def _pause(self) -> None:
        """Let the association's own thread wait: it looks for messages each millisecond, and there are none."""
        self._silent = 0
        if not self._paused:
            self._paused = True
            self._association._reactor_checkpoint.clear()

    def wake(self) -> None:
        """Let the association's own thread go on; whatever ends an association must, for that thread ends it."""
        if self._paused:
            self._paused = False
            self._association._reactor_checkpoint.set()

    def _read_pdu(self) -> None:
        try:
            header = bytes(self._socket.recv(_HEADER_BYTES))
            pdu = self._read_data(header)
        except OSError:
            self.wake()
            self._dul.event_queue.put(_CONNECTION_CLOSED)
            return
        values = []
        try:
            values = split_values(pdu) if pdu is not None else []
        except Malformed:
            header += bytes(pdu or b"")
        if not values:
            self.wake()
            self._socket.put_back(header)
            self._read_by_pynetdicom()
        for value in values:
            self._take(*value)

    def _read_data(self, header: bytes) -> memoryview | None:
        """What is behind the header of a P-DATA-TF PDU; None where it is another one, or not whole."""
        if len(header) < _HEADER_BYTES or header[0] != P_DATA_TF:
            return None
        (length,) = struct.unpack_from(">I", header, 2)
        if not self._socket.admits(length):
            return None
        if length > len(self._buffer):
            self._buffer = bytearray(length)
        pdu = memoryview(self._buffer)[:length]
        if self._socket.recv_into(pdu) < length:
            raise ConnectionError("closed in the middle of a PDU")
        return pdu

    def _take(self, context_id: int, control: int, fragment: memoryview) -> None:
        if self._sink is not None and not control & COMMAND:
            self._sink.append(fragment)
            if control & LAST:
                self._finish()
        elif self._sink is not None:
            self.close()
            self._dul.event_queue.put(_NO_SUCH_PDU)  # a command within a data set
        elif self._others or not control & COMMAND:
            self._others = self._others and not control & LAST
            self._leave(context_id, control, fragment)
        else:
            self._take_command(context_id, control, fragment)

    def _take_command(self, context_id: int, control: int, fragment: memoryview) -> None:
        self._command.append((context_id, control, bytes(fragment)))
        parts = [part for _, _, part in self._command]
        if not control & LAST and sum(map(len, parts)) < _MOST_COMMAND_BYTES:
            return
        values, self._command = self._command, []
        try:
            command = parse_command(b"".join(parts))
        except Malformed:
            command = Command(has_data_set=False, store=None)
        self._request = self._as_request(context_id, command)
        if self._request is not None:
            self._sink = self._open_sink(self._request)
        if self._sink is not None:
            self._pause()
        else:
            self._others = command.has_data_set
            for value in values:
                self._leave(*value)

    def _as_request(self, context_id: int, command: Command) -> StoreRequest | None:
        context = self._association._accepted_cx.get(context_id)
        if context is None or command.store is None or not self._association.is_established:
            return None
        message_id, sop_class_uid, sop_instance_uid = command.store
        return StoreRequest(
            association=self._association,
            context_id=context_id,
            abstract_syntax=str(context.abstract_syntax),
            transfer_syntax_uid=str(context.transfer_syntax[0]),
            message_id=message_id,
            sop_class_uid=sop_class_uid,
            sop_instance_uid=sop_instance_uid,
        )

    def _finish(self) -> None:
        sink, self._sink = self._sink, None
        request = cast(StoreRequest, self._request)
        self._socket.message_came(is_kept=True)
        answer = cast(DataSetSink, sink).finish()
        if self._association.is_established:
            with self._sending:
                for value in encode_answer(request, answer, self._association.dimse.maximum_pdu_size):
                    data = P_DATA()
                    data.presentation_data_value_list.append((request.context_id, value))
                    self._dul.send_pdu(data)
        self._socket.answered()
        cast(DataSetSink, sink).discard()

    def _send_whole(self, primitive: DimsePrimitiveType, context_id: int) -> None:
        """Whoever sends a message in another thread: none of the answers here may come between its parts."""
        with self._sending:
            self._send_message(primitive, context_id)

    def _leave(self, context_id: int, control: int, fragment: bytes | memoryview) -> None:
        """To pynetdicom, as a PDU of its own."""
        self.wake()
        pdu, event = self._dul._decode_pdu(bytearray(encode_value(context_id, control, fragment)))
        self._dul._recv_pdu.put(pdu)
        self._dul.event_queue.put(event)
