"""One real slice in 12 transfer syntaxes, and two in HTJ2K: the same HU, or within a stated error of them.

The twins share their SOP Instance UIDs, so each test takes one of them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from tests.conftest import data_folder
from tests.integration.real_files import volume_of

SYNTAXES = "ct_edge_cases/ct_chest_one_slice_all_syntaxes"
REFERENCE = "LittleEndianImplicit_1.2.840.10008.1.2"
LOSSLESS = (
    "BigEndianExplicit_1.2.840.10008.1.2.2",
    "DeflatedExplicitVRLittleEndian_1.2.840.10008.1.2.1.99",
    "RLELossless_1.2.840.10008.1.2.5",
    "JPEGProcess14_1.2.840.10008.1.2.4.57",
    "JPEGProcess14SV1_1.2.840.10008.1.2.4.70",
    "JPEGLSLossless_1.2.840.10008.1.2.4.80",
    "JPEG2000LosslessOnly_1.2.840.10008.1.2.4.90",
)
LOSSY = {  # name: mean and largest error in HU, above -1024
    "JPEGLSLossy_1.2.840.10008.1.2.4.81": (0.6, 1),  # near-lossless, to 1
    "JPEG2000_1.2.840.10008.1.2.4.91": (0.6, 5),
    "JPEGProcess2_4_1.2.840.10008.1.2.4.51": (4, 36),  # 12 bits of 2.0 HU a step
    "JPEGProcess1_1.2.840.10008.1.2.4.50": (15, 65),  # 8 bits of 32.1 HU a step
}


@pytest.fixture
def reference() -> np.ndarray:
    """HU of the slice, taken from the bytes of its implicit little endian file."""
    dataset = pydicom.dcmread(data_folder(f"{SYNTAXES}/{REFERENCE}.dcm"))
    stored = np.frombuffer(dataset.PixelData, dtype="<i2").reshape(512, 512)
    return np.where(stored < 0, -1024.0, stored - 1024.0)


def test_there_are_twelve() -> None:
    files = {path.stem for path in data_folder(SYNTAXES).iterdir()}
    assert files == {REFERENCE, *LOSSLESS, *LOSSY}
    assert len(files) == 12


@pytest.mark.parametrize("name", [REFERENCE, *LOSSLESS])
def test_lossless_ones_are_identical(name: str, reference: np.ndarray, tmp_path: Path) -> None:
    hu = volume_of(data_folder(f"{SYNTAXES}/{name}.dcm"), tmp_path).hu
    for image in hu:
        assert np.array_equal(image, reference)


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_ones_stay_within_their_error(name: str, reference: np.ndarray, tmp_path: Path) -> None:
    mean_hu, most_hu = LOSSY[name]
    error = np.abs(volume_of(data_folder(f"{SYNTAXES}/{name}.dcm"), tmp_path).hu - reference)
    assert 0 < error.mean() < mean_hu
    assert error.max() <= most_hu


@pytest.mark.parametrize("number", [1, 2])
def test_htj2k_equals_its_jpeg_2000_twin(number: int, tmp_path: Path) -> None:
    folder = data_folder("ct_edge_cases/htj2k")
    for name in ("JPH", "J2KR_reference"):
        (tmp_path / name).mkdir()
    one, two = (volume_of(folder / f"CT{number}_{name}.dcm", tmp_path / name).hu for name in ("JPH", "J2KR_reference"))
    assert np.array_equal(one, two)
    assert one.max() > 1000
