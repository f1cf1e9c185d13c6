"""A study for the viewer whose truth is known: the project's phantom in four patient positions, with its results.

One nodule lies high, left and anterior, the other low, right and posterior, so that no mirror image or turn of one
maps it to the other: an overlay that lands on the wrong side or slice is seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import dcmread

from pulmo_models.training.material.phantoms import NoduleSpec, PhantomScan, make_phantom
from pulmo_models.types import Axis, Laterality, Mask, Nodule, Volume
from pulmo_node.encode import ResultOptions, encode_findings
from pulmo_node.synthetic import write_phantom_series
from tests.encode_factory import make_context, make_findings, make_nodule, read_volume

PLACES = (
    NoduleSpec(place=(70.0, -38.0, 52.0), diameter_mm=16.0),  # high, left, anterior
    NoduleSpec(place=(-72.0, 48.0, -38.0), diameter_mm=20.0),  # low, right, posterior
)
LUNGS: Mapping[Laterality, tuple[float, float, float]] = {  # centres; the masks of the lungs are ellipsoids
    "left": (62.0, 0.0, 5.0),
    "right": (-62.0, 0.0, 5.0),
}
LUNG_RADII_MM = (38.0, 60.0, 66.0)
FLATTENED = (1.0, 0.75, 0.9)  # radii of a mask along x, y and z of the patient, as shares of the ball's
SHAPE, SPACING_MM = (56, 176, 208), (3.0, 1.6, 1.6)  # rows and columns differ, so that a transposition is seen

Vector = tuple[int, int, int]
Affine = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """How the patient lay, and with it what the axes of the stored images are in the patient (LPS)."""

    patient_position: str  # (0018,5100)
    row: Vector  # along a row, to the right of the image
    column: Vector  # down a column
    backwards: bool = False  # instance numbers count against the normal, as many scanners do


ORIENTATIONS = {
    "head-first-supine": Orientation(patient_position="HFS", row=(1, 0, 0), column=(0, 1, 0), backwards=True),
    "feet-first-supine": Orientation(patient_position="FFS", row=(-1, 0, 0), column=(0, 1, 0)),
    "head-first-prone": Orientation(patient_position="HFP", row=(-1, 0, 0), column=(0, -1, 0)),
    "left-decubitus": Orientation(patient_position="HFDL", row=(0, -1, 0), column=(1, 0, 0)),
}


STUDIES: Mapping[str, ResultOptions] = {
    **dict.fromkeys(ORIENTATIONS, ResultOptions()),
    "every-object": ResultOptions(
        segmentation="labelmap", lung_segments=True, image_library=True, presentation_states=True, pdf_report=True
    ),
}
"""What is written of each study. The one with every object lies as the first orientation."""


@dataclass(frozen=True, kw_only=True)
class KnownNodule:
    """A nodule as the viewer must show it."""

    number: int  # of its segment
    centre_lps_mm: tuple[float, float, float]  # as planted
    diameter_mm: float  # of the planted ball
    voxels: Mapping[str, int]  # of its mask, by SOP Instance UID of the image
    long_axis_mm: float
    short_axis_mm: float
    key_slice_uid: str  # the image through its centre, found from positions alone


@dataclass(frozen=True, kw_only=True)
class KnownStudy:
    """A study on disk."""

    name: str
    study_instance_uid: str
    images: tuple[Path, ...]
    results: tuple[Path, ...]  # every object that the encoder made
    nodules: tuple[KnownNodule, ...]
    lung_voxels: Mapping[str, int]  # of the mask of each side, where no nodule is

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything to store."""
        return (*self.images, *self.results)

    def of(self, modality: str) -> tuple[Path, ...]:
        """The result objects of a modality."""
        return tuple(path for path in self.results if dcmread(path, stop_before_pixels=True).Modality == modality)

    def result(self, modality: str) -> Path:
        """The one result object of a modality."""
        (found,) = self.of(modality)
        return found


def make_study(folder: Path, name: str) -> KnownStudy:
    """Write one of `STUDIES`; equal names give equal UIDs."""
    orientation = ORIENTATIONS.get(name, next(iter(ORIENTATIONS.values())))
    phantom = make_phantom(5, shape=SHAPE, spacing_mm=SPACING_MM, nodules=PLACES)
    hu, affine = turned(phantom, orientation)
    if orientation.backwards:
        affine = affine.copy()
        affine[:3, 3] += affine[:3, 0] * (hu.shape[0] - 1)
        affine[:3, 0] *= -1
        hu = hu[::-1]
    study_uid = write_phantom_series(
        folder / "ct", hu, affine, name=f"viewer {name}", patient_position=orientation.patient_position
    )
    images = tuple(sorted((folder / "ct").iterdir()))
    volume = read_volume(images)
    found = [_nodule(volume, spec, number) for number, spec in enumerate(PLACES, start=1)]
    options = STUDIES[name]
    sides = LUNGS if options.lung_segments else {}
    lungs = {side: _mask(_ellipsoid(volume, centre, LUNG_RADII_MM)) for side, centre in sides.items()}
    findings = replace(make_findings(volume, found), lungs=lungs)
    results = []
    for number, encoded in enumerate(encode_findings(findings, volume, make_context(volume, options=options))):
        path = folder / f"result-{number}-{encoded.kind}.dcm"
        path.write_bytes(encoded.content)
        results.append(path)
    return KnownStudy(
        name=name,
        study_instance_uid=study_uid,
        images=images,
        results=tuple(results),
        nodules=tuple(
            KnownNodule(
                number=number,
                centre_lps_mm=spec.place,
                diameter_mm=spec.diameter_mm,
                voxels=_voxels(nodule, volume),
                long_axis_mm=nodule.long_axis.length_mm,
                short_axis_mm=nodule.short_axis.length_mm,
                key_slice_uid=_slice_at(images, spec.place[2]),
            )
            for number, (spec, nodule) in enumerate(zip(PLACES, found, strict=True), start=1)
        ),
        lung_voxels={side: _left_over(lung, found, volume) for side, lung in lungs.items()},
    )


