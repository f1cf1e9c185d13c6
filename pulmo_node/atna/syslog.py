"""Audit messages to a syslog server: RFC 5424 over UDP (RFC 5426), TCP with octet counting, or TLS (RFC 5425).

Input: entries of the audit trail (port `Journal`). Output: frames on the network, from a thread of its own that
begins with the first of them. A server that is down or slow holds up nobody: what it does not take waits in memory, and
beyond a limit the oldest is dropped, which the log says. Errors: none leave it.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

from pulmo_node.domain.deliveries import PeerTls
from pulmo_node.errors import Transient
from pulmo_node.network.tls import client_context
from pulmo_node.ports import Journal

log = logging.getLogger(__name__)

_PRIORITY = 10 * 8 + 5  # facility "security/authorization", severity "notice": PS3.15 A.6
_MOST_WAITING = 1000
_TIMEOUT_SECONDS = 5.0
_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 1.0, 60.0
_FLUSH_SECONDS = 2.0
_DEFAULT_PORTS = {"udp": 514, "tcp": 601, "tls": 6514}

Translator = Callable[[Mapping[str, object]], Iterator[bytes]]


@dataclass(frozen=True, kw_only=True)
class SyslogServer:
    """Where messages go."""

    transport: Literal["udp", "tcp", "tls"]
    host: str
    port: int
    tls: PeerTls | None = None  # of "tls"


class Closable(Journal, Protocol):
    """A journal with something behind it that ends."""

    def close(self) -> None:
        """Send what waits, for a short time, and end."""
        ...


class SyslogAudit:
    """Sends what an entry becomes (port `Journal`); entries that become nothing cost nothing."""

    def __init__(self, server: SyslogServer, translate: Translator) -> None:
        self._server = server
        self._translate = translate
        self._waiting: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._dropped = 0
        self._in_hand = 0
        self._socket: socket.socket | None = None

    def record(self, entries: Sequence[Mapping[str, object]], *, durable: bool = False) -> None:
        """Let the messages of these entries be sent; with `durable` wait a moment until they are out."""
        messages = [_syslog_message(message) for entry in entries for message in self._translate(entry)]
        if not messages:
            return
        with self._changed:
            self._waiting.extend(messages)
            while len(self._waiting) > _MOST_WAITING:
                self._waiting.popleft()
                self._dropped += 1
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._send_all, name="syslog", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            if durable:
                self._changed.wait_for(lambda: not self._waiting and not self._in_hand, _FLUSH_SECONDS)

    def close(self) -> None:
        """Send what waits, for a short time, and end."""
        with self._changed:
            if self._thread is not None:
                self._changed.wait_for(lambda: not self._waiting and not self._in_hand, _FLUSH_SECONDS)
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_FLUSH_SECONDS)

    def _send_all(self) -> None:
        delay = _FIRST_DELAY_SECONDS
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting or self._closing:
                    break
                message, dropped = self._waiting.popleft(), self._dropped
                self._in_hand, self._dropped = 1, 0
            if dropped:
                log.error("syslog: %d audit messages were dropped, too many wait", dropped)
            try:
                self._send(message)
            except (OSError, Transient) as exc:
                if delay == _FIRST_DELAY_SECONDS:
                    where = f"{self._server.host}:{self._server.port}"
                    log.error("syslog: %s does not take audit messages: %s", where, type(exc).__name__)
                self._hang_up()
                with self._changed:
                    self._waiting.appendleft(message)
                    self._in_hand = 0
                    self._changed.wait_for(lambda: self._closing, delay)
                delay = min(2 * delay, _LONGEST_DELAY_SECONDS)
                continue
            delay = _FIRST_DELAY_SECONDS
            with self._changed:
                self._in_hand = 0
                self._changed.notify_all()
        self._hang_up()

    def _send(self, message: bytes) -> None:
        if self._server.transport == "udp":
            family, kind, protocol, _, address = socket.getaddrinfo(
                self._server.host, self._server.port, type=socket.SOCK_DGRAM
            )[0]
            with socket.socket(family, kind, protocol) as datagram:
                datagram.sendto(message, address)
            return
        if self._socket is not None and _closed_by_peer(self._socket):
            self._hang_up()  # else the first message after it would be lost in the socket's buffer
        if self._socket is None:
            self._socket = self._connect()
        self._socket.sendall(str(len(message)).encode() + b" " + message)

    def _connect(self) -> socket.socket:
        address = self._server.host, self._server.port
        plain = socket.create_connection(address, _TIMEOUT_SECONDS)
        if self._server.tls is None:
            return plain
        try:
            context = client_context(self._server.tls)
            return context.wrap_socket(plain, server_hostname=self._server.tls.hostname or self._server.host)
        except (OSError, Transient):
            plain.close()
            raise

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Both:
    """One journal and then another one (port `Journal`)."""

    def __init__(self, first: Journal, second: Closable) -> None:
        self._first = first
        self._second = second

    def record(self, entries: Sequence[Mapping[str, object]], *, durable: bool = False) -> None:
        """Raises `Transient` where the first cannot take them; the second is told all the same."""
        at = datetime.now(UTC)
        entries = [{"at": at, **entry} for entry in entries]
        try:
            self._first.record(entries, durable=durable)
        finally:
            self._second.record(entries, durable=durable)

    def close(self) -> None:
        """End the second one."""
        self._second.close()


def _closed_by_peer(sock: socket.socket) -> bool:
    """Whether the server ended the connection; it never says anything else."""
    sock.settimeout(0.0)
    try:
        return not sock.recv(1)
    except (BlockingIOError, TimeoutError):
        return False
    except OSError as exc:
        return "want" not in type(exc).__name__.lower()  # SSLWantReadError: nothing there
    finally:
        sock.settimeout(_TIMEOUT_SECONDS)


def _syslog_message(xml: bytes) -> bytes:
    """RFC 5424 with the message id of PS3.15 A.6 and, as UTF-8 wants there, a byte order mark."""
    stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    host = socket.gethostname().encode("ascii", "replace").decode().replace(" ", "-") or "-"
    header = f"<{_PRIORITY}>1 {stamp} {host[:255]} pulmo-node {os.getpid()} DICOM+RFC3881 - "
    return header.encode() + b"\xef\xbb\xbf" + xml


def parse_server(url: str, tls: PeerTls) -> SyslogServer:
    """From "udp://HOST[:PORT]", "tcp://...", "tls://...". Raises `ValueError`."""
    scheme, _, rest = url.partition("://")
    if scheme not in _DEFAULT_PORTS or not rest:
        raise ValueError('must be "udp://HOST:PORT", "tcp://HOST:PORT" or "tls://HOST:PORT"')
    host, _, port = rest.rstrip("/").rpartition(":") if ":" in rest.rpartition("]")[2] else (rest.rstrip("/"), "", "")
    number = int(port or _DEFAULT_PORTS[scheme])
    if not 0 < number < 65536 or not host:
        raise ValueError("needs a host and a port from 1 to 65535")
    transport: Literal["udp", "tcp", "tls"] = "udp" if scheme == "udp" else "tcp" if scheme == "tcp" else "tls"
    return SyslogServer(transport=transport, host=host.strip("[]"), port=number, tls=tls if scheme == "tls" else None)
