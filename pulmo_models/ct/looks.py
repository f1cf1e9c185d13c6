"""What the network of stage 2 says of places of one volume, in few large batches and of no place twice.

The input is seven native slices of 64 x 64 voxels around the place, which is index (3, 32, 32), padded with -1000 HU,
as published. Most candidates are no nodules, and bf16 is enough to tell those that are far from it: on a CPU that has
instructions for it they are sieved out, and only the others are looked at in fp32. So what is reported, scores and
masks, is what fp32 alone gives (docs/performance.md).

Errors: :class:`DeviceOutOfMemory`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pulmo_models.ct.candidates import AIR_HU, normalise
from pulmo_models.ct.engine import Engine
from pulmo_models.ct.masks import CENTRE, Index
from pulmo_models.ct.views import ONE_VIEW, VIEWS, WIDE, View, ask
from pulmo_models.geometry import crop

N_SLICES = 7
BATCH = 32
"""Inputs at once on the CPU: from eight on, more are no faster."""

GPU_BATCH = 256
GPU_AHEAD = 8

SURELY = 0.15
"""How far below the threshold a logit of detection in bf16 is that of no nodule. The largest difference that bf16 made
to one, the mean of eight views, was 0.030 among 381 candidates."""

ShareCallback = Callable[[float], None]
_FloatVolume = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class CharacteriseSettings:
    """Thresholds of stage 2."""

    detection_threshold: float = 0.5
    mask_threshold: float = 0.5
    merge_overlap: float | None = 0.5  # share of the smaller mask from which two findings are one; None: never
    views: tuple[View, ...] = VIEWS


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What the network says of one place: the mean of its views."""

    detection: Tensor  # (2,), logits
    concepts: Tensor  # (8,)
    segmentation: Tensor  # (64, 64), logits, the place at (32, 32)

    @property
    def detection_probability(self) -> float:
        """That there is a nodule."""
        return float(torch.softmax(self.detection, dim=0)[1])


class Looks:
    """The answers about one volume; ``hu`` lies as the network is to see it.

    ``runner`` wraps a :class:`Student2p5D`; ``sieve`` does so in an arithmetic that is less exact and faster.
    """

    def __init__(
        self, hu: _FloatVolume, runner: Engine, settings: CharacteriseSettings, sieve: Engine | None = None
    ) -> None:
        self.hu = hu
        self.settings = settings
        self._runner = runner
        self._sieve = sieve if 0.0 < settings.detection_threshold < 1.0 else None
        self._known: dict[Index, Answer] = {}

    @property
    def ahead(self) -> int:
        """How many slices of a mask to ask for together: in vain where it ends, which only a GPU does not feel."""
        return 1 if self._runner.device.type == "cpu" else GPU_AHEAD

    def at(self, places: Sequence[Index], progress: ShareCallback = lambda share: None) -> list[Answer]:
        """The answers about places, in their order; of those that are no nodules they may be those of the sieve.

        Raises:
            DeviceOutOfMemory: from the engines.
        """
        new = [place for place in dict.fromkeys(places) if place not in self._known]
        if self._sieve is not None:
            self._ask(new, self._sieve, lambda share: progress(0.5 * share))
            new = [place for place in new if not self._is_surely_none(self._known[place])]
        self._ask(new, self._runner, lambda share: progress(0.5 + 0.5 * share))
        return [self._known[place] for place in places]

    def reported(self, places: Sequence[Index]) -> list[bool]:
        """Whether stage 2 takes places for nodules.

        Raises:
            DeviceOutOfMemory: from the engines.
        """
        threshold = self.settings.detection_threshold
        return [answer.detection_probability >= threshold for answer in self.at(places)]

    def outlines(self, places: Sequence[Index]) -> npt.NDArray[np.bool_]:
        """What one look outlines at each of some places, at least one: (B, 64, 64), the place at (32, 32).

        Raises:
            DeviceOutOfMemory: from the engine.
        """
        parts = [out["segmentation"][:, 0] for out in _batches(self.hu, places, self._runner, ONE_VIEW)]
        return self.outlined(torch.cat(parts))

    def outlined(self, logits: Tensor) -> npt.NDArray[np.bool_]:
        """Which pixels of an outline's logits belong to it."""
        return (torch.sigmoid(logits) >= self.settings.mask_threshold).numpy()

    def _ask(self, places: list[Index], engine: Engine, progress: ShareCallback) -> None:
        found: list[Answer] = []
        for out in _batches(self.hu, places, engine, self.settings.views):
            rows = zip(out["detection"], out["concepts"], out["segmentation"][:, 0], strict=True)
            found += [Answer(detection=d, concepts=c, segmentation=s) for d, c, s in rows]
            progress(len(found) / len(places))
        self._known.update(zip(places, found, strict=True))

    def _is_surely_none(self, answer: Answer) -> bool:
        threshold = self.settings.detection_threshold
        logit = float(answer.detection[1] - answer.detection[0])
        return logit < math.log(threshold / (1.0 - threshold)) - SURELY


def wide_input(hu: _FloatVolume, centre: Index) -> _FloatVolume:
    """The (7, 65, 65) around a voxel that the views are cut from, in 0..1; the voxel is its middle.

    The first 64 rows and columns are the published input.
    """
    return _wide_inputs(hu, [centre])[0]


def _wide_inputs(hu: _FloatVolume, centres: Sequence[Index]) -> _FloatVolume:
    origins = [(z - N_SLICES // 2, y - CENTRE, x - CENTRE) for z, y, x in centres]
    return normalise(np.stack([crop(hu, origin, (N_SLICES, WIDE, WIDE), AIR_HU) for origin in origins]))


def look(hu: _FloatVolume, centres: Sequence[Index], engine: Engine, views: tuple[View, ...]) -> dict[str, Tensor]:
    """What the network says of places, at least one: its outputs, the mean over the views.

    Raises:
        DeviceOutOfMemory: from the engine.
    """
    parts = list(_batches(hu, centres, engine, views))
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _batches(
    hu: _FloatVolume, centres: Sequence[Index], engine: Engine, views: tuple[View, ...]
) -> Iterator[dict[str, Tensor]]:
    """The outputs for some of the places at a time, in their order."""
    at_once = max(1, (BATCH if engine.device.type == "cpu" else GPU_BATCH) // len(views))
    for start in range(0, len(centres), at_once):
        yield ask(engine, torch.from_numpy(_wide_inputs(hu, centres[start : start + at_once])), views)
