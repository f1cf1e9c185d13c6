"""Tells people: by webhook (JSON by HTTP POST) and by e-mail. What happens within a while is one message.

A message that cannot be sent is tried again with the next look, together with what came since.
"""

from __future__ import annotations

import logging
import smtplib
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from email.message import EmailMessage
from typing import Protocol

import httpx2

from pulmo_node.config import NotifySection
from pulmo_node.errors import Transient
from pulmo_node.monitoring.notices import Notice, Watch

log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 15.0
_RETRY_SECONDS = 60.0
_MOST_NOTICES = 200  # in one message; of more, the number


class Channel(Protocol):
    """A way to tell somebody."""

    @property
    def name(self) -> str:
        """For the log."""
        ...

    def send(self, notices: Sequence[Notice], left_out: int) -> None:
        """Raises `Transient` where it was not taken."""
        ...


class Notifier:
    """Collects what happens and tells it; `look` is called every second or so by one thread."""

    def __init__(
        self,
        watch: Watch,
        channels: Sequence[Channel],
        batch_seconds: float,
        monotonic_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watch = watch
        self._batch_seconds = batch_seconds
        self._monotonic_seconds = monotonic_seconds
        self._pending: dict[str, list[Notice]] = {channel.name: [] for channel in channels}
        self._channels = tuple(channels)
        self._due_seconds: float | None = None

    def look(self) -> None:
        """See what is new, and tell it once the time for one message is over."""
        new = self._watch.new()
        if new:
            log.info("%s", " ".join(notice.text for notice in new))
        for pending in self._pending.values():
            pending.extend(new)
        now = self._monotonic_seconds()
        if self._due_seconds is None and any(self._pending.values()):
            self._due_seconds = now + self._batch_seconds
        if self._due_seconds is None or now < self._due_seconds:
            return
        self._tell()
        self._due_seconds = now + max(_RETRY_SECONDS, self._batch_seconds) if any(self._pending.values()) else None

    def _tell(self) -> None:
        for channel in self._channels:
            pending = self._pending[channel.name]
            if not pending:
                continue
            try:
                channel.send(pending[:_MOST_NOTICES], max(0, len(pending) - _MOST_NOTICES))
            except Transient as exc:
                log.warning("%s is not told of %d notices: %s", channel.name, len(pending), exc)
            else:
                pending.clear()
        if not any(self._pending.values()):
            self._watch.remember()


def build_channels(settings: NotifySection) -> tuple[Channel, ...]:
    """Those that are configured."""
    channels: list[Channel] = []
    if settings.webhook_url:
        channels.append(Webhook(settings=settings))
    if settings.mail_to:
        channels.append(Mail(settings=settings))
    return tuple(channels)


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """JSON with `text` for people (as chats read it) and `notices` for programs."""

    settings: NotifySection
    name: str = "webhook"

    def send(self, notices: Sequence[Notice], left_out: int) -> None:
        """POST; 2xx is taken, redirects are not followed."""
        headers = {"Authorization": self.settings.webhook_authorization} if self.settings.webhook_authorization else {}
        content = {
            "text": _text(self.settings, notices, left_out),
            "notices": [asdict(notice) for notice in notices],
            "left_out": left_out,
        }
        try:
            with httpx2.Client(timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
                answer = client.post(self.settings.webhook_url, json=content, headers=headers)
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as exc:  # whose text may name a secret, the address
            raise Transient(type(exc).__name__) from exc
        if not answer.is_success:
            raise Transient(f"it answered {answer.status_code}")


@dataclass(frozen=True, kw_only=True)
class Mail:
    """Plain text by SMTP."""

    settings: NotifySection
    name: str = "mail"

    def send(self, notices: Sequence[Notice], left_out: int) -> None:
        """To every address with one message."""
        settings = self.settings
        try:
            message = self._message(notices, left_out)
            with self._server() as server:
                if settings.smtp_tls == "starttls":
                    server.starttls(context=ssl.create_default_context())
                if settings.smtp_user:
                    server.login(settings.smtp_user, settings.smtp_password)
                server.send_message(message)
        except (OSError, smtplib.SMTPException, ValueError) as exc:  # also of what cannot be sent, an umlaut say
            raise Transient(type(exc).__name__) from exc

    def _message(self, notices: Sequence[Notice], left_out: int) -> EmailMessage:
        message = EmailMessage()
        message["From"], message["To"] = self.settings.mail_from, ", ".join(self.settings.mail_to)
        message["Subject"] = f"Pulmo Node: {_subject(notices)}"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(_text(self.settings, notices, left_out) + "\n")
        return message

    def _server(self) -> smtplib.SMTP:
        host, port = self.settings.smtp_host, self.settings.smtp_port
        if self.settings.smtp_tls == "tls":
            return smtplib.SMTP_SSL(host, port, timeout=_TIMEOUT_SECONDS, context=ssl.create_default_context())
        return smtplib.SMTP(host, port, timeout=_TIMEOUT_SECONDS)


def _subject(notices: Sequence[Notice]) -> str:
    troubles = sum(not notice.over for notice in notices)
    if not troubles:
        return "in order again"
    first = next(notice for notice in notices if not notice.over)
    return first.kind if troubles == 1 else f"{troubles} troubles"


def _text(settings: NotifySection, notices: Sequence[Notice], left_out: int) -> str:
    lines = [("In order again: " if notice.over else "") + notice.text + _link(settings, notice) for notice in notices]
    if left_out:
        lines.append(f"{left_out} more are left out.")
    return "\n".join(lines)


def _link(settings: NotifySection, notice: Notice) -> str:
    if not settings.page_url:
        return ""
    base = settings.page_url.rstrip("/")
    pages = {"study failed": f"/studies/{notice.subject}", "destination down": "/destinations"}
    return f" {base}{pages[notice.kind]}" if notice.kind in pages else ""