def turned(phantom: PhantomScan, orientation: Orientation) -> tuple[Floats, Affine]:
    """The voxels of a head-first supine phantom as images of another orientation show them, and their affine."""
    row, column = np.array(orientation.row), np.array(orientation.column)
    directions = (np.cross(row, column), column, row)  # of the (slice, row, column) index
    patient_axes = [int(np.abs(direction).argmax()) for direction in directions]
    hu = phantom.hu.transpose([2 - axis for axis in patient_axes])  # the phantom is stored as (z, y, x)
    start = np.zeros(3)  # index in the phantom of the first voxel
    affine = np.eye(4)
    for target, (direction, axis) in enumerate(zip(directions, patient_axes, strict=True)):
        if direction[axis] < 0:
            hu = np.flip(hu, target)
            start[2 - axis] = phantom.hu.shape[2 - axis] - 1
        affine[:3, target] = direction * phantom.spacing_mm[2 - axis]
    affine[:, 3] = phantom.affine @ [*start, 1]
    return np.ascontiguousarray(hu), affine


def _nodule(volume: Volume, spec: NoduleSpec, number: int) -> Nodule:
    """An ellipsoid within the planted ball, longest from right to left, so that its two axes can be told apart."""
    to_index = np.linalg.inv(volume.affine)
    index = (to_index @ [*spec.place, 1])[:3]
    radii_mm = spec.diameter_mm / 2 * np.array(FLATTENED)
    inside = _ellipsoid(volume, spec.place, radii_mm)
    k, row, column = (round(float(value)) for value in index)
    return replace(
        make_nodule(volume, (k, row, column), malignancy=0.2 * number, seed=number),
        centre_lps_mm=spec.place,
        mask=_mask(inside),
        long_axis=_axis(to_index, k, index, 0, float(radii_mm[0])),
        short_axis=_axis(to_index, k, index, 1, float(radii_mm[1])),
        volume_mm3=float(inside.sum() * np.prod(volume.spacing_mm)),
        laterality="left" if spec.place[0] > 0 else "right",
        pleura_distance_mm=4.2 * number,
    )


def _ellipsoid(volume: Volume, centre_lps_mm: Sequence[float], radii_mm: Sequence[float] | Affine) -> Bools:
    """Which voxels lie in an ellipsoid whose axes are those of the patient."""
    index = np.linalg.inv(volume.affine) @ [*centre_lps_mm, 1]
    grid = np.indices(volume.hu.shape).reshape(3, -1)
    offset_mm = volume.affine[:3, :3] @ (grid - index[:3, None])
    inside = ((offset_mm / np.array(radii_mm)[:, None]) ** 2).sum(axis=0) <= 1
    return np.asarray(inside.reshape(volume.hu.shape))


def _mask(inside: Bools) -> Mask:
    low, high = np.argwhere(inside).min(axis=0), np.argwhere(inside).max(axis=0) + 1
    return Mask(
        origin=(int(low[0]), int(low[1]), int(low[2])),
        voxels=inside[low[0] : high[0], low[1] : high[1], low[2] : high[2]],
    )


def _axis(to_index: Affine, k: int, index: Affine, patient_axis: int, radius_mm: float) -> Axis:
    """The diameter along an axis of the patient, on slice `k`."""
    step = to_index[:3, patient_axis] * radius_mm
    start, end = index - step, index + step
    return Axis(
        length_mm=2 * radius_mm,
        start=(k, float(start[1]), float(start[2])),
        end=(k, float(end[1]), float(end[2])),
    )


def _left_over(lung: Mask, nodules: Sequence[Nodule], volume: Volume) -> int:
    taken = [nodule.mask.to_volume(volume.hu.shape) for nodule in nodules]
    return int((lung.to_volume(volume.hu.shape) & ~np.logical_or.reduce(taken)).sum())


def _voxels(nodule: Nodule, volume: Volume) -> dict[str, int]:
    counts = nodule.mask.voxels.sum(axis=(1, 2))
    first = nodule.mask.origin[0]
    return {volume.frames[first + k].sop_instance_uid: int(count) for k, count in enumerate(counts) if count}


def _slice_at(images: Sequence[Path], z_mm: float) -> str:
    headers = [dcmread(path, stop_before_pixels=True) for path in images]
    return str(min(headers, key=lambda header: abs(float(header.ImagePositionPatient[2]) - z_mm)).SOPInstanceUID)
