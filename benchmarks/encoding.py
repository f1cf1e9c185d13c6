"""Time and size of the result objects of a long series: ten nodules over 300 slices of 512 x 512 pixels.

    python -m benchmarks.encoding [--slices 300] [--nodules 10] [--repeats 3]

The series is noise over a cylinder with two lungs in it, the nodules are balls of 4 to 22 mm in them. Files are in the
page cache; the fastest of the repeats counts. SR and SEG are what every analysis writes, the rest is by the options.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.assembly import SIDE, noise, ours, write_series
from pulmo_models.types import CONCEPT_NAMES, Axis, Concept, Findings, Mask, Nodule, PipelineInfo, Volume
from pulmo_node.encode import EncodedObject, ResultContext, ResultOptions, encode_findings

WITHOUT = ResultOptions(key_images=False)
ROWS = {  # name: options
    "SR and SEG, BINARY": WITHOUT,
    "SR and SEG, LABELMAP": ResultOptions(key_images=False, segmentation="labelmap"),
    "SR and SEG, BINARY, with lungs": ResultOptions(key_images=False, lung_segments=True),
    "SR and SEG, LABELMAP, with lungs": ResultOptions(key_images=False, segmentation="labelmap", lung_segments=True),
    "SR and SEG, BINARY, all frames": ResultOptions(key_images=False, empty_frames=True),
    "SR and SEG, LABELMAP, all frames": ResultOptions(key_images=False, segmentation="labelmap", empty_frames=True),
    "SR with image library, SEG": ResultOptions(key_images=False, image_library=True),
    "... and key images": ResultOptions(),
    "... and presentation states": ResultOptions(key_images=False, presentation_states=True),
    "... and PDF": ResultOptions(key_images=False, pdf_report=True),
}


def main() -> None:
    """Write a series, encode results under each set of options, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--nodules", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    processors, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(
        f"{arguments.nodules} nodules, {arguments.slices} slices of {SIDE} x {SIDE}, {processors} processors, "
        f"load {load:.1f}"
    )
    print("| objects | seconds | of the processor | SR | SEG | others |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        write_series(Path(scratch), noise(16), arguments.slices, "")
        volume = ours(sorted(Path(scratch).iterdir()))
        findings = findings_in(volume, arguments.nodules)
        for name, options in ROWS.items():
            context = ResultContext(
                series_instance_uid=volume.series.series_instance_uid,
                revision=1,
                pipeline="benchmark",
                settings_sha256="0" * 64,
                content_datetime=datetime(2026, 1, 1, tzinfo=UTC),
                options=options,
            )
            runs = [timed(lambda: encode_findings(findings, volume, context)) for _ in range(arguments.repeats)]  # noqa: B023
            objects = runs[0][2]
            print(
                f"| {name} | {min(run[0] for run in runs):.2f} | {min(run[1] for run in runs):.2f} "
                f"| {size(objects, 'sr')} | {size(objects, 'seg')} | {size(objects, 'key-image', 'gsps', 'pdf')} |",
                flush=True,
            )


def timed(work: Callable[[], Sequence[EncodedObject]]) -> tuple[float, float, Sequence[EncodedObject]]:
    """Seconds by the clock and of the processor, and what came out."""
    start, processor = time.perf_counter(), time.process_time()
    objects = work()
    return time.perf_counter() - start, time.process_time() - processor, objects


def size(objects: Sequence[EncodedObject], *kinds: str) -> str:
    """Bytes of the objects of these kinds together."""
    total = sum(len(each.content) for each in objects if each.kind in kinds)
    return f"{total / 1e6:.2f} MB" if total else ""


def findings_in(volume: Volume, count: int) -> Findings:
    """Nodules spread over both lungs and all slices, with made-up numbers."""
    lungs = {side: ball(volume, (0.5, 0.5, x), (0.4, 0.27, 0.15)) for side, x in (("right", 0.3), ("left", 0.7))}
    return Findings(
        pipeline=PipelineInfo(
            label="benchmark", name="Benchmark", version="1", weights_name="none", weights_sha256="ab" * 32
        ),
        nodules=tuple(nodule(volume, n, count) for n in range(count)),
        lungs={"right": lungs["right"], "left": lungs["left"]},
    )


def nodule(volume: Volume, number: int, count: int) -> Nodule:
    """The ball of that number: 4 mm across the first, 22 mm the last."""
    at = (0.2 + 0.6 * number / count, 0.35 + 0.3 * (number % 3) / 2, 0.3 if number % 2 else 0.7)
    diameter_mm = 4 + 18 * number / max(count - 1, 1)
    radii = tuple(diameter_mm / 2 / (n * mm) for n, mm in zip(volume.hu.shape, volume.spacing_mm, strict=True))
    mask = ball(volume, at, (radii[0], radii[1], radii[2]))
    _, rows, columns = mask.voxels.shape
    k, row, column = (o + n // 2 for o, n in zip(mask.origin, mask.voxels.shape, strict=True))
    inside = volume.hu[mask.slices][mask.voxels]
    x, y, z = (volume.affine @ [k, row, column, 1])[:3].tolist()
    return Nodule(
        centre_lps_mm=(x, y, z),
        centre_index=(k, row, column),
        mask=mask,
        candidate_score=0.9,
        detection_probability=0.9,
        malignancy_probability=0.4,
        concepts=tuple(Concept(name=name, value=3.0, contribution=0.1) for name in CONCEPT_NAMES),
        long_axis=Axis(length_mm=diameter_mm, start=(k, row, column - columns / 2), end=(k, row, column + columns / 2)),
        short_axis=Axis(length_mm=diameter_mm, start=(k, row - rows / 2, column), end=(k, row + rows / 2, column)),
        volume_mm3=float(inside.size * np.prod(volume.spacing_mm)),
        mean_hu=float(inside.mean()),
        min_hu=float(inside.min()),
        max_hu=float(inside.max()),
        laterality="right" if number % 2 else "left",
        pleura_distance_mm=5.0,
    )


def ball(volume: Volume, middle: tuple[float, float, float], radii: tuple[float, float, float]) -> Mask:
    """An ellipsoid; middle and radii as shares of the volume along (slice, row, column)."""
    shape = volume.hu.shape
    low = [max(0, int((m - r) * n)) for m, r, n in zip(middle, radii, shape, strict=True)]
    high = [min(n, int((m + r) * n) + 2) for m, r, n in zip(middle, radii, shape, strict=True)]
    grids = np.ogrid[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    distance = sum((((grid + 0.5) / n - m) / r) ** 2 for grid, n, m, r in zip(grids, shape, middle, radii, strict=True))
    return Mask(origin=(low[0], low[1], low[2]), voxels=np.asarray(distance <= 1))


if __name__ == "__main__":
    main()
