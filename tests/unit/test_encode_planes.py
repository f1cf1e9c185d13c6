"""The picture of a volume: three planes, one scale in mm, the head on top, letters that tell the truth."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from pulmo_models.types import Volume
from pulmo_node.encode.planes import _planes, render_planes
from tests.ct_factory import grid_volume, true_affine

SIZE = 200
ORIENTATIONS = {
    "head first": (1, 0, 0, 0, 1, 0),
    "feet first": (-1, 0, 0, 0, 1, 0),
    "prone": (-1, 0, 0, 0, -1, 0),
    "decubitus": (0, 1, 0, -1, 0, 0),
}


def volume_of(
    hu: npt.NDArray[np.float32], spacing: tuple[float, float, float], orientation: tuple[float, ...]
) -> Volume:
    affine = true_affine(spacing, (0, 0, 0), orientation)
    return grid_volume(hu, affine)


def panels(volume: Volume) -> list[npt.NDArray[np.int64]]:
    picture = np.asarray(render_planes(volume, "", SIZE))[:SIZE].astype(int).sum(axis=2)
    return [picture[:, n * SIZE : (n + 1) * SIZE] for n in range(3)]


@pytest.mark.parametrize("spacing", [(2.0, 1.0, 1.0), (5.0, 0.8, 0.6), (1.0, 1.2, 1.2)])
def test_a_sphere_is_equally_round_in_all_planes(spacing: tuple[float, float, float]) -> None:
    field_mm, radius_mm = 120.0, 30.0
    shape = tuple(round(field_mm / step) for step in spacing)
    middle = [n // 2 for n in shape]
    distance = np.sqrt(sum(((np.indices(shape)[axis] - middle[axis]) * spacing[axis]) ** 2 for axis in range(3)))
    hu = np.where(distance <= radius_mm, 150, -1350).astype(np.float32)
    for panel in panels(volume_of(hu, spacing, ORIENTATIONS["head first"])):
        bright = panel > 3 * 128
        bright[:25] = bright[-25:] = False  # the letters
        bright[:, :25] = bright[:, -25:] = False
        for axis in (0, 1):
            extent = np.flatnonzero(bright.any(axis=axis))
            assert (extent[-1] - extent[0] + 1) * field_mm / SIZE == pytest.approx(
                2 * radius_mm, abs=1.2 * max(spacing)
            )


@pytest.mark.parametrize("name", list(ORIENTATIONS))
def test_the_letters_name_where_things_are(name: str) -> None:
    """The half of each plane that a letter names holds the half of the patient that lies there."""
    orientation = ORIENTATIONS[name]
    shape, spacing = (30, 40, 40), (3.0, 2.0, 2.0)
    affine = true_affine(spacing, (0, 0, 0), orientation)
    places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    places -= places.reshape(-1, 3).mean(axis=0)
    for letter, axis, sign in (("L", 0, 1), ("P", 1, 1), ("H", 2, 1)):
        hu = np.where(sign * places[..., axis] > 0, 150, -1350).astype(np.float32)
        found = _planes(volume_of(hu, spacing, orientation))
        for plane in found:
            lit = plane.hu > 0
            for step, along in ((plane.down_lps, 0), (plane.right_lps, 1)):
                if abs(step[axis]) < 1e-6:
                    continue
                profile = lit.mean(axis=1 - along)
                later_half = profile[len(profile) // 2 + 1 :].mean() > 0.9
                assert later_half == (step[axis] > 0), (letter, plane.name)


def test_the_head_is_on_top_and_the_planes_are_named() -> None:
    for name in ("head first", "feet first", "prone"):
        hu = np.zeros((10, 12, 14), dtype=np.float32)
        axial, coronal, sagittal = _planes(volume_of(hu, (3, 1, 1), ORIENTATIONS[name]))
        assert [plane.name for plane in (axial, coronal, sagittal)] == ["axial", "coronal", "sagittal"]
        assert coronal.down_lps[2] < 0
        assert sagittal.down_lps[2] < 0
    lying = _planes(volume_of(np.zeros((10, 12, 14), dtype=np.float32), (3, 1, 1), ORIENTATIONS["decubitus"]))
    assert [plane.name for plane in lying] == ["axial", "sagittal", "coronal"]
