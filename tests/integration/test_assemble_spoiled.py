"""Random series that are spoiled in a way that no repair makes good: each ends in its own code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset

from pulmo_models.codes import RejectionCode
from pulmo_node.assemble import assemble_ct, describe
from pulmo_node.errors import Rejected
from tests.ct_factory import write_datasets
from tests.random_series import Example, about, copied, even, examples, runs

Spoiler = Callable[[list[Dataset], Random], None]


def setting(keyword: str, value: object, *, everywhere: bool = False) -> Spoiler:
    """Another value in one image, or in all."""

    def spoil(datasets: list[Dataset], random: Random) -> None:
        for dataset in datasets if everywhere else [random.choice(datasets)]:
            if value is None:
                del dataset[keyword]
            else:
                setattr(dataset, keyword, value)

    return spoil


def without_two(datasets: list[Dataset], random: Random) -> None:
    first = random.randrange(1, len(datasets) - 4)
    del datasets[first + random.randrange(3) + 1], datasets[first]


def moved(datasets: list[Dataset], first: int, last: int, along: np.ndarray) -> None:
    for dataset in datasets[first:last]:
        place = np.array(dataset.ImagePositionPatient, dtype=float) + along
        dataset.ImagePositionPatient = [f"{value:.6f}" for value in place]


def normal_of(dataset: Dataset) -> np.ndarray:
    cosines = np.array(dataset.ImageOrientationPatient, dtype=float)
    return np.cross(cosines[:3], cosines[3:])


def step_of(datasets: list[Dataset]) -> float:
    first, second = (np.array(d.ImagePositionPatient, dtype=float) for d in datasets[:2])
    return float((second - first) @ normal_of(datasets[0]))


def torn_apart(datasets: list[Dataset], random: Random) -> None:
    """A gap of 2.4 to 2.6 spacings: neither a missing slice nor a wider spacing."""
    at = random.randrange(3, len(datasets) - 3)
    moved(datasets, at, len(datasets), random.uniform(1.4, 1.6) * step_of(datasets) * normal_of(datasets[0]))


def shifted_in_plane(datasets: list[Dataset], random: Random) -> None:
    at = random.randrange(2, len(datasets) - 2)
    moved(datasets, at, at + 1, random.uniform(1.5, 9) * np.array(datasets[0].ImageOrientationPatient[:3], dtype=float))


def far_apart(datasets: list[Dataset], random: Random) -> None:
    extra = random.uniform(10.1, 20) * normal_of(datasets[0])
    for k in range(1, len(datasets)):
        moved(datasets, k, len(datasets), extra)


def coronal(datasets: list[Dataset], _random: Random) -> None:
    """Turned as a whole by 90 degrees about the patient's left-right axis."""
    turn = about(np.array([1.0, 0.0, 0.0]), np.pi / 2)
    for dataset in datasets:
        cosines = np.array(dataset.ImageOrientationPatient, dtype=float).reshape(2, 3) @ turn.T
        dataset.ImageOrientationPatient = [f"{value:.10f}" for value in cosines.ravel()]
        place = turn @ np.array(dataset.ImagePositionPatient, dtype=float)
        dataset.ImagePositionPatient = [f"{value:.8f}" for value in place]


def skewed(datasets: list[Dataset], _random: Random) -> None:
    for dataset in datasets:
        cosines = np.array(dataset.ImageOrientationPatient, dtype=float)
        cosines[3:] += 0.05 * cosines[:3]
        dataset.ImageOrientationPatient = [f"{value:.10f}" for value in cosines]


def two_at_one_place(datasets: list[Dataset], random: Random) -> None:
    twin = copied(random.choice(datasets))
    twin.PixelData = bytes(len(twin.PixelData))
    datasets.append(twin)


def one_uid_twice(datasets: list[Dataset], random: Random) -> None:
    one, other = random.sample(datasets, 2)
    one.SOPInstanceUID = other.SOPInstanceUID


def too_few(datasets: list[Dataset], random: Random) -> None:
    del datasets[random.randint(2, 7) :]


def cut_pixels(datasets: list[Dataset], random: Random) -> None:
    dataset = random.choice(datasets)
    dataset.PixelData = dataset.PixelData[: 2 * random.randrange(1, len(dataset.PixelData) // 2)]


def other_class(datasets: list[Dataset], _random: Random) -> None:
    for dataset in datasets:
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"


SPOILED: dict[Spoiler, RejectionCode] = {
    without_two: RejectionCode.MISSING_SLICE,
    torn_apart: RejectionCode.IRREGULAR_SPACING,
    shifted_in_plane: RejectionCode.SHIFTED_SLICES,
    far_apart: RejectionCode.TOO_THICK,
    coronal: RejectionCode.NOT_AXIAL,
    skewed: RejectionCode.BAD_ORIENTATION,
    two_at_one_place: RejectionCode.DUPLICATE_POSITION,
    one_uid_twice: RejectionCode.DUPLICATE_UID,
    too_few: RejectionCode.TOO_FEW_SLICES,
    cut_pixels: RejectionCode.DECODE_FAILED,
    other_class: RejectionCode.NO_IMAGES,
    setting("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"], everywhere=True): RejectionCode.NO_IMAGES,
    setting("PixelSpacing", ["0", "0"], everywhere=True): RejectionCode.BAD_PIXEL_SPACING,
    setting("PixelSpacing", None, everywhere=True): RejectionCode.BAD_PIXEL_SPACING,
    setting("Rows", 65_535, everywhere=True): RejectionCode.TOO_LARGE,
    setting("FrameOfReferenceUID", None, everywhere=True): RejectionCode.NO_FRAME_OF_REFERENCE,
    setting("FrameOfReferenceUID", "1.2.3"): RejectionCode.SEVERAL_FRAMES_OF_REFERENCE,
    setting("PatientID", "ANOTHER"): RejectionCode.PATIENT_CONFLICT,
    setting("RescaleType", "US"): RejectionCode.NOT_HU,
    setting("RescaleSlope", None): RejectionCode.RESCALE_MISSING,
    setting("RescaleSlope", 0): RejectionCode.RESCALE_MISSING,
    setting("HighBit", 3): RejectionCode.UNSUPPORTED_PIXELS,
    setting("ImagePositionPatient", ["1", "2"]): RejectionCode.UNREADABLE,
}
"""Each way to spoil a series that no repair makes good, and the code that it ends in."""


@runs(100)
@given(example=examples(even, rounding=(None, 3)), spoiler=st.sampled_from(list(SPOILED)))
def test_spoiled_series(example: Example, spoiler: Spoiler) -> None:
    datasets = example.datasets()
    spoiler(datasets, example.random)
    with TemporaryDirectory() as folder:
        paths = write_datasets(datasets, Path(folder), seed=example.random.randrange(2**32))
        series = describe(paths)
        with pytest.raises(Rejected) as caught:
            assemble_ct(paths, series)
    assert caught.value.code == SPOILED[spoiler]
    assert "ANOTHER" not in str(caught.value)
