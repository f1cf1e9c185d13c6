"""Samples of stage 1: crops of the windows of stores, with their heat maps, each float32 (1, slices, rows, columns)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pulmo_models.training.fitting.augmentation import change_intensities, draw_turn, normalised
from pulmo_models.training.fitting.heatmap import draw_peak
from pulmo_models.training.fitting.plan import SampleKey
from pulmo_models.training.fitting.recipe import Stage1Recipe
from pulmo_models.training.fitting.rows import StoreUnfit, stored_rows
from pulmo_models.training.splits import Split
from pulmo_models.training.store import PatchStore, Window

Shape = tuple[int, int, int]
_STAGE = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowRows:
    """The windows of one split in several stores."""

    stores: Sequence[PatchStore]
    store: npt.NDArray[np.int64]  # (n,): index of its store
    row: npt.NDArray[np.int64]  # (n,): row in that
    nodules: npt.NDArray[np.int64]  # (n,): how many are in it

    def __len__(self) -> int:
        return len(self.row)


def read_window_rows(stores: Sequence[PatchStore], split: Split, most: int = 0) -> WindowRows:
    """The rows of a split; `most` of them, evenly spread, where it is not 0.

    Raises:
        StoreUnfit: there are none.
    """
    store, row = stored_rows(stores, "stage1", split, most)
    nodules = np.zeros(len(row), np.int64)
    for number in map(int, np.unique(store)):
        owners = stores[number].column("stage1", "nodules")[:, 0].astype(np.int64)
        rows = row[store == number]
        nodules[store == number] = np.bincount(owners, minlength=int(rows.max()) + 1)[rows]
    return WindowRows(stores=stores, store=store, row=row, nodules=nodules)


def window_weights(rows: WindowRows, nodule_windows: float) -> npt.NDArray[np.float64]:
    """How often each window is drawn, so that this share of samples is from windows with a nodule; 0: all alike."""
    has = rows.nodules > 0
    if nodule_windows == 0 or has.all() or not has.any():
        return np.ones(len(rows))
    weights = np.where(has, nodule_windows / has.sum(), (1 - nodule_windows) / (~has).sum())
    return np.asarray(weights, dtype=np.float64)


class Crops(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """(image, target, weight) by (row, number of the turn); weight is 0 where the truth is not known.

    With ``augmented=False`` it is the middle of the window, and the number does not matter.
    """

    def __init__(self, rows: WindowRows, shape: Shape, recipe: Stage1Recipe, *, seed: int, augmented: bool) -> None:
        self._rows = rows
        self._shape = shape
        self._recipe = recipe
        self._seed = seed
        self._augmented = augmented

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Tensor, Tensor]:
        index, number = key
        random = np.random.default_rng([self._seed, _STAGE, number])
        store = self._rows.stores[int(self._rows.store[index])]
        window = store.window(int(self._rows.row[index]))
        room = np.subtract(window.hu.shape, self._shape)
        if (room < 0).any():
            wanted, have = (" x ".join(map(str, shape)) for shape in (self._shape, window.hu.shape))
            raise StoreUnfit(f"{store.path}: its windows are {have}, but the recipe needs {wanted}")
        start = self._start(random, window, room) if self._augmented else room // 2
        box = tuple(slice(first, first + size) for first, size in zip(start, self._shape, strict=True))
        image = normalised(window.hu[box])
        target, weight = self._truth(window, start)
        if self._augmented:
            how = self._recipe.augmentation
            turn = draw_turn(random, how, square=self._shape[1] == self._shape[2])
            image, target, weight = (turn(values) for values in (image, target, weight))
            image = change_intensities(random, how, image)
        image, target, weight = (np.ascontiguousarray(values[None]) for values in (image, target, weight))
        return torch.from_numpy(image), torch.from_numpy(target), torch.from_numpy(weight)

    def _start(self, random: np.random.Generator, window: Window, room: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where a crop begins: anywhere, or anywhere so that the centre of one of the nodules is in it."""
        low, high = np.zeros(3, np.int64), room
        if len(window.nodules) and random.random() < self._recipe.nodule_crops:
            centre = np.rint(window.nodules[int(random.integers(len(window.nodules))), :3]).astype(np.int64)
            low = np.clip(centre - np.array(self._shape) + 1, 0, room)
            high = np.clip(centre, low, room)
        return random.integers(low, high + 1)

    def _truth(
        self, window: Window, start: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        target, weight = torch.zeros(self._shape), np.ones(self._shape, np.float32)
        recipe = self._recipe
        for *centre, diameter_mm in window.nodules:
            inside = np.subtract(centre, start)
            draw_peak(
                target, inside, diameter_mm, window.spacing_mm, share=recipe.sigma_share, least=recipe.least_sigma
            )
        for box in window.unknown:
            low, high = (np.clip(corner - start, 0, self._shape) for corner in (box[:3], box[3:]))
            weight[tuple(slice(first, last) for first, last in zip(low, high, strict=True))] = 0
        return target.numpy(), weight
