"""Peak memory and time of the analysis against the number of slices: 100 to 900, and that 1,500 do not fail.

    python -m benchmarks.memory [--out bench-out] [--quick]

Each series is analysed in a fresh process, as the node's analysis process does it: assembly, networks, encoding.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.assembly import resident_bytes
from benchmarks.report import Options, Row, Table, row
from benchmarks.scene import chest
from pulmo_node.analyse import Analyser
from pulmo_node.attempt import LocalAnalysis, SeriesRequest
from pulmo_node.config import resolve
from pulmo_node.encode import ResultContext, ResultOptions
from pulmo_node.outbox import FileOutbox

_SLICES, _QUICK_SLICES = (100, 300, 500, 700, 900, 1500), (40, 60, 80)
_FITTED = 900  # the line is fitted up to here; what lies beyond only must not fail
_VOXEL_BYTES = 4
_PLOT = "memory.png"


def run(options: Options) -> Table:
    """One process a series; memory and time of each, with the slope."""
    source = chest(options)
    counts = _QUICK_SLICES if options.quick else _SLICES
    found: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for count in counts:
            folder = Path(scratch) / str(count)
            source.write(folder, count, uid_name=f"memory {count}")
            found[count] = _measured(folder, options.device)
            for path in folder.iterdir():
                path.unlink()
    fitted = [count for count in counts if count <= _FITTED]
    volume_mib = {count: count * 512 * 512 * _VOXEL_BYTES / 2**20 for count in counts}
    memory = _line([(count, found[count]["peak_mib"]) for count in fitted])
    seconds = _line([(count, found[count]["seconds"]) for count in fitted])
    _plot(options.out, counts, found, memory, seconds)
    rows: list[Row] = []
    for count in counts:
        each = found[count]
        growth = each["peak_mib"] - each["loaded_mib"]
        note = f"{growth / volume_mib[count]:.2f} x the float32 volume beyond the process that is warmed up"
        rows.append(row(f"{count} slices, peak resident memory", [each["peak_mib"]], "MiB", note))
        steps = ", ".join(f"{name} {value:.1f} s" for name, value in each["timings"].items())
        rows.append(row(f"{count} slices, time", [each["seconds"]], "s", steps))
    notes = (
        f"Memory: {memory[1]:.0f} MiB + {memory[0]:.2f} MiB a slice (a slice of the float32 volume is 1.00 MiB), "
        f"R² {memory[2]:.3f}, up to {max(fitted)} slices.",
        f"Time: {seconds[1]:.1f} s + {1000 * seconds[0]:.0f} ms a slice, R² {seconds[2]:.3f}.",
        f"The largest, {max(counts)} slices, was analysed: {found[max(counts)]['nodules']} nodules reported.",
    )
    return Table(
        name="memory",
        title="Memory and time against the number of slices",
        protocol=(
            f"{source.name}, interpolated along the patient to the number of slices (512 x 512, uncompressed). One "
            "fresh process for each series does what the node's analysis process does, key images included; the "
            "process is warmed up before, as the node does at its start. Peak resident memory (VmHWM) of the process."
        ),
        rows=tuple(rows),
        notes=notes,
        plots=(_PLOT,),
        facts={"memory_line": memory, "time_line": seconds, "found": found},
    )


def _measured(folder: Path, device: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory", "--measure", str(folder), "--device", device]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{folder.name} slices: status {result.returncode}: {result.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def measure(folder: Path, device: str) -> None:
    """One series in this process; prints JSON."""
    paths = tuple(sorted(folder.iterdir()))
    with tempfile.TemporaryDirectory() as storage:
        config = resolve({"node": {"storage": storage}, "analysis": {"device": device}}, base=Path(storage))
        analyser = Analyser(config.pipelines, config.analysis.device, config.weights_folder)
        analysis = LocalAnalysis(analyser, FileOutbox(config.storage))
        analysis.warm_up(["ct-nodules"])
        loaded = resident_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        begun = perf_counter()
        result = analysis.run(
            SeriesRequest(
                pipeline="ct-nodules",
                paths=paths,
                study_paths=paths[:1],
                context=ResultContext(
                    series_instance_uid="1.2.3",
                    revision=1,
                    pipeline="ct-nodules",
                    settings_sha256="0" * 64,
                    content_datetime=datetime(2026, 1, 1, tzinfo=UTC),
                    options=ResultOptions(),
                ),
                outbox_key="1.2.3.4",
            )
        )
        seconds = perf_counter() - begun
    found = {
        "seconds": seconds,
        "peak_mib": resident_bytes("VmHWM") / 2**20,
        "loaded_mib": loaded / 2**20,
        "timings": dict(result.timings_seconds),
        "nodules": len(json.loads(result.findings_json)["nodules"]),
    }
    print(json.dumps(found))


def _line(points: list[tuple[int, float]]) -> tuple[float, float, float]:
    """Slope, intercept and R² of a straight line through the points."""
    x, y = (np.array(values, dtype=float) for values in zip(*points, strict=True))
    slope, intercept = np.polyfit(x, y, 1)
    rest = y - slope * x - intercept
    spread = float(((y - y.mean()) ** 2).sum())
    return float(slope), float(intercept), 1 - float((rest**2).sum()) / spread if spread else 1.0


def _plot(
    out: Path,
    counts: tuple[int, ...],
    found: dict[int, dict[str, Any]],
    memory: tuple[float, float, float],
    seconds: tuple[float, float, float],
) -> None:
    import matplotlib as mpl  # noqa: PLC0415 - of the extra [train]

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    out.mkdir(parents=True, exist_ok=True)
    figure, sides = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for side, key, line, unit in (
        (sides[0], "peak_mib", memory, "peak resident memory, MiB"),
        (sides[1], "seconds", seconds, "time, s"),
    ):
        side.plot(counts, [found[count][key] for count in counts], "o")
        ends = np.array([0, max(counts)])
        side.plot(ends, line[0] * ends + line[1], "-", linewidth=1)
        side.set(xlabel="slices of 512 x 512", ylabel=unit, ylim=(0, None), xlim=(0, None))
        side.grid(alpha=0.3)
    figure.savefig(out / _PLOT, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    if "--measure" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--measure", type=Path, required=True)
        parser.add_argument("--device", default="auto")
        chosen = parser.parse_args()
        measure(chosen.measure, chosen.device)
    else:
        report.main(run, __doc__)
