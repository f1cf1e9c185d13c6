"""Patch store from LUNA16 (Setio et al., Med Image Anal 42:1, 2017): mhd volumes and tables of positions in mm.

LUNA16 is a part of LIDC-IDRI, so ratings, masks and patients come from the readers' database by Series Instance UID.
Positions are LPS mm; they become indices by origin, spacing and direction matrix, since some scans lie turned.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

from pulmo_models.errors import ModelError
from pulmo_models.training.lidc.database import LidcDatabase, Nodule, Scan, patient_number
from pulmo_models.training.lidc.sampling import (
    FloatPoints,
    LabelledScan,
    SampleSettings,
    TrueNodule,
    count_drops,
    write_store,
)
from pulmo_models.training.lidc.shapes import consensus
from pulmo_models.training.splits import SPLITS, split_of
from pulmo_models.training.store import StoreWriter

UNSIZED_DIAMETER_MM = 6.0
"""Of findings that LUNA16's list of exclusions gives no diameter: its nodules below 3 mm and its non-nodules."""


class CollectionInvalid(ModelError):
    """The folder does not hold the collection. The message names what is missing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Luna16Tables:
    """Positions by Series Instance UID: LPS mm (x, y, z), in some a diameter in mm as the fourth column."""

    annotations: Mapping[str, FloatPoints]  # (n, 4)
    excluded: Mapping[str, FloatPoints]  # (n, 4)
    true_candidates: Mapping[str, FloatPoints]  # (n, 3)
    false_candidates: Mapping[str, FloatPoints]  # (n, 3)


def write_luna16(
    folder: Path, out: Path, settings: SampleSettings, database: LidcDatabase | None, limit: int | None = None
) -> dict[str, int]:
    """Write the store of the volumes below a folder; numbers of scans, windows and patches.

    Without a database nodules have neither ratings nor masks, and each series counts as a patient of its own.

    Raises:
        CollectionInvalid: there are no volumes, or a table is missing or has other columns.
    """
    tables = read_tables(folder)
    paths = sorted(folder.rglob("*.mhd"), key=lambda path: (path.stem, str(path)))
    if not paths:
        raise CollectionInvalid(f"{folder}: holds no .mhd file")
    known = database.series() if database else {}
    label = partial(_label, tables=tables, database=database, known=known, settings=settings, seen=set())
    provenance = {"command": "data luna16", "database": bool(database), "limit": limit}
    return write_store(out, paths[:limit], label, settings, provenance)


def read_tables(folder: Path) -> Luna16Tables:
    """Read ``annotations.csv``, ``candidates.csv`` and, where it is, ``annotations_excluded.csv`` below a folder.

    Raises:
        CollectionInvalid: one of the first two is missing, or a table has other columns.
    """
    candidates = _read(_find(folder, "candidates.csv"), "class")
    excluded = sorted(folder.rglob("annotations_excluded.csv"))
    return Luna16Tables(
        annotations=_read(_find(folder, "annotations.csv"), "diameter_mm"),
        excluded=_read(excluded[0], "diameter_mm") if excluded else {},
        true_candidates={series: rows[rows[:, 3] == 1, :3] for series, rows in candidates.items()},
        false_candidates={series: rows[rows[:, 3] == 0, :3] for series, rows in candidates.items()},
    )


def _find(folder: Path, name: str) -> Path:
    found = sorted(folder.rglob(name))
    if not found:
        raise CollectionInvalid(f"{folder}: holds no {name}")
    return found[0]


def _read(path: Path, last: str) -> dict[str, FloatPoints]:
    rows: dict[str, list[list[float]]] = {}
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                values = [float(row[column]) for column in ("coordX", "coordY", "coordZ", last)]
                rows.setdefault(row["seriesuid"], []).append(values)
    except KeyError as exc:
        raise CollectionInvalid(f"{path}: has no column {exc}") from exc
    except ValueError as exc:
        raise CollectionInvalid(f"{path}: {exc}") from exc
    return {series: np.array(values) for series, values in rows.items()}


def read_mhd(path: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """HU, float32 (slices, rows, columns), and the 4 x 4 affine from (slice, row, column, 1) to LPS mm.

    Raises:
        CollectionInvalid: the file, or the raw file that it names, cannot be read.
    """
    try:
        image = sitk.ReadImage(str(path), sitk.sitkFloat32)
    except RuntimeError as exc:
        raise CollectionInvalid(f"{path}: cannot be read: {str(exc).strip().splitlines()[-1]}") from exc
    affine = np.eye(4)
    affine[:3, :3] = (np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing())[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return cast(npt.NDArray[np.float32], sitk.GetArrayFromImage(image)), affine


def to_index(affine: npt.NDArray[np.float64], points_mm: FloatPoints) -> FloatPoints:
    """(n, 3) slice, row, column of (n, 3) positions in LPS mm."""
    return np.asarray((points_mm - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T, dtype=np.float64)


def cluster_means(points_mm: FloatPoints, reach_mm: float) -> FloatPoints:
    """Means of the groups of points that are linked by steps of at most `reach_mm`: DBSCAN with a minimum of one."""
    if not len(points_mm):
        return points_mm
    labels = connected_components(cdist(points_mm, points_mm) <= reach_mm, directed=False)[1]
    return np.array([points_mm[labels == group].mean(axis=0) for group in range(labels.max() + 1)])


def split_of_series(series: str, known: Mapping[str, str]) -> str:
    """The split of a series' patient (`known`: patient by series); of a series that is not known by its own name."""
    return split_of(patient_number(known[series]) if series in known else zlib.crc32(series.encode()) % 7)


