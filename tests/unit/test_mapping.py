"""From voxels to the acquired images and back: native, unevenly acquired, sheared, turned and with a gap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from pulmo_models.geometry import index_to_lps
from pulmo_models.mapping import (
    FrameMask,
    frame_spacing_mm,
    frame_to_index,
    mask_from_frames,
    mask_on_frames,
    on_frame,
)
from pulmo_models.types import Mask, SourceFrame, Volume
from tests.ct_factory import grid_volume

ROWS, COLUMNS = 40, 50
SPACING = (2.0, 0.8, 0.7)
ORIGIN = np.array([-20.0, 15.0, -90.0])

OBLIQUE = np.array([[0.9, 0.1, 0.0], [-0.1, 0.9, 0.2]])
ORIENTATIONS = {
    "head first": np.array([[1.0, 0, 0], [0, 1, 0]]),
    "feet first": np.array([[-1.0, 0, 0], [0, 1, 0]]),
    "prone": np.array([[-1.0, 0, 0], [0, -1, 0]]),
    "decubitus": np.array([[0.0, 1, 0], [-1, 0, 0]]),
    "oblique": np.linalg.svd(OBLIQUE, full_matrices=False)[0] @ np.linalg.svd(OBLIQUE, full_matrices=False)[2],
}


def affine_of(
    cosines: npt.NDArray[np.float64], spacing: tuple[float, float, float] = SPACING
) -> npt.NDArray[np.float64]:
    row, column = cosines
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = (
        np.cross(row, column) * spacing[0],
        column * spacing[1],
        row * spacing[2],
    )
    affine[:3, 3] = ORIGIN
    return affine


def native(cosines: npt.NDArray[np.float64], slices: int = 12) -> Volume:
    affine = affine_of(cosines)
    return grid_volume(np.zeros((slices, ROWS, COLUMNS)), affine)


def images_at(
    volume: Volume, distances_mm: list[float], shift_mm_per_mm: tuple[float, float] = (0.0, 0.0)
) -> tuple[SourceFrame, ...]:
    """Images at these distances along the normal from the first slice, shifted along (row, column) with it."""
    slice_axis, row_axis, column_axis = (volume.affine[:3, :3] / volume.spacing_mm).T
    first = volume.frames[0]
    places = []
    for number, at in enumerate(distances_mm):
        origin = volume.affine[:3, 3] + at * (
            slice_axis + shift_mm_per_mm[0] * row_axis + shift_mm_per_mm[1] * column_axis
        )
        places.append(replace(first, sop_instance_uid=str(number), origin_lps_mm=(origin[0], origin[1], origin[2])))
    return tuple(places)


def position_of(frame: SourceFrame, row: float, column: float) -> npt.NDArray[np.float64]:
    """PS3.3 C.7.6.2.1.1, written once more."""
    return (
        np.array(frame.origin_lps_mm)
        + row * np.array(frame.row_step_lps_mm)
        + column * np.array(frame.column_step_lps_mm)
    )


def drawn(volume: Volume, found: FrameMask) -> npt.NDArray[np.bool_]:
    """The pixels on the whole image."""
    image = volume.frames[found.frame]
    whole = np.zeros((image.rows, image.columns), dtype=bool)
    rows, columns = found.pixels.shape
    whole[found.origin[0] : found.origin[0] + rows, found.origin[1] : found.origin[1] + columns] = found.pixels
    return whole


def box(origin: tuple[int, int, int], shape: tuple[int, int, int]) -> Mask:
    return Mask(origin=origin, voxels=np.ones(shape, dtype=bool))


@pytest.fixture(params=list(ORIENTATIONS))
def grid(request: pytest.FixtureRequest) -> Volume:
    return native(ORIENTATIONS[request.param])


class TestNative:
    def test_a_voxel_is_the_pixel_of_its_frame(self, grid: Volume) -> None:
        point = on_frame(grid, (3, 17, 29))
        assert (point.frame, point.row, point.column, point.off_plane_mm) == (3, 17.0, 29.0, 0.0)
        assert frame_to_index(grid, 3, 17, 29) == (3.0, 17.0, 29.0)
        np.testing.assert_allclose(position_of(grid.frames[3], 17, 29), index_to_lps(grid.affine, (3, 17, 29)))

    def test_between_two_slices_the_nearer_is_taken(self, grid: Volume) -> None:
        assert (on_frame(grid, (3.4, 1, 1)).frame, on_frame(grid, (3.6, 1, 1)).frame) == (3, 4)
        assert on_frame(grid, (3.25, 1, 1)).off_plane_mm == pytest.approx(0.5)
        assert on_frame(grid, (3.75, 1, 1)).off_plane_mm == pytest.approx(-0.5)
        assert on_frame(grid, (-2, 1, 1)).frame == 0
        assert on_frame(grid, (3.4, 1, 1), among=(5, 8)).frame == 5

    def test_a_mask_is_its_slices(self, grid: Volume) -> None:
        voxels = np.random.default_rng(1).random((4, 6, 7)) > 0.5
        voxels[2] = False
        found = mask_on_frames(grid, Mask(origin=(3, 10, 20), voxels=voxels))
        assert [(m.frame, m.origin) for m in found] == [(3, (10, 20)), (4, (10, 20)), (6, (10, 20))]
        for one, layer in zip(found, (0, 1, 3), strict=True):
            np.testing.assert_array_equal(one.pixels, voxels[layer])


class TestPositions:
    """Every index and pixel means one place of the patient, whatever was done to the volume."""

    @pytest.fixture
    def repaired(self, grid: Volume) -> Volume:
        """Uneven, sheared by 15 degrees along the rows, and off the grid in both directions of the plane."""
        frames = images_at(grid, [0.3, 2.0, 4.6, 6.6, 9.9, 12.2, 14.0, 18.0], (np.tan(np.radians(15)), 0.03))
        return replace(grid, frames=frames, native=False)

    def test_there_and_back(self, repaired: Volume) -> None:
        for index in ((0, 0, 0), (5, 20, 25), (11, 39, 49), (3.3, 7.25, 8.5), (8.9, -4.0, 51.0)):
            point = on_frame(repaired, index)
            frame = repaired.frames[point.frame]
            normal = repaired.affine[:3, 0] / repaired.spacing_mm[0]
            place = position_of(frame, point.row, point.column) + point.off_plane_mm * normal
            np.testing.assert_allclose(place, index_to_lps(repaired.affine, index), atol=1e-9)

    def test_a_pixel_is_found_again_on_its_own_frame(self, repaired: Volume) -> None:
        for number, frame in enumerate(repaired.frames):
            index = frame_to_index(repaired, number, 12.0, 33.5)
            np.testing.assert_allclose(index_to_lps(repaired.affine, index), position_of(frame, 12.0, 33.5), atol=1e-9)
            point = on_frame(repaired, index)
            assert point.frame == number
            assert (point.row, point.column) == (pytest.approx(12.0), pytest.approx(33.5))
            assert point.off_plane_mm == pytest.approx(0.0, abs=1e-9)

    def test_the_nearest_along_the_normal_is_taken(self, repaired: Volume) -> None:
        """Slice 4 lies at 8 mm: 1.4 mm after one image and 1.9 mm before the next, both shifted by the shear."""
        point = on_frame(repaired, (4, 20, 25))
        assert (point.frame, point.off_plane_mm) == (3, pytest.approx(1.4))


@pytest.mark.parametrize(
    ("distances_mm", "spacing_mm"),
    [([0.0, 2.5, 5.0, 7.5], 2.5), ([0.0, 2.55, 4.95, 7.5], 2.5), ([0.0, 2.5, 7.5, 10.0], None), ([3.0], None)],
)
def test_spacing_of_the_images(grid: Volume, distances_mm: list[float], spacing_mm: float | None) -> None:
    """Even within what rounding in a file explains, whatever the spacing of the grid is."""
    volume = replace(grid, frames=images_at(grid, distances_mm), native=False)
    assert frame_spacing_mm(volume) == (None if spacing_mm is None else pytest.approx(spacing_mm))
    assert frame_spacing_mm(grid) == pytest.approx(SPACING[0])


class TestMasks:
    def test_an_image_between_the_slices_takes_the_nearest_one(self, grid: Volume) -> None:
        """Images at slices 0.4, 2.6 and 5.0 of a mask on slices 0 to 2, each slice with a size of its own."""
        voxels = np.zeros((3, 3, 3), dtype=bool)
        for layer in range(3):
            voxels[layer, : layer + 1, :2] = True
        volume = replace(grid, frames=images_at(grid, [0.8, 5.2, 10.0]), native=False)
        found = mask_on_frames(volume, Mask(origin=(1, 10, 20), voxels=voxels))
        assert [m.frame for m in found] == [1]
        whole = drawn(volume, found[0])
        assert whole[10:13, 20:22].all()
        assert whole.sum() == 6

    def test_a_shifted_image_shows_the_mask_where_it_is(self, grid: Volume) -> None:
        """Row shift of 4 pixels and column shift of 3 a slice."""
        shift = (4 * SPACING[1] / SPACING[0], 3 * SPACING[2] / SPACING[0])
        volume = replace(grid, frames=images_at(grid, [0.0, 2.0, 4.0, 6.0], shift), native=False)
        found = mask_on_frames(volume, box((1, 20, 30), (3, 4, 5)))
        assert [m.frame for m in found] == [1, 2, 3]
        for one in found:
            rows, columns = np.nonzero(drawn(volume, one))
            k = one.frame
            assert (rows.min(), rows.max(), columns.min(), columns.max()) == (
                20 - 4 * k,
                23 - 4 * k,
                30 - 3 * k,
                34 - 3 * k,
            )
            assert len(rows) == 20

    def test_every_pixel_of_the_mask_lies_in_a_voxel_of_it(self, grid: Volume) -> None:
        """Sampling at the centres of the pixels: nothing is nearer to a voxel outside."""
        random = np.random.default_rng(3)
        voxels = random.random((6, 9, 11)) > 0.4
        volume = replace(grid, frames=images_at(grid, [0.5, 2.7, 5.1, 8.0, 9.3, 12.8], (0.31, -0.17)), native=False)
        mask = Mask(origin=(1, 12, 15), voxels=voxels)
        full = mask.to_volume(volume.hu.shape)
        found = mask_on_frames(volume, mask)
        assert len(found) > 3
        for one in found:
            expected = np.zeros((ROWS, COLUMNS), dtype=bool)
            for row, column in np.ndindex(ROWS, COLUMNS):
                index = np.rint(frame_to_index(volume, one.frame, row, column)).astype(int)
                if ((index >= 0) & (index < full.shape)).all():
                    expected[row, column] = full[tuple(index)]
            np.testing.assert_array_equal(drawn(volume, one), expected)

    def test_a_mask_between_the_images_goes_to_the_nearest(self, grid: Volume) -> None:
        volume = replace(grid, frames=images_at(grid, [0.0, 20.0], (0.12, 0.0)), native=False)
        (found,) = mask_on_frames(volume, box((6, 20, 30), (2, 3, 4)))
        assert found.frame == 1
        rows, columns = np.nonzero(drawn(volume, found))
        # slice 7 lies at 14 mm; the image at 20 mm is shifted by 2.4 mm, three rows
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (17, 19, 30, 33)

    def test_a_mask_beside_every_image_is_not_lost(self, grid: Volume) -> None:
        """In the margin that a resheared grid has beside its images."""
        volume = replace(grid, frames=images_at(grid, [0.0, 2.0], (20.0, 0.0)), native=False)
        (found,) = mask_on_frames(volume, box((1, 5, 30), (1, 2, 2)))
        assert found.frame == 1
        assert drawn(volume, found)[0, 30:32].all()

    def test_part_of_a_mask_beside_the_image_is_cut(self, grid: Volume) -> None:
        volume = replace(grid, frames=images_at(grid, [0.0, 2.0], (4 * SPACING[1] / SPACING[0], 0.0)), native=False)
        found = mask_on_frames(volume, box((0, 2, 30), (2, 4, 3)))
        assert [(m.frame, int(m.pixels.sum())) for m in found] == [(0, 12), (1, 6)]
        rows, _ = np.nonzero(drawn(volume, found[1]))
        assert (rows.min(), rows.max()) == (0, 1)

    def test_there_and_back_in_a_native_volume(self, grid: Volume) -> None:
        voxels = np.random.default_rng(5).random((4, 6, 7)) > 0.5
        mask = Mask(origin=(3, 10, 20), voxels=voxels)
        planes = {found.frame: drawn(grid, found) for found in mask_on_frames(grid, mask)}
        np.testing.assert_array_equal(mask_from_frames(grid, planes), mask.to_volume(grid.hu.shape))

    def test_there_and_back_in_a_sheared_volume(self, grid: Volume) -> None:
        """Whole pixels of shift, so nothing is lost on the way."""
        shift = (4 * SPACING[1] / SPACING[0], 3 * SPACING[2] / SPACING[0])
        frames = images_at(grid, [2.0 * k for k in range(7)], shift)
        volume = replace(grid, hu=grid.hu[:7], frames=frames, native=False)
        mask = Mask(origin=(1, 25, 20), voxels=np.random.default_rng(6).random((3, 5, 4)) > 0.4)
        planes = {found.frame: drawn(volume, found) for found in mask_on_frames(volume, mask)}
        np.testing.assert_array_equal(mask_from_frames(volume, planes), mask.to_volume(volume.hu.shape))

    def test_back_from_images_that_lie_apart(self, grid: Volume) -> None:
        """Images at slices 0, 3 and 5.5: a slice takes what is drawn on the image nearest to it."""
        volume = replace(grid, frames=images_at(grid, [0.0, 6.0, 11.0]), native=False)
        plane = np.zeros((ROWS, COLUMNS), dtype=bool)
        plane[4:6, 7:9] = True
        full = mask_from_frames(volume, {1: plane})
        assert np.flatnonzero(full.any(axis=(1, 2))).tolist() == [2, 3, 4]
        np.testing.assert_array_equal(full[2], plane)

    def test_a_plane_half_way_between_two_slices_takes_one_of_them_whole(self) -> None:
        """An image turned by rounding in the file: its far side lies nearer to the next slice."""
        volume = native(ORIENTATIONS["head first"])
        frame = images_at(volume, [3.0])[0]
        turned = replace(frame, row_step_lps_mm=(0.0, 0.8, 1e-4), column_step_lps_mm=(0.7, 0.0, -1e-4))
        volume = replace(volume, frames=(turned,), native=False)
        voxels = np.ones((2, ROWS, COLUMNS), dtype=bool)
        voxels[0, :, 25:] = False
        (found,) = mask_on_frames(volume, Mask(origin=(1, 0, 0), voxels=voxels))
        assert int(found.pixels.sum()) in (ROWS * 25, ROWS * COLUMNS)
