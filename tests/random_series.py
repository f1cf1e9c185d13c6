"""Random series of the patient of `tests.phantom`, for property tests.

The examples are the same in every run (`derandomize`), so that a failure is one of the code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from random import Random

import numpy as np
from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import generate_uid

from tests.phantom import EDGE_MM, Scan, Sphere, file_orientation, middle_of

ROOM_MM = 3.0  # between a sphere's slope and the border of the scan
LAYOUTS = (
    {},
    {"signed": True, "intercept": 0.0},
    {"slope": 0.5, "intercept": -1000.0},
    {"slope": 2.0},
    {"slope": 0.1, "intercept": -1024.0},
    {"bits_stored": 12},
    {"bits_stored": 13, "signed": True, "intercept": 0.0},
)


def runs(examples: int) -> settings:
    """As many examples, the same ones every time. A failure is told as it is: to shrink it would take minutes."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        phases=(Phase.explicit, Phase.generate),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A series with its truth."""

    scan: Scan
    spheres: tuple[Sphere, Sphere]
    layout: dict[str, float]
    decimals: int | None
    random: Random

    def datasets(self) -> list[Dataset]:
        return self.scan.datasets(self.spheres, decimals=self.decimals, **self.layout)

    @property
    def rounding_mm(self) -> float:
        """How far a position in the file may be off, in space."""
        return 1e-6 if self.decimals is None else 3**0.5 / 2 * 10.0**-self.decimals


def about(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rotation about a unit vector (Rodrigues)."""
    cross = np.cross(np.eye(3), axis)
    return np.asarray(np.eye(3) - np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


@st.composite
def rotations(draw: st.DrawFn) -> np.ndarray:
    """Head or feet first, turned by any angle in the plane, and tipped by 30 degrees at most."""
    angle = st.floats(0, 2 * np.pi)
    base = draw(st.sampled_from([np.eye(3), np.diag([-1.0, 1.0, -1.0])]))
    direction = draw(angle)
    tip = about(np.array([np.cos(direction), np.sin(direction), 0.0]), draw(st.floats(0, np.radians(30))))
    return np.asarray(tip @ base @ about(np.array([0.0, 0.0, 1.0]), draw(angle)))


@st.composite
def examples(
    draw: st.DrawFn,
    distances: Callable[[st.DrawFn, float, int], np.ndarray],
    *,
    most_drift: float = 0.0,
    rounding: Sequence[int | None] = (None, 3, 2, 1),
) -> Example:
    """Two spheres side by side in a scan that just holds them.

    ``distances`` draws where the images lie along the normal, given the usual spacing and the least number of images.
    They drift within the plane by up to ``most_drift`` mm a mm, as under a tilted gantry.
    """
    orientation = file_orientation(draw(rotations()))
    between_rows, between_columns = draw(st.floats(0.6, 1.0)), draw(st.floats(0.6, 1.0))
    spacing = round(draw(st.floats(1.4, 2.0)), 3)
    radii = draw(st.floats(7.5, 8.5)), draw(st.floats(7.5, 8.5))
    side = 2 * (max(radii) + EDGE_MM + ROOM_MM)
    along = distances(draw, spacing, int(np.ceil(side / spacing)) + 1)
    drift = np.zeros(2)
    if most_drift:
        steepness, direction = draw(st.floats(0.02, most_drift)), draw(st.floats(0, 2 * np.pi))
        drift = steepness * np.array([np.cos(direction), np.sin(direction)])
    room = np.abs(drift) * np.ptp(along)
    matrix = (int((side + room[0]) / between_rows) + 2, int((2 * side + room[1]) / between_columns) + 2)
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    path = np.cross(row, column) + drift[0] * column + drift[1] * row
    corner = np.array([draw(st.floats(-300, 300)) for _ in range(3)])
    scan = Scan(
        orientation=orientation,
        pixel_spacing=(round(between_rows, 5), round(between_columns, 5)),
        matrix=matrix,
        origins=corner + along[:, None] * path,
    )
    middle, beside = middle_of(scan), side / 2 * row
    spheres = tuple(
        Sphere(centre=tuple((middle + sign * beside).tolist()), radius=radius, hu=float(draw(st.integers(-300, 300))))
        for sign, radius in zip((-1, 1), radii, strict=True)
    )
    return Example(
        scan=scan,
        spheres=(spheres[0], spheres[1]),
        layout=dict(draw(st.sampled_from(LAYOUTS))),
        decimals=draw(st.sampled_from(list(rounding))),
        random=Random(draw(st.integers(0, 2**32))),
    )


def even(_draw: st.DrawFn, spacing: float, count: int) -> np.ndarray:
    return spacing * np.arange(count)


def uneven(draw: st.DrawFn, spacing: float, count: int) -> np.ndarray:
    """Distances that swing about the spacing, or change half way."""
    k = np.arange(count + 3)
    if draw(st.booleans()):
        swing = draw(st.floats(0.15, 0.25)) * np.cos(draw(st.floats(0.3, 1.2)) * k + draw(st.floats(0, 2 * np.pi)))
    else:
        swing = np.where(k < draw(st.integers(4, count - 4)), 0.0, draw(st.floats(-0.3, 0.4)))
    along = np.concatenate([[0], np.cumsum(spacing * (1 + swing))])
    line = np.polyval(np.polyfit(np.arange(len(along)), along, 1), np.arange(len(along)))
    assume(np.abs(along - line).max() > 0.15)  # else it passes for regular
    return np.asarray(along)


def gapped(draw: st.DrawFn, spacing: float, count: int) -> np.ndarray:
    return np.delete(spacing * np.arange(count + 1), draw(st.integers(2, count - 2)))


def copied(dataset: Dataset) -> Dataset:
    dataset = deepcopy(dataset)
    dataset.SOPInstanceUID = generate_uid()
    return dataset
