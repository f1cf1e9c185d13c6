"""What the tests on real files share: a series made of one slice, and the refusal of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from pulmo_models.types import Volume
from pulmo_node.assemble import assemble, assemble_ct, describe
from pulmo_node.errors import Rejected
from tests.ct_factory import write_part10

STEP_MM = 2.0


def stack_of(path: Path, folder: Path, count: int = 8) -> list[Path]:
    """A regular series whose slices all have the pixels, header and transfer syntax of one file, 2 mm apart."""
    ds = pydicom.dcmread(path)
    cosines = np.array(ds.ImageOrientationPatient, dtype=float)
    normal, first = np.cross(cosines[:3], cosines[3:]), np.array(ds.ImagePositionPatient, dtype=float)
    paths = []
    for k in range(count):
        ds.SOPInstanceUID = generate_uid()
        ds.ImagePositionPatient = [f"{value:.6f}" for value in first + STEP_MM * k * normal]
        paths.append(folder / f"slice{k}.dcm")
        write_part10(ds, paths[-1])
    return paths


def volume_of(path: Path, folder: Path) -> Volume:
    """The volume of such a series."""
    paths = stack_of(path, folder)
    return assemble_ct(paths, describe(paths))


def rejection(paths: Sequence[Path]) -> Rejected:
    """Why files are refused; fails the test where they are not."""
    with pytest.raises(Rejected) as caught:
        assemble(paths, describe(paths))
    return caught.value
