"""Samples of stage 2 for teacher and student, from the patches of stores.

A sample is a dictionary of tensors:

- ``image``: float32 0..1, (7, 64, 64) for the student, (1, D, H, W) for the teacher;
- ``volume``: (1, D, 64, 64) for the teacher beside the student, where there is one; its slice D // 2 is slice 3 of
  ``image``;
- ``mask``: float32 (1, 64, 64) of the central slice, or (1, D, H, W); ``outlined``: whether it is known;
- ``detection``: 1 nodule, 0 none, -1 not asked; ``malignancy``: probability that is taught, -1 where none is;
- ``graded``: 0 benign, 1 malignant, -1 neither: for the figures;
- ``ratings``: (8,) on the LIDC scale, NaN where nobody rated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pulmo_models.training.fitting.augmentation import (
    Turn,
    change_intensities,
    cut_around,
    draw_offset,
    draw_turn,
    normalised,
)
from pulmo_models.training.fitting.plan import SampleKey
from pulmo_models.training.fitting.recipe import Augmentation, Labels, Shares
from pulmo_models.training.fitting.rows import StoreUnfit, stored_rows
from pulmo_models.training.splits import Split
from pulmo_models.training.store import PatchStore

SLICES = 7  # of the student
PIXELS = 64
_STAGE = 2  # so that a seed gives other numbers than in stage 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """The patches of one split in several stores, and what is known of each."""

    stores: Sequence[PatchStore]
    store: npt.NDArray[np.int64]  # (n,): index of its store
    row: npt.NDArray[np.int64]  # (n,): row in that
    detection: npt.NDArray[np.int8]
    malignancy: npt.NDArray[np.float32]  # mean rating; NaN: not rated, or by too few
    ratings: npt.NDArray[np.float32]  # (n, 8), likewise
    outlined: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.row)

    def graded(self, labels: Labels) -> npt.NDArray[np.int64]:
        """0 benign, 1 malignant, -1 neither."""
        malignant, benign = self.malignancy >= labels.malignant_from, self.malignancy <= labels.benign_up_to
        return np.where(malignant, 1, np.where(benign, 0, -1))


def read_rows(stores: Sequence[PatchStore], split: Split, labels: Labels, most: int = 0) -> Rows:
    """The rows of a split; `most` of them, evenly spread, where it is not 0.

    Raises:
        StoreUnfit: there are none.
    """
    store, row = stored_rows(stores, "stage2", split, most)
    of = [(int(number), row[store == number]) for number in np.unique(store)]

    def column(name: str) -> npt.NDArray[Any]:
        return np.concatenate([stores[number].column("stage2", name)[rows] for number, rows in of])

    detection = column("detection")
    enough = (column("readers") >= labels.readers) & (detection == 1)
    return Rows(
        stores=stores,
        store=store,
        row=row,
        detection=detection,
        malignancy=np.where(enough, column("malignancy"), np.float32(np.nan)),
        ratings=np.where(enough[:, None], column("ratings"), np.float32(np.nan)),
        outlined=column("outlined"),
    )


def draw_weights(rows: Rows, shares: Shares, labels: Labels) -> npt.NDArray[np.float64]:
    """How often each row is drawn: the share of its kind, divided by how many there are of it; all alike without."""
    kinds = np.where(rows.detection == 0, 0, np.where(rows.detection < 0, 4, 3))
    graded = rows.graded(labels)
    kinds = np.where((kinds == 3) & (graded >= 0), 1 + graded, kinds)
    wanted = np.array([shares.none, shares.benign, shares.malignant, shares.other, shares.mask_only])
    if not wanted.any():
        return np.ones(len(rows))
    weights = wanted[kinds] / np.bincount(kinds, minlength=5)[kinds]
    if not weights.any():
        raise StoreUnfit("the recipe draws none of the kinds of patches that the stores hold (table shares)")
    return np.asarray(weights, dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What a network takes out of a patch."""

    shape: tuple[int, int, int]  # of the volume
    student: bool  # the seven central slices of it, and the mask of the middle one
    volume: bool  # the volume too, for a teacher beside the student


def student_cut(teacher_slices: int | None) -> Cut:
    """For the student; `teacher_slices` where a teacher looks on. Eight slices are the least that a flip acts on."""
    return Cut(shape=(teacher_slices or SLICES + 1, PIXELS, PIXELS), student=True, volume=teacher_slices is not None)


