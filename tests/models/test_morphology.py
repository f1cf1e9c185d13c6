"""Morphology against its definition: the distances between voxel centres, computed by SciPy for the whole grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy import ndimage

from pulmo_models.ct import lungs
from pulmo_models.ct.morphology import BlockMask, close, dilate, erode, fill_holes, open_up, sections_of
from pulmo_models.types import BoolArray

Spacing = tuple[float, float, float]


def dilated_by_definition(mask: BoolArray, spacing: Spacing, radius: float) -> BoolArray:
    if not mask.any():
        return mask
    # In float32, as everywhere: 3 x 3.9999999 mm are 12 mm.
    return ndimage.distance_transform_edt(~mask, spacing).astype(np.float32) <= np.float32(radius)


def eroded_by_definition(mask: BoolArray, spacing: Spacing, radius: float) -> BoolArray:
    return ~dilated_by_definition(~mask, spacing, radius)


def random_masks() -> Iterator[tuple[BoolArray, Spacing]]:
    """Grids of one voxel to three words a row, from nearly empty to full."""
    random = np.random.default_rng(7)
    steps = (0.7, 1.0, 2.0, 2.9999999999999996, 5.0)
    for share in (0.0, 0.001, 0.02, 0.3, 0.9, 0.998, 1.0):
        for columns in (1, 63, 64, 65, 150):
            shape = (*random.integers(1, (9, 30)), columns)
            yield random.random(shape) < share, tuple(random.choice(steps, 3).tolist())


@pytest.mark.parametrize("radius", [0.3, 2.0, 5.0, 12.0])
def test_balls_reach_what_lies_within_their_radius(radius: float) -> None:
    for mask, spacing in random_masks():
        dilated, eroded = dilated_by_definition(mask, spacing, radius), eroded_by_definition(mask, spacing, radius)
        np.testing.assert_array_equal(dilate(mask, spacing, radius), dilated)
        np.testing.assert_array_equal(erode(mask, spacing, radius), eroded)
        np.testing.assert_array_equal(
            close(mask, spacing, radius), eroded_by_definition(dilated, spacing, radius) | mask
        )
        np.testing.assert_array_equal(
            open_up(mask, spacing, radius), dilated_by_definition(eroded, spacing, radius) & mask
        )


def test_a_ball_is_as_wide_as_its_radius_along_every_axis() -> None:
    mask = np.zeros((21, 41, 141), dtype=bool)
    mask[10, 20, 70] = True
    ball = dilate(mask, (3.0, 1.5, 0.5), 6.0)
    assert [np.flatnonzero(ball.any(axis=axes)).tolist() for axes in ((1, 2), (0, 2), (0, 1))] == [
        list(range(8, 13)), list(range(16, 25)), list(range(58, 83)),
    ]  # fmt: skip


def test_holes_are_filled_and_bays_are_not() -> None:
    for mask, _ in random_masks():
        np.testing.assert_array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))


def test_sections_are_connected_within_their_slice_only() -> None:
    mask = np.zeros((2, 4, 6), dtype=bool)
    mask[:, 1, 1:3] = mask[:, 2, 3] = True  # the two touch by a corner
    labels = sections_of(mask)
    assert labels[:, 1, 1].tolist() == labels[:, 1, 2].tolist()
    assert sorted({*labels[mask].tolist()}) == [1, 2, 3, 4]
    assert not labels[~mask].any()


@pytest.mark.parametrize("factors", [(1, 1, 1), (1, 4, 4), (3, 2, 5)])
def test_blocks_are_enlarged_in_any_box(factors: tuple[int, int, int]) -> None:
    random = np.random.default_rng(3)
    shape = (11, 18, 23)
    blocks = random.random([-(-size // factor) for size, factor in zip(shape, factors, strict=True)]) < 0.2
    whole = np.kron(blocks, np.ones(factors, dtype=bool))[tuple(slice(size) for size in shape)]
    mask = BlockMask(voxels=blocks, factors=factors, shape=shape)
    np.testing.assert_array_equal(mask.whole(), whole)
    for _ in range(50):
        first = random.integers(0, shape)
        box = tuple(slice(a, b) for a, b in zip(first, random.integers(first + 1, np.add(shape, 1)), strict=True))
        np.testing.assert_array_equal(mask[box], whole[box])
    tight = mask.tight()
    np.testing.assert_array_equal(tight.to_volume(shape), whole)
    assert all(tight.voxels.any(axis=axes).all() for axes in ((1, 2), (0, 2), (0, 1)))


@pytest.mark.parametrize(
    ("values", "outside"),
    [
        pytest.param([-990.0, -990.0, -400.0], True, id="most of it thin"),
        pytest.param([-990.0, -400.0, -400.0], False, id="most of it not"),
        pytest.param([-1000.0, -900.0], True, id="half of it, the mean of the middle two is thin"),
        pytest.param([-940.0, -400.0], False, id="half of it, that mean is not"),
    ],
)
def test_air_outside_is_told_by_its_median(values: list[float], outside: bool) -> None:
    hu = np.zeros((2, 5, 6), dtype=np.float32)
    hu[1, 0, 1 : 1 + len(values)] = values
    hu[1, 3, 2:4] = -1000.0  # touches no border
    hu[0, 2, 2] = -1000.0
    air = hu < -320
    expected = air & (np.arange(5) == 0)[:, None] & outside
    np.testing.assert_array_equal(lungs._outside_air(hu, air), expected)


def test_blocks_have_the_mean_of_their_voxels_also_at_the_border() -> None:
    hu = np.random.default_rng(0).integers(-1500, 1200, (7, 10, 9)).astype(np.float32)
    means = lungs._block_mean(hu, (2, 4, 4))
    cut: Callable[[int, int], slice] = lambda block, size: slice(block * size, (block + 1) * size)  # noqa: E731
    for index in np.ndindex(means.shape):
        block = hu[tuple(cut(at, size) for at, size in zip(index, (2, 4, 4), strict=True))]
        assert means[index] == pytest.approx(block.clip(-1024, 1000).mean(), abs=1e-3)
    assert means.shape == (4, 3, 3)
