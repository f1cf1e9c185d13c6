"""The server before pynetdicom's: a connection becomes an association only once its whole request was read and found
admissible. Until then it costs one waiting thread, no reactor and no slot, so that slow or silent strangers (slow
loris) keep nobody out. Afterwards every byte is counted, and what breaks a limit is aborted.

Input: connections. Output: pynetdicom associations. Errors: none leave it; each refusal is one line of the log.
"""

from __future__ import annotations

import logging
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ, C_STORE_RSP
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.transport import AssociationSocket, RequestHandler

from pulmo_node.dimse import PromptServer, listen
from pulmo_node.network.access import Access, Refusal
from pulmo_node.network.limits import MOST_UNANSWERED, Connection, Ledger, Limits
from pulmo_node.network.tls import ServerTls, tls_reason
from pulmo_node.network.transfer import DataTransfer, OpenSink

log = logging.getLogger(__name__)

_HEADER_BYTES = 6
_ASSOCIATE_RQ = 0x01
_TITLES_END = 42  # header, protocol version, reserved, called (16) and calling AE title (16): PS3.8 table 9-11
_READ_BYTES = 65_536
_GOODBYE_SECONDS = 2.0
_A_ABORT = struct.pack(">BBIBBBB", 7, 0, 4, 0, 0, 2, 0)  # by the service provider, no reason given (PS3.8 9.3.8)
_DECODING_SECONDS = 15.0
_UNANSWERED_STATES = frozenset({"Sta1", "Sta2", "Sta3"})
_QUIET_LINES_SECONDS = 10.0
_WAIT_SECONDS = 0.001  # for something to come, before it is looked whether there is something to send
# A pynetdicom requestor whose rejection is there before it looks at its connection again takes it for never made.
_BEFORE_REJECTION_SECONDS = 0.05


class _Lost(Exception):
    """The connection brings no request: closed, too slow, or no DICOM. The text says which."""


class MeteredSocket(AssociationSocket):
    """The socket of an association whose request was read already: gives it again, then reads on and counts."""

    def __init__(self, association: Association, connection: Connection, request: bytes, ledger: Ledger) -> None:
        super().__init__(association, client_socket=connection.socket)
        self._ledger = ledger
        self.connection = connection
        self._again = bytearray(request)
        self._limits = ledger.limits
        self.on_silence: Callable[[], None] = lambda: None
        self.on_end: Callable[[], None] = lambda: None

    @property
    def ready(self) -> bool:
        """Whether something can be read; not before the request was answered (PS3.8 9.2).

        What a peer sends ahead of the answer would be an error in these states, and the thread of pynetdicom dies of
        the answer that comes after the error.
        """
        if self._again:
            return True
        if self.assoc.dul.state_machine.current_state in _UNANSWERED_STATES:
            time.sleep(_WAIT_SECONDS)
            return False
        # Waits, not for long, since there may be something to send: pynetdicom would sleep and then look.
        if not self.comes_within(_WAIT_SECONDS):
            self.on_silence()
            return False
        if super().ready:
            return True
        self.on_end()
        return False

    def comes_within(self, seconds: float) -> bool:
        """Whether something can be read by then; also where the connection is over, as reading it will tell."""
        sock = self.socket
        if sock is None or (isinstance(sock, ssl.SSLSocket) and sock.pending()):
            return True
        try:
            return bool(select.select([sock], [], [], seconds)[0])
        except (OSError, ValueError):
            return True

    def admits(self, nr_bytes: int) -> bool:
        """Whether a PDU may have so many bytes."""
        return nr_bytes <= self._limits.pdu_bytes

    def put_back(self, data: bytes) -> None:
        """What the next `recv` gives."""
        self._again[:0] = data

    def recv(self, nr_bytes: int) -> bytearray:
        """That many bytes, fewer where the connection ended. What breaks a limit ends it."""
        if not self.admits(nr_bytes):
            self._abort(f"a PDU of {nr_bytes} bytes")
            return bytearray()
        if self._again:
            part, self._again = self._again[:nr_bytes], self._again[nr_bytes:]
            return part
        read = bytearray(nr_bytes)
        number = self.recv_into(memoryview(read))
        return read[:number]

    def recv_into(self, buffer: memoryview) -> int:
        """Fill the buffer, past what was put back; fewer bytes where the connection ended or breaks a limit."""
        number = 0
        while number < len(buffer):
            if not self._ledger.wait_for_room(self.connection, self._limits.silence_seconds / 2):
                self._abort("too much is being received at once")
                break
            came = cast(socket.socket, self.socket).recv_into(buffer[number : number + _READ_BYTES])
            if not came:
                break
            number += came
            self.connection.count(came)
            reason = self.connection.violation(self._limits, time.monotonic())
            if reason is not None:
                self._abort(reason)
                return 0  # what the kernel has received already is still there to read
        return number

    def message_came(self, *, is_kept: bool) -> None:
        """A message is whole; a peer that sends far ahead of the answers would fill the memory."""
        self._ledger.message_came(self.connection, is_kept=is_kept)
        if self.assoc.dimse.msg_queue.qsize() >= MOST_UNANSWERED:
            self._abort("requests are sent without waiting for the answers")

    def answered(self) -> None:
        """The oldest of the whole instances is out of the way."""
        self._ledger.answered(self.connection)

    def _abort(self, reason: str) -> None:
        """Tell the peer where it still listens, then end the connection. By the reading thread only."""
        if self.connection.ended is None:
            _tell_end(self.connection, reason)
            sock = cast(socket.socket, self.socket)
            with suppress(OSError):
                sock.settimeout(_GOODBYE_SECONDS)
                sock.send(_A_ABORT)
            self.connection.end(reason)


