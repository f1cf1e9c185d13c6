"""CT series as training material: read by the node's own assembly, so that a network is trained on what it will see."""

from __future__ import annotations

from pathlib import Path

from pulmo_models.orientation import turned_upright
from pulmo_models.types import Volume
from pulmo_node.assemble import Rejected, assemble_ct, describe

__all__ = ["Rejected", "read_ct", "series_folder", "series_uid"]


def read_ct(folder: Path) -> Volume:
    """Read the one CT series below a folder, upright, as the networks see it.

    Raises:
        FileNotFoundError: there are no files.
        Rejected: the files are not one regular axial CT volume.
    """
    paths = _files(folder)
    return turned_upright(assemble_ct(paths, describe(paths)))


def series_folder(data: Path, name: str) -> Path:
    """Where the files of a series lie: below its name, or there in a folder ``dicom``."""
    inner = data / name / "dicom"
    return inner if inner.is_dir() else data / name


def series_uid(folder: Path) -> str:
    """Series Instance UID of the first file below a folder that is DICOM.

    Raises:
        FileNotFoundError: there are no files.
        Rejected: none of them is DICOM.
    """
    *others, last = _files(folder)
    for path in others:
        try:
            return describe([path]).series_instance_uid
        except Rejected:
            continue
    return describe([last]).series_instance_uid


def _files(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if not paths:
        raise FileNotFoundError(f"{folder}: no files")
    return paths
