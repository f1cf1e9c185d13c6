"""What to do after a failed attempt. A returned decision, never a loop in the code that failed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from pulmo_node.errors import Transient


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Growing delay with an upper limit."""

    max_attempts: int
    first_delay_seconds: float
    factor: float = 2.0
    max_delay_seconds: float = 3600.0

    def delay_seconds(self, attempts: int) -> float:
        """Delay before the next attempt after `attempts` failed ones (1 or more)."""
        exponent = min(attempts - 1, 64)  # beyond that the float overflows long after the limit was reached
        return min(self.first_delay_seconds * self.factor**exponent, self.max_delay_seconds)


@dataclass(frozen=True, kw_only=True)
class Defer:
    """Try again, not before that time."""

    not_before: datetime


@dataclass(frozen=True, kw_only=True)
class GiveUp:
    """Do not try again."""

    reason: str


def decide(policy: RetryPolicy, error: Exception, *, attempts: int, now: datetime) -> Defer | GiveUp:
    """The decision after an attempt failed with `error`; `attempts` counts it.

    Only `Transient` is tried again: every other error would come back unchanged.
    """
    if not isinstance(error, Transient):
        return GiveUp(reason=str(error))
    if attempts >= policy.max_attempts:
        return GiveUp(reason=f"{error} (attempt {attempts} of {policy.max_attempts})")
    return Defer(not_before=now + timedelta(seconds=policy.delay_seconds(attempts)))
