"""CT series as training material: read by the node's own assembly, so that a network is trained on what it will see."""

from __future__ import annotations

from pathlib import Path

from pulmo_models.types import Volume
from pulmo_node.assemble import assemble_ct, describe


def read_ct(folder: Path) -> Volume:
    """Read the one CT series below a folder.

    Raises:
        FileNotFoundError: there are no files.
        pulmo_node.errors.Rejected: the files are not one regular axial CT volume.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if not paths:
        raise FileNotFoundError(f"{folder}: no files")
    return assemble_ct(paths, describe(paths))
