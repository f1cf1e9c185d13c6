"""Where series and results go: the destinations, and the rules that name pipelines and destinations for a series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from pulmo_node.config.values import STRICT, AeTitle

SENDER = "sender"
"""Destination of a rule that stands for the peer whose AE title sent the series."""


@dataclass(frozen=True, kw_only=True)
class PeerSection:
    """A destination."""

    __pydantic_config__ = STRICT
    ae_title: AeTitle | None = None  # these three are needed unless there is a stow_url
    host: Annotated[str, StringConstraints(min_length=1)] = ""
    port: Annotated[int, Field(ge=1, le=65535)] = 0
    stow_url: Annotated[str, StringConstraints(pattern=r"^(https?://[^\s/@?#]+[^\s@?#]*)?$")] = ""
    stow_authorization: str = ""  # value of the Authorization header, "Bearer ..." or "Basic ..."
    tls: bool = False
    tls_ca: str = ""  # empty: the issuers that the system trusts
    tls_hostname: str = ""  # empty: host
    storage_commitment: Literal["off", "if_offered"] = "off"
    gap_repair: bool = False
    deidentify: Literal["off", "remove_dates", "keep_dates"] = "off"


@dataclass(frozen=True, kw_only=True)
class RuleSection:
    """Which series go to which pipelines, and their results to which destinations. The first rule that fits is used.

    The four conditions are shell-style patterns (``*``, ``?``, ``[...]``), compared without regard to case.
    """

    __pydantic_config__ = STRICT
    calling_ae_title: str = "*"
    modality: str = "*"
    body_part: str = "*"
    series_description: str = "*"
    priority: Literal["routine", "stat"] = "routine"
    pipelines: tuple[str, ...] = ()
    destinations: tuple[str, ...] = (SENDER,)


DEFAULT_RULES = (RuleSection(modality="CT", pipelines=("ct-nodules",), destinations=(SENDER,)),)