def _label(
    path: Path,
    drops: StoreWriter,
    *,
    tables: Luna16Tables,
    database: LidcDatabase | None,
    known: Mapping[str, str],
    settings: SampleSettings,
    seen: set[str],
) -> LabelledScan | None:
    series = path.stem
    if series in seen:
        drops.drop("scan: its series was there already")
        return None
    seen.add(series)
    patient = known.get(series, series)
    split = split_of_series(series, known)
    if split not in SPLITS:
        drops.drop("scan: patient of the part that is not used")
        return None
    try:
        hu, affine = read_mhd(path)
    except CollectionInvalid:
        drops.drop("scan: cannot be read")
        return None
    if not is_axial(affine):
        drops.drop("scan: not axial")
        return None
    positions = cluster_means(_rows(tables.true_candidates, series, 3), settings.cluster_mm)
    listed = _rows(tables.annotations, series, 4)
    if database is not None and series in known:
        nodules, unsure = match_readers(positions, database.scan(series), hu.shape, affine, settings, drops)
    else:
        nodules, unsure = _match_listed(positions, listed, hu.shape, affine, settings, drops)
    excluded = _rows(tables.excluded, series, 4)
    spread = np.concatenate([listed, excluded])
    sizes = np.where(spread[:, 3] > 0, spread[:, 3], UNSIZED_DIAMETER_MM)
    others = np.concatenate([unsure, np.column_stack([to_index(affine, spread[:, :3]), sizes])])
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return LabelledScan(
        name=series,
        patient=patient,
        split=split,
        hu=hu,
        spacing_mm=spacing,
        nodules=tuple(nodules),
        uncertain=apart_from(nodules, others, spacing),
        candidates=_candidates(to_index(affine, _rows(tables.false_candidates, series, 3)), hu.shape, drops),
    )


def match_readers(
    positions: FloatPoints,
    scan: Scan,
    shape: tuple[int, ...],
    affine: npt.NDArray[np.float64],
    settings: SampleSettings,
    drops: StoreWriter,
) -> tuple[list[TrueNodule], FloatPoints]:
    """The readers' nodule at each position (LPS mm), and as (n, 4) indices and diameters what remains uncertain.

    A position without a nodule by enough readers near it, a nodule that has a position already, and readers' nodules
    without a position are uncertain: neither a nodule nor none.
    """
    centres = np.array([nodule.centre_in(affine) for nodule in scan.nodules]).reshape(-1, 3)
    enough = np.array([nodule.readers >= settings.least_readers for nodule in scan.nodules], dtype=bool)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    found: dict[int, tuple[float, FloatPoints]] = {}
    unsure: list[tuple[float, ...]] = []
    for place in to_index(affine, positions):
        if not inside(place, shape):
            drops.drop("nodule: outside of the volume")
            continue
        distance = np.where(enough, np.linalg.norm((centres - place) * spacing, axis=1), np.inf)
        nearest = int(np.argmin(distance)) if len(distance) else -1
        if nearest < 0 or distance[nearest] > settings.match_mm:
            drops.drop(f"nodule: not outlined by {settings.least_readers} readers within {settings.match_mm:g} mm")
            unsure.append((*place, UNSIZED_DIAMETER_MM))
        elif nearest in found:
            drops.drop("nodule: a position of it was there already")
            if distance[nearest] < found[nearest][0]:
                found[nearest] = (float(distance[nearest]), place)
        else:
            found[nearest] = (float(distance[nearest]), place)
    zs = affine[2, 3] + affine[2, 0] * np.arange(shape[0])
    nodules = [outlined(scan.nodules[number], place, zs, affine) for number, (_, place) in sorted(found.items())]
    unsure += [
        (*centre, nodule.diameter_mm)
        for number, (centre, nodule) in enumerate(zip(centres, scan.nodules, strict=True))
        if number not in found
    ]
    return nodules, np.array(unsure).reshape(-1, 4)


