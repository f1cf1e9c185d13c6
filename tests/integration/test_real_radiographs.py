"""Every radiograph of the test data, each with its expected outcome."""

from __future__ import annotations

import numpy as np
import pytest

from pulmo_models.cxr.appearance import looks_inverted
from pulmo_models.types import Radiograph, RadiographSeries
from pulmo_node.assemble import assemble, describe
from tests.conftest import data_folder

# name: shape, spacing and its plane, largest stored value that its bits allow, whether it looks like a negative
FILES = {
    "dx_chest_pa_monochrome1_j2k_966_fixed": ((2128, 2000), (0.16, 0.16), "detector", 4095, False),
    "cr_chest_pa_monochrome1_RG1_j2k_lossless_masses": ((1955, 1841), None, None, 32767, False),
    "cr_chest_pa_siim_jpegbaseline": ((1024, 1024), (0.168, 0.168), "detector", 255, False),
    "cr_chest_pa_siim_FAKE_monochrome1": ((1024, 1024), (0.168, 0.168), "detector", 255, True),
    "cr_chest_pa_monochrome1_440_gdcm": ((440, 440), None, None, 1023, False),
}


def read(name: str) -> Radiograph:
    path = data_folder(f"cxr_dicom/{name}.dcm")
    series = assemble([path], describe([path]))
    assert isinstance(series, RadiographSeries)
    (image,) = series.images
    return image


def test_the_table_names_every_file() -> None:
    assert {path.stem for path in data_folder("cxr_dicom").glob("*.dcm")} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_outcome(name: str) -> None:
    shape, spacing_mm, plane, largest, inverted = FILES[name]
    image = read(name)
    assert image.pixels.shape == shape
    assert (image.spacing_mm, image.spacing_plane) == (spacing_mm, plane)
    assert (image.view, image.view_position, image.pixel_aspect) == ("PA", "PA", 1.0)
    assert image.pixels.min() >= 0
    assert largest / 4 < image.pixels.max() <= largest
    assert image.display.min() >= 0
    assert 0.5 < image.display.max() <= 1
    assert image.cautions == ()
    assert looks_inverted(image.display) is inverted


def test_the_tag_decides_on_the_sense() -> None:
    right, trap = (read(f"cr_chest_pa_siim_{name}") for name in ("jpegbaseline", "FAKE_monochrome1"))
    assert np.array_equal(trap.pixels, right.pixels.max() + right.pixels.min() - right.pixels)
    np.testing.assert_allclose(trap.display, 1 - right.display, atol=1e-6)


def test_the_window_of_the_file_is_used() -> None:
    image = read("cr_chest_pa_monochrome1_440_gdcm")
    raw = 1 - image.display  # MONOCHROME1
    values = image.pixels.max() + image.pixels.min() - image.pixels
    np.testing.assert_allclose(raw, np.clip((values - 549.5) / 1023 + 0.5, 0, 1), atol=1e-5)
