"""Whether a destination is tried at all. While it does not answer, nothing is sent to it but one probe now and then.

Kept in memory: a node that starts does not know how its peers are, and asks.
"""

from __future__ import annotations

from dataclasses import dataclass

from pulmo_node.domain.retry import RetryPolicy


@dataclass(frozen=True, kw_only=True)
class Circuit:
    """Closed: work is sent as it comes. Open: nothing before `open_until_seconds`; the attempt after that decides.

    Times are those of a clock that never jumps (seconds of `time.monotonic`).
    """

    failures: int = 0  # associations in a row that failed
    open_until_seconds: float | None = None

    def allows(self, now_seconds: float) -> bool:
        """Whether the destination may be tried."""
        return self.open_until_seconds is None or now_seconds >= self.open_until_seconds

    def after_failure(self, policy: RetryPolicy, now_seconds: float, chance: float) -> Circuit:
        """Open, longer with each failure in a row; `chance` (0..1) spreads the delay, see `RetryPolicy`."""
        failures = self.failures + 1
        return Circuit(failures=failures, open_until_seconds=now_seconds + policy.delay_seconds(failures, chance))
