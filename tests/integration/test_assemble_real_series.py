"""Real series through the whole stage; SimpleITK and highdicom read the same series."""

from __future__ import annotations

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from pulmo_models.types import Volume
from pulmo_node.assemble import assemble, assemble_ct, find_series
from tests.conftest import data_folder


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
        header = pydicom.dcmread(volume.frames[k].path or "", stop_before_pixels=True)
        assert header.SOPInstanceUID == volume.frames[k].sop_instance_uid
        assert np.abs(volume.affine[:3] @ [k, 0, 0, 1] - header.ImagePositionPatient).max() < 1e-6

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([source.path for source in volume.frames])
    image = reader.Execute()
    assert np.array_equal(np.maximum(sitk.GetArrayViewFromImage(image), -1024), volume.hu)
    corner = (511, 511, slices - 1)
    theirs = image.TransformContinuousIndexToPhysicalPoint([float(value) for value in corner])
    assert np.abs(volume.affine[:3] @ [corner[2], corner[1], corner[0], 1] - theirs).max() < 1e-3


@pytest.mark.parametrize(
    "folder",
    [
        "ct_cptac_c3n-00247/dicom",
        "ct_lidc_idri_0063/dicom",
        "ct_lungdx_a0001/dicom",
        "ct_lungdx_a0002_thick8mm/dicom",
        "ct_qin_lsc_0055/dicom",
        "ct_ricord1a_jpeglossless_slab",
    ],
)
def test_highdicom_agrees_on_affine_and_values(folder: str) -> None:
    (found,) = find_series(data_folder(folder)).series
    volume = assemble_ct(found.paths, found.description)
    theirs = hd.get_volume_from_series([pydicom.dcmread(path) for path in found.paths])
    if np.dot(theirs.affine[:3, 0], volume.affine[:3, 0]) < 0:
        theirs = theirs.flip_spatial(0)
    assert np.abs(theirs.affine - volume.affine).max() < 1e-3
    assert np.array_equal(np.maximum(theirs.array, -1024), volume.hu)
