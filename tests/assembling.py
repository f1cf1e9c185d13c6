"""What the tests of assembly share: write, assemble, and change synthetic series."""

from __future__ import annotations

import tracemalloc
from copy import deepcopy
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid

from pulmo_models.codes import CautionCode
from pulmo_models.types import Volume
from pulmo_node.assemble import assemble_ct, describe
from pulmo_node.errors import Rejected
from tests.ct_factory import write_datasets

SPACING = (2.5, 0.7, 0.8)
ORIGIN = (-120.0, -110.0, -300.0)


def assembled(datasets: list[Dataset], folder: Path, *, seed: int | None = None) -> Volume:
    """Write the data sets, in an order that ``seed`` shuffles, and assemble them."""
    paths = write_datasets(datasets, folder, seed=seed)
    return assemble_ct(paths, describe(paths))


def rejected(datasets: list[Dataset], folder: Path, *, seed: int | None = None) -> Rejected:
    """The refusal of a series."""
    with pytest.raises(Rejected) as caught:
        assembled(datasets, folder, seed=seed)
    return caught.value


def traced(paths: list[Path]) -> tuple[Volume, int]:
    """The volume of these files, and the peak of the memory in bytes that its assembly took."""
    series = describe(paths)
    tracemalloc.start()
    try:
        volume = assemble_ct(paths, series)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return volume, peak


def other_volumes(volume: Volume) -> str:
    """What the volume says of the other stacks of its series."""
    (caution,) = (caution for caution in volume.cautions if caution.code == CautionCode.OTHER_VOLUMES)
    return caution.sentence


def copy_of(ds: Dataset) -> Dataset:
    copied = deepcopy(ds)
    copied.SOPInstanceUID = generate_uid()
    return copied


def second_of(datasets: list[Dataset], hu_offset: float = 100.0, **changes: object) -> list[Dataset]:
    """The same images again with other pixels, other UIDs and these elements changed."""
    copies = [copy_of(ds) for ds in datasets]
    for ds in copies:
        ds.RescaleIntercept = float(ds.RescaleIntercept) + hu_offset
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
    return copies


def shift(ds: Dataset, offset_lps_mm: tuple[float, float, float]) -> None:
    ds.ImagePositionPatient = [round(a + b, 6) for a, b in zip(ds.ImagePositionPatient, offset_lps_mm, strict=True)]
