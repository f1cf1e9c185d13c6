"""A line of the table that `make faults` prints and the README shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one fault."""

    fault: str
    done: str  # what was done to the node
    found: str  # figures
    failures: tuple[str, ...] = field(default=())  # what must not have happened, one sentence each


def table(outcomes: Iterable[Outcome]) -> str:
    """As Markdown; failures below it."""
    lines = ["| fault | done | outcome |", "|---|---|---|"]
    failures = []
    for outcome in outcomes:
        verdict = "" if not outcome.failures else f" **{len(outcome.failures)} failures**"
        lines.append(f"| {outcome.fault} | {outcome.done} | {outcome.found}{verdict} |")
        failures += [f"{outcome.fault}: {failure}" for failure in outcome.failures]
    return "\n".join(lines + failures)
