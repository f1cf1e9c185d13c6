"""What is known of the real series: nodules that readers or the description of the data name, and annotated boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pulmo_models.geometry import index_to_lps
from pulmo_models.training.evaluation.froc import Places
from pulmo_models.training.hosts import read_boxes
from pulmo_models.types import Volume

MERGE_BOXES_MM = 30.0


@dataclass(frozen=True, kw_only=True)
class KnownPlace:
    """A nodule that is known to be there: column, row and z as the data set's description gives them."""

    name: str
    column: float
    row: float
    z_mm: float
    diameter_mm: float


@dataclass(frozen=True, kw_only=True)
class SeriesTruth:
    """What is known of one series."""

    places: Sequence[KnownPlace] = ()
    complete: bool = False  # the readers marked everything, so that an unmatched finding is false
    role: str = "none"  # in the training of the shipped weights


REAL_SERIES: Mapping[str, SeriesTruth] = {
    "ct_cptac_c3n-00247": SeriesTruth(
        places=(KnownPlace(name="right lower lobe, by eye", column=106, row=168, z_mm=-195, diameter_mm=20),),
        role="test",
    ),
    "ct_lidc_idri_0063": SeriesTruth(
        places=(
            KnownPlace(name="3 readers, 9-10 mm", column=187, row=333, z_mm=-202, diameter_mm=9.5),
            KnownPlace(name="4 readers, 7-8 mm", column=133, row=282, z_mm=-103, diameter_mm=7.5),
            KnownPlace(name="2 readers, 13 mm", column=219, row=300, z_mm=-142, diameter_mm=13),
            KnownPlace(name="1 reader, calcified", column=122, row=308, z_mm=-219, diameter_mm=5),
        ),
        complete=True,
        role="validation",
    ),
    # The truth of the two Lung-PET-CT-Dx patients is the boxes of their annotation folders.
    "ct_lungdx_a0001": SeriesTruth(role="training"),
    "ct_lungdx_a0002_thick8mm": SeriesTruth(role="training"),
    "ct_qin_lsc_0055": SeriesTruth(role="training"),
    "ct_lungfcp_0001_slab": SeriesTruth(role="training"),
    "ct_ricord1a_jpeglossless_slab": SeriesTruth(),
}


@dataclass(frozen=True, kw_only=True)
class KnownNodule:
    """A nodule in the patient frame."""

    name: str
    centre_lps_mm: tuple[float, float, float]
    diameter_mm: float


def known_nodules(volume: Volume, folder: Path) -> list[KnownNodule]:
    """The nodules of one of the real series: those of its description, and one for each group of annotated boxes."""
    truth = REAL_SERIES.get(folder.name, SeriesTruth())
    named = [
        KnownNodule(name=place.name, centre_lps_mm=_lps(volume, place), diameter_mm=place.diameter_mm)
        for place in truth.places
    ]
    return named + _of_boxes(volume, folder / "annotation")


def own_places(volume: Volume, folder: Path) -> Places:
    """The same as places."""
    known = known_nodules(volume, folder)
    return Places(
        centres_mm=np.array([nodule.centre_lps_mm for nodule in known]).reshape(-1, 3),
        diameters_mm=np.array([nodule.diameter_mm for nodule in known], dtype=np.float64),
    )


def _lps(volume: Volume, place: KnownPlace) -> tuple[float, float, float]:
    heights = volume.affine[2, 3] + np.arange(volume.hu.shape[0]) * volume.affine[2, 0]
    nearest = float(np.argmin(np.abs(heights - place.z_mm)))
    return index_to_lps(volume.affine, (nearest, place.row, place.column))


def _of_boxes(volume: Volume, folder: Path) -> list[KnownNodule]:
    """Boxes whose centres lie within 30 mm of one another in the plane are one tumour: its middle and largest side."""
    boxes = read_boxes(folder, [source.sop_instance_uid for source in volume.sources])
    groups: list[list[tuple[int, float, float, float, float]]] = []
    for box in boxes:
        near = next((group for group in groups if _apart(volume, group[-1], box) < MERGE_BOXES_MM), None)
        if near is None:
            groups.append([box])
        else:
            near.append(box)
    found = []
    for group in groups:
        table = np.array(group)
        middle = (table[:, 0].mean(), (table[:, 2] + table[:, 4]).mean() / 2, (table[:, 1] + table[:, 3]).mean() / 2)
        sides = [
            (table[:, 3] - table[:, 1]).max() * volume.spacing_mm[2],
            (table[:, 4] - table[:, 2]).max() * volume.spacing_mm[1],
        ]
        found.append(
            KnownNodule(
                name=f"tumour of {len(group)} boxes",
                centre_lps_mm=index_to_lps(volume.affine, middle),
                diameter_mm=float(max(sides)),
            )
        )
    return found


def _apart(
    volume: Volume, first: tuple[int, float, float, float, float], second: tuple[int, float, float, float, float]
) -> float:
    """Distance in mm of the centres of two boxes within the plane."""
    rows = (first[2] + first[4] - second[2] - second[4]) / 2 * volume.spacing_mm[1]
    columns = (first[1] + first[3] - second[1] - second[3]) / 2 * volume.spacing_mm[2]
    return float(np.hypot(rows, columns))
