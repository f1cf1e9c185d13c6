"""Slices of real series with the box around the lungs, as the classical segmentation finds it.

A series is read once; its slices are kept windowed, resized and in eight bits. A series is of one split as a whole.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pulmo_models.ct.lung_boxes import DEVIATION, MEAN, prepare
from pulmo_models.ct.lungs import localise_lungs
from pulmo_models.errors import ModelError
from pulmo_models.training.series import read_ct, series_folder
from pulmo_models.types import BoolArray, Volume

log = logging.getLogger(__name__)

SMALLEST_AREA_SHARE = 0.002  # of a slice: less is the very tip of a lung, and no box


class SeriesMissing(ModelError):
    """There are no series to train or to judge with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledSeries:
    """A series as the networks see it."""

    name: str
    volume: Volume  # upright
    lungs: BoolArray  # by the classical segmentation, without trachea and main bronchi
    images: npt.NDArray[np.uint8]  # (slices, size, size), 0..255 over the window
    boxes: npt.NDArray[np.float32]  # (slices, 4): xmin, ymin, xmax, ymax in shares; all 0 without lungs


def read_series(data: Path, names: Sequence[str], size: int) -> list[LabelledSeries]:
    """The series of those names below a folder; one that is not there is left out.

    Raises:
        SeriesMissing: none of them is there.
    """
    found = []
    for name in names:
        if not (data / name).is_dir():
            log.warning("%s: not there, left out", name)
            continue
        found.append(label(name, read_ct(series_folder(data, name)), size))
        log.info("%s: %d slices, %d with lungs", name, len(found[-1].boxes), int(found[-1].boxes.any(axis=1).sum()))
    if not found:
        raise SeriesMissing(f"{data}: none of the series is there: {', '.join(names)}")
    return found


def label(name: str, volume: Volume, size: int) -> LabelledSeries:
    """An upright volume with its boxes."""
    lungs = localise_lungs(volume).proper.whole()
    seen = torch.cat([prepare(volume.hu[k : k + 1], size) for k in range(len(volume.hu))])[:, 0]
    images = ((seen * DEVIATION + MEAN) * 255).round().to(torch.uint8).numpy()
    boxes = np.stack([slice_box(layer) for layer in lungs])
    return LabelledSeries(name=name, volume=volume, lungs=lungs, images=images, boxes=boxes)


def slice_box(layer: BoolArray) -> npt.NDArray[np.float32]:
    """The box around what is True, in shares of columns and rows: edges of pixels, not their centres."""
    if layer.mean() < SMALLEST_AREA_SHARE:
        return np.zeros(4, dtype=np.float32)
    rows, columns = np.flatnonzero(layer.any(axis=1)), np.flatnonzero(layer.any(axis=0))
    height, width = layer.shape
    box = (columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height)
    return np.asarray(box, dtype=np.float32)


class Slices(Dataset[tuple[Tensor, Tensor]]):
    """All slices of some series: image ``(1, size, size)`` in 0..1, box ``(4,)``."""

    def __init__(self, series: Sequence[LabelledSeries]) -> None:
        self._images = np.concatenate([one.images for one in series])
        self._boxes = np.concatenate([one.boxes for one in series])

    def __len__(self) -> int:
        return len(self._boxes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = torch.from_numpy(self._images[index]).float() / 255
        return image[None], torch.from_numpy(self._boxes[index])
