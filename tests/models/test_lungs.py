"""Lung localisation on made volumes with known lungs and on every real series of the test data."""

from __future__ import annotations

import numpy as np
import pytest

from pulmo_models.ct.lungs import LungRegion, localise_lungs, segment_lungs
from pulmo_models.pipeline import Rejection
from pulmo_models.types import Volume
from tests.conftest import data_folder
from tests.ct_factory import grid_volume

SPACING = (4.0, 2.0, 2.0)


def make_volume(hu: np.ndarray, spacing: tuple[float, float, float]) -> Volume:
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *spacing, 1.0
    return grid_volume(hu, affine)


def ellipsoid(shape: tuple[int, ...], centre: tuple[float, ...], radii_mm: tuple[float, ...]) -> np.ndarray:
    grid = np.indices(shape).astype(float)
    return sum(((grid[i] - centre[i]) * SPACING[i] / radii_mm[i]) ** 2 for i in range(3)) <= 1.0


def thorax(lung_hu: float = -850.0) -> tuple[np.ndarray, np.ndarray]:
    """A body in air on a table, two lungs, bowel gas; returns HU and the true lungs."""
    shape = (60, 180, 200)
    hu = np.full(shape, -1000.0)
    rows, columns = np.indices(shape[1:])
    hu[:, ((rows - 85) / 62.0) ** 2 + ((columns - 100) / 85.0) ** 2 <= 1.0] = 40.0
    hu[:, 155:157, 20:180] = 200.0  # table top
    hu[:, 157:170, 20:180] = -940.0  # foam
    hu[:, 170:172, 20:180] = 200.0
    lungs = ellipsoid(shape, (30, 85, 62), (100, 85, 55)) | ellipsoid(shape, (30, 85, 138), (100, 85, 55))
    hu[lungs] = lung_hu
    gas = ellipsoid(shape, (3, 60, 100), (10, 25, 30)) & ~lungs
    hu[gas] = -1000.0
    return hu, lungs


def test_lungs_of_a_made_thorax_are_found_and_nothing_else() -> None:
    hu, lungs = thorax()
    mask = segment_lungs(hu.astype(np.float32), SPACING)
    assert mask.shape == hu.shape
    assert mask.dtype == np.bool_
    dice = 2 * (mask & lungs).sum() / (mask.sum() + lungs.sum())
    assert dice > 0.97
    assert not mask[:, 150:].any(), "the table's foam is no lung"
    assert not mask[:, :, 92:108].all(axis=(0, 1)).any()
    assert not mask[3, 60, 100], "bowel gas is no lung"


def test_nodules_on_the_pleura_and_in_the_middle_are_inside() -> None:
    hu, lungs = thorax()
    inner = ellipsoid(hu.shape, (30, 85, 62), (14, 14, 14))
    pleural = ellipsoid(hu.shape, (30, 85, 37), (8, 8, 8)) & lungs
    hu[inner | pleural] = 30.0
    mask = segment_lungs(hu.astype(np.float32), SPACING)
    assert mask[inner].all()
    assert mask[pleural].mean() > 0.8, "only the rim on a 2 mm grid may be missed"


def test_a_large_mass_on_the_pleura_is_searched() -> None:
    hu, lungs = thorax()
    mass = ellipsoid(hu.shape, (30, 85, 40), (25, 25, 25)) & lungs
    hu[mass] = 30.0
    region = localise_lungs(make_volume(hu, SPACING))
    assert region.search[30, 85, 40]
    assert region.search[mass].mean() > 0.8
    assert region.mask[mass].mean() < 0.1
    assert region.search[region.mask].all()
    assert not region.search[:, 150:].any()


def test_padding_outside_the_field_of_view_counts_as_outside_air() -> None:
    hu, lungs = thorax()
    rows, columns = np.indices(hu.shape[1:])
    hu[:, (rows - 90) ** 2 + (columns - 100) ** 2 > 88**2] = -3024.0
    mask = segment_lungs(hu.astype(np.float32), SPACING)
    assert 2 * (mask & lungs).sum() / (mask.sum() + lungs.sum()) > 0.97


def test_a_lung_cut_by_a_small_field_of_view_is_kept() -> None:
    hu, lungs = thorax()
    cut = slice(40, 130), slice(45, 160)  # both lungs partly outside the image
    mask = segment_lungs(hu[:, *cut].astype(np.float32), SPACING)
    truth = lungs[:, *cut]
    assert (mask & truth).sum() > 0.9 * truth.sum()


