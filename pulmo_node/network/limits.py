"""How much each peer may take of the node, and the ledger that counts it.

A connection is *half-open* until its whole A-ASSOCIATE-RQ is there: it holds no association's slot, must send the
request within a limit, and where there are too many of them the oldest of the address with most gives way. Only then
it is counted among the associations. A peer is an IP address, since its AE title is only what it says.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field

from pulmo_node.network.access import Refusal

MOST_HALF_OPEN = 128
"""Connections without a request for an association, of all peers together."""

MOST_UNANSWERED = 8
"""Requests that a peer may send ahead of the answers; one at a time is what was negotiated (PS3.7 D.3.3.3)."""

_MOST_REMEMBERED = 1024  # addresses, in the count of the last minute
_MINUTE_SECONDS = 60.0

LIMIT_EXCEEDED = Refusal(result=2, source=3, diagnostic=2, reason="too many associations")
PEER_LIMIT_EXCEEDED = Refusal(result=2, source=3, diagnostic=2, reason="too many associations of this address")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of the receiver."""

    associations: int = 20  # at the same time
    associations_per_peer: int = 16  # at the same time, of one IP address
    connections_per_minute: int = 6000  # of one IP address
    request_seconds: float = 15.0  # from the connection to the end of the A-ASSOCIATE-RQ, TLS included
    silence_seconds: float = 60.0  # after which an association is aborted
    association_seconds: float = 14_400.0
    association_bytes: int = 64 * 1024**3
    message_bytes: int = 2 * 1024**3  # of one instance with its command
    bytes_in_flight: int = 4 * 1024**3  # of all associations together: instances on their way and not yet answered
    slowest_bytes_per_second: float = 1000.0  # of an instance on its way, over `silence_seconds` and more
    pdu_bytes: int = 1024**2  # largest PDU that is read at all, whatever was negotiated


@dataclass(eq=False, kw_only=True)
class Connection:
    """One TCP connection and what came over it; written by the thread that reads it."""

    address: str
    socket: socket.socket
    opened_at: float = field(default_factory=time.monotonic)
    admitted_at: float | None = None  # when it became an association
    calling_ae_title: str = ""
    received_bytes: int = 0
    message_bytes: int = 0  # of the message that is on its way
    message_began_at: float = 0.0
    held_up_seconds: float = 0.0  # of that message, by the node
    unanswered_bytes: deque[int] = field(default_factory=deque)  # of whole instances, in their order
    ended: str | None = None  # why the node closed it

    def count(self, number: int) -> None:
        """Bytes came."""
        if self.message_bytes == 0:
            self.message_began_at, self.held_up_seconds = time.monotonic(), 0.0
        self.message_bytes += number
        self.received_bytes += number

    def message_came(self, *, is_kept: bool) -> None:
        """A message is whole; one that `is_kept` stays in memory until it is answered."""
        if is_kept:
            self.unanswered_bytes.append(self.message_bytes)
        self.message_bytes = 0

    @property
    def bytes_in_flight(self) -> int:
        """What it takes of the memory."""
        return self.message_bytes + sum(tuple(self.unanswered_bytes))

    def violation(self, limits: Limits, now: float) -> str | None:
        """Which limit it breaks."""
        if self.admitted_at is None:
            return "no request for an association in time" if now - self.opened_at > limits.request_seconds else None
        if now - self.admitted_at > limits.association_seconds:
            return "the association lasts too long"
        if self.received_bytes > limits.association_bytes:
            return "too many bytes in one association"
        if self.message_bytes > limits.message_bytes:
            return "an instance is too large"
        allowed_seconds = limits.silence_seconds + self.message_bytes / limits.slowest_bytes_per_second
        if self.message_bytes and now - self.message_began_at - self.held_up_seconds > allowed_seconds:
            return "an instance comes too slowly"
        return None

    def end(self, reason: str) -> None:
        """Close it under the feet of whoever reads it, which then finds the connection lost."""
        if self.ended is None:
            self.ended = reason
        with suppress(OSError):
            # Of the socket itself: that of an SSLSocket takes the TLS layer away from a thread that reads through it.
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


