"""Films as batches: what the network sees in training, and in validation exactly what the pipeline shows it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pulmo_models.cxr.classification import SHORTER_SIDE, SIZE
from pulmo_models.cxr.films import cropped, normalised
from pulmo_models.training.films.collections import FilmSample

SCALE = (0.8, 1.0)  # share of the area of a film that a training crop takes
RATIO = (3 / 4, 4 / 3)  # its width over its height
_TRIES = 10


class Films(Dataset[tuple[Tensor, Tensor]]):
    """Item n of epoch e is always the same: what is random is drawn from the seed, the epoch and the number."""

    def __init__(self, samples: Sequence[FilmSample], *, seed: int, augmented: bool, mirrored: bool = False) -> None:
        """``mirrored`` flips half of the films, as the published training does: it puts the heart on the right."""
        self._samples = samples
        self._seed = seed
        self._augmented = augmented
        self._mirrored = mirrored
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        """Image (3, 224, 224) and targets (5)."""
        sample = self._samples[number]
        with Image.open(sample.path) as opened:
            film = np.asarray(opened.convert("L"))
        if self._augmented:
            random = np.random.default_rng((self._seed, self.epoch, number))
            image = normalised(random_crop(film, random, mirrored=self._mirrored))
        else:
            image = cropped(film, 1.0, SHORTER_SIDE, SIZE).values
        return image, torch.tensor(sample.targets, dtype=torch.float32)


def random_crop(film: npt.NDArray[np.uint8], random: np.random.Generator, *, mirrored: bool) -> npt.NDArray[np.uint8]:
    """A part of a film as 224 x 224: torchvision's RandomResizedCrop, and on request its RandomHorizontalFlip."""
    rows, columns = film.shape
    height, width = rows, columns
    for _ in range(_TRIES):
        area = rows * columns * random.uniform(*SCALE)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= columns and 0 < high <= rows:
            height, width = high, wide
            break
    top, left = int(random.integers(rows - height + 1)), int(random.integers(columns - width + 1))
    part = Image.fromarray(film).crop((left, top, left + width, top + height))
    found = np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    return found[:, ::-1] if mirrored and random.random() < 0.5 else found
