"""The key images of the page: the same patient looks the same however the images lie in their files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pulmo_node.errors import PulmoError
from pulmo_node.web.pictures import draw
from tests.viewer.study import KnownStudy, make_study

SIDE = 240


def pictures(study: KnownStudy) -> dict[int, npt.NDArray[np.int64]]:
    found = draw(list(study.images), study.result("SEG"))
    return {number: np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int) for number, png in found.items()}


def outline(picture: npt.NDArray[np.int64], plane: int) -> npt.NDArray[np.int64]:
    part = picture[:, plane * SIDE : (plane + 1) * SIDE]
    return np.argwhere((part[..., 0] > 200) & (part[..., 1] < 130))


@pytest.fixture(scope="module")
def supine(tmp_path_factory: pytest.TempPathFactory) -> dict[int, npt.NDArray[np.int64]]:
    return pictures(make_study(tmp_path_factory.mktemp("supine"), "head-first-supine"))


def test_every_nodule_is_outlined_in_the_middle_of_its_planes(supine: dict[int, npt.NDArray[np.int64]]) -> None:
    assert sorted(supine) == [1, 2]
    for picture in supine.values():
        assert picture.shape == (SIDE, 3 * SIDE, 3)
        for plane in range(3):
            edge = outline(picture, plane)
            assert len(edge) > 20
            assert np.abs(edge.mean(axis=0) - SIDE / 2).max() < 12
            inside = picture[SIDE // 2 - 3 : SIDE // 2 + 3, plane * SIDE + SIDE // 2 - 3 : plane * SIDE + SIDE // 2 + 3]
            assert inside.mean() > picture[:, plane * SIDE : (plane + 1) * SIDE].mean(), (
                "the nodule is denser than lung"
            )


def test_a_prone_patient_is_shown_as_a_supine_one(supine: dict[int, npt.NDArray[np.int64]], tmp_path: Path) -> None:
    """The images lie upside down and mirrored in their files; every plane is turned back, and is no mirror image."""
    for number, picture in pictures(make_study(tmp_path, "head-first-prone")).items():
        for plane in range(3):
            mine, other = coarse(picture, plane), coarse(supine[number], plane)
            same = alike(mine, other)
            assert same > 0.9
            assert same > max(alike(mine[::-1], other), alike(mine[:, ::-1], other), alike(mine[::-1, ::-1], other))


def coarse(picture: npt.NDArray[np.int64], plane: int) -> npt.NDArray[np.float64]:
    """A plane in blocks of 10 x 10 pixels: what is where, without the noise."""
    part = picture[:, plane * SIDE : (plane + 1) * SIDE].mean(axis=2)
    return np.asarray(part.reshape(24, 10, 24, 10).mean(axis=(1, 3)))


def alike(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_what_is_no_segmentation_gives_no_picture(tmp_path: Path) -> None:
    with pytest.raises(PulmoError):
        draw([], tmp_path / "none.dcm")
