"""Synthetic radiographs with a known truth, and files around real ones, for the tests of every stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

from tests.ct_factory import write_part10

STORED = np.arange(6 * 5, dtype=np.uint16).reshape(6, 5) * 100
"""0 to 2900, different in every pixel."""


def radiograph(stored: npt.NDArray[np.integer] = STORED, modality: str = "DX", **elements: Any) -> Dataset:
    """A radiograph of so many bits as its values need; ``elements`` are set, or taken away where they are None."""
    ds = Dataset()
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation if modality == "DX" else ComputedRadiographyImageStorage
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid(), generate_uid()
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Phantom^Petra", "PHANTOM-2", "19600101", "F"
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.StudyID = "20260101", "120000", "ACC2", "1"
    ds.ReferringPhysicianName, ds.Manufacturer = "", "Phantom"
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = modality, 1, 1
    ds.BodyPartExamined, ds.ViewPosition, ds.ImageType = "CHEST", "PA", ["ORIGINAL", "PRIMARY", ""]
    ds.SeriesDescription = "phantom film"
    if modality == "DX":
        ds.PresentationIntentType, ds.ImagerPixelSpacing = "FOR PRESENTATION", [0.2, 0.2]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = stored.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = stored.astype("<u2").tobytes()
    for keyword, value in elements.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def write_series(folder: Path, *datasets: Dataset, transfer_syntax: str = ExplicitVRLittleEndian) -> list[Path]:
    """Write data sets as one series of one study; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, ds in enumerate(datasets, start=1):
        ds.StudyInstanceUID, ds.SeriesInstanceUID = datasets[0].StudyInstanceUID, datasets[0].SeriesInstanceUID
        path = folder / f"film-{number}.dcm"
        write_part10(ds, path, transfer_syntax)
        paths.append(path)
    return paths


def film(rows: int = 256, columns: int = 224, seed: int = 1) -> npt.NDArray[np.uint16]:
    """Something like a frontal chest film, 12 bit, MONOCHROME2: dark lungs beside a bright middle."""
    y, x = np.mgrid[0:rows, 0:columns]
    y, x = (y + 0.5) / rows, (x + 0.5) / columns
    image = np.full((rows, columns), 900.0) + 1400 * np.exp(-(((x - 0.5) / 0.12) ** 2))
    for centre in (0.3, 0.7):
        image -= 1100 * np.exp(-((((x - centre) / 0.13) ** 2 + ((y - 0.45) / 0.28) ** 2) ** 2))
    image += 1500 / (1 + np.exp(-(y - 0.82) / 0.02))
    image[:, : columns // 20] = image[:, -(columns // 20) :] = 60
    noise = np.random.default_rng(seed).normal(0, 25, image.shape)
    return np.clip(image + noise, 0, 4095).astype(np.uint16)
