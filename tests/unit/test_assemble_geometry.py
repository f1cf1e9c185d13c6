"""Order, spacing and orientation of a CT volume, from series whose geometry is known."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid

from pulmo_models.codes import CautionCode
from pulmo_models.types import Volume
from pulmo_node.assemble import RejectionCode, assemble_ct, describe
from pulmo_node.errors import Rejected
from tests.ct_factory import (
    AXIAL,
    ct_datasets,
    field_datasets,
    field_hu,
    places_of,
    ramp_hu,
    set_pixels,
    true_affine,
    write_datasets,
)

SPACING = (2.5, 0.7, 0.8)
ORIGIN = (-120.0, -110.0, -300.0)


def assembled(datasets: list[Dataset], folder: Path) -> Volume:
    paths = write_datasets(datasets, folder, seed=7)
    return assemble_ct(paths, describe(paths))


def rejected(datasets: list[Dataset], folder: Path) -> Rejected:
    with pytest.raises(Rejected) as caught:
        assembled(datasets, folder)
    return caught.value


def rotation(axis: str, degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array(
        {
            "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
            "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
            "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
        }[axis]
    )


def turned(axis: str, degrees: float) -> tuple[float, ...]:
    cosines = rotation(axis, degrees) @ np.array([[1, 0], [0, 1], [0, 0]])
    return tuple(cosines.T.ravel())


def shift(ds: Dataset, offset_lps_mm: tuple[float, float, float]) -> None:
    ds.ImagePositionPatient = [round(a + b, 6) for a, b in zip(ds.ImagePositionPatient, offset_lps_mm, strict=True)]


class TestRegularSeries:
    def test_shuffled_files_are_ordered_by_position(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu(), SPACING, ORIGIN)
        volume = assembled(datasets, tmp_path)
        assert np.array_equal(volume.hu, ramp_hu().astype(np.float32))
        assert [s.sop_instance_uid for s in volume.frames] == [d.SOPInstanceUID for d in datasets]
        assert volume.frame_of_reference_uid == datasets[0].FrameOfReferenceUID
        assert volume.series.series_instance_uid == datasets[0].SeriesInstanceUID
        assert volume.cautions == ()

    def test_instance_number_says_nothing(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu(), SPACING, ORIGIN)
        for k, ds in enumerate(datasets):
            ds.InstanceNumber = (7 * k) % 10
        assert np.array_equal(assembled(datasets, tmp_path).hu, ramp_hu())

    @pytest.mark.parametrize(
        "orientation",
        [
            pytest.param(AXIAL, id="head first supine"),
            pytest.param((-1, 0, 0, 0, 1, 0), id="feet first: columns to the right, slices to the feet"),
            pytest.param((-1, 0, 0, 0, -1, 0), id="prone"),
            pytest.param((0, 1, 0, -1, 0, 0), id="decubitus"),
            pytest.param(turned("x", 12.0), id="turned 12 degrees about x"),
            pytest.param(turned("y", -8.0), id="turned 8 degrees about y"),
            pytest.param(turned("z", 31.0), id="turned 31 degrees in the plane"),
        ],
    )
    def test_affine_is_exact(self, orientation: tuple[float, ...], tmp_path: Path) -> None:
        volume = assembled(ct_datasets(ramp_hu(), SPACING, ORIGIN, orientation), tmp_path)
        assert np.abs(volume.affine - true_affine(SPACING, ORIGIN, orientation)).max() < 1e-6
        assert volume.spacing_mm == pytest.approx(SPACING, abs=1e-6)
        assert np.array_equal(volume.hu, ramp_hu())
        column_row_slice = volume.affine[:3, [2, 1, 0]]
        assert np.linalg.det(column_row_slice) > 0

    def test_feet_first_slices_run_to_the_feet(self, tmp_path: Path) -> None:
        volume = assembled(ct_datasets(ramp_hu(), SPACING, ORIGIN, (-1, 0, 0, 0, 1, 0)), tmp_path)
        assert volume.affine[2, 0] == pytest.approx(-2.5)

    def test_overlapping_reconstruction_is_not_stretched(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu(), (1.0, 0.7, 0.7), ORIGIN)
        for ds in datasets:
            ds.SliceThickness = 2
        assert assembled(datasets, tmp_path).spacing_mm[0] == pytest.approx(1.0)


class TestRoundedPositions:
    @pytest.mark.parametrize("spacing", [1.25, 0.625, 0.33, 2.47])
    def test_one_decimal_is_accepted_and_the_fit_finds_the_spacing(self, spacing: float, tmp_path: Path) -> None:
        hu = np.tile(ramp_hu((1, 4, 4)), (80, 1, 1))
        datasets = ct_datasets(hu, (spacing, 0.7, 0.7), ORIGIN)
        for ds in datasets:
            ds.ImagePositionPatient = [round(float(value), 1) for value in ds.ImagePositionPatient]
        volume = assembled(datasets, tmp_path)
        assert volume.spacing_mm[0] == pytest.approx(spacing, abs=0.002)
        first, last = (volume.affine @ [k, 0, 0, 1] for k in (0, 79))
        assert first[2] == pytest.approx(-300.0, abs=0.06)
        assert last[2] == pytest.approx(-300.0 + 79 * spacing, abs=0.06)

    def test_oblique_one_decimal_is_accepted(self, tmp_path: Path) -> None:
        hu = np.tile(ramp_hu((1, 4, 4)), (80, 1, 1))
        datasets = ct_datasets(hu, (1.25, 0.7, 0.7), ORIGIN, turned("x", 11.0))
        for ds in datasets:
            ds.ImagePositionPatient = [round(float(value), 1) for value in ds.ImagePositionPatient]
        truth = true_affine((1.25, 0.7, 0.7), ORIGIN, turned("x", 11.0))
        corner = np.array([79, 3, 3, 1])
        volume = assembled(datasets, tmp_path)
        assert np.abs((volume.affine - truth) @ corner).max() < 0.1


def even(count: int, spacing_mm: float = 2.5) -> np.ndarray:
    return spacing_mm * np.arange(count)


def field_at(distances: np.ndarray, per_mm: tuple[float, float] = (0.0, 0.0), **layout: Any) -> list[Dataset]:
    """The field, scanned at these distances along the axis of the patient; slices drift along x and y by ``per_mm``."""
    origins = [(ORIGIN[0] + d * per_mm[0], ORIGIN[1] + d * per_mm[1], ORIGIN[2] + d) for d in distances]
    return field_datasets(origins, **layout)


def code_of(volume: Volume) -> str:
    (caution,) = volume.cautions
    return caution.code


class TestOneMissingSlice:
    @pytest.mark.parametrize("missing", [1, 5, 10])
    def test_it_is_interpolated_and_marked(self, missing: int, tmp_path: Path) -> None:
        datasets = field_at(np.delete(even(12), missing))
        volume = assembled(datasets, tmp_path)
        assert volume.hu.shape == (12, 12, 16)
        assert np.abs(volume.hu - field_hu(places_of(volume))).max() < 0.04
        assert np.abs(volume.affine - true_affine(SPACING, ORIGIN)).max() < 1e-6
        assert not volume.native
        assert volume.interpolated == (missing,)
        assert [f.sop_instance_uid for f in volume.frames] == [ds.SOPInstanceUID for ds in datasets]
        assert code_of(volume) == CautionCode.GAP_FILLED

    def test_the_caution_names_the_files_on_either_side(self, tmp_path: Path) -> None:
        paths = write_datasets(field_at(np.delete(even(12), 5)), tmp_path)
        (caution,) = assemble_ct(paths, describe(paths)).cautions
        assert "between IM0004.dcm and IM0005.dcm; slice 6 of 12" in caution.sentence

    def test_the_other_slices_keep_their_pixels(self, tmp_path: Path) -> None:
        hu = ramp_hu()
        datasets = ct_datasets(hu, SPACING, ORIGIN)
        del datasets[4]
        volume = assembled(datasets, tmp_path)
        kept = np.delete(np.arange(10), 4)
        assert np.array_equal(volume.hu[kept], hu[kept])
        assert np.array_equal(volume.hu[4], (hu[3] + hu[5]) / 2)

    def test_positions_rounded_to_one_decimal(self, tmp_path: Path) -> None:
        datasets = field_at(np.delete(even(40, 1.25), 17))
        for ds in datasets:
            ds.ImagePositionPatient = [round(float(value), 1) for value in ds.ImagePositionPatient]
        volume = assembled(datasets, tmp_path)
        assert volume.interpolated == (17,)
        assert volume.spacing_mm[0] == pytest.approx(1.25, abs=0.003)

    def test_padding_on_one_side_takes_what_the_other_side_shows(self, tmp_path: Path) -> None:
        datasets = ct_datasets(np.full((10, 4, 4), 40.0), signed=True)
        for ds in datasets:
            ds.RescaleIntercept = 0
            stored = np.full((4, 4), 40)
            stored[0] = -2000
            set_pixels(ds, stored)
        set_pixels(datasets[5], np.full((4, 4), 40))
        del datasets[4]
        volume = assembled(datasets, tmp_path)
        assert (volume.hu[4] == 40).all()

    def test_a_gap_of_more_than_ten_millimetres_is_refused(self, tmp_path: Path) -> None:
        error = rejected(field_at(np.delete(even(12, 6.0), 5)), tmp_path)
        assert error.code == RejectionCode.MISSING_SLICE
        assert "1 slice is missing: 12.00 mm" in error.sentence


class TestSeveralMissingSlices:
    def test_the_file_behind_the_gap_is_named(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu((12, 4, 4)))
        del datasets[5:7]
        paths = write_datasets(datasets, tmp_path)
        with pytest.raises(Rejected) as caught:
            assemble_ct(paths, describe(paths))
        assert caught.value.code == RejectionCode.MISSING_SLICE
        assert caught.value.file == "IM0005.dcm"
        assert "2 slices are missing: 7.50 mm between IM0004.dcm and IM0005.dcm where 2.50 mm" in caught.value.sentence

    def test_two_isolated_gaps_are_refused(self, tmp_path: Path) -> None:
        error = rejected(field_at(np.delete(even(30), [5, 20])), tmp_path)
        assert error.code == RejectionCode.MISSING_SLICE
        assert "2 slices are missing" in error.sentence

    def test_several_missing_slices_are_counted(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu((16, 4, 4)))
        del datasets[10], datasets[4:6]
        error = rejected(datasets, tmp_path)
        assert error.code == RejectionCode.MISSING_SLICE
        assert "3 slices are missing" in error.sentence

    def test_seven_doubled_gaps_in_a_row_are_missing_slices(self, tmp_path: Path) -> None:
        distances = np.concatenate([even(12), 27.5 + 5 * (1 + np.arange(7))])
        error = rejected(field_at(distances), tmp_path)
        assert error.code == RejectionCode.MISSING_SLICE
        assert "7 slices are missing" in error.sentence


class TestUnevenSpacing:
    @pytest.mark.parametrize(
        ("distances", "spacing_mm"),
        [
            pytest.param(np.concatenate([even(10, 1.0), 9 + 1.5 * (1 + np.arange(10))]), 1.0, id="1.0, then 1.5 mm"),
            pytest.param(np.concatenate([even(10), 22.5 + 5 * (1 + np.arange(8))]), 2.5, id="2.5, then 5 mm"),
            pytest.param(even(20) + 0.5 * (np.arange(20) == 9), 2.0, id="one displaced slice"),
            pytest.param(even(20) + 0.2 * (-1.0) ** np.arange(20) - 0.2, 2.1, id="every slice displaced"),
            pytest.param(even(300, 1.25) + 0.4 * (np.arange(300) >= 250), 1.25, id="a jump of 0.4 mm at slice 250"),
            pytest.param(even(300, 1.25) - 0.3 * (np.arange(300) >= 250), 0.95, id="a step back of 0.3 mm"),
        ],
    )
    def test_it_is_resampled_to_the_smallest_distance(
        self, distances: np.ndarray, spacing_mm: float, tmp_path: Path
    ) -> None:
        datasets = field_at(distances, size=(3, 4))
        volume = assembled(datasets, tmp_path)
        assert code_of(volume) == CautionCode.RESAMPLED
        assert not volume.native
        assert volume.interpolated == ()
        assert spacing_mm * 0.95 < volume.spacing_mm[0] <= spacing_mm + 1e-6
        places = places_of(volume)
        assert np.abs(volume.hu - field_hu(places)).max() < 0.04
        assert places[0, 0, 0] == pytest.approx(ORIGIN, abs=1e-6)
        assert places[-1, 0, 0, 2] == pytest.approx(ORIGIN[2] + distances[-1], abs=1e-6)
        assert len(volume.frames) == len(datasets)
        assert volume.frames[1].origin_lps_mm == pytest.approx(tuple(datasets[1].ImagePositionPatient))

    @pytest.mark.parametrize(
        "distances",
        [
            pytest.param(even(300, 1.25) + 1.0 * (np.arange(300) >= 250), id="a hole"),
            pytest.param(even(20, 5.0) + 1.2 * (np.arange(20) >= 9), id="a gap of more than 6 mm"),
            pytest.param(np.insert(even(20), 9, 20.2), id="two slices 0.2 mm apart"),
        ],
    )
    def test_beyond_the_limits_it_is_irregular(self, distances: np.ndarray, tmp_path: Path) -> None:
        error = rejected(field_at(distances, size=(3, 4)), tmp_path)
        assert error.code == RejectionCode.IRREGULAR_SPACING
        assert error.tag == "(0020,0032) ImagePositionPatient"

    def test_absurd_positions(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        datasets[4].ImagePositionPatient = [0, 0, "1e12"]
        error = rejected(datasets, tmp_path)
        assert error.code == RejectionCode.UNREADABLE
        assert "100 m" in error.sentence


class TestTiltAndOrientation:
    @pytest.mark.parametrize("degrees", [0.5, 2.4, -6.78, 18.5, 30.0])
    @pytest.mark.parametrize("axis", ["rows", "columns"])
    def test_a_tilt_is_found_in_the_positions_and_undone(self, degrees: float, axis: str, tmp_path: Path) -> None:
        drift = float(np.tan(np.radians(degrees)))
        datasets = field_at(even(40), (0, drift) if axis == "rows" else (drift, 0))
        for ds in datasets:
            ds.GantryDetectorTilt = 0
        volume = assembled(datasets, tmp_path)
        (caution,) = volume.cautions
        assert caution.code == CautionCode.RESHEARED
        assert f"{abs(degrees):.1f} degrees" in caution.sentence
        assert not volume.native
        assert volume.spacing_mm == pytest.approx(SPACING)
        assert abs(np.linalg.det(volume.affine[:3, :3] / SPACING)) == pytest.approx(1)
        known = volume.hu != -1024
        inside = known & np.roll(known, 1, 1) & np.roll(known, -1, 1) & np.roll(known, 1, 2) & np.roll(known, -1, 2)
        inside[:, [0, -1]] = inside[:, :, [0, -1]] = False
        assert inside.sum() > 0.5 * 40 * 12 * 16
        assert np.abs(volume.hu - field_hu(places_of(volume)))[inside].max() < 0.05

    @pytest.mark.parametrize("drift", [(0.0, 0.3), (0.2, -0.25)])
    def test_nothing_of_a_tilted_image_is_lost(self, drift: tuple[float, float], tmp_path: Path) -> None:
        volume = assembled(field_at(even(40), drift), tmp_path)
        inverse = np.linalg.inv(volume.affine)
        size = np.array(volume.hu.shape)
        for k, frame in enumerate(volume.frames):
            corner = np.array(frame.origin_lps_mm)
            far = corner + 11 * np.array(frame.row_step_lps_mm) + 15 * np.array(frame.column_step_lps_mm)
            for place in (corner, far):
                index = (inverse @ [*place, 1])[:3]
                assert index[0] == pytest.approx(k, abs=1e-6)
                assert (index >= -1e-6).all()
                assert (index <= size - 1 + 1e-6).all()
        # Every image keeps at least as many voxels as half of its edge pixels leave.
        assert ((volume.hu != -1024).sum(axis=(1, 2)) >= 11 * 15).all()

    def test_a_tilted_series_with_one_missing_slice(self, tmp_path: Path) -> None:
        volume = assembled(field_at(np.delete(even(20), 7), (0, 0.2)), tmp_path)
        assert [c.code for c in volume.cautions] == [CautionCode.RESHEARED, CautionCode.GAP_FILLED]
        assert volume.interpolated == (7,)
        known = volume.hu != -1024
        inside = known & np.roll(known, 1, 1) & np.roll(known, -1, 1)
        inside[:, [0, -1]] = False
        inside[7] &= inside[6] & inside[8]
        assert inside[7].any()
        assert np.abs(volume.hu - field_hu(places_of(volume)))[inside].max() < 0.05

    def test_padding_is_not_mixed_into_tissue(self, tmp_path: Path) -> None:
        datasets = field_at(even(20), (0, 0.35))
        for ds in datasets:
            ds.PixelRepresentation, ds.RescaleSlope, ds.RescaleIntercept = 1, 1, 0
            stored = np.full((12, 16), 40)
            stored[:, :5], stored[:3] = -2000, 300
            ds.add_new("PixelPaddingValue", "SS", 300)
            set_pixels(ds, stored)
        hu = assembled(datasets, tmp_path).hu
        assert set(np.unique(hu)) == {-1024, 40}
        assert ((hu == 40).sum(axis=(1, 2)) >= 8 * 11).all()
        assert ((hu == 40).sum(axis=(1, 2)) <= 10 * 11).all()

    def test_a_path_steeper_than_a_gantry_tilts(self, tmp_path: Path) -> None:
        error = rejected(field_at(even(20), (0, 0.9), size=(3, 4)), tmp_path)
        assert error.code == RejectionCode.SHIFTED_SLICES
        assert "42 degrees" in error.sentence

    def test_a_tilt_in_the_tag_alone_is_no_tilt(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        for ds in datasets:
            ds.GantryDetectorTilt = 15
        assert np.array_equal(assembled(datasets, tmp_path).hu, ramp_hu())

    def test_one_slice_shifted_within_its_plane(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu((20, 4, 4)))
        shift(datasets[11], (4.0, 0, 0))
        error = rejected(datasets, tmp_path)
        assert error.code == RejectionCode.SHIFTED_SLICES
        assert error.tag == "(0020,0032) ImagePositionPatient"

    @pytest.mark.parametrize("axis", [0, 1])
    def test_slices_that_jitter_within_their_plane(self, axis: int, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu((20, 4, 4)))
        for k, ds in enumerate(datasets):
            offset = [0.0, 0.0, 0.0]
            offset[axis] = 0.3 * (-1) ** k
            shift(ds, (offset[0], offset[1], offset[2]))
        assert rejected(datasets, tmp_path).code == RejectionCode.SHIFTED_SLICES

    @pytest.mark.parametrize(
        "orientation", [(1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1), turned("x", 50.0)], ids=["coronal", "sagittal", "50"]
    )
    def test_reformats_are_not_axial(self, orientation: tuple[float, ...], tmp_path: Path) -> None:
        assert rejected(ct_datasets(ramp_hu(), orientation=orientation), tmp_path).code == RejectionCode.NOT_AXIAL

    def test_cosines_that_are_not_perpendicular(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        for ds in datasets:
            ds.ImageOrientationPatient = [1, 0, 0, 0.1, 0.99, 0]
        assert rejected(datasets, tmp_path).code == RejectionCode.BAD_ORIENTATION


class TestExtent:
    def test_too_few_slices(self, tmp_path: Path) -> None:
        assert rejected(ct_datasets(ramp_hu((7, 4, 4))), tmp_path).code == RejectionCode.TOO_FEW_SLICES

    def test_one_slice(self, tmp_path: Path) -> None:
        assert rejected(ct_datasets(ramp_hu((1, 4, 4))), tmp_path).code == RejectionCode.TOO_FEW_SLICES

    def test_eleven_millimetres_are_too_thick(self, tmp_path: Path) -> None:
        assert rejected(ct_datasets(ramp_hu(), (11, 1, 1)), tmp_path).code == RejectionCode.TOO_THICK

    @pytest.mark.parametrize(("spacing", "cautions"), [(3.0, 0), (5.0, 1), (10.0, 1)])
    def test_more_than_three_millimetres_get_a_caution(self, spacing: float, cautions: int, tmp_path: Path) -> None:
        volume = assembled(ct_datasets(ramp_hu(), (spacing, 1, 1)), tmp_path)
        assert len(volume.cautions) == cautions
        assert all(f"{spacing:.1f} mm" in caution.sentence for caution in volume.cautions)

    @pytest.mark.parametrize(
        ("keyword", "value", "code"),
        [
            ("FrameOfReferenceUID", generate_uid(), RejectionCode.SEVERAL_FRAMES_OF_REFERENCE),
            ("SeriesInstanceUID", generate_uid(), RejectionCode.SEVERAL_SERIES),
        ],
    )
    def test_one_odd_slice(self, keyword: str, value: object, code: RejectionCode, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        series = describe(write_datasets(datasets, tmp_path / "before"))
        setattr(datasets[4], keyword, value)
        paths = write_datasets(datasets, tmp_path / "after")
        with pytest.raises(Rejected) as caught:
            assemble_ct(paths, series)
        assert caught.value.code == code
        assert caught.value.file == "IM0004.dcm"
        assert keyword in (caught.value.tag or "")

    @pytest.mark.parametrize("value", [[0, 0], None, [0.01, 0.7], [0.7, 6]])
    def test_pixel_spacing_that_cannot_be(self, value: object, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        for ds in datasets:
            ds.PixelSpacing = value
        error = rejected(datasets, tmp_path)
        assert error.code == RejectionCode.BAD_PIXEL_SPACING
        assert error.tag == "(0028,0030) PixelSpacing"

    def test_absurd_size_is_refused_before_any_memory_is_taken(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        for ds in datasets:
            ds.Rows = ds.Columns = 65535
        assert rejected(datasets, tmp_path).code == RejectionCode.TOO_LARGE

    def test_no_frame_of_reference(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        for ds in datasets:
            del ds.FrameOfReferenceUID
        assert rejected(datasets, tmp_path).code == RejectionCode.NO_FRAME_OF_REFERENCE


@pytest.mark.parametrize("repair", ["tilt", "gap"])
def test_a_repair_holds_few_slices_beside_the_volume(repair: str, tmp_path: Path) -> None:
    datasets = ct_datasets(np.zeros((80, 256, 256)))
    if repair == "tilt":
        for k, ds in enumerate(datasets):
            shift(ds, (0, 0.5 * k, 0))
    else:
        del datasets[40]
    paths = write_datasets(datasets, tmp_path)
    series = describe(paths)
    tracemalloc.start()
    try:
        volume = assemble_ct(paths, series)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not volume.native
    assert peak < 1.5 * volume.hu.nbytes