def test_region_has_a_box_with_margin_and_a_volume() -> None:
    hu, lungs = thorax()
    region = localise_lungs(make_volume(hu, SPACING))
    assert isinstance(region, LungRegion)
    true_ml = lungs.sum() * np.prod(SPACING) / 1000
    assert region.volume_ml == pytest.approx(true_ml, rel=0.05)
    for axis in range(3):
        hits = np.flatnonzero(lungs.any(axis=tuple(a for a in range(3) if a != axis)))
        assert region.box[axis].start <= max(0, hits[0] - 10 / SPACING[axis] + 2)
        assert region.box[axis].stop >= min(hu.shape[axis], hits[-1] + 10 / SPACING[axis] - 2)


@pytest.mark.parametrize("kind", ["air", "water", "water in air", "small"])
def test_a_volume_without_lungs_is_rejected(kind: str) -> None:
    hu = np.full((40, 100, 100), 0.0 if kind == "water" else -1000.0)
    if kind in ("water in air", "small"):
        hu[:, 20:80, 20:80] = 0.0
    if kind == "small":
        hu[15:25, 40:60, 40:60] = -850.0  # 64 ml
    with pytest.raises(Rejection, match="litre") as caught:
        localise_lungs(make_volume(hu, SPACING))
    assert caught.value.code == "NO_LUNGS"


REAL = {
    "ct_cptac_c3n-00247/dicom": (4.0, 5.5, 0.415),
    "ct_lidc_idri_0063/dicom": (3.0, 4.0, 0.445),
    "ct_lungdx_a0001/dicom": (5.0, 6.5, 0.421),
    "ct_lungdx_a0002_thick8mm/dicom": (2.3, 3.4, 0.586),
    "ct_lungfcp_0001_slab/dicom": (1.1, 1.6, 0.461),
    "ct_qin_lsc_0055/dicom": (7.5, 9.0, 0.479),
    "ct_ricord1a_jpeglossless_slab/dicom": (0.35, 0.55, 0.545),
}
"""Smallest and largest volume in litres, share of the left lung."""


def read_series(folder: str) -> tuple[np.ndarray, tuple[float, float, float]]:
    pydicom = pytest.importorskip("pydicom")
    slices = [pydicom.dcmread(path) for path in sorted(data_folder(folder).iterdir())]
    slices.sort(key=lambda ds: float(ds.ImagePositionPatient[2]))
    hu = np.stack([ds.pixel_array * np.float32(ds.RescaleSlope) + np.float32(ds.RescaleIntercept) for ds in slices])
    step = float(slices[1].ImagePositionPatient[2]) - float(slices[0].ImagePositionPatient[2])
    return hu.astype(np.float32), (step, float(slices[0].PixelSpacing[0]), float(slices[0].PixelSpacing[1]))


@pytest.mark.slow
@pytest.mark.parametrize("folder", REAL)
def test_real_chest_series(folder: str) -> None:
    """The values were read off overlays looked at by eye; a leak into bowel, table or the other lung breaks them."""
    hu, spacing = read_series(folder)
    region = localise_lungs(make_volume(hu, spacing))
    low, high, left_share = REAL[folder]
    assert low < region.volume_ml / 1000 < high
    proper = region.proper.whole()
    left, right = (region.lungs()[side] for side in ("left", "right"))
    assert left.voxels.sum() / proper.sum() == pytest.approx(left_share, abs=0.005)
    assert 0.96 < proper.sum() / region.mask.sum() < 1.0, "trachea, main bronchi and what lies between the lungs"
    middles = [np.argwhere(lung.voxels).mean(axis=0) + lung.origin for lung in (left, right)]
    assert (middles[0] - middles[1])[2] * spacing[2] > 100.0  # columns count towards the patient's left in all of them


def test_the_known_nodule_of_the_cptac_series_is_inside() -> None:
    hu, spacing = read_series("ct_cptac_c3n-00247/dicom")
    around = slice(21, 42)  # z -225..-165 mm, enough lung for a shorter test
    region = localise_lungs(make_volume(hu[around], spacing))
    assert region.mask[31 - 21, 168, 106]
    assert not region.left.whole()[31 - 21, 168, 106], "it is in the right lung"


@pytest.mark.slow
def test_the_trachea_of_a_real_series_is_no_lung() -> None:
    hu, spacing = read_series("ct_cptac_c3n-00247/dicom")
    region = localise_lungs(make_volume(hu, spacing))
    trachea = (86, 219, 259)
    assert hu[trachea] < -950
    assert region.mask[trachea]
    assert not region.proper.whole()[trachea]


def test_head_slices_are_rejected() -> None:
    hu, spacing = read_series("ct_edge_cases/gantry_tilt")
    with pytest.raises(Rejection, match="NO_LUNGS"):
        localise_lungs(make_volume(hu, spacing))
