"""Sections on what people see of the running node: the page with metrics and health, and notifications."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from pulmo_node.config.values import STRICT, NetworkText, NotNegative, Port, Positive

WebAddress = Annotated[str, StringConstraints(pattern=r"^(https?://[^\s/@]+[^\s@]*)?$")]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]+$")]
MailAddress = Annotated[str, StringConstraints(pattern=r"^[^\s@<>,;]+@[^\s@<>,;]+$")]


@dataclass(frozen=True, kw_only=True)
class WebSection:
    """The page, the metrics and the health endpoints."""

    __pydantic_config__ = STRICT
    enabled: bool = False
    bind: Annotated[str, StringConstraints(min_length=1)] = "127.0.0.1"
    port: Port = 8050  # 0: any free port
    access: Literal["login", "proxy", "open"] = "login"
    certificate: str = ""  # empty: no TLS
    private_key: str = ""
    cleartext: bool = False
    hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[NetworkText, ...] = ()
    proxy_user_header: HeaderName = "X-Remote-User"
    proxy_role_header: HeaderName = "X-Remote-Role"
    metrics_networks: tuple[NetworkText, ...] = ("127.0.0.0/8", "::1/128")
    patient_names: tuple[Literal["viewer", "operator"], ...] = ("operator",)
    session_minutes: Positive = 60.0
    ohif_url: WebAddress = ""


@dataclass(frozen=True, kw_only=True)
class NotifySection:
    """Who is told when something goes wrong, and when it is right again."""

    __pydantic_config__ = STRICT
    webhook_url: WebAddress = ""
    webhook_authorization: str = ""  # value of the Authorization header
    mail_to: tuple[MailAddress, ...] = ()
    mail_from: str = ""
    smtp_host: str = ""
    smtp_port: Annotated[int, Field(ge=1, le=65535)] = 587
    smtp_tls: Literal["starttls", "tls", "off"] = "starttls"
    smtp_user: str = ""
    smtp_password: str = ""
    destination_down_minutes: Positive = 10.0
    free_bytes: NotNegative = 0  # 0: as receive.low_free_bytes
    batch_seconds: Positive = 60.0
    page_url: WebAddress = ""

    @property
    def wanted(self) -> bool:
        """Whether anybody is told."""
        return bool(self.webhook_url or self.mail_to)
