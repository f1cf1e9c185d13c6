"""Pictures of nodules: right slice, right place, square millimetres, lung window."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pulmo_models.types import Mask, Volume
from pulmo_node.encode import render_mask
from pulmo_node.encode.keyimage import AXIS_RGB, OUTLINE_RGB, direction, key_slice, render_views
from tests.ct_factory import grid_volume
from tests.encode_factory import make_nodule

SIZE = 300


def _volume(hu: npt.NDArray[np.float32], spacing_mm: tuple[float, float, float]) -> Volume:
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    affine[2, 0], affine[1, 1], affine[0, 2] = spacing_mm
    return grid_volume(hu, affine)


def _outline(panel: Image.Image) -> npt.NDArray[np.bool_]:
    return (np.asarray(panel) == OUTLINE_RGB).all(axis=-1)


def _extent(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = mask.nonzero()
    return int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())


@pytest.mark.parametrize("spacing_mm", [(2.0, 1.0, 1.0), (2.0, 2.0, 1.0), (2.0, 0.5, 1.0)])
def test_a_sphere_is_round_whatever_the_spacing(spacing_mm: tuple[float, float, float]) -> None:
    shape = (9, round(80 / spacing_mm[1]), round(80 / spacing_mm[2]))
    volume = _volume(np.full(shape, -800, dtype=np.float32), spacing_mm)
    nodule = make_nodule(volume, (4, shape[1] // 2, shape[2] // 4), radius_mm=10.0)
    picture = render_mask(volume, nodule.mask, "", SIZE)
    assert picture.mode == "RGB"
    assert picture.width == 2 * SIZE
    top, bottom, left, right = _extent(_outline(picture.crop((SIZE, 0, 2 * SIZE, SIZE))))
    field_mm = 50.0
    for low, high in ((top, bottom), (left, right)):
        assert (high - low) * field_mm / SIZE == pytest.approx(20.0, abs=2.2)  # within a voxel
        assert (high + low) / 2 == pytest.approx(SIZE / 2, abs=SIZE / field_mm * 1.1)


def test_the_overview_marks_the_place() -> None:
    volume = _volume(np.full((9, 100, 100), -800, dtype=np.float32), (2.0, 1.0, 1.0))
    nodule = make_nodule(volume, (4, 30, 70), radius_mm=5.0)
    picture = render_mask(volume, nodule.mask, "", SIZE)
    top, bottom, left, right = _extent(_outline(picture.crop((0, 0, SIZE, SIZE))))
    assert (top + bottom) / 2 == pytest.approx(30.5 * 3, abs=2)
    assert (left + right) / 2 == pytest.approx(70.5 * 3, abs=2)


def test_the_slice_of_largest_area_is_shown() -> None:
    hu = np.full((9, 60, 60), -1350, dtype=np.float32)  # black in the lung window
    hu[5] = 150  # white
    volume = _volume(hu, (2.0, 1.0, 1.0))
    nodule = make_nodule(volume, (4, 30, 30), radius_mm=4.0)
    voxels = np.ones((3, 2, 2), dtype=bool)
    voxels[[0, 2], 0] = False
    nodule = replace(nodule, mask=Mask(origin=(4, 20, 20), voxels=voxels))
    slice_index, plane = key_slice(volume, nodule.mask)
    assert slice_index == 5
    assert plane.sum() == 4
    assert plane[20:22, 20:22].all()
    picture = np.asarray(render_mask(volume, nodule.mask, "", SIZE))
    assert picture[SIZE // 4, SIZE // 4].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("hu", "grey"), [(-1350, 0), (-600, 128), (150, 255), (3000, 255), (-2000, 0)])
def test_lung_window(hu: float, grey: int) -> None:
    volume = _volume(np.full((3, 60, 60), hu, dtype=np.float32), (2.0, 1.0, 1.0))
    picture = np.asarray(render_mask(volume, make_nodule(volume, (1, 30, 30), radius_mm=3.0).mask, "", SIZE))
    assert picture[20, SIZE + 20].tolist() == pytest.approx([grey] * 3, abs=1)


def test_a_nodule_at_the_edge_is_drawn_whole() -> None:
    volume = _volume(np.full((9, 60, 60), -800, dtype=np.float32), (2.0, 1.0, 1.0))
    picture = render_mask(volume, make_nodule(volume, (0, 0, 59), radius_mm=6.0).mask, "", SIZE)
    top, bottom, left, right = _extent(_outline(picture.crop((SIZE, 0, 2 * SIZE, SIZE))))
    assert 0 < top < bottom < SIZE - 1
    assert 0 < left < right < SIZE - 1


@pytest.mark.parametrize(
    ("step", "letter"),
    [((1, 0, 0), "L"), ((-1, 0.2, 0), "R"), ((0, 2, 0), "P"), ((0.1, -1, 0), "A"), ((0, 0, 1), "H"), ((0, 0, -1), "F")],
)
def test_directions(step: tuple[float, float, float], letter: str) -> None:
    assert direction(np.array(step, dtype=float)) == letter


def test_equal_input_gives_an_equal_picture() -> None:
    volume = _volume(np.random.default_rng(1).normal(-700, 100, (9, 60, 60)).astype(np.float32), (2.0, 1.0, 1.0))
    nodule = make_nodule(volume, (4, 30, 30))
    assert render_mask(volume, nodule.mask, "a").tobytes() == render_mask(volume, nodule.mask, "a").tobytes()


def test_axes_run_from_border_to_border() -> None:
    volume = _volume(np.full((9, 60, 60), -800, dtype=np.float32), (2.0, 1.0, 1.0))
    nodule = make_nodule(volume, (4, 30, 30), radius_mm=8.0)
    _, detail = render_views(volume, nodule.mask, SIZE, (nodule.long_axis, nodule.short_axis))
    axes = (np.asarray(detail) == AXIS_RGB).all(axis=-1)
    assert _extent(axes) == pytest.approx(_extent(_outline(detail)), abs=3)
    _, plain = render_views(volume, nodule.mask, SIZE)
    assert not (np.asarray(plain) == AXIS_RGB).all(axis=-1).any()


def test_an_axis_of_another_slice_is_not_drawn() -> None:
    volume = _volume(np.full((9, 60, 60), -800, dtype=np.float32), (2.0, 1.0, 1.0))
    nodule = make_nodule(volume, (4, 30, 30), radius_mm=8.0)
    other = replace(nodule.long_axis, start=(5, 30, 20), end=(5, 30, 40))
    _, detail = render_views(volume, nodule.mask, SIZE, (other,))
    assert not (np.asarray(detail) == AXIS_RGB).all(axis=-1).any()