class Ledger:
    """Every open connection of a server."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        self._room = threading.Condition()
        self._connections: set[Connection] = set()
        self._minute_began_at = time.monotonic()
        self._in_minute: Counter[str] = Counter()

    def opened(self, connection: Connection) -> Connection | None:
        """Take note of a new connection; one that must make room for it, where there are too many half-open ones."""
        with self._lock:
            self._connections.add(connection)
            half_open = [one for one in self._connections if one.admitted_at is None and one.ended is None]
            if len(half_open) <= MOST_HALF_OPEN:
                return None
            ((most, _),) = Counter(one.address for one in half_open).most_common(1)
            return min((one for one in half_open if one.address == most), key=lambda one: one.opened_at)

    def too_often(self, address: str) -> bool:
        """Count one more connection of that address; whether it is beyond what is allowed in a minute."""
        with self._lock:
            now = time.monotonic()
            if now - self._minute_began_at > _MINUTE_SECONDS or len(self._in_minute) > _MOST_REMEMBERED:
                self._minute_began_at = now
                self._in_minute.clear()
            self._in_minute[address] += 1
            return self._in_minute[address] > self.limits.connections_per_minute

    def admit(self, connection: Connection, calling_ae_title: str) -> Refusal | None:
        """Give the connection the slot of an association, or say why not."""
        with self._lock:
            admitted = [one for one in self._connections if one.admitted_at is not None]
            if len(admitted) >= self.limits.associations:
                return LIMIT_EXCEEDED
            if sum(one.address == connection.address for one in admitted) >= self.limits.associations_per_peer:
                return PEER_LIMIT_EXCEEDED
            connection.admitted_at = time.monotonic()
            connection.calling_ae_title = calling_ae_title
            return None

    def closed(self, connection: Connection) -> None:
        """It is over; once more changes nothing."""
        with self._lock:
            self._connections.discard(connection)
        self._tell_room()

    def message_came(self, connection: Connection, *, is_kept: bool) -> None:
        """A message is whole: another one may be the first to go on."""
        connection.message_came(is_kept=is_kept)
        self._tell_room()

    def answered(self, connection: Connection) -> None:
        """The oldest of its whole instances is out of memory."""
        if connection.unanswered_bytes:
            connection.unanswered_bytes.popleft()
        self._tell_room()

    def wait_for_room(self, connection: Connection, seconds: float) -> bool:
        """Let a connection read on, at once or when others are done; False where that takes longer.

        Beyond the limit only the connection whose instance began first reads on, so that one of them always comes to
        its end: what is in memory is bounded by the limit and one instance. The peers feel it as a slow network.
        """
        if self._has_room(connection):
            return True
        began = time.monotonic()
        with self._room:
            found = self._room.wait_for(lambda: connection.ended is not None or self._has_room(connection), seconds)
        connection.held_up_seconds += time.monotonic() - began
        return found

    def _has_room(self, connection: Connection) -> bool:
        others = self.all()
        if sum(one.bytes_in_flight for one in others) < self.limits.bytes_in_flight:
            return True
        if any(one.unanswered_bytes for one in others):
            return False  # they are out of memory in a moment
        coming = [one for one in others if one.message_bytes and one.ended is None]
        return not coming or min(coming, key=lambda one: one.message_began_at) is connection

    def _tell_room(self) -> None:
        with self._room:
            self._room.notify_all()

    def all(self) -> tuple[Connection, ...]:
        """Every open connection."""
        with self._lock:
            return tuple(self._connections)

    def violations(self) -> tuple[tuple[Connection, str], ...]:
        """Connections that break a limit at this moment and were not ended yet."""
        now = time.monotonic()
        found = ((one, one.violation(self.limits, now)) for one in self.all() if one.ended is None)
        return tuple((one, reason) for one, reason in found if reason is not None)
