"""A patient made of spheres, known at every point of space, and CT series of it whose geometry is known.

Lengths in mm, positions in LPS. The density is smooth, so that a sphere that is sampled at voxel centres can be
measured to a hundredth of a millimetre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.valuerep import format_number_as_ds
from scipy.ndimage import map_coordinates

from pulmo_models.types import Volume
from tests.ct_factory import ct_datasets, true_affine

Float64Array = npt.NDArray[np.float64]

BACKGROUND_HU = -860.0
EDGE_MM = 2.5  # half the width of the slope from the background to the core of a sphere
REFINEMENT = 4  # steps a voxel, to measure a volume between voxel centres


@dataclass(frozen=True, kw_only=True)
class Sphere:
    """Its HU in the core; half way to the background at the radius."""

    centre: tuple[float, float, float]
    radius: float
    hu: float

    def share(self, places: Float64Array) -> Float64Array:
        """1 in the core, 0 outside, of places ``(..., 3)``."""
        depth = self.radius - np.linalg.norm(places - self.centre, axis=-1)
        return 0.5 + 0.5 * np.sin(np.pi / 2 * np.clip(depth / EDGE_MM, -1, 1))

    @property
    def volume_mm3(self) -> float:
        """Of what is denser than half way."""
        return float(4 / 3 * np.pi * self.radius**3)


def density(places: Float64Array, spheres: Sequence[Sphere]) -> Float64Array:
    """HU of places ``(..., 3)``; the spheres do not meet."""
    hu = np.full(places.shape[:-1], BACKGROUND_HU)
    for sphere in spheres:
        hu += (sphere.hu - BACKGROUND_HU) * sphere.share(places)
    return hu


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """Where the images of a series lie: image ``k`` at ``origins[k]``, all with these axes, spacing and matrix."""

    orientation: tuple[float, ...]  # as ImageOrientationPatient
    pixel_spacing: tuple[float, float]  # between rows, between columns
    matrix: tuple[int, int]  # rows, columns
    origins: Float64Array = field(repr=False)  # (images, 3)

    @property
    def normal(self) -> Float64Array:
        """Unit vector from slice to slice."""
        return np.cross(self.orientation[:3], self.orientation[3:])

    def places(self, image: int) -> Float64Array:
        """Positions of the pixels of an image, ``(rows, columns, 3)``."""
        row, column = np.array(self.orientation[:3]), np.array(self.orientation[3:])
        rows, columns = np.indices(self.matrix)
        down = (rows * self.pixel_spacing[0])[..., None] * column
        return np.asarray(self.origins[image] + down + (columns * self.pixel_spacing[1])[..., None] * row)

    def datasets(
        self, spheres: Sequence[Sphere], *, decimals: int | None = None, **pixel_layout: object
    ) -> list[Dataset]:
        """The series, its positions rounded in the file to `decimals`. HU are rounded to steps of the rescale."""
        slope, intercept = (float(str(pixel_layout.get(key, value))) for key, value in _RESCALE.items())
        hu = np.stack([density(self.places(k), spheres) for k in range(len(self.origins))])
        whole = np.rint((hu - intercept) / slope) * slope + intercept
        datasets = ct_datasets(whole, (1.0, *self.pixel_spacing), orientation=self.orientation, **pixel_layout)  # type: ignore[arg-type]
        for dataset, origin in zip(datasets, self.origins, strict=True):
            dataset.ImagePositionPatient = [
                format_number_as_ds(float(value)) if decimals is None else f"{value:.{decimals}f}" for value in origin
            ]
        return datasets


_RESCALE = {"slope": 1.0, "intercept": -1024.0}


def file_orientation(rotation: Float64Array) -> tuple[float, ...]:
    """The first two columns of a rotation as a file holds them."""
    return tuple(float(f"{value:.12f}") for value in rotation[:, :2].T.ravel())


def middle_of(scan: Scan) -> Float64Array:
    """The middle of what the images cover."""
    half = true_affine((1.0, *scan.pixel_spacing), (0, 0, 0), scan.orientation)[:3, :3] @ [
        0,
        (scan.matrix[0] - 1) / 2,
        (scan.matrix[1] - 1) / 2,
    ]
    return np.asarray((scan.origins[0] + scan.origins[-1]) / 2 + half)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A sphere as a volume shows it."""

    centre: Float64Array  # of what is denser than the background, weighted by the density
    volume_mm3: float  # of what is denser than half way, between voxel centres by linear interpolation
    flat_error_hu: float  # largest deviation from the truth, `margin` off every slope of the density


def measured(volume: Volume, sphere: Sphere, margin: float) -> Measured:
    """Measure one sphere by the volume and its affine alone, in the box that holds it."""
    inverse = np.linalg.inv(volume.affine)
    centre = (inverse @ [*sphere.centre, 1])[:3]
    reach = (sphere.radius + EDGE_MM + margin + 1.0) / np.array(volume.spacing_mm) + 1
    low = np.maximum(np.floor(centre - reach), 0).astype(int)
    high = np.minimum(np.ceil(centre + reach) + 1, volume.hu.shape).astype(int)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    share = (volume.hu[box].astype(np.float64) - BACKGROUND_HU) / (sphere.hu - BACKGROUND_HU)
    places = (np.moveaxis(np.indices(share.shape), 0, -1) + low) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    depth = sphere.radius - np.linalg.norm(places - sphere.centre, axis=-1)
    near = depth > -EDGE_MM - margin - 1.0  # the border of the scan is farther away
    share[~near] = 0
    flat = near & (np.abs(depth) > EDGE_MM + margin)
    truth = np.where(depth > 0, sphere.hu, BACKGROUND_HU)[flat]
    assert (truth == sphere.hu).any(), "the core is too small to be looked at"
    fine = np.moveaxis(
        np.indices([REFINEMENT * (n - 1) + 1 for n in share.shape], dtype=np.float64) / REFINEMENT, 0, -1
    )
    inside = map_coordinates(share, np.moveaxis(fine, -1, 0), order=1) > 0.5
    voxel_mm3 = float(abs(np.linalg.det(volume.affine[:3, :3]))) / REFINEMENT**3
    return Measured(
        centre=(share[..., None] * places).sum(axis=(0, 1, 2)) / share.sum(),
        volume_mm3=float(inside.sum()) * voxel_mm3,
        flat_error_hu=float(np.abs(volume.hu[box][flat] - truth).max()),
    )
