"""Small collections of radiographs on disk, in the two published layouts."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from pulmo_models.cxr.settings import LABELS
from tests.radiograph_factory import film


def write_film(path: Path, seed: int, *, bright: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = film(72, 64, seed=seed).astype(float) / 16
    if bright:
        image[30:60, 34:60] += 120  # something to learn
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(path)


def chexpert_folder(folder: Path, patients: int = 12) -> Path:
    """CheXpert-v1.0-small with a frontal and a lateral film of each patient, the first half with every finding."""
    root = folder / "CheXpert-v1.0-small"
    for table, first in (("train", 0), ("valid", 100)):
        rows = []
        for number in range(first, first + patients):
            ill = number % 2 == 0
            for view, side in (("frontal", "Frontal"), ("lateral", "Lateral")):
                name = f"CheXpert-v1.0-small/{table}/patient{number:05d}/study1/view1_{view}.jpg"
                write_film(folder / name, number, bright=ill)
                values = ["1.0" if ill else "0.0", "", "-1.0", "1.0" if ill else "", "0.0" if ill else "1.0"]
                rows.append([name, "Female", "50", side, "AP", *values])
        with (root / f"{table}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS])
            writer.writerows(rows)
    return root


def nih_folder(folder: Path, patients: int = 40) -> Path:
    """The layout of the published table, four patients of eight with two findings, in a folder of images."""
    rows = []
    for number in range(patients):
        name, ill = f"{number:08d}_000.png", number % 8 < 4
        write_film(folder / "images" / name, number, bright=ill)
        rows.append([name, "Cardiomegaly|Effusion" if ill else "No Finding", number, "PA"])
    with (folder / "Data_Entry_2017.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["Image Index", "Finding Labels", "Patient ID", "View Position"])
        writer.writerows(rows)
    return folder
