"""TLS on both sides, by the BCP 195 profile of DICOM (PS3.15 B.12; RFC 8996 and RFC 9325): TLS 1.3, or 1.2 with forward
secrecy and authenticated encryption, nothing older.

Input: PEM files. Output: SSL contexts. Errors: `ConfigError` where a file cannot be used. A certificate that is
replaced on disk is taken for the next connection; one that cannot be used is told in the log, and the one before stays.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

from pulmo_node.domain.deliveries import PeerTls
from pulmo_node.errors import ConfigError, Transient

log = logging.getLogger(__name__)

# RFC 9325 4.2: the recommended suites of TLS 1.2; those of 1.3 are all allowed and not set here.
_CIPHERS = (
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES128-GCM-SHA256:"
    "ECDHE-RSA-AES128-GCM-SHA256:@SECLEVEL=2"
)


@dataclass(frozen=True, kw_only=True)
class ServerTlsSettings:
    """PEM files of the receiver."""

    certificate: Path  # with the chain behind it
    private_key: Path  # not encrypted
    client_ca: Path | None = None  # mutual TLS: every peer must show a certificate that one of these issued

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is read."""
        return tuple(path for path in (self.certificate, self.private_key, self.client_ca) if path is not None)


class ServerTls:
    """The TLS side of the receiver; reads its files again when they change."""

    def __init__(self, settings: ServerTlsSettings) -> None:
        """Raises `ConfigError` where a file cannot be used."""
        self._settings = settings
        self._lock = threading.Lock()
        self._seen = _versions(settings.files)
        self._context = _server_context(settings)

    def wrap(self, sock: socket.socket) -> ssl.SSLSocket:
        """The socket of a new connection with TLS; the handshake is the caller's to do."""
        return self._current().wrap_socket(sock, server_side=True, do_handshake_on_connect=False)

    def _current(self) -> ssl.SSLContext:
        with self._lock:
            versions = _versions(self._settings.files)
            if versions != self._seen:
                self._seen = versions
                try:
                    self._context = _server_context(self._settings)
                    log.info("TLS certificate read again")
                except ConfigError as exc:
                    log.error("the TLS certificate before stays in use: %s", "; ".join(exc.problems))
            return self._context


def client_context(peer_tls: PeerTls) -> ssl.SSLContext:
    """For one association with a peer; the files are read each time, so a replaced one needs nothing more.

    Raises:
        Transient: a file cannot be used, which may be right again at the next attempt.
    """
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=peer_tls.ca or None)
        _harden(context)
        context.sslsocket_class = _TellingSocket
        if peer_tls.certificate:
            context.load_cert_chain(peer_tls.certificate, peer_tls.private_key or None, password=_no_password)
    except (OSError, ValueError) as exc:
        raise Transient(f"TLS: {tls_reason(exc)}") from exc
    return context


def handshake_failure(context: ssl.SSLContext) -> str | None:
    """Why the latest handshake by that context of `client_context` failed; None where none did."""
    failure: str | None = getattr(context, "pulmo_failure", None)
    return failure


class _TellingSocket(ssl.SSLSocket):
    """Keeps why a handshake failed, which pynetdicom turns into 'not connected'."""

    def do_handshake(self, block: bool = False) -> None:
        """As ever."""
        try:
            super().do_handshake(block)
        except OSError as exc:
            self.context.pulmo_failure = tls_reason(exc)  # type: ignore[attr-defined]
            raise


def _server_context(settings: ServerTlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    try:
        context.load_cert_chain(settings.certificate, settings.private_key, password=_no_password)
    except (OSError, ValueError) as exc:
        raise ConfigError([f"tls.certificate, tls.private_key: {tls_reason(exc)}"]) from exc
    if settings.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(settings.client_ca)
        except (OSError, ValueError) as exc:
            raise ConfigError([f"tls.client_ca: {tls_reason(exc)}"]) from exc
    return context


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE


def _no_password() -> str:
    """Instead of OpenSSL's question on the terminal, which nobody would answer."""
    raise ValueError("the private key is encrypted")


def _versions(files: tuple[Path, ...]) -> tuple[tuple[int, int, int] | None, ...]:
    return tuple(_version(path) for path in files)


def _version(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def tls_reason(exc: Exception) -> str:
    """What was wrong, in words."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {exc.verify_message}"
    if isinstance(exc, ssl.SSLError):
        return (exc.reason or "no valid PEM file").replace("_", " ").lower()
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc) or type(exc).__name__
