"""What follows a failed attempt."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pulmo_node.domain.retry import Defer, GiveUp, RetryPolicy, decide, quarantine_reason
from pulmo_node.errors import ConfigError, DiskFull, InvalidTransition, Permanent, Rejected, StaleJob, Transient

NOW = datetime(2026, 3, 29, 0, 59, 30, tzinfo=UTC)
POLICY = RetryPolicy(max_attempts=4, first_delay_seconds=10, factor=3, max_delay_seconds=60)


class TestDelay:
    @pytest.mark.parametrize(("attempts", "seconds"), [(1, 10), (2, 30), (3, 60), (4, 60), (1000, 60)])
    def test_grows_up_to_the_limit(self, attempts: int, seconds: float) -> None:
        assert POLICY.delay_seconds(attempts) == seconds

    def test_defaults_double_up_to_an_hour(self) -> None:
        policy = RetryPolicy(max_attempts=3, first_delay_seconds=1)
        assert [policy.delay_seconds(n) for n in (1, 2, 3, 12, 13)] == [1, 2, 4, 2048, 3600]

    def test_no_overflow_after_many_attempts(self) -> None:
        policy = RetryPolicy(max_attempts=10**7, first_delay_seconds=5, factor=1000)
        assert policy.delay_seconds(10**6) == 3600

    def test_chance_spreads_it_to_both_sides(self) -> None:
        policy = RetryPolicy(max_attempts=3, first_delay_seconds=10, max_delay_seconds=20, jitter=0.2)
        assert [policy.delay_seconds(1, chance) for chance in (0.0, 0.5, 1.0)] == pytest.approx([8, 10, 12])
        assert policy.delay_seconds(9, 1.0) == pytest.approx(24)

    def test_the_decision_carries_it(self) -> None:
        policy = RetryPolicy(max_attempts=3, first_delay_seconds=10, jitter=0.5)
        decision = decide(policy, Transient("peer busy"), attempts=1, now=NOW, chance=0.0)
        assert decision == Defer(not_before=NOW + timedelta(seconds=5))


class TestDecide:
    @pytest.mark.parametrize(("attempts", "seconds"), [(1, 10), (2, 30), (3, 60)])
    def test_transient_is_tried_again_later(self, attempts: int, seconds: float) -> None:
        decision = decide(POLICY, Transient("peer busy"), attempts=attempts, now=NOW)
        assert decision == Defer(not_before=NOW + timedelta(seconds=seconds))

    @pytest.mark.parametrize("attempts", [1, 4, 1000])
    def test_a_full_disk_is_waited_for_and_costs_no_attempt(self, attempts: int) -> None:
        decision = decide(POLICY, DiskFull("no space left"), attempts=attempts, now=NOW)
        assert decision == Defer(not_before=NOW + timedelta(seconds=10), counts=False)

    @pytest.mark.parametrize("attempts", [4, 5])
    def test_transient_is_given_up_after_the_last_attempt(self, attempts: int) -> None:
        decision = decide(POLICY, Transient("peer busy"), attempts=attempts, now=NOW)
        assert decision == GiveUp(reason=f"peer busy (attempt {attempts} of 4)")

    @pytest.mark.parametrize(
        "error",
        [
            Permanent("refused with 0xA900"),
            Rejected("NOT_AXIAL", "the series is not axial"),
            ConfigError(["peers: none"]),
            StaleJob("late"),
            InvalidTransition("no"),
            ValueError("a bug"),
        ],
    )
    def test_everything_else_is_given_up_at_once(self, error: Exception) -> None:
        assert decide(POLICY, error, attempts=1, now=NOW) == GiveUp(reason=str(error))


class TestQuarantine:
    @pytest.mark.parametrize(
        ("attempts", "takeovers", "reason"),
        [
            (0, 0, None),
            (2, 0, None),
            (3, 0, "3 attempts ended without a result"),
            (4, 9, "4 attempts ended without a result"),
            (0, 3, None),  # power cuts are no attempts
            (2, 9, None),
            (0, 10, "the node ended 10 times during its analysis"),
            (2, 11, "the node ended 11 times during its analysis"),
        ],
    )
    def test_each_has_a_bound_of_its_own(self, attempts: int, takeovers: int, reason: str | None) -> None:
        found = quarantine_reason(attempts=attempts, max_attempts=3, takeovers=takeovers, max_takeovers=10)
        assert found == reason
