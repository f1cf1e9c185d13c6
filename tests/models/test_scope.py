"""Cautions on what a volume does not show: lungs beyond its ends, slices that nobody acquired."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from pulmo_models.ct.lungs import localise_lungs
from pulmo_models.ct.scope import partial_lungs, touches_interpolated
from pulmo_models.types import Mask, Volume
from pulmo_node.assemble import assemble_ct, describe
from tests.conftest import data_folder
from tests.models.test_lungs import make_volume

SPACING = (4.0, 2.0, 2.0)


def lungs_of(widths: list[int]) -> tuple[Volume, np.ndarray]:
    """A volume whose lungs are so many columns wide on each slice, ten rows high."""
    lungs = np.zeros((len(widths), 20, 120), dtype=bool)
    for k, width in enumerate(widths):
        lungs[k, 5:15, :width] = True
    return make_volume(np.zeros(lungs.shape), SPACING), lungs


def share_in(sentence: str) -> float:
    found = re.search(r"about (\d+)% of their", sentence)
    assert found
    return int(found[1]) / 100


def test_whole_lungs_need_no_caution() -> None:
    assert partial_lungs(*lungs_of([0, 2, 50, 100, 100, 80, 30, 3, 0])) is None


def test_trachea_on_the_last_slice_is_no_cut() -> None:
    assert partial_lungs(*lungs_of([0, 30, 100, 100, 80, 30, 5, 5, 5])) is None


@pytest.mark.parametrize(
    ("widths", "ends", "covered_mm", "missing_mm"),
    [
        ([100] * 30 + [50, 10], "foot", 128, 109),  # 109 mm lack to 237 mm
        ([100] * 70, "head end and foot", 280, 120),  # longer than usual: two whole cross-sections
        ([10, 50, *[100] * 57, 50], "head", 240, 30),  # half a cross-section
    ],
)
def test_the_covered_share_of_the_height(widths: list[int], ends: str, covered_mm: float, missing_mm: float) -> None:
    volume, lungs = lungs_of([0, *widths] if ends == "head" else [*widths, 0] if ends == "foot" else widths)
    caution = partial_lungs(volume, lungs)
    assert caution is not None
    assert caution.code == "PARTIAL_LUNGS"
    assert f"cut off at the {ends} end" in caution.sentence
    assert share_in(caution.sentence) == pytest.approx(covered_mm / (covered_mm + missing_mm), abs=0.006)


def test_the_end_is_named_by_the_patient_and_not_by_the_slice() -> None:
    volume, lungs = lungs_of([0, 50, 100, 100])
    turned = volume.affine.copy()
    turned[:3, 0] *= -1
    for affine, end in ((volume.affine, "head"), (turned, "foot")):
        caution = partial_lungs(replace(volume, affine=affine), lungs)
        assert caution is not None
        assert f"at the {end} end of" in caution.sentence


@pytest.mark.parametrize(("layers", "count"), [((0, 1, 2), 1), ((1,), 1), ((0, 2), 0), ((2, 3), 0)])
def test_a_nodule_on_an_interpolated_slice(layers: tuple[int, ...], count: int) -> None:
    volume = replace(make_volume(np.zeros((10, 20, 20)), SPACING), interpolated=(4,))
    voxels = np.zeros((4, 2, 2), dtype=bool)
    voxels[list(layers)] = True
    caution = touches_interpolated(volume, Mask(origin=(3, 5, 5), voxels=voxels))
    assert (caution is None) == (count == 0)
    if caution is not None:
        assert caution.code == "TOUCHES_INTERPOLATED"
        assert caution.sentence.startswith(f"{count} of the {len(layers)} slices")


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder",
    ["ct_cptac_c3n-00247", "ct_lidc_idri_0063", "ct_lungdx_a0001", "ct_lungdx_a0002_thick8mm", "ct_qin_lsc_0055"],
)
def test_parts_of_a_real_series(folder: str) -> None:
    """A complete series has no caution; of its parts, the share is told within 0.15."""
    paths = sorted(data_folder(f"{folder}/dicom").glob("*.dcm"))
    volume = assemble_ct(paths, describe(paths))
    lungs = localise_lungs(volume).mask
    assert partial_lungs(volume, lungs) is None
    area = lungs.sum(axis=(1, 2))
    first, last = np.flatnonzero(area > 0.05 * area.max())[[0, -1]]
    length = int(last - first + 1)
    for share in (0.2, 0.4, 0.6, 0.8, 0.9):
        count = round(share * length)
        for start in (first, first + (length - count) // 2, first + length - count):
            caution = partial_lungs(volume, lungs[start : start + count])
            assert caution is not None
            assert share_in(caution.sentence) == pytest.approx(share, abs=0.15)
