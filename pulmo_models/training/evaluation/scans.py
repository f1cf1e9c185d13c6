"""Whole scans with a truth, for the FROC: series with inserted nodules, and folders of LUNA16.

Inserted nodules: real nodules of a split's patients are placed into whole series that no training saw. Nodules and
lungs are real, their meeting is not: figures on them are those of a synthetic test. What a series has of its own is
excluded and counts neither way; nodules of it that nobody annotated count as false when they are found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pulmo_models.ct.lungs import localise_lungs
from pulmo_models.geometry import index_to_lps
from pulmo_models.mapping import frames_of_grid
from pulmo_models.orientation import turned_upright
from pulmo_models.training.evaluation.truth import doubtful_places, own_places
from pulmo_models.training.lidc.database import LidcDatabase
from pulmo_models.training.lidc.luna16 import CollectionInvalid, read_mhd, read_tables, split_of_series
from pulmo_models.training.material import insertion
from pulmo_models.training.material.hosts import TEST_HOSTS, VALIDATION_HOSTS
from pulmo_models.training.material.nodules import RealNodule, load_nodules, noise_of
from pulmo_models.training.metrics.froc import Places
from pulmo_models.training.series import read_ct
from pulmo_models.training.splits import Split, split_of
from pulmo_models.types import SeriesDescription, Volume

HOSTS: Mapping[Split, Sequence[str]] = {
    "test": (*TEST_HOSTS, *VALIDATION_HOSTS),
    "validation": VALIDATION_HOSTS,
}
"""Series that no training saw. The validation series takes part in both, since there are only two."""

INSERTED_PER_SCAN = 10
APART_MM = 30.0
NOISE_REACH = 36  # pixels
AIRWAY_BELOW_HU = -950.0
OWN_MARGIN_MM = 5.0  # the places of a series' own nodules are known roughly


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """A volume whose truth is known; places in the patient frame, LPS mm."""

    name: str
    series: str
    volume: Volume
    nodules: Places
    excluded: Places
    doubtful: Places = field(default_factory=Places)
    """Nobody annotated them and they look like nodules: figures are given with and without them as false ones."""


def inserted_scans(data: Path, split: Split, count: int, seed: int) -> Iterator[Scan]:
    """`count` variants of each unseen series of a split, each with its own nodules of that split's patients."""
    nodules = load_nodules(data / "lidc_patches", lambda patient: split_of(patient) == split)
    for name in HOSTS[split]:
        volume = read_ct(data / name / "dicom")
        own = own_places(volume, data / name)
        doubtful = doubtful_places(volume, name)
        excluded = replace(own, diameters_mm=own.diameters_mm + 2 * OWN_MARGIN_MM)
        for number in range(count):
            hu, placed = insert_nodules(volume, nodules, own, np.random.default_rng([seed, number]))
            yield Scan(
                name=f"{name} {number + 1}",
                series=name,
                volume=replace(volume, hu=hu),
                nodules=placed,
                excluded=excluded,
                doubtful=doubtful,
            )


def insert_nodules(
    volume: Volume, nodules: Sequence[RealNodule], own: Places, random: np.random.Generator
) -> tuple[npt.NDArray[np.float32], Places]:
    """HU with nodules at random places of the lungs, 30 mm from one another and from its own; and where they are.

    Raises:
        Rejection: the volume has no lungs.
    """
    hu, lung = volume.hu.copy(), localise_lungs(volume).mask
    voxels = np.argwhere(lung)
    centres: list[tuple[float, float, float]] = []
    diameters: list[float] = []
    for _ in range(50 * INSERTED_PER_SCAN):
        if len(centres) == INSERTED_PER_SCAN:
            break
        index = voxels[int(random.integers(len(voxels)))]
        nodule = nodules[int(random.integers(len(nodules)))]
        taken = np.array([*own.centres_mm, *centres]).reshape(-1, 3)
        near = np.linalg.norm(taken - index_to_lps(volume.affine, index.tolist()), axis=1) < APART_MM
        if near.any() or _in_airway(volume.hu, index):
            continue
        pose = insertion.draw_pose(random, nodule, (1.0, 1.0))
        insert = insertion.real_insert(random, nodule, volume.spacing_mm, pose, _noise_hu(volume.hu, lung, index))
        placed = None if insert is None else insertion.place(hu, lung, insert, index)
        if insert is not None and placed is not None:
            centres.append(index_to_lps(volume.affine, placed.centre.tolist()))
            diameters.append(insert.diameter_mm)
    return hu, Places(centres_mm=np.array(centres).reshape(-1, 3), diameters_mm=np.array(diameters))


def _in_airway(hu: npt.NDArray[np.float32], index: npt.NDArray[np.int64]) -> bool:
    """Whether a voxel lies in the lumen of trachea or main bronchi, which the mask of the lungs includes."""
    z, y, x = (int(value) for value in index)
    return float(hu[z, max(0, y - 3) : y + 4, max(0, x - 3) : x + 4].mean()) < AIRWAY_BELOW_HU


def _noise_hu(hu: npt.NDArray[np.float32], lung: npt.NDArray[np.bool_], index: npt.NDArray[np.int64]) -> float:
    """Noise of the plain lung around a voxel, within its slice."""
    z, y, x = (int(value) for value in index)
    rows, columns = (slice(max(0, at - NOISE_REACH), at + NOISE_REACH) for at in (y, x))
    return noise_of(hu[z, rows, columns], ~lung[z, rows, columns])[1]


def luna16_scans(folder: Path, split: Split, patients: Mapping[str, str] | None = None) -> Iterator[Scan]:
    """The ``.mhd`` below a folder that are of a split, with nodules and excluded findings from LUNA16's tables.

    The rule is that of ``pulmo-train data luna16``, so no scan that a training saw is among them. `patients` names the
    patient of each series: by default as the readers' database does, empty for stores that were made without it.

    Raises:
        CollectionInvalid: there are no volumes, or none of that split, or a table is missing or has other columns.
        LidcDatabaseInvalid: the readers' database is needed and not there.
    """
    tables = read_tables(folder)
    paths = sorted(folder.rglob("*.mhd"))
    if not paths:
        raise CollectionInvalid(f"{folder}: holds no .mhd file")
    known = LidcDatabase().series() if patients is None else patients
    held = [path for path in paths if split_of_series(path.stem, known) == split]
    if not held:
        raise CollectionInvalid(f"{folder}: holds no scan of the {split} split")
    for path in held:
        hu, affine = read_mhd(path)
        volume = Volume(
            hu=hu,
            affine=affine,
            frame_of_reference_uid="",
            series=SeriesDescription(study_instance_uid="", series_instance_uid=path.stem, modality="CT"),
            frames=frames_of_grid(affine, hu.shape),
        )
        nodules, excluded = (_places(table.get(path.stem)) for table in (tables.annotations, tables.excluded))
        upright = turned_upright(volume)
        yield Scan(name=path.stem, series=path.stem, volume=upright, nodules=nodules, excluded=excluded)


def _places(table: npt.NDArray[np.float64] | None) -> Places:
    return Places() if table is None else Places(centres_mm=table[:, :3], diameters_mm=table[:, 3])
