"""Real series and real odd files through the whole stage; SimpleITK reads the same files as a second opinion."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import generate_uid

from pulmo_models.types import Radiograph, Volume
from pulmo_node.assemble import RejectionCode, assemble, assemble_ct, describe, find_series
from pulmo_node.errors import Rejected
from tests.conftest import data_folder
from tests.ct_factory import write_part10

SYNTAXES = "ct_edge_cases/ct_chest_one_slice_all_syntaxes"
LOSSLESS = (
    "BigEndianExplicit_1.2.840.10008.1.2.2",
    "DeflatedExplicitVRLittleEndian_1.2.840.10008.1.2.1.99",
    "RLELossless_1.2.840.10008.1.2.5",
    "JPEGProcess14_1.2.840.10008.1.2.4.57",
    "JPEGProcess14SV1_1.2.840.10008.1.2.4.70",
    "JPEGLSLossless_1.2.840.10008.1.2.4.80",
    "JPEG2000LosslessOnly_1.2.840.10008.1.2.4.90",
)


def stack_of(path: Path, folder: Path, count: int = 8) -> list[Path]:
    """A regular series whose slices all have the pixels, header and transfer syntax of one file, 2 mm apart."""
    ds = pydicom.dcmread(path)
    cosines = np.array(ds.ImageOrientationPatient, dtype=float)
    normal, first = np.cross(cosines[:3], cosines[3:]), np.array(ds.ImagePositionPatient, dtype=float)
    paths = []
    for k in range(count):
        ds.SOPInstanceUID = generate_uid()
        ds.ImagePositionPatient = [f"{value:.6f}" for value in first + 2 * k * normal]
        paths.append(folder / f"slice{k}.dcm")
        write_part10(ds, paths[-1])
    return paths


def volume_of(path: Path, folder: Path) -> Volume:
    paths = stack_of(path, folder)
    return assemble_ct(paths, describe(paths))


def rejection(paths: list[Path]) -> Rejected:
    with pytest.raises(Rejected) as caught:
        assemble(paths, describe(paths))
    return caught.value


@pytest.mark.parametrize(
    ("folder", "slices", "spacing_mm", "pixel_mm", "z_mm", "highest_hu"),
    [
        ("ct_cptac_c3n-00247/dicom", 99, 3.0, 0.564453125, (-288.0, 6.0), 3071),
        ("ct_lidc_idri_0063/dicom", 133, 2.5, 0.78125, (-368.0, -38.0), 3071),
        ("ct_lungdx_a0001/dicom", 64, 5.0, 0.841796875, (-439.0, -124.0), 2976),
        ("ct_lungdx_a0002_thick8mm/dicom", 30, 8.0, 0.646484375, (80.0, 312.0), 1904),
        ("ct_qin_lsc_0055/dicom", 125, 3.0, 0.8359375, (92.0, 464.0), 2673),
        ("ct_lungfcp_0001_slab/dicom", 98, 1.0, 0.759765625, (-5.5, 91.5), 3071),
        ("ct_ricord1a_jpeglossless_slab", 18, 1.25, 0.703125, (110.75, 132.0), 2507),
    ],
)
def test_full_series(
    folder: str, slices: int, spacing_mm: float, pixel_mm: float, z_mm: tuple[float, float], highest_hu: int
) -> None:
    (found,) = find_series(data_folder(folder)).series
    volume = assemble(found.paths, found.description)
    assert isinstance(volume, Volume)
    assert volume.hu.shape == (slices, 512, 512)
    assert volume.spacing_mm == pytest.approx((spacing_mm, pixel_mm, pixel_mm), abs=1e-9)
    assert (volume.affine @ [0, 0, 0, 1])[2] == pytest.approx(z_mm[0], abs=1e-6)
    assert (volume.affine @ [slices - 1, 0, 0, 1])[2] == pytest.approx(z_mm[1], abs=1e-6)
    assert volume.hu.min() == -1024
    assert volume.hu.max() == highest_hu
    assert bool(volume.cautions) == (spacing_mm > 3)
    for k in (0, slices // 2, slices - 1):
        header = pydicom.dcmread(volume.sources[k].path or "", stop_before_pixels=True)
        assert header.SOPInstanceUID == volume.sources[k].sop_instance_uid
        assert np.abs(volume.affine[:3] @ [k, 0, 0, 1] - header.ImagePositionPatient).max() < 1e-6

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([source.path for source in volume.sources])
    image = reader.Execute()
    assert np.array_equal(np.maximum(sitk.GetArrayViewFromImage(image), -1024), volume.hu)
    corner = (511, 511, slices - 1)
    theirs = image.TransformContinuousIndexToPhysicalPoint([float(value) for value in corner])
    assert np.abs(volume.affine[:3] @ [corner[2], corner[1], corner[0], 1] - theirs).max() < 1e-3


@pytest.mark.parametrize("folder", ["ct_ricord1a_jpeglossless_slab", "ct_lungdx_a0002_thick8mm/dicom"])
def test_highdicom_agrees_on_affine_and_values(folder: str) -> None:
    (found,) = find_series(data_folder(folder)).series
    volume = assemble_ct(found.paths, found.description)
    theirs = hd.get_volume_from_series([pydicom.dcmread(path) for path in found.paths])
    if np.dot(theirs.affine[:3, 0], volume.affine[:3, 0]) < 0:
        theirs = theirs.flip_spatial(0)
    assert np.abs(theirs.affine - volume.affine).max() < 1e-3
    assert np.array_equal(np.maximum(theirs.array, -1024), volume.hu)


class TestTransferSyntaxes:
    def reference(self, folder: Path) -> np.ndarray:
        folder.mkdir()
        path = data_folder(f"{SYNTAXES}/LittleEndianImplicit_1.2.840.10008.1.2.dcm")
        hu = volume_of(path, folder).hu
        stored = np.frombuffer(pydicom.dcmread(path).PixelData, dtype="<i2").reshape(512, 512)
        assert np.array_equal(hu[3], np.where(stored < 0, -1024, stored - 1024))
        return hu

    @pytest.mark.parametrize("name", LOSSLESS)
    def test_lossless_ones_are_identical(self, name: str, tmp_path: Path) -> None:
        hu = volume_of(data_folder(f"{SYNTAXES}/{name}.dcm"), tmp_path).hu
        assert np.array_equal(hu, self.reference(tmp_path / "reference"))

    @pytest.mark.parametrize(
        ("name", "mean_hu", "most_hu"),
        [
            ("JPEGLSLossy_1.2.840.10008.1.2.4.81", 0.6, 1),
            ("JPEG2000_1.2.840.10008.1.2.4.91", 0.6, 5),
            ("JPEGProcess1_1.2.840.10008.1.2.4.50", 15, 65),  # 8 bits of 32.1 HU a step
        ],
    )
    def test_lossy_ones_stay_within_their_error(
        self, name: str, mean_hu: float, most_hu: float, tmp_path: Path
    ) -> None:
        hu = volume_of(data_folder(f"{SYNTAXES}/{name}.dcm"), tmp_path).hu
        error = np.abs(hu - self.reference(tmp_path / "reference"))
        assert 0 < error.mean() < mean_hu
        assert error.max() <= most_hu

    @pytest.mark.skipif(importlib.util.find_spec("libjpeg") is not None, reason="the extra jpeg12 is installed")
    def test_twelve_bit_jpeg_without_the_extra_says_so(self, tmp_path: Path) -> None:
        path = data_folder(f"{SYNTAXES}/JPEGProcess2_4_1.2.840.10008.1.2.4.51.dcm")
        error = rejection(stack_of(path, tmp_path))
        assert error.code == RejectionCode.DECODE_FAILED
        assert error.file == "slice0.dcm"
        assert "12-bit" in error.sentence

    @pytest.mark.skipif(importlib.util.find_spec("libjpeg") is None, reason="needs the extra jpeg12")
    def test_twelve_bit_jpeg_with_the_extra(self, tmp_path: Path) -> None:
        path = data_folder(f"{SYNTAXES}/JPEGProcess2_4_1.2.840.10008.1.2.4.51.dcm")
        error = np.abs(volume_of(path, tmp_path).hu - self.reference(tmp_path / "reference"))
        assert error.mean() < 3

    @pytest.mark.parametrize("number", [1, 2])
    def test_htj2k_equals_its_jpeg_2000_twin(self, number: int, tmp_path: Path) -> None:
        folder = data_folder("ct_edge_cases/htj2k")
        for name in ("JPH", "J2KR_reference"):
            (tmp_path / name).mkdir()
        one, two = (
            volume_of(folder / f"CT{number}_{name}.dcm", tmp_path / name).hu for name in ("JPH", "J2KR_reference")
        )
        assert np.array_equal(one, two)
        assert one.max() > 1000


class TestOddFiles:
    def test_gantry_tilt_is_measured(self) -> None:
        error = rejection(sorted(data_folder("ct_edge_cases/gantry_tilt").iterdir()))
        assert error.code == RejectionCode.GANTRY_TILT
        assert "18.5 degrees" in error.sentence

    def test_missing_slice_between_28_and_38(self) -> None:
        error = rejection(sorted(data_folder("ct_edge_cases/slice_increment_inconsistent").iterdir()))
        assert error.code == RejectionCode.MISSING_SLICE
        assert error.file == "IM-0001-0010-0001.dcm"
        assert "10.00 mm" in error.sentence

    @pytest.mark.parametrize(
        "name",
        ["ct_chest_localizer_jp2_marotech", "ct_chest_localizer_jpeg70", "dcm_qa_ct_philips_surview"],
    )
    def test_localizers(self, name: str) -> None:
        error = rejection([data_folder(f"ct_edge_cases/localizer/{name}.dcm")])
        assert error.code == RejectionCode.NO_IMAGES
        assert f"{name}.dcm: a localizer" in error.sentence

    def test_dose_report(self) -> None:
        error = rejection([data_folder("ct_edge_cases/secondary_capture/ct_dose_report_screensave_GH178.dcm")])
        assert error.code == RejectionCode.NO_IMAGES
        assert "Secondary Capture" in error.sentence

    @pytest.mark.parametrize(
        "name",
        [
            "reformat/covid-ny-sbu_A048383_coronal",
            "reformat/covid-ny-sbu_A048383_sagittal",
            "odd_j2k/TOSHIBA_J2K_SIZ0_PixRep1",
        ],
    )
    def test_reformats(self, name: str) -> None:
        assert rejection([data_folder(f"ct_edge_cases/{name}.dcm")]).code == RejectionCode.NOT_AXIAL

    @pytest.mark.parametrize("name", ["eCT_Supplemental", "dcmqi_24x38x3_multiframe"])
    def test_multi_frame_objects_whose_values_are_no_hu(self, name: str) -> None:
        error = rejection([data_folder(f"ct_edge_cases/enhanced_ct/{name}.dcm")])
        assert error.code == RejectionCode.NOT_HU
        assert "frame 1 are US" in error.sentence

    @pytest.mark.parametrize("name", ["000300", "000301"])
    def test_broken_codestream_names_the_file_and_every_decoder(self, name: str, tmp_path: Path) -> None:
        path = data_folder(f"ct_edge_cases/malformed_j2k_fda_phantom/{name}.dcm")
        error = rejection(stack_of(path, tmp_path))
        assert error.code == RejectionCode.DECODE_FAILED
        assert error.file == "slice0.dcm"
        for decoder in ("gdcm", "pylibjpeg", "pillow"):
            assert decoder in error.sentence

    def test_headless_file(self) -> None:
        path = data_folder("ct_edge_cases/malformed/headless_no_preamble_implicit.dcm")
        with pytest.raises(Rejected) as caught:
            describe([path])
        assert caught.value.code == RejectionCode.UNREADABLE
        assert "DICM" in caught.value.sentence

    def test_bad_sequence_is_read_and_lacks_a_frame_of_reference(self, tmp_path: Path) -> None:
        path = data_folder("ct_edge_cases/malformed/bad_sequence.dcm")
        assert rejection(stack_of(path, tmp_path)).code == RejectionCode.NO_FRAME_OF_REFERENCE

    @pytest.mark.parametrize(
        ("name", "tissue_hu", "air_hu"),
        [
            ("malformed/explicit_VR-UN", -102, -1004),
            ("odd_j2k/ELSCINT1_JP2vsJ2K", 70, -989),
            ("odd_j2k/J2K_pixelrep_mismatch_tilt-22", 36, -1006),
            ("rescale0_signed/covid-ny-sbu_A046441_toshiba_axial_ri0", 9, -993),
        ],
    )
    def test_odd_files_that_can_be_read_give_hu(
        self, name: str, tissue_hu: float, air_hu: float, tmp_path: Path
    ) -> None:
        hu = volume_of(data_folder(f"ct_edge_cases/{name}.dcm"), tmp_path).hu
        assert np.percentile(hu[0], 75) == tissue_hu
        assert np.percentile(hu[0], 25) == air_hu
        assert hu.min() >= -1024


class TestRadiographs:
    @pytest.mark.parametrize(
        ("name", "shape", "spacing_mm"),
        [
            ("dx_chest_pa_monochrome1_j2k_966_fixed", (2128, 2000), (0.16, 0.16)),
            ("cr_chest_pa_monochrome1_RG1_j2k_lossless_masses", (1955, 1841), None),
            ("cr_chest_pa_siim_jpegbaseline", (1024, 1024), (0.168, 0.168)),
            ("cr_chest_pa_monochrome1_440_gdcm", (440, 440), None),
        ],
    )
    def test_shape_and_spacing(self, name: str, shape: tuple[int, int], spacing_mm: tuple[float, float] | None) -> None:
        path = data_folder(f"cxr_dicom/{name}.dcm")
        image = assemble([path], describe([path]))
        assert isinstance(image, Radiograph)
        assert image.pixels.shape == shape
        assert image.pixels.dtype == np.float32
        assert image.spacing_mm == spacing_mm

    def test_the_tag_decides_on_the_sense(self) -> None:
        images = []
        for name in ("cr_chest_pa_siim_jpegbaseline", "cr_chest_pa_siim_FAKE_monochrome1"):
            path = data_folder(f"cxr_dicom/{name}.dcm")
            image = assemble([path], describe([path]))
            assert isinstance(image, Radiograph)
            images.append(image.pixels)
        assert np.corrcoef(images[0].ravel(), images[1].ravel())[0, 1] == pytest.approx(-1, abs=1e-6)
