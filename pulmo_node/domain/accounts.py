"""Who may use the page, and as what."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Role(StrEnum):
    """What a user may do."""

    VIEWER = "viewer"  # look
    OPERATOR = "operator"  # look, requeue, redeliver, cancel, echo


@dataclass(frozen=True, kw_only=True)
class User:
    """Somebody who may log in."""

    name: str
    role: Role
    password_hash: str  # Argon2id with its parameters, never the password
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Session:
    """A login that lasts. Of its token the database has the digest alone."""

    user: User
    created_at: datetime
    seen_at: datetime
