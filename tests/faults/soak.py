"""A node that works for a long time: a study every few seconds, and nothing that it holds may grow.

Memory, descriptors and threads of the node and its processes, and the write-ahead log, are measured after every study.
The second half of the run is compared with the second quarter: in the first, what is loaded once is loaded.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pulmo_node.testing import SmallPacs
from tests.faults.node import NodeProcess, wait_for
from tests.faults.studies import make_study, send
from tests.faults.table import Outcome

_OBJECTS = 2  # of a study: SR and SEG
_MIB = 1 << 20
_MOST_GROWTH_BYTES = 16 * _MIB  # of the median of a half; allocators breathe
_MOST_GROWTH = 3  # descriptors or threads
_MOST_WAL_BYTES = 16 * _MIB  # SQLite checkpoints at 1000 pages of 4 KiB; a reader may hold it up for a while

CONFIGURATION: dict[str, dict[str, Any]] = {"receive": {"quiet_seconds": 0.5}}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the node held after a study."""

    rss_bytes: int
    descriptors: int
    threads: int
    wal_bytes: int


def run(folder: Path, seed: int, *, seconds: float, pause_seconds: float) -> Outcome:
    """Studies for that long, each begun so long after the one before; each is waited for."""
    samples: list[Sample] = []
    with SmallPacs(folder / "pacs") as pacs, NodeProcess(folder / "node", CONFIGURATION, peers=[pacs.peer]) as node:
        until = time.monotonic() + seconds
        while time.monotonic() < until or len(samples) < 8:
            begun = time.monotonic()
            study = make_study(folder / "studies", seed, len(samples))
            send(node.peer, study.files)
            expected = (len(samples) + 1) * _OBJECTS
            wait_for(lambda: len(pacs.stored) >= expected, 120.0, "the results of a study")  # noqa: B023
            shutil.rmtree(study.files[0].parent)
            samples.append(_sample(node))
            time.sleep(max(0.0, begun + pause_seconds - time.monotonic()))
    early, late = samples[len(samples) // 4 : len(samples) // 2], samples[len(samples) // 2 :]
    failures = growth(early, late)
    peak = max(sample.wal_bytes for sample in samples)
    return Outcome(
        fault="soak",
        done=f"{seconds / 60:.0f} minutes, {len(samples)} studies one after the other",
        found=f"second half against the second quarter: memory {_median(early, 'rss_bytes') / _MIB:.0f} -> "
        f"{_median(late, 'rss_bytes') / _MIB:.0f} MiB, descriptors {_median(early, 'descriptors'):.0f} -> "
        f"{_median(late, 'descriptors'):.0f}, threads {_median(early, 'threads'):.0f} -> {_median(late, 'threads'):.0f}"
        f"; write-ahead log at most {peak / _MIB:.1f} MiB",
        failures=tuple(failures),
    )


def growth(early: Sequence[Sample], late: Sequence[Sample]) -> list[str]:
    """What grew by more than it may, one sentence each."""
    failures = []
    for what, most in (("rss_bytes", _MOST_GROWTH_BYTES), ("descriptors", _MOST_GROWTH), ("threads", _MOST_GROWTH)):
        before, after = _median(early, what), _median(late, what)
        if after - before > most:
            failures.append(f"{what} grew from {before:.0f} to {after:.0f}")
    largest = max(sample.wal_bytes for sample in late)
    if largest > _MOST_WAL_BYTES:
        failures.append(f"the write-ahead log grew to {largest} bytes")
    return failures


def _median(samples: Sequence[Sample], what: str) -> float:
    return float(statistics.median(getattr(sample, what) for sample in samples))


def _sample(node: NodeProcess) -> Sample:
    held = node.resources()
    wal = node.storage / "pulmo.sqlite-wal"
    return Sample(
        rss_bytes=held.rss_bytes,
        descriptors=held.descriptors,
        threads=held.threads,
        wal_bytes=wal.stat().st_size if wal.exists() else 0,
    )