class _Handler(RequestHandler):
    """One connection, in a thread of its own, from its first byte to the end of its association."""

    server: GuardedServer

    def handle(self) -> None:
        connection = self.server.connection_of(self.request)
        try:
            request = self._read_request(connection)
            called, calling = (_title(request[start : start + 16]) for start in (10, 26))
            refusal = self.server.access.refusal(calling=calling, called=called)
            refusal = refusal or self.server.ledger.admit(connection, calling)
            if refusal is not None:
                log.warning("association from %s at %s rejected: %s", calling, connection.address, refusal.reason)
                self.server.on_rejected(calling, connection.address, refusal.reason)
                _reject(connection.socket, refusal)
                return
            self._associate(connection, request)
        except ssl.SSLError as exc:
            self.server.tell_seldom(connection.address, f"TLS: {tls_reason(exc)}")
        except (_Lost, OSError) as exc:
            reason = connection.ended or (str(exc) if isinstance(exc, _Lost) else type(exc).__name__)
            log.debug("connection from %s closed: %s", connection.address, reason)
        finally:
            self.server.forget(connection)

    def _read_request(self, connection: Connection) -> bytes:
        """The whole A-ASSOCIATE-RQ PDU, behind the TLS handshake where there is one."""
        limits = self.server.limits
        deadline = connection.opened_at + limits.request_seconds
        if self.server.tls is not None:
            connection.socket = wrapped = self.server.tls.wrap(connection.socket)
            wrapped.settimeout(max(0.001, deadline - time.monotonic()))
            wrapped.do_handshake()
        header = _read(connection.socket, _HEADER_BYTES, deadline)
        pdu_type, _, length = struct.unpack(">BBL", header)
        if pdu_type != _ASSOCIATE_RQ or not _HEADER_BYTES + length >= _TITLES_END or length > limits.pdu_bytes:
            connection.socket.send(_A_ABORT)
            raise _Lost("no request for an association")
        request = header + _read(connection.socket, length, deadline)
        if not _is_decodable(request):
            connection.socket.send(_A_ABORT)
            raise _Lost("a request that cannot be decoded")
        return request

    def _associate(self, connection: Connection, request: bytes) -> None:
        self.request = connection.socket
        association = self._create_association()
        association.dul.event_queue.get_nowait()  # the new connection was told with the socket that is replaced here
        sock = MeteredSocket(association, connection, request, self.server.ledger)
        association.dul.socket = sock
        association.dul._run_loop_delay = 0.0  # the socket waits
        transfer = DataTransfer(association, sock, self.server.open_sink)
        association.bind(evt.EVT_DIMSE_RECV, _on_message)
        association.bind(evt.EVT_DIMSE_SENT, self._on_answer)
        for event in (evt.EVT_RELEASED, evt.EVT_ABORTED):  # the slot is free before the thread has ended
            association.bind(event, self._on_end)
        # The request is here and can be decoded, so this waits for next to nothing.
        association.acse_timeout = _DECODING_SECONDS
        for thread in (association, association.dul):
            thread.run = partial(self._run_guarded, thread.run, connection, transfer)  # type: ignore[method-assign]
        evt.trigger(association, evt.EVT_CONN_OPEN, {"address": self.client_address})
        association.start()
        association.join()
        association.dul.kill_dul()  # it would run on where the association's thread ended by an error
        if association.dul.is_alive():
            association.dul.join()
        transfer.close()

    def _run_guarded(self, run: Callable[[], None], connection: Connection, transfer: DataTransfer) -> None:
        """One of the two threads of an association; whatever its peer makes it raise ends the connection."""
        try:
            run()
        except Exception as exc:  # noqa: BLE001 - the boundary to pynetdicom; the text may quote what the peer sent
            log.warning("association from %s ended: unexpected %s", connection.calling_ae_title, type(exc).__name__)
            connection.end("unexpected error")
            self.server.ledger.closed(connection)
        finally:
            transfer.wake()  # the other thread has to learn that this one is over

    def _on_answer(self, event: evt.Event) -> None:
        if isinstance(event.message, C_STORE_RSP):
            cast(MeteredSocket, event.assoc.dul.socket).answered()

    def _on_end(self, event: evt.Event) -> None:
        self.server.ledger.closed(cast(MeteredSocket, event.assoc.dul.socket).connection)


