"""Made nodules, hosts and a made folder `lidc_patches`, all with a known truth."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pulmo_models.training.lidc.database import LidcDatabase
from pulmo_models.training.material.hosts import Host, KnownNodule, make_host
from pulmo_models.training.material.nodules import RealNodule
from tests.models.lidc_factory import DatabaseFactory, ball

SERIES = "1.2.3"
PIXEL_MM = 0.7
STEP_MM = 2.0


def real_nodule(**changes: Any) -> RealNodule:
    """A ball of 8 mm at 40 HU in lung of -850 HU, without noise."""
    distance = np.linalg.norm((np.indices((5, 72, 72)).T - [2, 36, 36]) * [2.0, 0.7, 0.7], axis=-1).T
    values: dict[str, Any] = {
        "patient": "LIDC-IDRI-0001",
        "name": "nodule-0",
        "hu": np.where(distance < 4, 40, -850).astype(np.int16),
        "mask": distance < 4,
        "reach": distance < 4,
        "spacing_mm": (2.0, 0.7, 0.7),
        "diameter_mm": 8.0,
        "ratings": np.array([5, 1, 6, 4, 4, 1, 1, 5], np.float32),
        "malignancy": 4.0,
        "readers": 4,
        "error_hu": 5.0,
        "lung_hu": -850.0,
        "noise_hu": float("nan"),
    }
    return RealNodule(**(values | changes))


def made_host(
    nodules: tuple[KnownNodule, ...] = (),
    name: str = "host",
    spacing_mm: tuple[float, float, float] = (2.0, 0.7, 0.7),
    noise_hu: float = 0.0,
) -> Host:
    """A block of lung of -850 HU in tissue, with vessels along the rows."""
    hu = np.full((60, 200, 200), 40.0)
    hu[10:50, 40:160, 40:160] = -850
    hu[10:50, 40:160, 75:78] = 30
    lung = np.zeros(hu.shape, bool)
    lung[10:50, 40:160, 40:160] = True
    hu += np.random.default_rng(1).normal(0, 1, hu.shape) * noise_hu
    return make_host(name, hu, lung, spacing_mm, nodules)


def chest(slices: int, seed: int = 0) -> npt.NDArray[np.float64]:
    """Squares of 128 x 128 pixels in HU, 5 to 5 mm apart: chest wall, rib, lung, vessels that wander, a nodule."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:128, :128]
    found = []
    for k in range(slices):
        hu = np.full((128, 128), -860.0)
        for row, column, radius, drift in ((35, 45, 5, 0.5), (90, 60, 4, -0.5), (60, 38, 6, 0.3)):
            hu[(rows - row - drift * k) ** 2 + (columns - column - drift * k) ** 2 < radius**2] = 50
        hu[columns > 84 + k * 0.3] = -90
        hu[columns > 90 + k * 0.3] = 55
        hu[(columns > 110) & (np.abs(rows - 64 - 3 * k) < 8 + k)] = 500 + 90 * k  # the brightest: another slope each
        hu[(rows - 64) ** 2 + (columns - 64) ** 2 < (9 - abs(k - slices // 2)) ** 2] = 35
        found.append(hu + random.normal(0, 18, hu.shape))
    return np.stack(found)


def stretched(squares: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.uint8], list[tuple[float, float]]]:
    """The middle 72 x 72 in 8 bits, as the cut-outs were made, and slope and offset of each slice."""
    lines = [(float(np.ptp(square)) / 255, float(square.min())) for square in squares]
    parts = [
        np.rint((square[28:100, 28:100] - offset) / slope)
        for square, (slope, offset) in zip(squares, lines, strict=True)
    ]
    return np.stack(parts).astype(np.uint8), lines


def lidc_patches(folder: Path, patients: dict[str, int], slices: int = 5) -> LidcDatabase:
    """Write a folder `lidc_patches` with one nodule for each patient (and how many readers), and the readers' database.

    Reader n rates malignancy n and spiculation n. The readers of the masks agree but for a rim that one alone includes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    factory = DatabaseFactory(folder / "readers.sqlite")
    images, counts, rows_of, stack_rows, hu_rows, planes = [], [], [], [], [], []
    rows, columns = np.mgrid[:72, :72] - 36
    for number, (patient, readers) in enumerate(patients.items()):
        squares = chest(slices, number)
        zs = [-100.0 + STEP_MM * k for k in range(slices)]
        scan = factory.scan(patient, f"{SERIES}.{number}", zs, thickness_mm=STEP_MM, pixel_mm=PIXEL_MM)
        drawn = ball((zs[slices // 2], 64, 64), 11.0, zs, PIXEL_MM)
        ids = [factory.annotation(scan, drawn, {"malignancy": n + 1, "spiculation": n + 1}) for n in range(readers)]
        images.append(stretched(squares)[0])
        radii = np.array([9 - abs(k - slices // 2) for k in range(slices)])[:, None, None]
        distance = np.sqrt(rows**2 + columns**2)[None]
        counts.append(np.where(distance < radii, readers, np.where(distance < radii + 1, 1, 0)).astype(np.uint8))
        rows_of += [number] * slices
        common = {"patient_id": patient, "SeriesInstanceUID": f"{SERIES}.{number}", "row": number}
        stack_rows.append(
            common
            | {"nodule": "nodule-0", "readers_from_masks": readers, "reader_match": 1, "diam_median_mm": 11.0}
            | {"z_min": zs[0], "z_max": zs[-1], "pixel_spacing": PIXEL_MM, "slice_thickness": STEP_MM}
            | {"annotation_ids": " ".join(map(str, ids))}
        )
        rating = dict.fromkeys(("subtlety", "texture", "spiculation", "lobulation", "margin", "sphericity"), 3)
        hu_rows.append(
            common | rating | {"calcification": 6, "malignancies": "2 4", "z": zs[slices // 2], "hu_suspect": "False"}
        )
        planes.append(np.rint(squares[slices // 2][29:100, 28:99]).astype(np.int16))
    np.savez(
        folder / "nodules_stacks_72.npz",
        images=np.concatenate(images),
        reader_count=np.concatenate(counts),
        nodule_row=np.array(rows_of),
    )
    np.savez(folder / "nodules_maxslice_71_hu.npz", hu=np.stack(planes))
    for name, table in (("nodules_stacks_72.csv", stack_rows), ("nodules_maxslice_71_hu.csv", hu_rows)):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    return LidcDatabase(folder / "readers.sqlite")
