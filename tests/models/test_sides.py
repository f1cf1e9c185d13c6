"""Left lung, right lung and pleura, on made chests whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from pulmo_models.ct.lungs import LungRegion, localise_lungs
from pulmo_models.ct.morphology import BlockMask
from pulmo_models.ct.sides import left_side
from pulmo_models.ct.site import laterality, pleura_distance_mm
from pulmo_models.types import BoolArray, Mask
from tests.ct_factory import grid_volume
from tests.models.test_lungs import SPACING, ellipsoid, make_volume, thorax

SHAPE = (60, 180, 200)
RIGHT, LEFT = (30, 85, 62), (30, 85, 138)  # centres of the lungs of `thorax`: columns count towards the left
COLUMNS = np.indices(SHAPE)[2]


def chest(*lungs: BoolArray) -> np.ndarray:
    """A body in air with these lungs."""
    hu = np.full(SHAPE, -1000.0)
    rows, columns = np.indices(SHAPE[1:])
    hu[:, ((rows - 85) / 62.0) ** 2 + ((columns - 100) / 95.0) ** 2 <= 1.0] = 40.0
    for lung in lungs:
        hu[lung] = -850.0
    return hu


def share_left(region: LungRegion, part: BoolArray) -> float:
    return float(region.left.whole()[part & region.mask].mean())


@pytest.mark.parametrize("reversed_axes", [(), (0,), (1,), (2,), (0, 2), (1, 2)])
@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1)])
def test_the_sides_are_the_patient_s_in_every_orientation(
    axes: tuple[int, int, int], reversed_axes: tuple[int, ...]
) -> None:
    hu, _ = thorax()
    upright = make_volume(hu, SPACING)
    affine = upright.affine.copy()
    for n, axis in enumerate(axes):
        step = upright.affine[:3, axis]
        affine[:3, n] = -step if n in reversed_axes else step
        if n in reversed_axes:
            affine[:3, 3] += (hu.shape[axis] - 1) * step
    turned = grid_volume(np.ascontiguousarray(np.flip(hu.transpose(axes), reversed_axes)), affine)
    lungs = localise_lungs(turned).lungs()
    for side, (z, y, x) in (("left", LEFT), ("right", RIGHT)):
        mask = lungs[side]
        middle = affine @ [*(np.argwhere(mask.voxels).mean(axis=0) + mask.origin), 1.0]
        np.testing.assert_allclose(middle[:3], np.multiply((x, y, z), SPACING[::-1]), atol=2.0)


def test_left_and_right_are_the_whole_and_do_not_overlap() -> None:
    region = localise_lungs(make_volume(thorax()[0], SPACING))
    lungs = region.lungs()
    left, right = (lungs[side].to_volume(SHAPE) for side in ("left", "right"))
    assert not (left & right).any()
    np.testing.assert_array_equal(left | right, region.proper.whole())
    assert (region.proper.whole() & region.mask).sum() > 0.99 * region.mask.sum()


@pytest.mark.parametrize("overlap_mm", [0.0, 12.0, 20.0])
def test_lungs_that_touch_are_parted_where_they_meet(overlap_mm: float) -> None:
    """Two lungs of 110 mm breadth that meet in front, joined by bronchi as well."""
    offset = (110.0 - overlap_mm) / 2 / SPACING[2]
    right = ellipsoid(SHAPE, (30, 85, 100 - offset), (100, 85, 55))
    left = ellipsoid(SHAPE, (30, 85, 100 + offset), (100, 85, 55))
    bronchi = ellipsoid(SHAPE, (35, 95, 100), (12, 10, 60))
    region = localise_lungs(make_volume(chest(right, left, bronchi), SPACING))
    assert share_left(region, left & (COLUMNS > 103)) > 0.995
    assert share_left(region, right & (COLUMNS < 97)) < 0.005


def test_a_lung_that_is_mostly_collapsed_is_still_the_other_one() -> None:
    right = ellipsoid(SHAPE, (30, 85, 75), (105, 90, 75))  # has grown over the midline
    left = ellipsoid(SHAPE, (45, 85, 145), (40, 50, 40))
    region = localise_lungs(make_volume(chest(right, left & ~right), SPACING))
    assert share_left(region, left & ~right) > 0.99
    assert share_left(region, right) < 0.01


@pytest.mark.parametrize(("centre", "side"), [((30, 85, 125), "left"), ((30, 85, 75), "right")])
def test_a_lung_alone_is_that_of_its_side(centre: tuple[int, int, int], side: str) -> None:
    """It reaches over the midline, as after the other one was taken out."""
    region = localise_lungs(make_volume(chest(ellipsoid(SHAPE, centre, (100, 85, 70))), SPACING))
    assert list(region.lungs()) == [side]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("columns", "side"), [((105, 180), "left"), ((20, 95), "right")])
def test_a_lung_that_was_reconstructed_by_itself_is_that_of_its_side(
    columns: tuple[int, int], side: str, turned: bool
) -> None:
    """The field of view ends within the mediastinum and the chest wall, so its middle is not that of the body."""
    hu, _ = thorax()
    part = hu[:, 35:135, slice(*columns)]
    affine = make_volume(hu, SPACING).affine
    affine[0, 3] = (columns[0] - 100) * SPACING[2]  # column 100 is the middle of the scanner
    if turned:
        part, affine = part.swapaxes(1, 2), affine[:, [0, 2, 1, 3]]
    region = localise_lungs(grid_volume(np.ascontiguousarray(part), affine))
    assert list(region.lungs()) == [side]


def test_what_nothing_sets_apart_is_parted_at_the_midline() -> None:
    lungs = np.zeros((40, 60, 100), dtype=bool)
    lungs[5:35, 10:50, 10:90] = True
    leftward = np.broadcast_to(np.arange(100, dtype=np.float32) * 2.0, lungs.shape)
    left = left_side(lungs, (2.0, 2.0, 2.0), leftward, 101.0)
    assert not left[..., :51].any()
    assert left[..., 51:].all()


@pytest.mark.parametrize("lumen_hu", [-1000.0, -930.0])
def test_trachea_and_main_bronchi_belong_to_no_lung(lumen_hu: float) -> None:
    """A trachea of 18 mm that leads into two bronchi, which open into the lungs."""
    hu, lungs = thorax()
    rows, columns = np.indices(SHAPE[1:])
    trachea = np.zeros(SHAPE, dtype=bool)
    trachea[38:] = (rows - 85) ** 2 + (columns - 100) ** 2 <= 4.5**2
    bronchi = np.zeros(SHAPE, dtype=bool)
    bronchi[35:38, 82:89, 88:112] = True
    hu[trachea | (bronchi & ~lungs)] = lumen_hu
    region = localise_lungs(make_volume(hu, SPACING))
    assert region.mask[trachea].mean() > 0.9, "it is air within the chest all the same"
    assert not region.proper.whole()[trachea].any()
    assert region.proper.whole()[lungs].mean() > 0.97
    assert share_left(region, lungs & (COLUMNS > 100)) > 0.99
    assert share_left(region, lungs & (COLUMNS < 100)) < 0.01


def voxelwise(mask: BoolArray) -> BlockMask:
    return BlockMask(voxels=mask, factors=(1, 1, 1), shape=mask.shape)


def region_of(mask: BoolArray, left: BoolArray | None = None) -> LungRegion:
    """Lungs as they are given; all of them left where nothing else is said."""
    return LungRegion(
        mask=mask,
        search=mask,
        proper=voxelwise(mask),
        left=voxelwise(np.ones_like(mask) if left is None else left),
        box=(slice(None), slice(None), slice(None)),
        volume_ml=1000.0,
    )


def block(origin: tuple[int, int, int], size: tuple[int, int, int] = (2, 3, 4)) -> Mask:
    return Mask(origin=origin, voxels=np.ones(size, dtype=bool))


FINE = (2.5, 0.7, 0.7)


def box_lung() -> BoolArray:
    """Slices 0 to 39 (cut off at the foot end), rows 20 to 219, columns 10 to 209."""
    mask = np.zeros((60, 240, 230), dtype=bool)
    mask[:40, 20:220, 10:210] = True
    return mask


@pytest.mark.parametrize(
    ("origin", "expected_mm"),
    [
        pytest.param((10, 100, 10), 0.0, id="touches at its side"),
        pytest.param((38, 100, 100), 0.0, id="touches at its end"),
        pytest.param((10, 100, 15), 5 * 0.7, id="five voxels between, along columns"),
        pytest.param((10, 30, 100), 10 * 0.7, id="ten voxels between, along rows"),
        pytest.param((34, 100, 100), 4 * 2.5, id="four slices between"),
        pytest.param((10, 40, 200), 6 * 0.7, id="the far side, beyond its own breadth"),
        pytest.param((0, 100, 100), 80 * 0.7, id="the border of the volume is no pleura"),
    ],
)
def test_the_distance_to_the_pleura_is_exact_between_the_faces_of_voxels(
    origin: tuple[int, int, int], expected_mm: float
) -> None:
    assert pleura_distance_mm(block(origin), region_of(box_lung()), FINE) == pytest.approx(expected_mm, abs=1e-4)


def test_the_nearest_way_may_be_slanted() -> None:
    mask = np.ones((30, 60, 60), dtype=bool)
    mask[10, 20, 20] = False
    spacing = (1.0, 2.0, 3.0)
    found = pleura_distance_mm(block((20, 30, 25), (1, 1, 1)), region_of(mask), spacing)
    assert found == pytest.approx(np.linalg.norm(np.multiply((9, 9, 4), spacing)), abs=1e-4)


def test_a_nodule_outside_of_its_lung_is_at_the_pleura_of_the_nearer_one() -> None:
    mask, left = box_lung(), np.zeros((60, 240, 230), dtype=bool)
    left[..., 120:] = True
    region = region_of(mask, left)
    nodule = block((10, 100, 212))
    assert laterality(nodule, region) == "left"
    assert pleura_distance_mm(nodule, region, FINE) == 0.0


def test_the_other_lung_is_outside_too() -> None:
    left = np.zeros((60, 240, 230), dtype=bool)
    left[..., 120:] = True
    region = region_of(box_lung(), left)
    nodule = block((10, 100, 110))  # six columns from the left lung
    assert laterality(nodule, region) == "right"
    assert pleura_distance_mm(nodule, region, FINE) == pytest.approx(6 * 0.7, abs=1e-4)


def test_a_lung_that_fills_the_volume_has_no_pleura_in_it() -> None:
    assert pleura_distance_mm(block((5, 5, 5)), region_of(np.ones((20, 20, 20), dtype=bool)), FINE) is None


def test_on_a_made_chest_the_distance_is_right_to_2_mm() -> None:
    """Spheres of 10 mm on the line through the middles of the lungs, each lung 55 mm from its middle to its sides."""
    hu, _ = thorax()
    spheres = {}
    for middle, away, depth_mm in ((LEFT, 1, 2.0), (RIGHT, -1, 12.0), (RIGHT, 1, 25.0)):
        centre = (*middle[:2], middle[2] + away * (55.0 - 5.0 - depth_mm) / SPACING[2])
        spheres[depth_mm] = ellipsoid(hu.shape, centre, (5, 5, 5))
        hu[spheres[depth_mm]] = 40.0
    region = localise_lungs(make_volume(hu, SPACING))
    for depth_mm, sphere in spheres.items():
        found = pleura_distance_mm(Mask(origin=(0, 0, 0), voxels=sphere), region, SPACING)
        assert found == pytest.approx(depth_mm, abs=2.0)
