"""Spheres at known places of a patient, scanned in any orientation, and a pipeline that finds them by their density."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from pydicom import Dataset, dcmread
from pydicom.valuerep import format_number_as_ds

from pulmo_models.ct.measure import measure
from pulmo_models.ct.scope import touches_interpolated
from pulmo_models.types import CONCEPT_NAMES, Concept, Findings, Mask, Nodule, Volume
from pulmo_node.encode import EncodedObject
from tests.ct_factory import ct_datasets, true_affine
from tests.encode_factory import INFO, items_named, measurement_groups, read_object

INSIDE_HU, OUTSIDE_HU = 40.0, -860.0
SPACING = (2.0, 0.9, 0.8)
SHAPE = (36, 80, 90)


@dataclass(frozen=True, kw_only=True)
class Sphere:
    """LPS mm."""

    centre: tuple[float, float, float]
    radius_mm: float

    @property
    def volume_mm3(self) -> float:
        return float(4 / 3 * np.pi * self.radius_mm**3)


SPHERES = (
    Sphere(centre=(-40.0, 12.0, -140.0), radius_mm=5.0),
    Sphere(centre=(-14.0, 2.0, -158.0), radius_mm=7.0),
    Sphere(centre=(-34.0, 22.0, -165.0), radius_mm=4.0),
)
MIDDLE = np.array([-30.0, 10.0, -150.0])

_ABOUT_X = np.array([[1, 0, 0], [0, np.cos(0.35), -np.sin(0.35)], [0, np.sin(0.35), np.cos(0.35)]])
_ABOUT_Z = np.array([[np.cos(0.5), -np.sin(0.5), 0], [np.sin(0.5), np.cos(0.5), 0], [0, 0, 1]])
_OBLIQUE = _ABOUT_X @ _ABOUT_Z

ORIENTATIONS: dict[str, tuple[float, ...]] = {
    "head first": (1, 0, 0, 0, 1, 0),
    "feet first": (-1, 0, 0, 0, 1, 0),
    "prone": (-1, 0, 0, 0, -1, 0),
    "feet first prone": (1, 0, 0, 0, -1, 0),
    "decubitus left": (0, -1, 0, 1, 0, 0),
    "decubitus right": (0, 1, 0, -1, 0, 0),
    "feet first decubitus": (0, 1, 0, 1, 0, 0),
    "oblique": (*_OBLIQUE[:, 0].tolist(), *_OBLIQUE[:, 1].tolist()),
}


def rounded(orientation: Sequence[float]) -> tuple[float, ...]:
    """The cosines as a file holds them."""
    return tuple(float(format_number_as_ds(float(value))) for value in orientation)


def scan(
    orientation: Sequence[float],
    distances_mm: Sequence[float] | None = None,
    *,
    shift_mm_per_mm: tuple[float, float] = (0.0, 0.0),
) -> list[Dataset]:
    """A series of the spheres. Images lie at these distances along the normal from the first one (None: evenly).

    ``shift_mm_per_mm`` moves the images along their columns and rows as they follow one another, as a tilted gantry.
    """
    cosines = rounded(orientation)
    distances = np.arange(SHAPE[0]) * SPACING[0] if distances_mm is None else np.asarray(distances_mm)
    affine = true_affine(SPACING, (0, 0, 0), cosines)
    slice_axis, row_axis, column_axis = (affine[:3, :3] / SPACING).T
    path = slice_axis + shift_mm_per_mm[0] * row_axis + shift_mm_per_mm[1] * column_axis
    middle = distances.mean() * path + affine[:3, :3] @ [0, (SHAPE[1] - 1) / 2, (SHAPE[2] - 1) / 2]
    origins = MIDDLE - middle + distances[:, None] * path
    grid = np.moveaxis(np.indices(SHAPE[1:]), 0, -1) @ affine[:3, 1:3].T
    hu = np.stack([_density(origin + grid) for origin in origins])
    datasets = ct_datasets(np.rint(hu), SPACING, orientation=cosines)
    for dataset, origin in zip(datasets, origins, strict=True):
        dataset.ImagePositionPatient = [f"{value:.10g}" for value in origin]
    return datasets


def _density(places: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """HU of places: the edge of a sphere is as soft as a pixel is wide."""
    inside = np.zeros(places.shape[:-1])
    for sphere in SPHERES:
        depth = sphere.radius_mm - np.linalg.norm(places - sphere.centre, axis=-1)
        inside = np.maximum(inside, np.clip(depth / SPACING[1] + 0.5, 0, 1))
    return OUTSIDE_HU + (INSIDE_HU - OUTSIDE_HU) * inside


def find(volume: Volume) -> Findings:
    """Every connected part that is denser than half way, in the order of `SPHERES` where it is one of them."""
    dense = volume.hu > (INSIDE_HU + OUTSIDE_HU) / 2
    labels = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(dense.astype(np.uint8))))
    nodules = [_nodule(volume, labels == label) for label in range(1, int(labels.max()) + 1)]
    nodules.sort(key=lambda nodule: nearest(nodule.centre_lps_mm))
    return Findings(pipeline=INFO, nodules=tuple(nodules), cautions=volume.cautions)


def nearest(place: Sequence[float]) -> int:
    return int(np.argmin([np.linalg.norm(np.subtract(place, sphere.centre)) for sphere in SPHERES]))


def _nodule(volume: Volume, whole: npt.NDArray[np.bool_]) -> Nodule:
    places = np.argwhere(whole)
    low, high = places.min(axis=0), places.max(axis=0) + 1
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    mask = Mask(origin=(int(low[0]), int(low[1]), int(low[2])), voxels=whole[box])
    measures = measure(volume, mask)
    caution = touches_interpolated(volume, mask)
    middle = places.mean(axis=0).round().astype(int)
    return Nodule(
        centre_lps_mm=measures.centre_lps_mm,
        centre_index=(int(middle[0]), int(middle[1]), int(middle[2])),
        mask=mask,
        candidate_score=0.9,
        detection_probability=0.9,
        malignancy_probability=0.5,
        concepts=tuple(Concept(name=name, value=3.0, contribution=0.1) for name in CONCEPT_NAMES),
        long_axis=measures.long_axis,
        short_axis=measures.short_axis,
        volume_mm3=measures.volume_mm3,
        mean_hu=measures.mean_hu,
        min_hu=measures.min_hu,
        max_hu=measures.max_hu,
        cautions=() if caution is None else (caution,),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """A source image as its own header places it."""

    header: Dataset

    def place(self, row: npt.ArrayLike, column: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """LPS mm of pixel indices (PS3.3 C.7.6.2.1.1)."""
        row_cosines, column_cosines = np.array(self.header.ImageOrientationPatient, dtype=float).reshape(2, 3)
        between_rows, between_columns = (float(value) for value in self.header.PixelSpacing)
        return (
            np.array(self.header.ImagePositionPatient, dtype=float)
            + np.asarray(column)[..., None] * row_cosines * between_columns
            + np.asarray(row)[..., None] * column_cosines * between_rows
        )


def images_of(volume: Volume) -> dict[str, Image]:
    """The source images by SOP Instance UID, read from their files."""
    paths = [Path(frame.path) for frame in volume.frames if frame.path]
    headers = [dcmread(path, stop_before_pixels=True) for path in paths]
    return {header.SOPInstanceUID: Image(header=header) for header in headers}


def segmented_places(seg: EncodedObject, images: dict[str, Image]) -> dict[int, dict[str, npt.NDArray[np.float64]]]:
    """Segment number -> source instance -> LPS mm of its pixels, by the geometry of the source alone."""
    found: dict[int, dict[str, npt.NDArray[np.float64]]] = {}
    dataset = read_object(seg)
    planes = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    for plane, groups in zip(planes, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        image = images[source.ReferencedSOPInstanceUID]
        drawn_at = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        np.testing.assert_allclose(drawn_at, image.place(0, 0), atol=1e-6)
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        places = found.setdefault(number, {})
        assert source.ReferencedSOPInstanceUID not in places, "one image twice"
        places[source.ReferencedSOPInstanceUID] = image.place(*np.nonzero(plane))
    return found


def measured_lines(sr: EncodedObject, images: dict[str, Image]) -> list[dict[str, tuple[str, npt.NDArray[np.float64]]]]:
    """Of each measurement group: name of the axis -> source instance and LPS mm of its two ends."""
    found = []
    for group in measurement_groups(read_object(sr)):
        lines = {}
        for name in ("Long Axis", "Short Axis"):
            (item,) = items_named(group, name)
            (line,) = item.ContentSequence
            uid = line.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
            points = np.array(line.GraphicData, dtype=float).reshape(2, 2)
            lines[name] = uid, images[uid].place(points[:, 1] - 0.5, points[:, 0] - 0.5)
        found.append(lines)
    return found
