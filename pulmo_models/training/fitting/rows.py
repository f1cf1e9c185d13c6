"""Which rows of which stores a training sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pulmo_models.errors import ModelError
from pulmo_models.training.splits import Split
from pulmo_models.training.store import PatchStore, Stage


class StoreUnfit(ModelError):
    """The stores cannot serve this training. The message says what is missing."""


def stored_rows(
    stores: Sequence[PatchStore], stage: Stage, split: Split, most: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices of the stores, in their order, and rows in them; `most` of them, evenly spread, where it is not 0.

    Raises:
        StoreUnfit: there are none.
    """
    found = [store.rows(stage, split) for store in stores]
    row = np.concatenate(found)
    if not len(row):
        what = "window" if stage == "stage1" else "patch"
        raise StoreUnfit(f"no {what} of the {split} split in {', '.join(str(store.path) for store in stores)}")
    number = np.repeat(np.arange(len(found)), [len(rows) for rows in found])
    if most and len(row) > most:
        chosen = np.linspace(0, len(row) - 1, most).round().astype(np.int64)
        return number[chosen], row[chosen]
    return number, row
