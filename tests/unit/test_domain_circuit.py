"""A destination that does not answer is left alone for a while."""

from __future__ import annotations

from pulmo_node.domain.circuit import Circuit
from pulmo_node.domain.retry import RetryPolicy

POLICY = RetryPolicy(max_attempts=20, first_delay_seconds=5, max_delay_seconds=60, jitter=0.2)


def test_closed_at_first() -> None:
    assert Circuit().allows(0.0)


def test_open_for_the_delay_then_one_attempt_decides() -> None:
    opened = Circuit().after_failure(POLICY, 100.0, chance=0.5)
    assert not opened.allows(104.9)
    assert opened.allows(105.0)


def test_longer_with_each_failure_up_to_the_limit() -> None:
    circuit, waits = Circuit(), []
    for _ in range(6):
        circuit = circuit.after_failure(POLICY, 0.0, chance=0.5)
        waits.append(circuit.open_until_seconds)
    assert waits == [5, 10, 20, 40, 60, 60]


def test_spread_by_chance() -> None:
    early, late = (Circuit().after_failure(POLICY, 0.0, chance).open_until_seconds for chance in (0.0, 1.0))
    assert (early, late) == (4.0, 6.0)
