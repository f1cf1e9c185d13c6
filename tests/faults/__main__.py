"""Every fault at full size: `python -m tests.faults [--seed 1] [--only kill,disk,pacs,load,network,soak]`.

Without `--only` all but the soak, which takes half an hour by itself. Needs Orthanc (kill), and root (disk).
Prints the table that the README shows; exits with 1 where something happened that must not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pulmo_node.errors import Permanent
from tests.faults import destinations, full_disk, hostile, killing, load, soak
from tests.faults.table import Outcome, table


def main() -> int:
    """Run what was asked for, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--cases", type=int, default=20_000, help="spoiled conversations")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the soak")
    parser.add_argument("--only", default="", help="names of faults, with commas")
    parser.add_argument("--folder", type=Path, help="where the nodes keep their things; left there")
    arguments = parser.parse_args()
    seed = arguments.seed
    faults: dict[str, Callable[[Path], Outcome]] = {
        "kill": lambda folder: killing.run(folder, seed, arguments.kills),
        "disk": lambda folder: full_disk.run(folder, seed, rounds=10),
        "pacs": lambda folder: destinations.run(folder, seed, rounds=4),
        "load": lambda folder: load.run(
            folder, seed, studies=20, shape=(300, 512, 512), refused=100, most_rss_bytes=4 * 1024**3
        ),
        "network": lambda folder: hostile.run(
            folder, seed, cases=arguments.cases, slow=60, most_growth_bytes=64 * 1024**2
        ),
        "soak": lambda folder: soak.run(folder, seed, seconds=60 * arguments.minutes, pause_seconds=3.0),
    }
    chosen = [name for name in arguments.only.split(",") if name] or [name for name in faults if name != "soak"]
    unknown = [name for name in chosen if name not in faults]
    if unknown:
        parser.error(f"no fault {', '.join(unknown)}; there are {', '.join(faults)}")
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in chosen:
            print(f"{name} ...", file=sys.stderr, flush=True)
            folder = (arguments.folder or Path(temporary)).resolve() / name
            folder.mkdir(parents=True)
            try:
                outcomes.append(faults[name](folder))
            except (AssertionError, full_disk.CannotMount, Permanent) as exc:  # the others are run all the same
                outcomes.append(Outcome(fault=name, done="", found="not run to its end", failures=(str(exc),)))
            print(table(outcomes[-1:]), file=sys.stderr, flush=True)
    print(table(outcomes))
    return 1 if any(outcome.failures for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
