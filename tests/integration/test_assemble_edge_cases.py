"""Every file of the edge cases, with what must become of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from pulmo_models.codes import CautionCode, RejectionCode
from pulmo_models.mapping import on_frame
from pulmo_node.assemble import assemble_ct, describe
from pulmo_node.errors import Rejected
from tests.conftest import data_folder
from tests.ct_factory import write_part10
from tests.integration.real_files import STEP_MM, rejection, stack_of, volume_of

ROOT = "ct_edge_cases"
ELSEWHERE = ("ct_chest_one_slice_all_syntaxes", "htj2k")  # test_assemble_syntaxes.py

SET_ASIDE = {
    "localizer/ct_chest_localizer_jp2_marotech.dcm": "a localizer",
    "localizer/ct_chest_localizer_jpeg70.dcm": "a localizer",
    "localizer/dcm_qa_ct_philips_surview.dcm": "a localizer",
    "secondary_capture/ct_dose_report_screensave_GH178.dcm": "not a CT image but Secondary Capture",
}
REFUSED = {
    "reformat/covid-ny-sbu_A048383_coronal.dcm": (RejectionCode.NOT_AXIAL, "90 degrees from axial"),
    "reformat/covid-ny-sbu_A048383_sagittal.dcm": (RejectionCode.NOT_AXIAL, "90 degrees from axial"),
    "odd_j2k/TOSHIBA_J2K_SIZ0_PixRep1.dcm": (RejectionCode.NOT_AXIAL, "90 degrees from axial"),
    "enhanced_ct/eCT_Supplemental.dcm": (RejectionCode.NOT_HU, "frame 1 are US"),
    "enhanced_ct/dcmqi_24x38x3_multiframe.dcm": (RejectionCode.NOT_HU, "frame 1 are US"),
    "malformed/headless_no_preamble_implicit.dcm": (RejectionCode.UNREADABLE, "no DICM prefix"),
}
"""Refused as they are."""

REFUSED_AS_A_SERIES = {
    "malformed/bad_sequence.dcm": (RejectionCode.NO_FRAME_OF_REFERENCE, "no frame of reference"),
    "malformed_j2k_fda_phantom/000300.dcm": (RejectionCode.DECODE_FAILED, "slice0.dcm cannot be decoded"),
    "malformed_j2k_fda_phantom/000301.dcm": (RejectionCode.DECODE_FAILED, "slice0.dcm cannot be decoded"),
}
"""Single slices; eight of each make a series."""

READ = {  # HU at the first and third quarter
    "malformed/explicit_VR-UN.dcm": (-1004, -102),
    "odd_j2k/ELSCINT1_JP2vsJ2K.dcm": (-989, 70),
    "odd_j2k/J2K_pixelrep_mismatch_tilt-22.dcm": (-1006, 36),
    "rescale0_signed/covid-ny-sbu_A046441_toshiba_axial_ri0.dcm": (-993, 9),
}
"""Single slices whose pixels are read, eight of each a series."""

TILTED = [f"gantry_tilt/dcm_qa_ct_GE_{k}.dcm" for k in (10, 11, 12, 13)]
GAPPED = [f"slice_increment_inconsistent/IM-0001-{k:04d}-0001.dcm" for k in (7, 8, 9, 10)]


def test_every_file_has_its_outcome() -> None:
    root = data_folder(ROOT)
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    expected = {*SET_ASIDE, *REFUSED, *REFUSED_AS_A_SERIES, *READ, *TILTED, *GAPPED}
    assert {file for file in files if file.split("/")[0] not in ELSEWHERE} == expected


@pytest.mark.parametrize("name", SET_ASIDE)
def test_objects_that_are_no_slices(name: str) -> None:
    path = data_folder(f"{ROOT}/{name}")
    error = rejection([path])
    assert error.code == RejectionCode.NO_IMAGES
    assert f"{path.name}: {SET_ASIDE[name]}" in error.sentence


@pytest.mark.parametrize("name", REFUSED)
def test_refused_as_they_are(name: str) -> None:
    path = data_folder(f"{ROOT}/{name}")
    code, words = REFUSED[name]
    error = rejection([path])
    assert error.code == code
    assert error.file == path.name
    assert words in error.sentence


@pytest.mark.parametrize("name", REFUSED_AS_A_SERIES)
def test_refused_as_a_series(name: str, tmp_path: Path) -> None:
    code, words = REFUSED_AS_A_SERIES[name]
    error = rejection(stack_of(data_folder(f"{ROOT}/{name}"), tmp_path))
    assert error.code == code
    assert error.file == "slice0.dcm"
    assert words in error.sentence
    if code == RejectionCode.DECODE_FAILED:  # what each decoder says of the broken tile part
        for decoder in ("gdcm", "pylibjpeg", "pillow"):
            assert decoder in error.sentence


@pytest.mark.parametrize("name", READ)
def test_odd_slices_that_are_read(name: str, tmp_path: Path) -> None:
    first_quarter, third_quarter = READ[name]
    volume = volume_of(data_folder(f"{ROOT}/{name}"), tmp_path)
    assert volume.native
    assert volume.spacing_mm[0] == pytest.approx(STEP_MM, abs=1e-4)
    assert np.percentile(volume.hu[0], 25) == first_quarter
    assert np.percentile(volume.hu[0], 75) == third_quarter
    assert volume.hu.min() >= -1024


def test_one_slice_is_no_series() -> None:
    for name in (*READ, *TILTED, *GAPPED):
        assert rejection([data_folder(f"{ROOT}/{name}")]).code == RejectionCode.TOO_FEW_SLICES


class TestGantryTilt:
    def test_four_slices_are_too_few(self) -> None:
        error = rejection([data_folder(f"{ROOT}/{name}") for name in TILTED])
        assert error.code == RejectionCode.TOO_FEW_SLICES

    def test_the_slices_are_sheared_back(self) -> None:
        """18.5 degrees: 4 mm along the normal, 1.34 mm within the plane from slice to slice."""
        paths = [data_folder(f"{ROOT}/{name}") for name in TILTED]
        volume = assemble_ct(paths, describe(paths), minimum_slices=4)
        assert CautionCode.RESHEARED in {caution.code for caution in volume.cautions}
        assert "18.5 degrees" in next(c.sentence for c in volume.cautions if c.code == CautionCode.RESHEARED)
        assert volume.spacing_mm[0] == pytest.approx(4.0, abs=0.01)
        axes = volume.affine[:3, :3] / volume.spacing_mm
        assert np.abs(axes.T @ axes - np.eye(3)).max() < 1e-9
        headers = {header.SOPInstanceUID: header for header in map(pydicom.dcmread, paths)}
        for index in ((0, 200, 100), (1, 300, 256), (3, 260, 400)):
            point = on_frame(volume, index)
            header = headers[volume.frames[point.frame].sop_instance_uid]
            cosines = np.array(header.ImageOrientationPatient, dtype=float)
            place = (
                np.array(header.ImagePositionPatient, dtype=float)
                + point.column * header.PixelSpacing[1] * cosines[:3]
                + point.row * header.PixelSpacing[0] * cosines[3:]
            )
            assert np.linalg.norm(place - (volume.affine @ [*index, 1])[:3]) < 0.1
            hu = header.pixel_array * float(header.RescaleSlope) + float(header.RescaleIntercept)
            row, column = int(np.floor(point.row)), int(np.floor(point.column))
            around = hu[row : row + 2, column : column + 2]
            assert around.min() - 1 <= volume.hu[index] <= around.max() + 1


class TestMissingSlice:
    def test_they_name_no_frame_of_reference(self) -> None:
        error = rejection([data_folder(f"{ROOT}/{name}") for name in GAPPED])
        assert error.code == RejectionCode.NO_FRAME_OF_REFERENCE

    def test_the_gap_at_33_is_filled(self, tmp_path: Path) -> None:
        """z 18.1, 23.1, 28.1, 38.1; the pixels were scrambled by their authors, the geometry is real."""
        paths = []
        for name in GAPPED:
            dataset = pydicom.dcmread(data_folder(f"{ROOT}/{name}"))
            dataset.FrameOfReferenceUID = "1.2.3"
            paths.append(tmp_path / Path(name).name)
            write_part10(dataset, paths[-1])
        volume = assemble_ct(paths, describe(paths), minimum_slices=4)
        assert CautionCode.GAP_FILLED in {caution.code for caution in volume.cautions}
        (filled,) = volume.interpolated
        assert (volume.affine @ [filled, 0, 0, 1])[2] == pytest.approx(33.1, abs=0.01)
        np.testing.assert_allclose(volume.hu[filled], (volume.hu[filled - 1] + volume.hu[filled + 1]) / 2, atol=1e-3)

    def test_two_gaps_are_refused(self, tmp_path: Path) -> None:
        dataset = pydicom.dcmread(data_folder(f"{ROOT}/{GAPPED[0]}"))
        dataset.FrameOfReferenceUID = "1.2.3"
        x, y, _ = dataset.ImagePositionPatient
        paths = []
        for k in (0, 1, 2, 4, 5, 7, 8, 9):
            dataset.SOPInstanceUID, dataset.ImagePositionPatient = f"1.2.{k + 1}", [x, y, 5 * k]
            paths.append(tmp_path / f"{k}.dcm")
            write_part10(dataset, paths[-1])
        with pytest.raises(Rejected) as caught:
            assemble_ct(paths, describe(paths))
        assert caught.value.code == RejectionCode.MISSING_SLICE
        assert "2 slices are missing" in caught.value.sentence
