"""A made chest, and the files of a LUNA16 folder around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from tests.models.lidc_factory import DatabaseFactory, ball

SHAPE, SPACING_MM = (40, 96, 96), (2.5, 2.0, 2.0)
ORIGIN_MM = (95.0, 80.0, -300.0)  # x, y, z of voxel (0, 0, 0)
ZS = [ORIGIN_MM[2] + SPACING_MM[0] * k for k in range(SHAPE[0])]
NODULE, FAINT, CALCIFIED = (20, 40, 28), (24, 60, 66), (14, 34, 70)  # slice, row, column
AIR = (20, 4, 4)  # beside the body
DIAMETER_MM = 12.0
NODULE_HU = 30


def chest(*nodules: tuple[int, int, int]) -> npt.NDArray[np.int16]:
    """A body with two lungs, and balls of 12 mm in them."""
    z, y, x = (np.arange(n) * step for n, step in zip(SHAPE, SPACING_MM, strict=True))
    z, y, x = z[:, None, None], y[None, :, None], x[None, None, :]
    hu = np.where((y - 96) ** 2 + (x - 96) ** 2 < 88**2, 40, -1000) + 0 * z
    for middle in (56, 136):
        hu[((x - middle) / 34) ** 2 + ((y - 96) / 55) ** 2 + ((z - 50) / 44) ** 2 < 1] = -850
    for centre in nodules:
        place = np.array(centre) * SPACING_MM
        hu[(z - place[0]) ** 2 + (y - place[1]) ** 2 + (x - place[2]) ** 2 <= (DIAMETER_MM / 2) ** 2] = NODULE_HU
    return hu.astype(np.int16)


def turned_position(index: Sequence[float]) -> tuple[float, float, float]:
    """LPS mm in a volume whose rows and columns run against y and x."""
    return (
        ORIGIN_MM[0] - SPACING_MM[2] * index[2],
        ORIGIN_MM[1] - SPACING_MM[1] * index[1],
        ORIGIN_MM[2] + SPACING_MM[0] * index[0],
    )


def write_mhd(path: Path, hu: npt.NDArray[np.int16]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing(SPACING_MM[::-1])
    image.SetOrigin(ORIGIN_MM)
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(path))


def write_table(path: Path, last: str, rows: Sequence[tuple[str, Sequence[float], float]]) -> None:
    lines = [f"{series},{','.join(f'{value:.4f}' for value in position)},{value}" for series, position, value in rows]
    path.write_text("\n".join([f"seriesuid,coordX,coordY,coordZ,{last}", *lines]) + "\n")


def add_nodule(made: DatabaseFactory, scan: int, place: Sequence[int], malignancies: Sequence[int]) -> None:
    for rating in malignancies:
        contours = ball((ZS[place[0]], *place[1:]), DIAMETER_MM, ZS, SPACING_MM[1])
        made.annotation(scan, contours, {"malignancy": rating, "texture": rating})
