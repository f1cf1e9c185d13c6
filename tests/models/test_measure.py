"""Axes, volume and position against discs, ellipses and boxes of known size."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pulmo_models.ct.measure import measure, measure_axes
from pulmo_models.types import Axis, Mask
from tests.models.test_lungs import make_volume


def ellipse_mask(
    long_mm: float, short_mm: float, degrees: float, spacing: tuple[float, float], shift: tuple[float, float] = (0, 0)
) -> Mask:
    """One slice; the long axis is turned by ``degrees`` from the column direction towards the rows."""
    half = [int(long_mm / step) + 4 for step in spacing]
    rows, columns = np.indices((2 * half[0] + 1, 2 * half[1] + 1))
    y = (rows - half[0] - shift[0]) * spacing[0]
    x = (columns - half[1] - shift[1]) * spacing[1]
    angle = math.radians(degrees)
    u = x * math.cos(angle) + y * math.sin(angle)
    v = -x * math.sin(angle) + y * math.cos(angle)
    return Mask(origin=(5, 10, 20), voxels=((2 * u / long_mm) ** 2 + (2 * v / short_mm) ** 2 <= 1.0)[None])


def end_distance_mm(axis: Axis, spacing: tuple[float, float, float]) -> float:
    return float(np.linalg.norm((np.array(axis.end) - np.array(axis.start)) * spacing))


@pytest.mark.parametrize("diameter_px", [3.0, 5.3, 8.0, 12.7, 20.0, 41.5])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.5, 0.5), (0.3, -0.2)])
def test_disc(diameter_px: float, shift: tuple[float, float]) -> None:
    step = 0.7
    mask = ellipse_mask(diameter_px * step, diameter_px * step, 0, (step, step), shift)
    long_axis, short_axis = measure_axes(mask, (2.5, step, step))
    assert long_axis.length_mm == pytest.approx(diameter_px * step, abs=step)
    assert short_axis.length_mm == pytest.approx(diameter_px * step, abs=step)
    assert short_axis.length_mm <= long_axis.length_mm + 1e-9


@pytest.mark.parametrize("degrees", [0, 17, 30, 45, 75, 90, 120, 163])
@pytest.mark.parametrize("spacing", [(0.7, 0.7), (0.5, 0.8), (1.0, 0.6)])
def test_turned_ellipse(degrees: float, spacing: tuple[float, float]) -> None:
    mask = ellipse_mask(18.0, 9.0, degrees, spacing, (0.2, 0.4))
    long_axis, short_axis = measure_axes(mask, (1.0, *spacing))
    pixel = max(spacing)
    assert long_axis.length_mm == pytest.approx(18.0, abs=pixel)
    assert short_axis.length_mm == pytest.approx(9.0, abs=pixel)
    for axis in (long_axis, short_axis):
        assert end_distance_mm(axis, (1.0, *spacing)) == pytest.approx(axis.length_mm)
    a, b = (
        (np.array(axis.end[1:]) - np.array(axis.start[1:])) * spacing / axis.length_mm
        for axis in (long_axis, short_axis)
    )
    assert float(a @ b) == pytest.approx(0.0, abs=1e-6), "the short axis is perpendicular in mm"
    found = math.degrees(math.atan2(a[0], a[1])) % 180
    assert min(abs(found - degrees % 180), 180 - abs(found - degrees % 180)) < 11


def test_the_axes_are_taken_on_the_slice_of_largest_area_and_in_volume_indices() -> None:
    voxels = np.zeros((3, 9, 30), dtype=bool)
    voxels[0, 4, :] = True  # longest, but 30 voxels only
    voxels[1, 1:8, 5:15] = True  # 70 voxels
    voxels[2, 4:6, 5:8] = True
    mask = Mask(origin=(40, 100, 200), voxels=voxels)
    long_axis, short_axis = measure_axes(mask, (2.0, 1.0, 1.0))
    assert long_axis.start[0] == long_axis.end[0] == short_axis.start[0] == 41.0
    assert long_axis.length_mm == pytest.approx(math.hypot(10, 7), abs=1.0)
    for point in (long_axis.start, long_axis.end, short_axis.start, short_axis.end):
        assert 100.4 <= point[1] <= 107.6
        assert 204.4 <= point[2] <= 214.6


@pytest.mark.parametrize("spacing", [(3.0, 0.7, 0.7), (3.0, 0.9, 0.6), (3.0, 0.5, 0.8)])
def test_a_single_voxel_has_the_extent_of_its_pixel(spacing: tuple[float, float, float]) -> None:
    mask = Mask(origin=(1, 2, 3), voxels=np.ones((1, 1, 1), dtype=bool))
    long_axis, short_axis = measure_axes(mask, spacing)
    assert long_axis.length_mm == pytest.approx(max(spacing[1:]))
    assert 0 < short_axis.length_mm <= long_axis.length_mm + 1e-9
    assert short_axis.length_mm == pytest.approx(min(spacing[1:]), abs=min(spacing[1:]) / 4)
    assert np.mean([long_axis.start, long_axis.end], axis=0) == pytest.approx([1, 2, 3])


def test_a_line_of_voxels() -> None:
    mask = Mask(origin=(0, 0, 0), voxels=np.ones((1, 1, 12), dtype=bool))
    long_axis, short_axis = measure_axes(mask, (1.0, 0.5, 0.5))
    assert long_axis.length_mm == pytest.approx(6.0)
    assert short_axis.length_mm == pytest.approx(0.5, abs=0.13)


def test_volume_mean_and_centroid_through_an_oblique_affine() -> None:
    hu = np.full((20, 40, 50), -850.0)
    grid = np.indices(hu.shape)
    spacing = (2.5, 0.8, 0.6)
    ball = sum(((g - c) * s) ** 2 for g, c, s in zip(grid, (9, 18, 26), spacing, strict=True)) <= 8.0**2
    hu[ball] = 55.0
    volume = make_volume(hu, spacing)
    turn = np.array([[1, 0, 0], [0, math.cos(0.3), -math.sin(0.3)], [0, math.sin(0.3), math.cos(0.3)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ volume.affine[:3, :3]
    affine[:3, 3] = (-120.0, 33.0, -500.5)
    object.__setattr__(volume, "affine", affine)
    box = slice(5, 14), slice(5, 31), slice(10, 43)
    mask = Mask(origin=(5, 5, 10), voxels=ball[box])
    assert mask.voxels.sum() == ball.sum()
    found = measure(volume, mask)
    assert found.volume_mm3 == pytest.approx(ball.sum() * np.prod(spacing))
    assert found.volume_mm3 == pytest.approx(4 / 3 * math.pi * 8**3, rel=0.05)
    assert found.mean_hu == pytest.approx(55.0)
    expected = turn @ (26 * 0.6, 18 * 0.8, 9 * 2.5) + (-120.0, 33.0, -500.5)
    assert found.centre_lps_mm == pytest.approx(tuple(expected), abs=0.1)
    assert found.long_axis.length_mm == pytest.approx(16.0, abs=0.81)
