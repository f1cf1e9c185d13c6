"""Order, spacing and orientation of a CT volume, from series whose geometry is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid

from pulmo_models.types import Volume
from pulmo_node.assemble import RejectionCode, assemble_ct, describe
from pulmo_node.errors import Rejected
from tests.ct_factory import AXIAL, ct_datasets, ramp_hu, true_affine, write_datasets

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


class TestGaps:
    def test_missing_slice_names_the_file_behind_the_gap(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu((12, 4, 4)))
        behind = datasets[6].SOPInstanceUID
        del datasets[5]
        paths = write_datasets(datasets, tmp_path)
        with pytest.raises(Rejected) as caught:
            assemble_ct(paths, describe(paths))
        assert caught.value.code == RejectionCode.MISSING_SLICE
        named = [path for path, ds in zip(paths, datasets, strict=True) if ds.SOPInstanceUID == behind]
        assert caught.value.file == named[0].name
        assert "5.00 mm" in caught.value.sentence
        assert "2.50 mm" in caught.value.sentence

    def test_several_missing_slices_are_counted(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu((16, 4, 4)))
        del datasets[10], datasets[4:6]
        error = rejected(datasets, tmp_path)
        assert error.code == RejectionCode.MISSING_SLICE
        assert "3 slices are missing" in error.sentence

    @pytest.mark.parametrize("step_mm", [0.4, -0.3, 1.0])
    def test_a_jump_in_the_middle_of_a_long_series_is_irregular(self, step_mm: float, tmp_path: Path) -> None:
        datasets = ct_datasets(np.tile(ramp_hu((1, 4, 4)), (300, 1, 1)), (1.25, 0.7, 0.7))
        for ds in datasets[250:]:
            shift(ds, (0, 0, step_mm))
        assert rejected(datasets, tmp_path).code == RejectionCode.IRREGULAR_SPACING

    def test_one_displaced_slice_is_irregular(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu((20, 4, 4)))
        shift(datasets[9], (0, 0, 0.5))
        assert rejected(datasets, tmp_path).code == RejectionCode.IRREGULAR_SPACING

    def test_spacing_that_changes_half_way_is_irregular(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu((20, 4, 4)), (1.0, 0.7, 0.7))
        for k, ds in enumerate(datasets[10:]):
            shift(ds, (0, 0, 0.5 * k))
        assert rejected(datasets, tmp_path).code == RejectionCode.IRREGULAR_SPACING


class TestTiltAndOrientation:
    @pytest.mark.parametrize("degrees", [0.5, 2.4, -6.78, 18.5])
    def test_tilt_is_found_in_the_positions_and_the_tag_is_ignored(self, degrees: float, tmp_path: Path) -> None:
        datasets = ct_datasets(np.tile(ramp_hu((1, 4, 4)), (40, 1, 1)))
        for k, ds in enumerate(datasets):
            ds.GantryDetectorTilt = 0
            shift(ds, (0, 2.5 * k * np.tan(np.radians(degrees)), 0))
        error = rejected(datasets, tmp_path)
        assert error.code == RejectionCode.GANTRY_TILT
        assert f"{abs(degrees):.1f} degrees" in error.sentence

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

    @pytest.mark.parametrize(
        "orientation", [(1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1), turned("x", 50.0)], ids=["coronal", "sagittal", "50"]
    )
    def test_reformats_are_not_axial(self, orientation: tuple[float, ...], tmp_path: Path) -> None:
        assert rejected(ct_datasets(ramp_hu(), orientation=orientation), tmp_path).code == RejectionCode.NOT_AXIAL

    def test_two_orientations(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        datasets[3].ImageOrientationPatient = [round(value, 6) for value in turned("x", 1.0)]
        assert rejected(datasets, tmp_path).code == RejectionCode.SEVERAL_ORIENTATIONS

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
            ("PixelSpacing", [0.7, 0.9], RejectionCode.INCONSISTENT_GRID),
            ("PixelSpacing", [0, 0], RejectionCode.BAD_PIXEL_SPACING),
            ("PixelSpacing", None, RejectionCode.BAD_PIXEL_SPACING),
            ("Rows", 11, RejectionCode.INCONSISTENT_GRID),
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
