"""Whole scans with a truth, for the FROC: series with inserted nodules, and folders of LUNA16.

Inserted nodules: real nodules of a split's patients are placed into whole series that no training saw. Nodules and
lungs are real, their meeting is not: figures on them are those of a synthetic test. What a series has of its own is
excluded and counts neither way; nodules of it that nobody annotated count as false when they are found.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from pulmo_models.ct.lungs import localise_lungs
from pulmo_models.geometry import index_to_lps
from pulmo_models.training import insertion
from pulmo_models.training.evaluation.froc import Places
from pulmo_models.training.evaluation.truth import own_places
from pulmo_models.training.hosts import TEST_HOSTS, VALIDATION_HOSTS
from pulmo_models.training.nodules import RealNodule, load_nodules, noise_of, split_of
from pulmo_models.training.series import read_ct
from pulmo_models.training.store import Split
from pulmo_models.types import SeriesDescription, SliceSource, Volume

HOSTS: Mapping[Split, Sequence[str]] = {
    "test": (*TEST_HOSTS, *VALIDATION_HOSTS),
    "validation": VALIDATION_HOSTS,
}
"""Series that no training saw. The validation series takes part in both, since there are only two."""

INSERTED_PER_SCAN = 10
APART_MM = 30.0
NOISE_REACH = 36  # pixels
OWN_MARGIN_MM = 5.0  # the places of a series' own nodules are known roughly


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """A volume whose truth is known; places in the patient frame, LPS mm."""

    name: str
    volume: Volume
    nodules: Places
    excluded: Places


def inserted_scans(data: Path, split: Split, count: int, seed: int) -> Iterator[Scan]:
    """`count` variants of each unseen series of a split, each with its own nodules of that split's patients."""
    nodules = load_nodules(data / "lidc_patches", lambda patient: split_of(patient) == split)
    for name in HOSTS[split]:
        volume = read_ct(data / name / "dicom")
        own = own_places(volume, data / name)
        excluded = replace(own, diameters_mm=own.diameters_mm + 2 * OWN_MARGIN_MM)
        for number in range(count):
            hu, placed = insert_nodules(volume, nodules, own, np.random.default_rng([seed, number]))
            yield Scan(name=f"{name} {number + 1}", volume=replace(volume, hu=hu), nodules=placed, excluded=excluded)


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
        if (np.linalg.norm(taken - index_to_lps(volume.affine, index.tolist()), axis=1) < APART_MM).any():
            continue
        pose = insertion.draw_pose(random, nodule, (1.0, 1.0))
        insert = insertion.real_insert(random, nodule, volume.spacing_mm, pose, _noise_hu(volume.hu, lung, index))
        placed = None if insert is None else insertion.place(hu, lung, insert, index)
        if insert is not None and placed is not None:
            centres.append(index_to_lps(volume.affine, placed.centre.tolist()))
            diameters.append(insert.diameter_mm)
    return hu, Places(centres_mm=np.array(centres).reshape(-1, 3), diameters_mm=np.array(diameters))


def _noise_hu(hu: npt.NDArray[np.float32], lung: npt.NDArray[np.bool_], index: npt.NDArray[np.int64]) -> float:
    """Noise of the plain lung around a voxel, within its slice."""
    z, y, x = (int(value) for value in index)
    rows, columns = (slice(max(0, at - NOISE_REACH), at + NOISE_REACH) for at in (y, x))
    return noise_of(hu[z, rows, columns], ~lung[z, rows, columns])[1]


def luna16_scans(folder: Path) -> Iterator[Scan]:
    """Every ``.mhd`` below a folder, with the nodules of ``annotations.csv`` and, where there is one, the findings of
    ``annotations_excluded.csv``; columns ``seriesuid, coordX, coordY, coordZ, diameter_mm``, world positions in mm.

    Raises:
        FileNotFoundError: no ``annotations.csv`` or no ``.mhd``.
    """
    nodules = _read_places(folder / "annotations.csv")
    excluded = (
        _read_places(folder / "annotations_excluded.csv") if (folder / "annotations_excluded.csv").exists() else {}
    )
    paths = sorted(folder.rglob("*.mhd"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no .mhd files")
    for path in paths:
        yield Scan(
            name=path.stem,
            volume=_read_mhd(path),
            nodules=nodules.get(path.stem, Places()),
            excluded=excluded.get(path.stem, Places()),
        )


def _read_places(path: Path) -> dict[str, Places]:
    rows: dict[str, list[list[float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values = [float(row[key]) for key in ("coordX", "coordY", "coordZ", "diameter_mm")]
            rows.setdefault(row["seriesuid"], []).append(values)
    tables = {uid: np.array(values) for uid, values in rows.items()}
    return {uid: Places(centres_mm=table[:, :3], diameters_mm=table[:, 3]) for uid, table in tables.items()}


def _read_mhd(path: Path) -> Volume:
    """ITK's world is the patient frame, so the affine is made of direction, spacing and origin."""
    image: Any = sitk.ReadImage(str(path))
    direction = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine = np.eye(4)
    affine[:3, :3] = direction[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    hu = sitk.GetArrayFromImage(image).astype(np.float32)
    return Volume(
        hu=hu,
        affine=affine,
        frame_of_reference_uid="",
        series=SeriesDescription(study_instance_uid="", series_instance_uid=path.stem, modality="CT"),
        sources=tuple(SliceSource(sop_class_uid="", sop_instance_uid=str(k)) for k in range(len(hu))),
    )
