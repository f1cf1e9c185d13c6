"""Turning a volume upright for the networks, and the results back."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from pulmo_models.orientation import no_turn, turned_upright, upright
from pulmo_models.types import Mask
from tests.ct_factory import grid_volume

SHAPE = (4, 6, 5)
SPACING = (2.5, 0.8, 0.7)


def place(affine: np.ndarray, index: tuple[int, ...]) -> np.ndarray:
    return (affine @ [*index, 1])[:3]


def every_affine() -> list[np.ndarray]:
    """Slices along z, rows and columns along x and y, in all senses: the sixteen axial grids."""
    found = []
    for (row, column), signs in product(permutations((0, 1)), product((1, -1), repeat=3)):
        affine = np.eye(4)
        affine[:3, :3] = 0
        for n, (axis, sign) in enumerate(zip((2, row, column), signs, strict=True)):
            affine[axis, n] = sign * SPACING[n]
        affine[:3, 3] = (-30, 40, 100)
        found.append(affine)
    return found


@pytest.mark.parametrize("affine", every_affine())
def test_every_axial_grid_is_turned_upright(affine: np.ndarray) -> None:
    """In the turned array, z grows with the slice, y with the row, x with the column; every voxel keeps its place."""
    positions = np.array([place(affine, index) for index in np.ndindex(SHAPE)]).reshape(*SHAPE, 3)
    turn = upright(affine, SHAPE)
    turned = np.stack([turn.array(positions[..., axis]) for axis in range(3)], axis=-1)
    spacing = turn.spacing_mm(SPACING)
    for axis, direction in enumerate((2, 1, 0)):
        steps = np.diff(turned, axis=axis)
        expected = np.zeros(3)
        expected[direction] = spacing[axis]
        np.testing.assert_allclose(steps, np.broadcast_to(expected, steps.shape))
    for index in np.ndindex(turned.shape[:3]):
        np.testing.assert_allclose(place(affine, turn.index_back(index)), turned[index])


@pytest.mark.parametrize("affine", every_affine())
def test_masks_come_back_to_their_voxels(affine: np.ndarray) -> None:
    turn = upright(affine, SHAPE)
    whole = np.random.default_rng(2).random(SHAPE) > 0.5
    turned = turn.array(whole)
    back = turn.mask_back(Mask(origin=(0, 0, 0), voxels=turned))
    np.testing.assert_array_equal(back.to_volume(SHAPE), whole)
    part = turned[1:3, 2:4, 1:5]
    expected = np.zeros_like(turned)
    expected[1:3, 2:4, 1:5] = part
    back = turn.mask_back(Mask(origin=(1, 2, 1), voxels=part))
    np.testing.assert_array_equal(turn.array(back.to_volume(SHAPE)), expected)


def test_an_upright_volume_stays_as_it_is() -> None:
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0.1, 0.7], [0.2, 0.75, -0.1], [2.4, -0.2, 0.1]]
    assert upright(affine, SHAPE) == no_turn(SHAPE)


def test_an_oblique_volume_goes_to_the_nearest_axes() -> None:
    """Feet first and turned by 25 degrees about the long axis of the patient."""
    cosine, sine = np.cos(np.radians(25)), np.sin(np.radians(25))
    affine = np.eye(4)
    affine[:3, :3] = [[0, -sine * 0.8, -cosine * 0.7], [0, cosine * 0.8, -sine * 0.7], [-2.5, 0, 0]]
    turn = upright(affine, SHAPE)
    assert (turn.axes, turn.reversed_axes) == ((0, 1, 2), (0, 2))


@pytest.mark.parametrize("affine", every_affine())
def test_a_volume_turned_upright_keeps_every_value_at_its_place(affine: np.ndarray) -> None:
    hu = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    before = grid_volume(hu, affine)
    after = turned_upright(before)
    steps = after.affine[:3, :3]
    assert (steps[2, 0], steps[1, 1], steps[0, 2]) == after.spacing_mm
    for index in np.ndindex(after.hu.shape):
        old = np.linalg.solve(affine, after.affine @ [*index, 1])[:3].round().astype(int)
        assert after.hu[index] == hu[tuple(old)]
        if index[1:] == (0, 0):
            np.testing.assert_allclose(after.frames[index[0]].origin_lps_mm, place(after.affine, index))
