"""All parts of the benchmark, each in a process of its own, and one page of their tables: `make bench`.

    python -m benchmarks [PART ...] [--out bench-out] [--quick] [--repeats 3] [--data FOLDER] [--device auto]

Writes NAME.json and NAME.md of every table and `bench.json` and `BENCHMARKS.md` of all of them into the folder. A part
that cannot be measured here is named with the reason; one that fails makes the whole fail, after the others have run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks import report

PARTS = ("engine", "assembly", "ingest", "latency", "memory", "throughput", "web")


def main() -> None:
    """Run the parts one after the other and join what they wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    report.add_options(parser)
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    options, facts = report.options_of(arguments), report.machine()
    results: list[tuple[str, str]] = []
    for part in arguments.parts or PARTS:
        print(f"# {part}", flush=True)
        results.append((part, measured(part, options)))
    fragments = [path for path in sorted(options.out.glob("*.json")) if path.name != "bench.json"]
    write_all(options.out, facts, fragments)
    for part, problem in results:
        if problem:
            print(f"{part}: {problem}")
    if any(problem.startswith("failed") for _, problem in results):
        raise SystemExit(1)


def measured(part: str, options: report.Options) -> str:
    """Run one part; empty, or why there is no result."""
    command = [sys.executable, "-m", f"benchmarks.{part}", "--out", str(options.out), "--repeats", str(options.repeats)]
    command += ["--device", options.device, *(["--quick"] if options.quick else [])]
    command += ["--data", str(options.data)] if options.data else []
    status = subprocess.run(command, check=False).returncode
    if status == report.EXIT_UNAVAILABLE:
        return "not measured here, see above"
    return f"failed with status {status}" if status else ""


def write_all(out: Path, facts: dict[str, object], fragments: list[Path]) -> None:
    """Join the tables that lie in ``out``, those of earlier runs included, each with its own machine and time."""
    tables = [json.loads(path.read_text(encoding="utf-8")) for path in fragments]
    (out / "bench.json").write_text(json.dumps({"machine": facts, "tables": tables}, indent=1) + "\n", encoding="utf-8")
    parts = ["# Benchmarks", "", report.told(facts), ""]
    for path, table in zip(fragments, tables, strict=True):
        at, load = table["machine"]["at"], (table["machine"]["load"], table["load_at_end"])
        parts += [
            path.with_suffix(".md").read_text(encoding="utf-8"),
            f"Measured {at}, load {load[0]} to {load[1]}.",
            "",
        ]
    (out / "BENCHMARKS.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