class GuardedServer(PromptServer):
    """pynetdicom's server behind the guard."""

    daemon_threads = True

    def __init__(
        self,
        *args: Any,
        access: Access,
        limits: Limits,
        tls: ServerTls | None,
        on_rejected: Callable[[str, str, str], None],
        open_sink: OpenSink,
        **kwargs: Any,
    ) -> None:
        """`on_rejected` is called with calling AE title, address and reason; `open_sink` takes C-STORE requests."""
        self.access = access
        self.limits = limits
        self.tls = tls
        self.on_rejected = on_rejected
        self.open_sink = open_sink
        self.ledger = Ledger(limits)
        self._by_socket: dict[int, Connection] = {}
        self._told_at: dict[str, float] = {}
        self._telling = threading.Lock()
        super().__init__(*args, **{**kwargs, "request_handler": _Handler})

    def adopt(self, entity: AE, access: Access, limits: Limits) -> None:
        """Judge new associations by these, as the application entity `entity`."""
        self.ae._servers.remove(self)
        entity._servers.append(self)  # from where its shutdown removes it
        self.ae, self.ae_title, self.contexts = entity, entity.ae_title, entity.supported_contexts
        self.access, self.limits = access, limits
        self.ledger.limits = limits

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether a new connection is looked at, by its address alone."""
        address = str(client_address[0])
        if not self.access.admits_address(address):
            self.tell_seldom(address, "not in the networks that may connect")
            return False
        if self.ledger.too_often(address):
            self.tell_seldom(address, "too many connections in a minute")
            return False
        connection = Connection(address=address, socket=request)
        self._by_socket[id(request)] = connection
        in_the_way = self.ledger.opened(connection)
        if in_the_way is not None:
            _tell_end(in_the_way, "too many connections without a request for an association")
            in_the_way.end("made room for another connection")
        return True

    def service_actions(self) -> None:
        """End what breaks a limit while nothing is read of it; called at every poll."""
        super().service_actions()
        for connection, reason in self.ledger.violations():
            _tell_end(connection, reason)
            connection.end(reason)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A fault in the thread of one connection: nothing of it goes to standard error."""
        log.error("connection from %s: unexpected error", client_address[0])

    def connection_of(self, request: Any) -> Connection:
        """The entry of a socket that `verify_request` let pass."""
        return self._by_socket.pop(id(request))

    def forget(self, connection: Connection) -> None:
        """It is over: free its slot and its descriptor."""
        self.ledger.closed(connection)
        self.shutdown_request(connection.socket)

    def end_half_open(self) -> None:
        """For the end of the server: nothing more becomes an association."""
        for connection in self.ledger.all():
            if connection.admitted_at is None:
                connection.end("the node stops")

    def tell_seldom(self, address: str, reason: str) -> None:
        """One line an address and some seconds: who is kept out must not fill the log."""
        now = time.monotonic()
        with self._telling:
            self._told_at = {one: at for one, at in self._told_at.items() if now - at < _QUIET_LINES_SECONDS}
            told = address in self._told_at
            self._told_at.setdefault(address, now)
        if not told:
            log.warning("connection from %s refused: %s", address, reason)


