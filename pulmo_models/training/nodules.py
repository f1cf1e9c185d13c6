"""Real LIDC-IDRI nodules, cut out with their readers' masks, mapped back to Hounsfield units.

The stacks hold every slice of a nodule in 8 bits, each slice stretched from the minimum to the maximum of its whole
image: HU = a * value + b with another a for each slice. The slice that a stack shares with the true-HU set gives its
own a and b by least squares; a neighbouring slice follows by matching its quantiles to those of the slice before, since
lung, vessel and fat levels change little from slice to slice. Nodules without such a slice are left out.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CONCEPT_COLUMNS = ("subtlety", "texture", "spiculation", "lobulation", "margin", "sphericity", "calcification")
_LEAST_CORRELATION = 0.98
_SLOPES = (3.0, 25.0)  # HU per step that a whole CT image can have


@dataclass(frozen=True, kw_only=True, eq=False)
class RealNodule:
    """A nodule with some of its surroundings."""

    patient: int  # number of the LIDC-IDRI patient
    hu: npt.NDArray[np.int16]  # (slices, 72, 72)
    mask: npt.NDArray[np.bool_]  # at least half of the readers who marked it
    spacing_mm: tuple[float, float, float]
    diameter_mm: float  # median of the readers
    concepts: Mapping[str, float]  # ratings on the LIDC scale
    malignancy: float  # median rating, 1..5
    readers: int
    calibration_error_hu: float  # mean error on the shared slice


def split_of(patient: int) -> str:
    """ "train", "validation", "test" or "unused", by the number of a LIDC-IDRI patient."""
    if patient == 63 or patient % 7 == 6:
        return "validation"
    return {5: "test", 3: "unused"}.get(patient % 7, "train")


def load_nodules(folder: Path, wanted: Callable[[int], bool]) -> list[RealNodule]:
    """Read the patches of the patients that are wanted (a predicate on the patient's number)."""
    stacks = np.load(folder / "nodules_stacks_72.npz")
    images, readers, rows_of = stacks["images"], stacks["reader_count"], stacks["nodule_row"]
    slices = np.load(folder / "nodules_maxslice_71_hu.npz")["hu"]
    true_hu: dict[str, list[dict[str, str]]] = {}
    for row in _rows(folder / "nodules_maxslice_71_hu.csv"):
        if row["hu_suspect"] != "True":
            true_hu.setdefault(row["SeriesInstanceUID"], []).append(row)
    found = []
    for row in _rows(folder / "nodules_stacks_72.csv"):
        patient = int(row["patient_id"].rsplit("-", 1)[-1])
        which = np.flatnonzero(rows_of == int(row["row"]))
        if not wanted(patient) or not len(which):
            continue
        nodule = _nodule(
            patient, row, images[which], readers[which], (true_hu.get(row["SeriesInstanceUID"], []), slices)
        )
        if nodule is not None:
            found.append(nodule)
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _nodule(
    patient: int,
    row: Mapping[str, str],
    stack: npt.NDArray[np.uint8],
    readers: npt.NDArray[np.uint8],
    true_hu: tuple[list[dict[str, str]], npt.NDArray[np.int16]],
) -> RealNodule | None:
    count = len(stack)
    places = np.linspace(float(row["z_min"]), float(row["z_max"]), count)
    best: tuple[float, int, dict[str, str], npt.NDArray[np.float64], float] | None = None
    for candidate in true_hu[0]:
        index = int(np.argmin(np.abs(places - float(candidate["z"]))))
        if abs(places[index] - float(candidate["z"])) > 1.5:
            continue
        correlation, line, error = fit_slice(stack[index], true_hu[1][int(candidate["row"])])
        if best is None or correlation > best[0]:
            best = (correlation, index, candidate, line, error)
    if best is None or best[0] < _LEAST_CORRELATION:
        return None
    _, index, rated, line, error = best
    agreed = readers >= 2
    step = (places[-1] - places[0]) / (count - 1) if count > 1 else float(row["slice_thickness"])
    pixel = float(row["pixel_spacing"])
    return RealNodule(
        patient=patient,
        hu=np.clip(calibrate(stack, index, line), -1024, 3071).astype(np.int16),
        mask=agreed if agreed.any() else readers >= 1,
        spacing_mm=(max(float(step), 0.5), pixel, pixel),
        diameter_mm=max(float(row["diam_median_mm"] or 0.0), 3.0),
        concepts={name: float(rated[name]) for name in CONCEPT_COLUMNS},
        malignancy=float(rated["mal_median"]),
        readers=int(rated["n_readers"]),
        calibration_error_hu=error,
    )


def fit_slice(
    stretched: npt.NDArray[np.uint8], hu: npt.NDArray[np.int16]
) -> tuple[float, npt.NDArray[np.float64], float]:
    """Correlation, line (slope, offset) and mean error in HU of the best of the four offsets of 71 in 72 pixels."""
    truth = np.clip(hu.astype(np.float64), -1024, None).ravel()
    size = hu.shape[0]
    found: list[tuple[float, Any, float]] = []
    for top in range(stretched.shape[0] - size + 1):
        for left in range(stretched.shape[1] - size + 1):
            values = stretched[top : top + size, left : left + size].astype(np.float64).ravel()
            correlation = float(np.corrcoef(values, truth)[0, 1])
            line = np.polyfit(values, truth, 1)
            found.append((correlation, line, float(np.abs(np.polyval(line, values) - truth).mean())))
    return max(found, key=lambda item: item[0])


def calibrate(stack: npt.NDArray[np.uint8], known: int, line: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """HU of a stack, from the line of one slice outwards."""
    hu = np.empty(stack.shape)
    hu[known] = np.polyval(line, stack[known])
    quantiles = np.linspace(0.02, 0.98, 49)
    for order in (range(known + 1, len(stack)), range(known - 1, -1, -1)):
        for index in order:
            before = index - 1 if index > known else index + 1
            fitted = np.polyfit(np.quantile(stack[index], quantiles), np.quantile(hu[before], quantiles), 1)
            usable = _SLOPES[0] < fitted[0] < _SLOPES[1]
            hu[index] = np.polyval(fitted if usable else line, stack[index])
    return hu