def outlined(
    nodule: Nodule, place: FloatPoints | None, slice_zs_mm: FloatPoints, affine: npt.NDArray[np.float64]
) -> TrueNodule:
    """A nodule with the consensus of its readers; its centre is the middle of the mask's box, or of the contours."""
    mask = consensus(nodule, slice_zs_mm)
    centre = nodule.centre_in(affine)
    if mask is not None:
        centre = np.array([(part.start + part.stop - 1) / 2 for part in mask.slices])
    return TrueNodule(
        place_index=centre if place is None else place,
        centre_index=centre,
        diameter_mm=nodule.diameter_mm,
        mask=mask,
        nodule=nodule,
    )


def _match_listed(
    positions: FloatPoints,
    listed: FloatPoints,
    shape: tuple[int, ...],
    affine: npt.NDArray[np.float64],
    settings: SampleSettings,
    drops: StoreWriter,
) -> tuple[list[TrueNodule], FloatPoints]:
    """As `match_readers`, where no reader is known: the diameter is that of LUNA16's own list."""
    nodules: list[TrueNodule] = []
    unsure: list[tuple[float, ...]] = []
    for position, place in zip(positions, to_index(affine, positions), strict=True):
        distance = np.linalg.norm(listed[:, :3] - position, axis=1)
        if not inside(place, shape):
            drops.drop("nodule: outside of the volume")
        elif not len(distance) or distance.min() > settings.match_mm:
            drops.drop(f"nodule: not in annotations.csv within {settings.match_mm:g} mm")
            unsure.append((*place, UNSIZED_DIAMETER_MM))
        else:
            diameter = float(listed[int(np.argmin(distance)), 3])
            nodules.append(TrueNodule(place_index=place, centre_index=place, diameter_mm=diameter))
    return nodules, np.array(unsure).reshape(-1, 4)


def apart_from(nodules: list[TrueNodule], balls: FloatPoints, spacing_mm: FloatPoints) -> FloatPoints:
    """The uncertain (n, 4) whose centre is in none of the nodules: the lists name the nodules themselves again."""
    keep = np.ones(len(balls), dtype=bool)
    for nodule in nodules:
        distance = np.linalg.norm((balls[:, :3] - nodule.centre_index) * spacing_mm, axis=1)
        keep &= distance > max(nodule.diameter_mm / 2, 5.0)
    return balls[keep]


def _candidates(places: FloatPoints, shape: tuple[int, ...], drops: StoreWriter) -> npt.NDArray[np.int64]:
    within = np.array([inside(place, shape) for place in places], dtype=bool)
    count_drops(drops, "candidate: outside of the volume", int((~within).sum()))
    rounded = np.rint(places[within]).astype(np.int64)
    once = np.unique(rounded, axis=0)
    count_drops(drops, "candidate: its voxel was there already", len(rounded) - len(once))
    return once


def inside(index: FloatPoints, shape: tuple[int, ...]) -> bool:
    """Whether an index rounds to a voxel of the volume."""
    return bool(((index > -0.5) & (index < np.array(shape) - 0.5)).all())


def is_axial(affine: npt.NDArray[np.float64]) -> bool:
    """Whether slices follow z, rows y and columns x of the patient, either way round."""
    steps = np.abs(affine[:3, :3])
    return bool((steps[[2, 1, 0], [0, 1, 2]] > 0.999 * np.linalg.norm(affine[:3, :3], axis=0)).all())


def _rows(table: Mapping[str, FloatPoints], series: str, width: int) -> FloatPoints:
    return table.get(series, np.zeros((0, width)))
