"""Phantoms: what is planted is there, where and as large as it is said to be."""

from __future__ import annotations

import numpy as np
import pytest

from pulmo_models.ct.lungs import localise_lungs
from pulmo_models.training.material.phantoms import NoduleSpec, PhantomScan, make_demo_phantom, make_phantom
from tests.ct_factory import grid_volume


@pytest.fixture(scope="module")
def demo() -> PhantomScan:
    return make_demo_phantom()


def test_the_truth_is_the_same_in_index_and_in_mm(demo: PhantomScan) -> None:
    for nodule in demo.nodules:
        place = demo.affine @ np.array([*nodule.centre_index, 1.0])
        assert np.allclose(place[:3], nodule.centre_lps_mm, atol=1e-3)


def test_every_planted_nodule_is_soft_tissue_in_lung(demo: PhantomScan) -> None:
    for nodule in demo.nodules:
        z, y, x = (round(value) for value in nodule.centre_index)
        assert -100 < demo.hu[z, y, x] < 150
        reach = round(nodule.diameter_mm / 0.8)
        around = demo.hu[z, y - reach : y + reach + 1 : 2 * reach, x - reach : x + reach + 1]
        assert np.median(around) < -500


def test_the_layout_has_no_symmetry(demo: PhantomScan) -> None:
    """A mirrored or turned result must not pass for a right one."""
    places = np.array([nodule.centre_lps_mm for nodule in demo.nodules])
    for signs in ((-1, 1, 1), (1, -1, 1), (1, 1, -1), (-1, -1, 1), (-1, 1, -1), (1, -1, -1), (-1, -1, -1)):
        mirrored = places * signs
        nearest = [np.linalg.norm(places - place, axis=1).min() for place in mirrored]
        assert max(nearest) > 15


def test_a_planted_sphere_has_its_volume() -> None:
    """Excess over the lung, as a share of the contrast, sums up to the volume of the sphere."""
    spec = NoduleSpec(place=(-66.0, -20.0, 10.0), diameter_mm=16.0)
    settings = {"shape": (48, 192, 384), "spacing_mm": (2.0, 0.8, 0.8)}
    empty = make_phantom(3, nodules=(), **settings)
    planted = make_phantom(3, nodules=(spec,), **settings)
    excess = np.where(np.abs(planted.hu - empty.hu) > 0, planted.hu - empty.hu, 0)
    z, y, x = (round(value) for value in planted.nodules[0].centre_index)
    box = excess[z - 8 : z + 9, y - 16 : y + 17, x - 16 : x + 17]
    contrast = np.median(planted.hu[z - 1 : z + 2, y - 3 : y + 4, x - 3 : x + 4]) + 860
    volume = box.sum() / contrast * np.prod(settings["spacing_mm"])
    assert volume == pytest.approx(np.pi / 6 * 16**3, rel=0.12)


def test_the_same_seed_gives_the_same_voxels_and_another_one_others() -> None:
    small = {"shape": (20, 96, 96), "spacing_mm": (8.0, 3.2, 3.2)}
    first, again, other = make_phantom(5, **small), make_phantom(5, **small), make_phantom(6, **small)
    assert np.array_equal(first.hu, again.hu)
    assert first.nodules == again.nodules
    assert not np.array_equal(first.hu, other.hu)


def test_its_lungs_are_found(demo: PhantomScan) -> None:
    volume = grid_volume(demo.hu, demo.affine)
    lungs = localise_lungs(volume)
    left = lungs.left.whole()
    for nodule in demo.nodules:
        z, y, x = (round(value) for value in nodule.centre_index)
        assert lungs.mask[z, y, x]
        assert left[z, y, x] == (nodule.centre_lps_mm[0] > 0), "the phantom's spine is at x = 0"