class Patches(Dataset[dict[str, Tensor]]):
    """Samples by (row, number of the turn). Without augmentation the number does not matter.

    The part of the patches that is needed is kept in memory where it has no more than `memory_bytes`.
    """

    def __init__(
        self, rows: Rows, cut: Cut, labels: Labels, augmentation: Augmentation | None, *, seed: int, memory_bytes: int
    ) -> None:
        """Reads what is kept in memory.

        Raises:
            StoreUnfit: the patches of a store are too small.
        """
        self._rows = rows
        self._cut = cut
        self._augmentation = augmentation
        self._seed = seed
        self._graded = rows.graded(labels)
        self._taught = taught_malignancy(rows, labels)
        self._region = tuple(size + 1 + 2 * jitter for size, jitter in zip(cut.shape, self._jitter(), strict=True))
        self._boxes = {n: _middle(rows.stores[n], self._region) for n in map(int, np.unique(rows.store))}
        self._kept: tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_]] | None = None
        if len(rows) * int(np.prod(self._region)) * 3 <= memory_bytes:
            self._kept = self._read_all()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: SampleKey) -> dict[str, Tensor]:
        index, number = key
        random = np.random.default_rng([self._seed, _STAGE, number])
        hu, mask = (values[index] for values in self._kept) if self._kept else self._read(index)
        how, turn, offset, centred = self._augmentation, Turn(), (0, 0, 0), True
        if how is not None:
            turn, offset, centred = draw_turn(random, how), draw_offset(random, how), how.centred
        middle = [size // 2 + step for size, step in zip(self._region, offset, strict=True)]
        hu, mask = (cut_around(values, middle, self._cut.shape, turn, centred=centred) for values in (hu, mask))
        slices = len(hu)
        if self._cut.student and not self._cut.volume:
            hu = hu[slices // 2 - SLICES // 2 :][:SLICES]
        image = normalised(hu)
        if how is not None:
            image = change_intensities(random, how, image)
        return self._sample(index, image, mask)

    def _sample(self, index: int, image: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> dict[str, Tensor]:
        cut, middle = self._cut, len(mask) // 2
        sample = {}
        if cut.student:
            if cut.volume:
                sample["volume"] = torch.from_numpy(np.ascontiguousarray(image[None]))
                image = image[middle - SLICES // 2 :][:SLICES]
            mask = mask[middle]
        else:
            image = image[None]
        sample["image"] = torch.from_numpy(np.ascontiguousarray(image))
        sample["mask"] = torch.from_numpy(mask[None].astype(np.float32))
        sample["outlined"] = torch.tensor(bool(self._rows.outlined[index]))
        sample["detection"] = torch.tensor(int(self._rows.detection[index]))
        sample["malignancy"] = torch.tensor(self._taught[index])
        sample["graded"] = torch.tensor(int(self._graded[index]))
        sample["ratings"] = torch.from_numpy(self._rows.ratings[index])
        return sample

    def _jitter(self) -> tuple[int, int, int]:
        how = self._augmentation
        return (how.jitter_slices, how.jitter_pixels, how.jitter_pixels) if how is not None else (0, 0, 0)

    def _read(self, index: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_]]:
        number = int(self._rows.store[index])
        patch, box = self._rows.stores[number].patch(int(self._rows.row[index])), self._boxes[number]
        mask = np.zeros(self._region, bool) if patch.mask is None else patch.mask[box]
        return patch.hu[box], mask

    def _read_all(self) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_]]:
        kept = (
            np.empty((len(self), *self._region), np.int16),
            np.empty((len(self), *self._region), bool),
        )
        for index in range(len(self)):
            kept[0][index], kept[1][index] = self._read(index)
        return kept


def taught_malignancy(rows: Rows, labels: Labels) -> npt.NDArray[np.float32]:
    """The probability that is taught for each row; -1 where none is."""
    if labels.malignancy == "label":
        return rows.graded(labels).astype(np.float32)
    soft = 1 / (1 + np.exp(-labels.slope * (rows.malignancy.astype(np.float64) - 3)))
    return np.where(np.isfinite(soft), soft, -1).astype(np.float32)


def patch_slices(rows: Rows) -> int:
    """Slices of the smallest patches."""
    return min(_shape(rows.stores[number])[0] for number in map(int, np.unique(rows.store)))


def _shape(store: PatchStore) -> tuple[int, int, int]:
    with h5py.File(store.path, "r") as file:
        _, slices, rows, columns = file["stage2/hu"].shape
    return slices, rows, columns


def _middle(store: PatchStore, region: Sequence[int]) -> tuple[slice, ...]:
    """The box of that shape around the candidate, index size // 2 of each axis, which gets index size // 2 again."""
    shape = _shape(store)
    starts = [size // 2 - wanted // 2 for size, wanted in zip(shape, region, strict=True)]
    if any(start < 0 or start + wanted > size for start, wanted, size in zip(starts, region, shape, strict=True)):
        raise StoreUnfit(
            f"{store.path}: its patches are {_by(shape)}, but the recipe needs {_by(region)} (with what flips and "
            "jitter take); write the store with larger patches or take a smaller shape in the recipe"
        )
    return tuple(slice(start, start + wanted) for start, wanted in zip(starts, region, strict=True))


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
