"""Fuzz receive and assemble: `python -m tests.fuzz [--files 20000] [--seed 1] [--first 0]`.

Each case is a small CT series of which one file (or, one time in ten, every file) is spoiled: bit flips, truncations,
wrong lengths, huge Rows and Columns, absurd spacing, nested sequences, decompression bombs, in 13 transfer syntaxes
and as Enhanced CT. It is sent by C-STORE to a real receiver and assembled from the store, or read from a folder.
Everything happens in a process of 1 GiB of address space. A case must end as accepted or with a code: an unexpected
exception, an internal error of the receiver, a crash, more than 5 s, or memory that is not enough is a fault, and the
exit status is 1. `--first N --files 1` with the same seed repeats case N.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.fuzz.cases import FAULT, MEMORY_BYTES, Case

MOST_SECONDS = 5.0  # a case
_COMMAND = ("-m", "tests.fuzz.cases")
_SILENCE_SECONDS = 120.0  # after which the process is ended; also covers its start


@dataclass(kw_only=True)
class Report:
    """What became of all cases."""

    cases: list[Case] = field(default_factory=list)
    peak_bytes: int = 0
    peak_bytes_of_a_decoder: int = 0

    @property
    def faults(self) -> list[Case]:
        """Cases that must not have ended so."""
        return [case for case in self.cases if case.outcome.startswith(FAULT) or case.seconds > MOST_SECONDS]

    def __str__(self) -> str:
        outcomes = Counter(case.outcome for case in self.cases)
        mutations = Counter(case.mutation.removesuffix(" in a folder") for case in self.cases)
        slowest = max(self.cases, key=lambda case: case.seconds)
        lines = [
            f"{len(self.cases)} spoiled series",
            *(f"  {count:6} {outcome}" for outcome, count in outcomes.most_common()),
            "by " + ", ".join(f"{name} {count}" for name, count in sorted(mutations.items())),
            "slowest: " + _line(slowest),
            f"peak memory {self.peak_bytes >> 20} MiB, and {self.peak_bytes_of_a_decoder >> 20} MiB of a process that "
            "decodes",
            f"{len(self.faults)} faults",
            *(f"  {_line(case)}" for case in self.faults[:50]),
        ]
        return "\n".join(lines)


def _line(case: Case) -> str:
    return f"case {case.number}, {case.seconds:.1f} s, {case.syntax}, {case.mutation}: {case.outcome}"


def fuzz(files: int, random_seed: int = 1, first: int = 0) -> Report:
    """Run that many cases; a process that dies or falls silent is a fault, and the next one goes on behind it."""
    report = Report()
    number, last = first, first + files
    while number < last:
        number = _run_process(number, last, random_seed, report)
    return report


def _run_process(first: int, last: int, random_seed: int, report: Report) -> int:
    """Run cases in one process; the number of the first case that it did not come to."""
    process = subprocess.Popen(
        [sys.executable, *_COMMAND, str(first), str(last), str(random_seed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    current, began = first, time.monotonic()
    how = ""
    if process.stdout is None:
        raise RuntimeError("no pipe to the process")
    with process.stdout as stdout, selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(_SILENCE_SECONDS):
                process.kill()
                how = "no end"
                break
            line = stdout.readline()
            if not line:
                break
            message = json.loads(line)
            if "begins" in message:
                current, began = message["begins"], time.monotonic()
            elif "outcome" in message:
                report.cases.append(Case(**message))
                current += 1
            else:
                report.peak_bytes = max(report.peak_bytes, message["peak_bytes"])
                report.peak_bytes_of_a_decoder = max(report.peak_bytes_of_a_decoder, message["peak_bytes_of_a_decoder"])
    process.wait()
    if current < last:
        how = how or f"the process ended with status {process.returncode}"
        seconds = time.monotonic() - began
        outcome = f"{FAULT}: {how}"
        report.cases.append(Case(number=current, syntax="?", mutation="?", outcome=outcome, seconds=seconds))
        current += 1
    return current


def main() -> int:
    """Run, print the report, exit with 1 where there were faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    report = fuzz(arguments.files, arguments.seed, arguments.first)
    print(report)
    return 1 if report.faults or report.peak_bytes >= MEMORY_BYTES else 0


if __name__ == "__main__":
    sys.exit(main())
