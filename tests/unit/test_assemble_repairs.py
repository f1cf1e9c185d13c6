"""One missing slice, uneven spacing and gantry tilt, against a field that linear interpolation leaves exact."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from pulmo_models.codes import CautionCode, RejectionCode
from pulmo_models.types import Volume
from pulmo_node.assemble import assemble_ct, describe
from pulmo_node.errors import Rejected
from tests import assembling
from tests.assembling import ORIGIN, SPACING, shift, traced
from tests.ct_factory import (
    ct_datasets,
    field_datasets,
    field_hu,
    places_of,
    ramp_hu,
    set_pixels,
    true_affine,
    write_datasets,
)

assembled = partial(assembling.assembled, seed=7)
rejected = partial(assembling.rejected, seed=7)


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


class TestTilt:
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


@pytest.mark.parametrize("repair", ["tilt", "gap"])
def test_a_repair_holds_few_slices_beside_the_volume(repair: str, tmp_path: Path) -> None:
    datasets = ct_datasets(np.zeros((80, 256, 256)))
    if repair == "tilt":
        for k, ds in enumerate(datasets):
            shift(ds, (0, 0.5 * k, 0))
    else:
        del datasets[40]
    paths = write_datasets(datasets, tmp_path)
    volume, peak = traced(paths)
    assert not volume.native
    assert peak < 1.5 * volume.hu.nbytes
