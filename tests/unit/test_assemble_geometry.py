"""Order, spacing and orientation of a CT volume, from series whose geometry is known."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import (
    generate_uid,
)

from pulmo_models.codes import RejectionCode
from pulmo_node.assemble import assemble_ct, describe, plan
from pulmo_node.errors import Rejected
from tests import assembling
from tests.assembling import ORIGIN, SPACING, second_of, shift
from tests.ct_factory import (
    AXIAL,
    ct_datasets,
    ramp_hu,
    true_affine,
    write_datasets,
)

assembled = partial(assembling.assembled, seed=7)
rejected = partial(assembling.rejected, seed=7)


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


class TestOrientation:
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
        ("keyword", "code"),
        [
            ("FrameOfReferenceUID", RejectionCode.SEVERAL_FRAMES_OF_REFERENCE),
            ("SeriesInstanceUID", RejectionCode.SEVERAL_SERIES),
        ],
    )
    def test_one_odd_slice(self, keyword: str, code: RejectionCode, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        series = describe(write_datasets(datasets, tmp_path / "before"))
        setattr(datasets[4], keyword, generate_uid())
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

    def test_size_is_that_of_one_volume_not_of_all_phases(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ten phases of 900 slices of 512 x 512 are 2.4 billion voxels, and each of them is an ordinary volume."""
        first = ct_datasets(ramp_hu())
        phases = [*first, *second_of(first, AcquisitionNumber=2)]
        monkeypatch.setattr(plan, "MAX_VOXELS", ramp_hu().size)
        assert assembled(phases, tmp_path / "both").hu.shape == ramp_hu().shape
        monkeypatch.setattr(plan, "MAX_VOXELS", ramp_hu().size - 1)
        assert rejected(first, tmp_path / "one").code == RejectionCode.TOO_LARGE

    def test_more_than_the_memory_of_the_machine_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        empty = np.empty

        def no_room(shape: object, *arguments: object, **named: object) -> object:
            if shape == ramp_hu().shape:
                raise MemoryError
            return empty(shape, *arguments, **named)  # type: ignore[call-overload]

        monkeypatch.setattr(np, "empty", no_room)
        error = rejected(ct_datasets(ramp_hu()), tmp_path)
        assert error.code == RejectionCode.TOO_LARGE
        assert "of memory" in error.sentence

    def test_no_frame_of_reference(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        for ds in datasets:
            del ds.FrameOfReferenceUID
        assert rejected(datasets, tmp_path).code == RejectionCode.NO_FRAME_OF_REFERENCE