def listen_guarded(
    entity: AE, address: tuple[str, int], handlers: list[evt.EventHandlerType], **guard: Any
) -> GuardedServer:
    """Accept associations in a thread of its own; returns when the port is open. `guard`: see `GuardedServer`.

    Raises:
        OSError: the address is in use or not one of this machine.
    """
    return cast(GuardedServer, listen(entity, address, handlers, GuardedServer, **guard))


def _on_message(event: evt.Event) -> None:
    cast(MeteredSocket, event.assoc.dul.socket).message_came(is_kept=isinstance(event.message, C_STORE_RQ))


def _read(sock: socket.socket, number: int, deadline: float) -> bytes:
    read = bytearray()
    while len(read) < number:
        left = deadline - time.monotonic()
        if left <= 0:
            raise _Lost("no request for an association in time")
        sock.settimeout(left)
        part = sock.recv(min(_READ_BYTES, number - len(read)))
        if not part:
            raise _Lost("closed by the peer")
        read += part
    return bytes(read)


def _is_decodable(request: bytes) -> bool:
    """Whether pynetdicom can read it, tried before it costs a slot and two threads."""
    try:
        pdu = A_ASSOCIATE_RQ()
        pdu.decode(request)
        pdu.to_primitive()
    except Exception:  # noqa: BLE001 - bytes of a stranger: whatever the parser raises, they are no request
        return False
    return True


def _title(padded: bytes) -> str:
    """An AE title as it may stand in a log line."""
    return "".join(chr(c) if 32 <= c < 127 and c != 92 else "?" for c in padded).strip()


def _reject(sock: socket.socket, refusal: Refusal) -> None:
    """Answer A-ASSOCIATE-RJ and let the peer close, as PS3.8 9.2.3 (AA-8) has it; not for long."""
    time.sleep(_BEFORE_REJECTION_SECONDS)
    sock.settimeout(_GOODBYE_SECONDS)
    sock.sendall(struct.pack(">BBIBBBB", 3, 0, 4, 0, refusal.result, refusal.source, refusal.diagnostic))
    with suppress(TimeoutError):
        sock.recv(1)


def _tell_end(connection: Connection, reason: str) -> None:
    if connection.admitted_at is None:
        log.info("connection from %s ended: %s", connection.address, reason)
    else:
        log.warning("association from %s aborted: %s", connection.calling_ae_title, reason)
