"""What is known of the real series: nodules that readers or the description of the data name, and annotated boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pulmo_models.geometry import index_to_lps
from pulmo_models.training.material.hosts import listed, read_boxes, tumours
from pulmo_models.training.metrics.froc import Places
from pulmo_models.types import Volume


@dataclass(frozen=True, kw_only=True)
class SeriesTruth:
    """What is known of one series."""

    names: Sequence[str] = ()  # of its nodules, in the order of `KNOWN_NODULES`
    complete: bool = False  # the readers marked everything, so that an unmatched finding is false
    role: str = "none"  # in the training of the shipped weights


REAL_SERIES: Mapping[str, SeriesTruth] = {
    "ct_cptac_c3n-00247": SeriesTruth(names=("right lower lobe, by eye",), role="test"),
    "ct_lidc_idri_0063": SeriesTruth(
        names=("3 readers, 9-10 mm", "4 readers, 7-8 mm", "2 readers, 13 mm", "1 reader, calcified"),
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


DOUBTFUL_MM = 15.0
DOUBTFUL: Mapping[str, Sequence[tuple[int, int, int]]] = {
    "ct_cptac_c3n-00247": ((31, 277, 442), (44, 286, 51), (83, 282, 100), (42, 106, 166)),
}
"""Indices (slice, row, column) of what nobody annotated and looks like a nodule in a series that serves as a test.

Seen by eye, without a reader, among the findings of pulmo-node-1 in the series as it is: opacities of 4 to 7 mm.
"""


@dataclass(frozen=True, kw_only=True)
class TrueNodule:
    """A nodule in the patient frame."""

    name: str
    centre_lps_mm: tuple[float, float, float]
    diameter_mm: float


def true_nodules(volume: Volume, folder: Path) -> list[TrueNodule]:
    """The nodules of one of the real series: those of its description, and the tumours of its annotated boxes."""
    known = listed(folder.name, volume.affine)
    names = REAL_SERIES.get(folder.name, SeriesTruth()).names or [f"nodule {n + 1}" for n in range(len(known))]
    named = [
        TrueNodule(
            name=name,
            centre_lps_mm=index_to_lps(volume.affine, nodule.centre_index),
            diameter_mm=nodule.diameter_mm,
        )
        for name, nodule in zip(names, known, strict=True)
    ]
    boxes = read_boxes(folder / "annotation", volume)
    return named + [
        TrueNodule(
            name="tumour, by its boxes",
            centre_lps_mm=index_to_lps(volume.affine, tumour.centre_index),
            diameter_mm=tumour.diameter_mm,
        )
        for tumour in tumours(boxes, volume.spacing_mm)
    ]


def own_places(volume: Volume, folder: Path) -> Places:
    """The same as places."""
    known = true_nodules(volume, folder)
    return Places(
        centres_mm=np.array([nodule.centre_lps_mm for nodule in known]).reshape(-1, 3),
        diameters_mm=np.array([nodule.diameter_mm for nodule in known], dtype=np.float64),
    )


def doubtful_places(volume: Volume, name: str) -> Places:
    """What looks like a nodule in a series and has no truth; candidates within 7.5 mm are on it."""
    centres = [index_to_lps(volume.affine, index) for index in DOUBTFUL.get(name, ())]
    return Places(centres_mm=np.array(centres).reshape(-1, 3), diameters_mm=np.full(len(centres), DOUBTFUL_MM))
