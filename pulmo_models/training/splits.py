"""The three splits. A patient, with all that is theirs, is in one of them."""

from __future__ import annotations

from typing import Literal, get_args

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


def split_of(patient: int) -> str:
    """ "train", "validation", "test" or "unused", by the number of a LIDC-IDRI patient."""
    if patient == 63 or patient % 7 == 6:
        return "validation"
    return {5: "test", 3: "unused"}.get(patient % 7, "train")
