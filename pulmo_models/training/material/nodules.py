"""Real LIDC-IDRI nodules, cut out with their readers' masks, mapped back to Hounsfield units (see `levels`)."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pulmo_models.training.lidc.database import LidcDatabase, Nodule, Scan, patient_number
from pulmo_models.training.material import levels
from pulmo_models.types import CONCEPT_NAMES

MOST_ERROR_HU = 60.0
"""Nodules with a slice whose estimated error is larger are left out."""

_FLAT_LUNG_HU = (-980.0, -650.0)
_LEAST_FLAT = 80  # pixels of plain lung that a measure of noise needs


@dataclass(frozen=True, kw_only=True, eq=False)
class RealNodule:
    """A nodule with some of its surroundings."""

    patient: str  # LIDC-IDRI-0001
    name: str  # the patient's nodule, and how it was made where it is not a cut-out
    hu: npt.NDArray[np.int16]  # (slices, 72, 72)
    mask: npt.NDArray[np.bool_]  # at least half of its readers
    reach: npt.NDArray[np.bool_]  # any reader
    spacing_mm: tuple[float, float, float]
    diameter_mm: float  # median of the readers' largest diameters
    ratings: npt.NDArray[np.float32]  # (8,): means of the readers in the order of CONCEPT_NAMES, LIDC scale; NaN: none
    malignancy: float  # mean rating, 1..5
    readers: int
    error_hu: float  # estimated, of the worst slice
    lung_hu: float = -850.0  # level of the lung around it
    noise_hu: float = float("nan")  # of plain lung around it, see `noise_of`; NaN where there is too little of it
    drawn: bool = False  # shape and ratings are a patient's, the pixels were drawn


def load_nodules(
    folder: Path,
    wanted: Callable[[int], bool],
    database: LidcDatabase | None = None,
    dropped: Counter[str] | None = None,
) -> list[RealNodule]:
    """Read `lidc_patches` for the patients that are wanted (a predicate on the patient's number).

    What is left out is counted by its reason in `dropped`. Ratings are the means of all readers of the database where
    the readers of the masks are those of the row (`reader_match`), else what the true-HU set has of one reader each.

    Raises:
        FileNotFoundError: the folder lacks one of its files.
        LidcDatabaseInvalid: the readers' database is not there.
    """
    database = database or LidcDatabase()
    dropped = Counter() if dropped is None else dropped
    stacks = np.load(folder / "nodules_stacks_72.npz")
    images, readers, rows_of = stacks["images"], stacks["reader_count"], stacks["nodule_row"]
    true_hu = np.load(folder / "nodules_maxslice_71_hu.npz")["hu"]
    by_series: dict[str, list[Mapping[str, str]]] = {}
    for row in _rows(folder / "nodules_maxslice_71_hu.csv"):
        if row["hu_suspect"] != "True":
            by_series.setdefault(row["SeriesInstanceUID"], []).append(row)
    scan = lru_cache(4)(database.scan)  # the rows of a series follow one another
    found = []
    for row in _rows(folder / "nodules_stacks_72.csv"):
        which = np.flatnonzero(rows_of == int(row["row"]))
        if not wanted(patient_number(row["patient_id"])) or not len(which):
            continue
        series = row["SeriesInstanceUID"]
        shared = [(truth, true_hu[int(truth["row"])]) for truth in by_series.get(series, ())]
        nodule = _nodule(row, images[which], readers[which], shared, scan(series))
        if isinstance(nodule, str):
            dropped[nodule] += 1
        else:
            found.append(nodule)
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _nodule(
    row: Mapping[str, str],
    stack: npt.NDArray[np.uint8],
    readers: npt.NDArray[np.uint8],
    shared: Sequence[tuple[Mapping[str, str], npt.NDArray[np.int16]]],
    scan: Scan,
) -> RealNodule | str:
    """The nodule of a row, or why there is none."""
    known = {annotation.id: annotation for annotation in scan.annotations}
    read = Nodule(annotations=tuple(known[int(number)] for number in row["annotation_ids"].split()))
    count = int(row["readers_from_masks"])
    mask = readers >= max(1, (count + 1) // 2)
    if not mask.any():
        return "no voxel that half of the readers included"
    if mask[:, 0].any() or mask[:, -1].any() or mask[:, :, 0].any() or mask[:, :, -1].any():
        return "cut off by the border of its patch"
    truths, rated, hu = _true_slices(row, stack, shared, scan)
    if rated is None:
        return "no slice with true HU"
    lines = levels.stack_lines(stack, truths)
    error = max(line.error_hu for line in lines)
    if error > MOST_ERROR_HU:
        return f"Hounsfield units not known to {MOST_ERROR_HU:.0f} HU"
    values = np.stack([line.hu(image) for line, image in zip(lines, stack, strict=True)])
    for index, (box, pixels) in hu.items():
        values[index][box] = pixels
    values = np.clip(values, -1024, 3071)
    agreed = row["reader_match"] == "1"
    pixel = float(row["pixel_spacing"])
    middle = int(mask.sum(axis=(1, 2)).argmax())
    lung, noise = noise_of(values[middle], readers[middle] > 0)
    return RealNodule(
        patient=row["patient_id"],
        name=row["nodule"],
        hu=np.rint(values).astype(np.int16),
        mask=mask,
        reach=readers >= 1,
        spacing_mm=(_step(scan), pixel, pixel),
        diameter_mm=max(read.median_diameter_mm if agreed else float(row["diam_median_mm"]), 3.0),
        ratings=read.ratings if agreed else _single_ratings(rated),
        malignancy=read.malignancy if agreed else float(np.mean([int(m) for m in rated["malignancies"].split()])),
        readers=count,
        error_hu=error,
        lung_hu=lung,
        noise_hu=noise,
    )


_Box = tuple[slice, slice]


def _true_slices(
    row: Mapping[str, str],
    stack: npt.NDArray[np.uint8],
    shared: Sequence[tuple[Mapping[str, str], npt.NDArray[np.int16]]],
    scan: Scan,
) -> tuple[dict[int, levels.Line], Mapping[str, str] | None, dict[int, tuple[_Box, npt.NDArray[np.int16]]]]:
    """Lines of the slices with true HU, the row of the best of those, and their pixels and where they belong."""
    lines: dict[int, levels.Line] = {}
    pixels: dict[int, tuple[_Box, npt.NDArray[np.int16]]] = {}
    best, rated = levels.LEAST_CORRELATION, None
    places = np.linspace(float(row["z_min"]), float(row["z_max"]), len(stack))
    for truth, hu in shared:
        near = np.flatnonzero(np.abs(places - float(truth["z"])) < 1.6 * _step(scan) + 0.1)
        for index in (int(k) for k in near):
            correlation, line, offset = levels.shared_slice(stack[index], hu)
            if correlation <= levels.LEAST_CORRELATION:
                continue
            into, out_of = levels.overlap(stack.shape[1:], hu.shape, offset)
            lines[index], pixels[index] = line, (into, hu[out_of])
            if correlation > best:
                best, rated = correlation, truth
    return lines, rated, pixels


def _step(scan: Scan) -> float:
    """Distance of the slices, the median where some are missing."""
    zs = scan.slice_zs_mm
    return float(np.median(np.diff(zs))) if len(zs) > 1 else scan.slice_thickness_mm


def _single_ratings(row: Mapping[str, str]) -> npt.NDArray[np.float32]:
    """One reader's ratings of the true-HU set; it has none of the internal structure."""
    return np.array([float(row[name]) if name in row else np.nan for name in CONCEPT_NAMES], dtype=np.float32)


def noise_of(hu: npt.NDArray[np.floating | np.integer], other: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Level and noise of the plain lung in a slice, `other` being what is none.

    The noise is the robust spread of what a mean over 3 x 3 pixels takes away, where that mean is lung and nothing
    denser lies within 2 pixels; NaN where there is too little of it (the level is then -850 or that of all lung).
    """
    values = hu.astype(np.float64)
    smooth = ndimage.uniform_filter(values, (*(1,) * (values.ndim - 2), 3, 3))
    low, high = _FLAT_LUNG_HU
    lung = (smooth > low) & (smooth < high) & ~other
    if lung.sum() < _LEAST_FLAT:
        return -850.0, float("nan")
    level = float(np.median(smooth[lung]))
    flat = lung & (ndimage.maximum_filter(smooth, (*(1,) * (values.ndim - 2), 5, 5)) < min(high, level + 120))
    if flat.sum() < _LEAST_FLAT:
        return level, float("nan")
    rest = np.abs((values - smooth)[flat])
    return float(np.median(smooth[flat])), 1.4826 * float(np.median(rest))
