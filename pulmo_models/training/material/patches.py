"""`pulmo-train data patches`: the LIDC cut-outs as they are, in their own surroundings, where they have enough slices.

Most stacks hold a nodule's own slices only: 72 % have fewer than seven. Slices that are missing are never made up,
since whoever sees made-up slices sees a nodule; so what is too short is left out and counted, and what is left is
larger than nodules are. The store therefore has nodules only, and belongs beside one that has negatives.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pulmo_models import __version__
from pulmo_models.training.lidc.database import patient_number
from pulmo_models.training.material.nodules import RealNodule, load_nodules
from pulmo_models.training.material.pieces import AIR_HU
from pulmo_models.training.splits import Split, split_of
from pulmo_models.training.store import Patch, StoreWriter

Shape = tuple[int, int, int]

_MOST_SHIFT = 1  # slices that the middle of a patch may lie off the nodule's, as a detector's find does


def write_patches(folder: Path, out: Path, shape: Shape) -> Path:
    """Write the store of a folder `lidc_patches`; the path of its file.

    Raises:
        FileNotFoundError: the folder lacks one of its files.
        LidcDatabaseInvalid: the readers' database is not there.
    """
    dropped: Counter[str] = Counter()
    nodules = load_nodules(folder, lambda patient: split_of(patient) != "unused", dropped=dropped)
    provenance = {"command": "data patches", "version": __version__, "nodules are of": "LIDC-IDRI (CC BY 3.0)"}
    with StoreWriter(out, window=None, patch=shape, provenance=provenance) as writer:
        for nodule in nodules:
            patch = own_patch(nodule, shape)
            if patch is None:
                dropped[f"fewer than {shape[0]} slices around its middle"] += 1
            else:
                writer.add_patch(patch)
        for reason, count in dropped.items():
            writer.drop(reason, count)
    return out


def own_patch(nodule: RealNodule, shape: Shape) -> Patch | None:
    """A nodule in its own surroundings; None where its stack has too few slices around the nodule's middle.

    Rows and columns beyond the cut-out are air; slices are never padded.
    """
    places = np.argwhere(nodule.mask)
    middle = np.round(places.mean(axis=0)).astype(int)
    least, most = shape[0] // 2, len(nodule.hu) - (shape[0] - shape[0] // 2)
    if most < least:
        return None
    z = int(np.clip(middle[0], least, most))
    if abs(z - middle[0]) > _MOST_SHIFT or not nodule.mask[z].any():
        return None
    stack = slice(z - least, z - least + shape[0])
    return Patch(
        hu=_around(nodule.hu[stack], middle[1:], shape, AIR_HU),
        spacing_mm=nodule.spacing_mm,
        mask=_around(nodule.mask[stack], middle[1:], shape, 0),
        detection=1,
        malignancy=nodule.malignancy,
        ratings=nodule.ratings,
        readers=nodule.readers,
        diameter_mm=nodule.diameter_mm,
        patient=nodule.patient,
        split=cast(Split, split_of(patient_number(nodule.patient))),
        source=f"{nodule.patient} {nodule.name}",
    )


def _around(values: npt.NDArray[Any], middle: npt.NDArray[np.int64], shape: Shape, beyond: int) -> npt.NDArray[Any]:
    """Rows and columns around a place, which gets index size // 2."""
    result = np.full(shape, beyond, dtype=values.dtype)
    into, out_of = [], []
    for axis in (1, 2):
        start = int(middle[axis - 1]) - shape[axis] // 2
        low, high = max(0, start), min(values.shape[axis], start + shape[axis])
        out_of.append(slice(low, high))
        into.append(slice(low - start, high - start))
    result[:, into[0], into[1]] = values[:, out_of[0], out_of[1]]
    return result
