"""What the parts of `make bench` have in common: options, tables of medians and ratios, JSON and Markdown.

A part is a module of this package with `run(options) -> Table` (or several tables) that ends with

    if __name__ == "__main__":
        report.main(run, __doc__)

so that it runs alone (`python -m benchmarks.latency`) and as one of the parts of `python -m benchmarks`.
Alternatives are measured in the same run, one after the other in turn (`in_turn`), so that a change of the machine's
load meets them all. A part that cannot run here raises `Unavailable` and says what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

_PACKAGES = (
    "torch", "openvino", "monai", "numpy", "scipy", "SimpleITK", "pydicom", "pynetdicom", "highdicom", "python-gdcm",
)  # fmt: skip
EXIT_UNAVAILABLE = 3
"""Exit status of a part that cannot be measured here."""


class Unavailable(Exception):
    """A part cannot be measured on this machine; the message is one sentence on what is missing."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a part is run."""

    out: Path = Path("bench-out")  # folder of JSON, Markdown and plots
    data: Path | None = None  # folder of the test data, as the tests find it; None where there is none
    repeats: int = 3  # of every measurement; the table tells median, smallest and largest
    quick: bool = False  # a fraction of the sizes: to see that it works, no figure to quote
    device: str = "auto"  # as in `analysis.device`


@dataclass(frozen=True, kw_only=True)
class Row:
    """One quantity, measured one or more times."""

    name: str
    median: float
    minimum: float
    maximum: float
    unit: str
    ratio: float | None = None  # above 1 means better than `of`
    of: str = ""  # what the ratio compares with
    note: str = ""

    def __post_init__(self) -> None:
        if not self.minimum <= self.median <= self.maximum:
            raise ValueError(f"{self.name}: the median {self.median} is not between {self.minimum} and {self.maximum}")
        if (self.ratio is None) != (not self.of):
            raise ValueError(f"{self.name}: a ratio and what it is of go together")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows with what a reader needs to judge them."""

    name: str  # of its files: letters, digits, hyphens
    title: str
    protocol: str  # what was measured, on what, and how; one paragraph
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()  # what was found besides: equality, differences with their scores, what limits
    plots: tuple[str, ...] = ()  # file names in `Options.out`
    facts: Mapping[str, object] = field(default_factory=dict)  # anything else for the JSON


Run = Callable[[Options], "Table | Sequence[Table]"]


def row(name: str, samples: Sequence[float], unit: str, note: str = "") -> Row:
    """A row without a ratio."""
    return Row(
        name=name, median=statistics.median(samples), minimum=min(samples), maximum=max(samples), unit=unit, note=note
    )


def compared(ours: Row, theirs: Row, *, higher_is_better: bool = False) -> Row:
    """``ours`` with the ratio of the medians: how many times better than ``theirs``, whatever the unit means."""
    if ours.unit != theirs.unit:
        raise ValueError(f"{ours.name} in {ours.unit} cannot be compared with {theirs.name} in {theirs.unit}")
    better, worse = (ours, theirs) if higher_is_better else (theirs, ours)
    return Row(**asdict(ours) | {"ratio": better.median / worse.median, "of": theirs.name})


def in_turn(sides: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """What each side returns, ``repeats`` times, the sides taking turns (A B C A B C ...)."""
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, measure in sides.items():
            samples[name].append(measure())
    return samples


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def machine() -> dict[str, object]:
    """Processor, memory, versions, and the load at this moment."""
    facts: dict[str, object] = {
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": _system(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    facts["packages"] = {name: version for name in _PACKAGES if (version := _version(name))}
    return facts


def told(facts: Mapping[str, object]) -> str:
    """`machine` in one sentence."""
    packages = facts["packages"]
    versions = (
        ", ".join(f"{name} {version}" for name, version in packages.items()) if isinstance(packages, dict) else ""
    )
    return (
        f"Machine: {facts['processor']}, {facts['processors']} processors, {facts['memory_gib']} GiB, "
        f"{facts['system']}; Python {facts['python']}, {versions}."
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def markdown(table: Table) -> str:
    """The table as a section of BENCHMARKS.md."""
    lines = [f"## {table.title}", "", table.protocol, ""]
    lines += ["| | median | smallest | largest | | ratio | of | |", "|---|---:|---:|---:|---|---:|---|---|"]
    for each in table.rows:
        ratio = "" if each.ratio is None else f"{figure(each.ratio)}×"
        numbers = " | ".join(figure(value) for value in (each.median, each.minimum, each.maximum))
        lines.append(f"| {each.name} | {numbers} | {each.unit} | {ratio} | {each.of} | {each.note} |")
    lines += [""] + [f"- {note}" for note in table.notes] + ([""] if table.notes else [])
    for plot in table.plots:
        lines += [f"![{table.title}]({plot})", ""]
    return "\n".join(lines)


def figure(value: float) -> str:
    """Three significant digits, no exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def write(table: Table, out: Path, facts: Mapping[str, object]) -> None:
    """Write ``NAME.json`` and ``NAME.md`` into ``out``; ``facts`` are those of `machine` at the start of the part."""
    out.mkdir(parents=True, exist_ok=True)
    content = {"machine": dict(facts), "load_at_end": round(os.getloadavg()[0], 2)} | asdict(table)
    (out / f"{table.name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (out / f"{table.name}.md").write_text(markdown(table), encoding="utf-8")


def main(run: Run, doc: str | None, arguments: Sequence[str] | None = None) -> None:
    """Command line of one part: run it, print its tables, write them."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = options_of(parser.parse_args(arguments))
    facts = machine()
    try:
        result = run(options)
    except Unavailable as exc:
        print(f"not measured: {exc}", flush=True)
        raise SystemExit(EXIT_UNAVAILABLE) from exc
    for table in tables_of(result):
        write(table, options.out, facts)
        print(markdown(table), flush=True)


def tables_of(result: Table | Sequence[Table]) -> Iterable[Table]:
    """What a part returned, as tables."""
    return [result] if isinstance(result, Table) else result


def add_options(parser: argparse.ArgumentParser) -> None:
    """The arguments that every part takes."""
    data = Path(os.environ.get("PULMO_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser.add_argument("--out", type=Path, default=Options.out, help="folder of the results (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=data if data.is_dir() else None, help="folder of the test data")
    parser.add_argument("--repeats", type=int, default=Options.repeats, help="of every measurement (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works; no figure to quote")
    parser.add_argument("--device", default=Options.device, help="as in analysis.device (%(default)s)")


def options_of(arguments: argparse.Namespace) -> Options:
    """The options of `add_options` as they were given."""
    return Options(
        out=arguments.out,
        data=arguments.data,
        repeats=arguments.repeats,
        quick=arguments.quick,
        device=arguments.device,
    )
