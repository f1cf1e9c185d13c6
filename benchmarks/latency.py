"""How long a radiologist waits: from the last C-STORE response, the quiet period excluded, to the SR in the PACS.

    python -m benchmarks.latency [--out bench-out] [--repeats 3] [--quick]

A node that serves in a process of its own, configured by its defaults, and a real Orthanc. `storescu` sends 300 slices
of 512 x 512; time counts from the moment when the last instance was committed (which its C-STORE response follows)
plus the quiet period, to the moment when Orthanc answered the C-STORE of the report, by the same clock.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks import report
from benchmarks.report import Options, Row, Table, row
from benchmarks.scene import FINE, SYNTAXES, USUAL, Chest, Scene, chest, scene

_SLICES, _QUICK_SLICES = 300, 60
_GOAL_SECONDS = 15.0


def run(options: Options) -> Table:
    """One series after the other through one node, every transfer syntax in turn."""
    slices = _QUICK_SLICES if options.quick else _SLICES
    fine, usual = chest(options, FINE), chest(options, USUAL)
    series = [(usual, syntax) for syntax in SYNTAXES]
    if fine.name != usual.name:
        series.append((fine, "uncompressed"))
    measured: list[list[Mapping[str, float]]] = [[] for _ in series]
    with tempfile.TemporaryDirectory() as scratch, scene(Path(scratch), options) as stage:
        for number in range(options.repeats):
            for (source, syntax), found in zip(series, measured, strict=True):
                folder = Path(scratch) / f"{number} {source.name} {syntax}"
                found.append(_one(stage, source, folder, slices, syntax))
    rows: list[Row] = []
    for (source, syntax), found in zip(series, measured, strict=True):
        rows.append(row(f"{source.name}, {slices} slices, {syntax}", [each["total"] for each in found], "s"))
        rows += [row(f"... {step}", [each[step] for each in found], "s") for step in found[0] if step != "total"]
    totals = [[each["total"] for each in found] for found in measured]
    medians = ", ".join(
        f"{source.name} {statistics.median(found):.1f} s"
        for (source, syntax), found in zip(series, totals, strict=True)
        if syntax == "uncompressed"
    )
    first, others = totals[0][0], totals[0][1:]
    notes = [
        f"Goal: {_GOAL_SECONDS:.0f} s for 300 slices on two processors; the medians of the uncompressed series are "
        f"{medians}.",
        f"The first study after the start took {first:.1f} s"
        + (f", those like it later {statistics.median(others):.1f} s." if others else "."),
        "The report is the first object that is sent; segmentation and key images follow (`rest sent`).",
    ]
    return Table(
        name="latency",
        title="Latency: from the last image to the report in the PACS",
        protocol=(
            f"{' and '.join(dict.fromkeys((usual.name, fine.name)))}, interpolated along the patient to {slices} "
            "slices of 512 x 512, sent by storescu to `pulmo-node serve` with its default configuration; results go "
            "to Orthanc. From the commit of the last instance plus the quiet period (10 s) to Orthanc's answer to the "
            "C-STORE of the report. `complete` is the time from the end of the quiet period to the queued job, "
            "`start` what is in no step of the analysis, `doubt` stage 1's candidates near the threshold, `send` from "
            f"the encoded job to the stored report. {options.repeats} series of each kind, in turn."
        ),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _one(stage: Scene, source: Chest, folder: Path, slices: int, syntax: str) -> Mapping[str, float]:
    study = source.write(folder, slices, uid_name=str(folder), syntax=syntax)
    stage.send(folder, syntax)
    stage.wait_until_done(study)
    if not stage.holds_report(study):
        raise SystemExit(f"Orthanc holds no report of study {study}")
    for path in folder.iterdir():
        path.unlink()
    at, steps = stage.moments(study), stage.timings()[-1]
    analysis = (at["encoded"] - at["queued"]).total_seconds()
    return {
        "total": (at["report sent"] - at["quiet"]).total_seconds(),
        "complete": (at["queued"] - at["quiet"]).total_seconds(),
        "start": analysis - sum(steps.values()),
        **steps,
        "send": (at["report sent"] - at["encoded"]).total_seconds(),
        "rest sent": (at["all sent"] - at["report sent"]).total_seconds(),
    }


if __name__ == "__main__":
    report.main(run, __doc__)
