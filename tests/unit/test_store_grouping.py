"""Group commit by itself: who shares a transaction, who waits for whom, and whom an error reaches."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from pulmo_node.store.grouping import GroupCommit

WAIT_SECONDS = 120.0


class Written:
    """Keeps what was written together; the first write waits until it is let go."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.first_began = threading.Event()
        self.go_on = threading.Event()

    def write_all(self, items: Sequence[int]) -> list[str]:
        if not self.groups:
            self.first_began.set()
            assert self.go_on.wait(WAIT_SECONDS)
        if any(item < 0 for item in items):
            raise ValueError(f"{sorted(items)}")
        self.groups.append(list(items))
        return [f"outcome {item}" for item in items]


def written_behind_a_first(written: Written, items: Sequence[int]) -> list[str | BaseException]:
    """Outcomes of the items, all of which are waiting while item 0 is being written."""
    group = GroupCommit(written.write_all)
    with ThreadPoolExecutor(len(items) + 1) as pool:
        first = pool.submit(group.write, 0)
        assert written.first_began.wait(WAIT_SECONDS)
        rest = [pool.submit(group.write, item) for item in items]
        while len(group._waiting) < len(items):
            threading.Event().wait(0.001)
        written.go_on.set()
        assert first.result(WAIT_SECONDS) == "outcome 0"
        return [one.exception(WAIT_SECONDS) or one.result(WAIT_SECONDS) for one in rest]


def test_alone_it_is_a_transaction_of_its_own() -> None:
    written = Written()
    written.go_on.set()
    group = GroupCommit(written.write_all)
    assert [group.write(item) for item in (1, 2, 3)] == ["outcome 1", "outcome 2", "outcome 3"]
    assert written.groups == [[1], [2], [3]]


def test_what_waits_shares_the_next_transaction_and_each_gets_its_own_outcome() -> None:
    written = Written()
    assert written_behind_a_first(written, [1, 2, 3, 4]) == [f"outcome {item}" for item in (1, 2, 3, 4)]
    assert [sorted(group) for group in written.groups] == [[0], [1, 2, 3, 4]]


def test_an_error_reaches_only_whom_it_concerns() -> None:
    written = Written()
    outcomes = written_behind_a_first(written, [1, -2, 3])
    assert [str(outcome) for outcome in outcomes] == ["outcome 1", "[-2]", "outcome 3"]
    assert sorted(written.groups) == [[0], [1], [3]]


def test_after_an_error_it_goes_on() -> None:
    written = Written()
    written.go_on.set()
    group = GroupCommit(written.write_all)
    with pytest.raises(ValueError, match="-1"):
        group.write(-1)
    assert group.write(1) == "outcome 1"
