"""Who asks: passwords, sessions, the rate of logins, and what a reverse proxy says.

A session is a random token in a cookie; the database has its SHA-256. The CSRF token of a form is an HMAC under that
token, so it needs no memory and is worth nothing in another session.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Protocol

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from starlette.datastructures import Headers

from pulmo_node.domain.accounts import Role, Session, User

LONGEST_SESSION = timedelta(hours=12)
LONGEST_PASSWORD = 1024  # characters; hashing more is work for nothing
SHORTEST_PASSWORD = 12  # NIST SP 800-63B asks for 8, and for 15 where there is no second factor

_HASHER = PasswordHasher()  # Argon2id; RFC 9106, second recommended option
_NOBODYS_HASH = _HASHER.hash(secrets.token_hex(16))
_HASHING = threading.BoundedSemaphore(2)  # each takes 64 MiB
_TOUCH_EVERY = timedelta(minutes=1)


class AccountStore(Protocol):
    """What access needs of the database."""

    def users(self) -> tuple[User, ...]:
        """All of them, by name."""
        ...

    def user(self, name: str) -> User | None:
        """One of them; None where there is none of that name."""
        ...

    def begin_session(self, token_sha256: str, name: str, at: datetime) -> None:
        """Keep a login."""
        ...

    def session(self, token_sha256: str) -> Session | None:
        """The login of a token; None where there is none, or no longer."""
        ...

    def touch_session(self, token_sha256: str, at: datetime) -> None:
        """It was used."""
        ...

    def end_session(self, token_sha256: str) -> None:
        """Log out."""
        ...

    def end_sessions(self, *, seen_before: datetime) -> None:
        """Forget those that nobody uses."""
        ...


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """Who asks."""

    name: str
    role: Role

    @property
    def operates(self) -> bool:
        """Whether they may change something."""
        return self.role is Role.OPERATOR


def hash_password(password: str) -> str:
    """For the database."""
    with _HASHING:
        return _HASHER.hash(password)


def password_fits(user: User | None, password: str) -> bool:
    """Whether it is the user's. Takes as long where there is no such user."""
    if len(password) > LONGEST_PASSWORD:
        return False
    known = _NOBODYS_HASH if user is None else user.password_hash
    with _HASHING:
        try:
            return _HASHER.verify(known, password) and user is not None
        except (VerificationError, InvalidHashError):
            return False


class Sessions:
    """Logins that last."""

    def __init__(self, store: AccountStore, idle_minutes: float) -> None:
        self._store = store
        self._idle = timedelta(minutes=idle_minutes)

    def begin(self, user: User, at: datetime) -> str:
        """A new token, whatever the browser had before."""
        self._store.end_sessions(seen_before=at - self._idle)
        token = new_token()
        self._store.begin_session(_digest(token), user.name, at)
        return token

    def visitor(self, token: str, at: datetime) -> Visitor | None:
        """Whose token it is; None where it is nobody's, or too old."""
        if not token:
            return None
        session = self._store.session(_digest(token))
        if session is None:
            return None
        if at - session.seen_at > self._idle or at - session.created_at > LONGEST_SESSION:
            self._store.end_session(_digest(token))
            return None
        if at - session.seen_at > _TOUCH_EVERY:
            self._store.touch_session(_digest(token), at)
        return Visitor(name=session.user.name, role=session.user.role)

    def end(self, token: str) -> None:
        """Log out."""
        self._store.end_session(_digest(token))


class LoginRate:
    """How often an address, and whoever tries a name, may fail. Kept in memory."""

    def __init__(self, *, per_address: int = 10, per_name: int = 30, seconds: float = 300.0) -> None:
        self._limits = {"address": per_address, "name": per_name}
        self._span = timedelta(seconds=seconds)
        self._failures: dict[tuple[str, str], deque[datetime]] = defaultdict(deque)
        self._lock = threading.Lock()

    def begin(self, address: str, name: str, at: datetime) -> bool:
        """Whether another try is looked at. It counts as a failure until it turns out right: many at once are many."""
        keys = _keys(address, name)
        with self._lock:
            self._forget(at)
            if any(len(self._failures.get(key, ())) >= self._limits[key[0]] for key in keys):
                return False
            for key in keys:
                self._failures[key].append(at)
            return True

    def right(self, address: str, name: str, at: datetime) -> None:
        """The try that began then was no failure."""
        with self._lock:
            for key in _keys(address, name):
                with suppress(ValueError):  # it is forgotten already
                    self._failures[key].remove(at)

    def _forget(self, at: datetime) -> None:
        for key, times in list(self._failures.items()):
            while times and abs(at - times[0]) > self._span:  # in the future: the clock was set back
                times.popleft()
            if not times:
                del self._failures[key]


def _keys(address: str, name: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("address", address), ("name", name)


def new_token() -> str:
    """256 bits by chance."""
    return secrets.token_urlsafe(32)


def csrf_token(token: str) -> str:
    """What a form sends back, for the browser that has that token in its cookie."""
    return hmac.new(token.encode(), b"csrf", hashlib.sha256).hexdigest()


def csrf_fits(token: str, sent: str) -> bool:
    """Whether a form comes from a page that this browser was given."""
    return bool(token) and hmac.compare_digest(csrf_token(token).encode(), sent.encode())


def within(address: str, networks: Sequence[str]) -> bool:
    """Whether an address lies in one of some networks; what is no address lies in none."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return any((mapped or parsed) in ip_network(network, strict=False) for network in networks)


@dataclass(frozen=True, kw_only=True)
class Client:
    """Where a request comes from."""

    address: str
    secure: bool  # by TLS, also where a trusted proxy ended it
    proxy: bool  # a trusted proxy passed it on
    forwarded: bool  # somebody says that it was passed on


def client_of(peer: str, scheme: str, headers: Headers, trusted_proxies: Sequence[str]) -> Client:
    """The client behind the proxies that are trusted: of X-Forwarded-For, the last that is none of them.

    Some proxies add a line of their own below that of the client, so all lines count, in their order.
    """
    told = ",".join(headers.getlist("x-forwarded-for")).split(",")
    chain = [_without_port(part.strip()) for part in told if part.strip()]
    if not within(peer, trusted_proxies):
        return Client(address=peer, secure=scheme == "https", proxy=False, forwarded=bool(chain))
    address = next((hop for hop in reversed(chain) if not within(hop, trusted_proxies)), chain[0] if chain else peer)
    secure = scheme == "https" or only_value(headers, "x-forwarded-proto").lower() == "https"
    return Client(address=address, secure=secure, proxy=True, forwarded=bool(chain))


def only_value(headers: Headers, name: str) -> str:
    """The value of a header that may be there once; empty where it is missing, or somebody else added another."""
    values = headers.getlist(name)
    return values[0].strip() if len(values) == 1 else ""


def _without_port(hop: str) -> str:
    """Some proxies name the port too, another one with each connection: `192.0.2.1:4711`, `[2001:db8::1]:4711`."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
