"""Patch store from LIDC-IDRI as TCIA gives it: folders of DICOM files, and the readers' database.

Each folder that holds files, and no folder with files, is taken for one series, as in TCIA's downloads; a series is
known by its Series Instance UID. It is read by the node's own assembly, so a series that the node would refuse is left
out here too.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from pulmo_models.training.lidc.database import LidcDatabase, patient_number
from pulmo_models.training.lidc.luna16 import CollectionInvalid, apart_from, inside, is_axial, outlined
from pulmo_models.training.lidc.sampling import LabelledScan, SampleSettings, write_store
from pulmo_models.training.series import Rejected, read_ct, series_uid
from pulmo_models.training.splits import SPLITS, split_of
from pulmo_models.training.store import StoreWriter
from pulmo_models.types import Volume


def write_lidc(
    folder: Path, out: Path, settings: SampleSettings, database: LidcDatabase, limit: int | None = None
) -> dict[str, int]:
    """Write the store of the series below a folder; numbers of scans, windows and patches.

    Raises:
        CollectionInvalid: there are no files.
    """
    holding = {path.parent for path in folder.rglob("*") if path.is_file()}
    folders = sorted(holding - {above for inner in holding for above in inner.parents})
    if not folders:
        raise CollectionInvalid(f"{folder}: holds no files")
    label = partial(_label, database=database, known=database.series(), settings=settings, seen=set())
    return write_store(out, folders[:limit], label, settings, {"command": "data lidc", "limit": limit})


def _label(
    folder: Path,
    drops: StoreWriter,
    *,
    database: LidcDatabase,
    known: dict[str, str],
    settings: SampleSettings,
    seen: set[str],
) -> LabelledScan | None:
    try:
        series = series_uid(folder)
        if series not in known:
            drops.drop("scan: not in the database of the readers")
            return None
        if series in seen:
            drops.drop("scan: its series was there already")
            return None
        seen.add(series)
        if split_of(patient_number(known[series])) not in SPLITS:
            drops.drop("scan: patient of the part that is not used")
            return None
        volume = read_ct(folder)
    except Rejected as exc:
        drops.drop(f"scan: {exc.code}")
        return None
    if not is_axial(volume.affine):
        drops.drop("scan: not axial")
        return None
    return label_volume(volume, database, settings, drops)


def label_volume(
    volume: Volume, database: LidcDatabase, settings: SampleSettings, drops: StoreWriter
) -> LabelledScan | None:
    """What the readers said of a volume: nodules by enough of them; the others' are uncertain. None if not used.

    Raises:
        LidcDatabaseInvalid: the database does not have the series.
    """
    scan = database.scan(volume.series.series_instance_uid)
    split = split_of(patient_number(scan.patient))
    if split not in SPLITS:
        return None
    affine, shape = volume.affine, volume.hu.shape
    zs = affine[2, 3] + affine[2, 0] * np.arange(shape[0])
    nodules, unsure = [], []
    for nodule in scan.nodules:
        centre = nodule.centre_in(affine)
        if not inside(centre, shape):
            drops.drop("nodule: outside of the volume")
        elif nodule.readers >= settings.least_readers:
            nodules.append(outlined(nodule, None, zs, affine))
        else:
            drops.drop(f"nodule: outlined by fewer than {settings.least_readers} readers")
            unsure.append((*centre, nodule.diameter_mm))
    spacing = np.array(volume.spacing_mm)
    return LabelledScan(
        name=scan.series_instance_uid,
        patient=scan.patient,
        split=split,
        hu=volume.hu,
        spacing_mm=spacing,
        nodules=tuple(nodules),
        uncertain=apart_from(nodules, np.array(unsure).reshape(-1, 4), spacing),
        candidates=np.zeros((0, 3), dtype=np.int64),
    )
