"""A short run of the fuzzing (`make fuzz` is the long one), and that its harness notices what it must."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from pulmo_node.assemble import RejectionCode
from pulmo_node.errors import Rejected
from tests.fuzz import cases
from tests.fuzz.__main__ import Report, fuzz
from tests.fuzz.cases import FAULT, MEMORY_BYTES, Case, bench, guarded
from tests.fuzz.mutations import BOMB_BYTES, SYNTAXES, deflated

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom warns of every malformed value


def test_spoiled_series_end_as_accepted_or_with_a_code() -> None:
    report = fuzz(150, random_seed=7)
    assert len(report.cases) == 150
    # By the outcome alone: how long a case takes by the clock is for `make fuzz`, on a machine with nothing else to do.
    assert not any(case.outcome.startswith(FAULT) for case in report.cases), str(report)
    assert report.peak_bytes < MEMORY_BYTES
    outcomes = {case.outcome for case in report.cases}
    assert {"accepted", RejectionCode.UNREADABLE, RejectionCode.DECODE_FAILED} <= outcomes


def test_good_series_are_accepted_in_every_syntax(tmp_path: Path) -> None:
    """Else the fuzzing would look at nothing but refusals."""
    with bench(tmp_path) as running:
        assert {str(seed.syntax) for seed in running.seeds} == set(SYNTAXES)
        for good in running._good:
            assert cases.assembled(good) == "accepted"
            assert running._received(list(good), [0]) == "accepted"


def test_a_case_repeats_by_its_number(tmp_path: Path) -> None:
    with bench(tmp_path) as running:
        one, other = (running.run(5, 7) for _ in range(2))
    assert (one.syntax, one.mutation, one.outcome) == (other.syntax, other.mutation, other.outcome)


def test_a_bomb_is_small_and_inflates_to_what_it_says() -> None:
    data = deflated(b"head" + BOMB_BYTES.to_bytes(4, "little"))
    assert len(data) < BOMB_BYTES / 500
    assert len(zlib.decompress(data, -zlib.MAX_WBITS)) == 8 + BOMB_BYTES


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), MemoryError(), RecursionError("deep"), KeyError("Rows")])
def test_what_must_not_be_raised_is_a_fault(error: Exception) -> None:
    def fails() -> str:
        raise error

    assert guarded(fails).startswith(f"{FAULT}: {type(error).__name__}")


def test_a_rejection_is_no_fault() -> None:
    def refuses() -> str:
        raise Rejected(RejectionCode.NOT_HU, "x")

    assert guarded(refuses) == "NOT_HU"


def test_a_slow_case_and_a_dead_process_are_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Case(number=1, syntax="", mutation="", outcome="accepted", seconds=5.1)
    quick = Case(number=2, syntax="", mutation="", outcome="accepted", seconds=0.1)
    assert Report(cases=[slow, quick]).faults == [slow]
    dies = """if True:
        import os, sys
        print('{"begins": %s}' % sys.argv[1], flush=True)
        os.abort()
    """
    monkeypatch.setattr("tests.fuzz.__main__._COMMAND", ("-c", dies))
    report = fuzz(2, first=3)
    assert [(case.number, case.outcome) for case in report.faults] == [
        (3, f"{FAULT}: the process ended with status -6"),
        (4, f"{FAULT}: the process ended with status -6"),
    ]
