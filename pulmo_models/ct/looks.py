"""What the network of stage 2 says of places of one volume, in few large batches and of no place twice.

The input is seven native slices of 64 x 64 voxels around the place, which is index (3, 32, 32), padded with -1000 HU,
as published. Most candidates are no nodules, and detection alone in bf16 is enough to tell those that are far from it:
on a CPU that has instructions for bf16 they are sieved out at a sixth of the cost, and only the others are looked at in
fp32. So what is reported, scores and masks, is what fp32 alone gives (docs/performance.md).

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
"""How far from the threshold a logit of detection of the sieve is sure. The largest difference that bf16 made to one,
the mean of eight views, was 0.030 by OpenVINO and 0.041 by torch among 381 candidates of real CTs."""

ShareCallback = Callable[[float], None]
_FloatVolume = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class CharacteriseSettings:
    """Thresholds of stage 2."""

    detection_threshold: float = 0.5
    mask_threshold: float = 0.5
    merge_overlap: float | None = 0.5  # share of the smaller mask from which two findings are one; None: never
    views: tuple[View, ...] = VIEWS


@dataclass(frozen=True, eq=False)
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

    ``runner`` wraps a :class:`Student2p5D`, ``sieve`` its :class:`Detection2p5D` in a faster, less exact arithmetic.
    """

    def __init__(
        self, hu: _FloatVolume, runner: Engine, settings: CharacteriseSettings, sieve: Engine | None = None
    ) -> None:
        self.hu = hu
        self.settings = settings
        self._runner = runner
        self._sieve = sieve if 0.0 < settings.detection_threshold < 1.0 else None
        self._verdicts: dict[Index, bool | None] = {}  # of the sieve; None: it is not sure
        self._answers: dict[Index, Answer] = {}

    @property
    def ahead(self) -> int:
        """How many slices of a mask to ask for together: in vain where it ends, which only a GPU does not feel."""
        return 1 if self._runner.device.type == "cpu" else GPU_AHEAD

    def at(self, places: Sequence[Index], progress: ShareCallback = lambda share: None) -> list[Answer | None]:
        """The answers about places, in their order; None where the sieve is sure that there is no nodule.

        Raises:
            DeviceOutOfMemory: from the engines.
        """
        self._sift(places, lambda share: progress(0.5 * share))
        asked = [place for place in places if self._verdicts.get(place) is not False]
        self._ask(asked, lambda share: progress(0.5 + 0.5 * share))
        return [self._answers[place] if self._verdicts.get(place) is not False else None for place in places]

    def reported(self, places: Sequence[Index]) -> list[bool]:
        """Whether stage 2 takes places for nodules.

        Raises:
            DeviceOutOfMemory: from the engines.
        """
        self._sift(places, lambda share: None)
        self._ask([place for place in places if self._verdicts.get(place) is None], lambda share: None)
        threshold = self.settings.detection_threshold
        verdicts = [self._verdicts.get(place) for place in places]
        return [
            self._answers[place].detection_probability >= threshold if verdict is None else verdict
            for place, verdict in zip(places, verdicts, strict=True)
        ]

    def outlines(self, places: Sequence[Index]) -> npt.NDArray[np.bool_]:
        """What one look outlines at each of some places, at least one: (B, 64, 64), the place at (32, 32).

        Raises:
            DeviceOutOfMemory: from the engine.
        """
        return self.outlined(look(self.hu, places, self._runner, ONE_VIEW)["segmentation"][:, 0])

    def outlined(self, logits: Tensor) -> npt.NDArray[np.bool_]:
        """Which pixels of an outline's logits belong to it."""
        return (torch.sigmoid(logits) >= self.settings.mask_threshold).numpy()

    def _sift(self, places: Sequence[Index], progress: ShareCallback) -> None:
        if self._sieve is None:
            return
        new = [place for place in dict.fromkeys(places) if place not in self._verdicts]
        threshold = self.settings.detection_threshold
        limit = math.log(threshold / (1.0 - threshold))
        done = 0
        for out in _batches(self.hu, new, self._sieve, self.settings.views):
            for logit in (out["detection"][:, 1] - out["detection"][:, 0]).tolist():
                self._verdicts[new[done]] = None if abs(logit - limit) < SURELY else logit > limit
                done += 1
            progress(done / len(new))

    def _ask(self, places: Sequence[Index], progress: ShareCallback) -> None:
        new = [place for place in dict.fromkeys(places) if place not in self._answers]
        done = 0
        for out in _batches(self.hu, new, self._runner, self.settings.views):
            for row in zip(out["detection"], out["concepts"], out["segmentation"][:, 0], strict=True):
                self._answers[new[done]] = Answer(*row)
                done += 1
            progress(done / len(new))


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
        wide = torch.from_numpy(_wide_inputs(hu, centres[start : start + at_once]))
        yield ask(engine, wide.to(engine.device), views)  # turned where it is computed
