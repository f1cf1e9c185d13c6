"""What to do after a failed attempt. A returned decision, never a loop in the code that failed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from pulmo_node.errors import DiskFull, Transient


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Growing delay with an upper limit, spread by chance so that many failures do not all come back at one moment."""

    max_attempts: int
    first_delay_seconds: float
    factor: float = 2.0
    max_delay_seconds: float = 3600.0
    jitter: float = 0.0  # share of the delay, 0..1, by which it may be shorter or longer

    def delay_seconds(self, attempts: int, chance: float = 0.5) -> float:
        """Delay before the next attempt after `attempts` failed ones (1 or more).

        `chance`, 0..1, is a draw from the uniform distribution: 0 gives the shortest delay, 0.5 the one in the middle.
        """
        exponent = min(attempts - 1, 64)  # beyond that the float overflows long after the limit was reached
        delay = min(self.first_delay_seconds * self.factor**exponent, self.max_delay_seconds)
        return delay * (1 + self.jitter * (2 * chance - 1))


@dataclass(frozen=True, kw_only=True)
class Defer:
    """Try again, not before that time."""

    not_before: datetime
    counts: bool = True  # False: the attempt did not fail for what was attempted


@dataclass(frozen=True, kw_only=True)
class GiveUp:
    """Do not try again."""

    reason: str


def quarantine_reason(*, attempts: int, max_attempts: int, takeovers: int, max_takeovers: int) -> str | None:
    """Why a job is not to be begun again; None where it is.

    An *attempt* failed under the eyes of a living node: the analysis has its own process, whose death is seen. A
    *takeover* is a lease that ended with its node: a power cut, a restart of the machine, a kill; hardly ever the fault
    of the series that was being analysed, so many of them are borne. They are bounded all the same, for the series that
    takes the whole machine down each time.
    """
    if attempts >= max_attempts:
        return f"{attempts} attempts ended without a result"
    if takeovers >= max_takeovers:
        return f"the node ended {takeovers} times during its analysis"
    return None


def decide(
    policy: RetryPolicy, error: Exception, *, attempts: int, now: datetime, chance: float = 0.5
) -> Defer | GiveUp:
    """The decision after an attempt failed with `error`; `attempts` counts it; `chance` as for the delay.

    Only `Transient` is tried again: every other error would come back unchanged. A full disk is waited
    for, however long.
    """
    if not isinstance(error, Transient):
        return GiveUp(reason=str(error))
    if isinstance(error, DiskFull):
        return Defer(not_before=now + timedelta(seconds=policy.delay_seconds(1, chance)), counts=False)
    if attempts >= policy.max_attempts:
        return GiveUp(reason=f"{error} (attempt {attempts} of {policy.max_attempts})")
    return Defer(not_before=now + timedelta(seconds=policy.delay_seconds(attempts, chance)))
