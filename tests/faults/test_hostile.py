"""A short part of the hostile network with a fixed seed."""

from __future__ import annotations

import random
from pathlib import Path

from tests.faults import hostile
from tests.faults.studies import make_study

SEED = 7
_MIB = 1 << 20


def test_hostile_network(tmp_path: Path) -> None:
    outcome = hostile.run(tmp_path, SEED, cases=300, slow=30, most_growth_bytes=32 * _MIB, limit_seconds=2.0)
    assert outcome.failures == ()


def test_spoiled_conversations_are_the_same_for_a_seed_and_differ_from_the_valid_one(tmp_path: Path) -> None:
    conversation = hostile.valid_conversation(make_study(tmp_path, SEED, 0))
    first = [hostile.spoil(conversation, random.Random(f"{SEED} {number}")) for number in range(100)]
    assert first == [hostile.spoil(conversation, random.Random(f"{SEED} {number}")) for number in range(100)]
    sent = [b"".join(parts) for parts in first]
    assert len(set(sent)) > 95
    assert sum(case == b"".join(conversation) for case in sent) < 10
