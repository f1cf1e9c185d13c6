"""How often a negative is told from a film, on the NIH pack; figures in docs/pipelines.md."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pulmo_models.cxr.appearance import looks_inverted
from tests.conftest import data_folder

NEGATIVE = "00017999_000.png"  # a negative in the published collection itself


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_negatives_in_the_nih_pack(every: int) -> None:
    flagged, missed = [], []
    folder = data_folder("cxr_png/nih_chestxray14/png")
    files = sorted({folder / NEGATIVE, *sorted(folder.glob("*.png"))[::every]})
    for path in files:
        film = np.asarray(Image.open(path).convert("L"), dtype=np.float32) / 255
        if looks_inverted(film):
            flagged.append(path.name)
        if not looks_inverted(1 - film):
            missed.append(path.name)
    assert len(files) >= 487 // every
    assert flagged == [NEGATIVE]
    assert NEGATIVE in missed
    assert len(missed) - 1 <= 0.02 * len(files)


def test_contrast_and_size_do_not_matter() -> None:
    path = data_folder("cxr_png/nih_chestxray14/png") / NEGATIVE
    film = np.asarray(Image.open(path).convert("L"), dtype=np.float32)
    for version in (film * 0.1 + 3, film[::2, ::3], np.sqrt(film)):
        assert looks_inverted(version)
        assert not looks_inverted(version.max() - version)


def test_a_blank_film_is_no_negative() -> None:
    assert not looks_inverted(np.zeros((50, 40), dtype=np.float32))
