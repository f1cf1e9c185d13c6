"""Stage 2: what a candidate is. Detection, eight concepts, malignancy through the concepts, and a mask.

Input: HU at native spacing and candidates. Output: those candidates whose detection probability reaches the threshold,
each with a 3D mask, duplicates merged unless told otherwise. The input of the network is seven native slices of 64 x 64
voxels, the candidate at index (3, 32, 32), padded with -1000 HU, as published; each candidate is seen from several
sides (`pulmo_models.ct.views`) unless told otherwise, the further slices of a mask from one.

Malignancy is a linear read-out of the concepts: its logit is the sum of the concepts' contributions plus one bias, and
a contribution is the difference of the two class weights times the network's output (zero baseline).

Errors: :class:`DeviceOutOfMemory`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pulmo_models.ct.candidates import AIR_HU, Candidate, normalise
from pulmo_models.ct.engine import Engine
from pulmo_models.ct.masks import CENTRE, Index, MaskWalk, extend, next_slices, overlap_share, start_walk
from pulmo_models.ct.views import ONE_VIEW, VIEWS, WIDE, View, ask
from pulmo_models.geometry import crop
from pulmo_models.nets.student2p5d import Student2p5D
from pulmo_models.types import CONCEPT_NAMES, Concept, Mask
from pulmo_models.weights import ConceptScale

N_SLICES = 7
BATCH = 32

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
class MalignancyHead:
    """The linear read-out of the concepts and the scale on which the network gives them."""

    weights: npt.NDArray[np.float64]  # (8,), weight of the malignant minus that of the benign class
    bias: float  # the same difference
    concept_scale: ConceptScale

    @classmethod
    def of(cls, network: Student2p5D, concept_scale: ConceptScale) -> MalignancyHead:
        """The head of a trained network."""
        weight = network.malignancy_head.weight.detach().cpu().double().numpy()
        bias = network.malignancy_head.bias.detach().cpu().double().numpy()
        return cls(weights=weight[1] - weight[0], bias=float(bias[1] - bias[0]), concept_scale=concept_scale)

    def concepts(self, outputs: Sequence[float]) -> tuple[Concept, ...]:
        """The eight concepts on the LIDC scale, with their contributions, from the network's outputs."""
        return tuple(
            Concept(
                name=name,
                value=float(output) if self.concept_scale == "raw" else 1.0 + 4.0 * float(output),
                contribution=float(weight) * float(output),
            )
            for name, output, weight in zip(CONCEPT_NAMES, outputs, self.weights, strict=True)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class CharacterisedCandidate:
    """A candidate that stage 2 takes for a nodule."""

    candidate: Candidate
    detection_probability: float
    malignancy_probability: float
    concepts: tuple[Concept, ...]
    mask: Mask


def characterise(
    hu: _FloatVolume,
    spacing_mm: tuple[float, float, float],
    candidates: Sequence[Candidate],
    runner: Engine,
    head: MalignancyHead,
    settings: CharacteriseSettings,
    progress: ShareCallback = lambda share: None,
) -> list[CharacterisedCandidate]:
    """The candidates that are nodules, highest detection probability first, duplicates merged.

    ``runner`` wraps a :class:`Student2p5D`.

    Raises:
        DeviceOutOfMemory: from the runner.
    """
    if not candidates:
        return []
    outputs = look(hu, [c.index for c in candidates], runner, settings.views, lambda share: progress(0.5 * share))
    detection = torch.softmax(outputs["detection"], dim=1)[:, 1].tolist()
    malignancy = torch.softmax(outputs["malignancy"], dim=1)[:, 1].tolist()
    kept = [i for i, probability in enumerate(detection) if probability >= settings.detection_threshold]
    outlines = _outlines(outputs["segmentation"][kept], settings)
    starts = [start_walk(hu, spacing_mm, candidates[i].index, o) for i, o in zip(kept, outlines, strict=True)]
    walks = [start for start in starts if isinstance(start, MaskWalk)]
    _walk_through_slices(hu, spacing_mm, walks, runner, settings)
    progress(1.0)
    found = [
        CharacterisedCandidate(
            candidate=candidates[i],
            detection_probability=detection[i],
            malignancy_probability=malignancy[i],
            concepts=head.concepts(outputs["concepts"][i].tolist()),
            mask=start.mask() if isinstance(start, MaskWalk) else start,
        )
        for i, start in zip(kept, starts, strict=True)
    ]
    return merge_duplicates(found, settings.merge_overlap)


def reported(
    hu: _FloatVolume, centres: Sequence[Index], *, runner: Engine, settings: CharacteriseSettings
) -> list[bool]:
    """Whether stage 2 takes places, at least one, for nodules.

    Raises:
        DeviceOutOfMemory: from the runner.
    """
    detection = torch.softmax(look(hu, centres, runner, settings.views)["detection"], dim=1)[:, 1]
    return [probability >= settings.detection_threshold for probability in detection.tolist()]


def wide_input(hu: _FloatVolume, centre: Index) -> _FloatVolume:
    """The (7, 65, 65) around a voxel that the views are cut from, in 0..1; the voxel is its middle.

    The first 64 rows and columns are the published input.
    """
    z, y, x = centre
    origin = (z - N_SLICES // 2, y - CENTRE, x - CENTRE)
    return normalise(crop(hu, origin, (N_SLICES, WIDE, WIDE), AIR_HU))


def merge_duplicates(found: Sequence[CharacterisedCandidate], overlap: float | None) -> list[CharacterisedCandidate]:
    """Of findings whose masks overlap substantially, keep the one with the highest detection probability."""
    kept: list[CharacterisedCandidate] = []
    for finding in sorted(found, key=lambda f: -f.detection_probability):
        if overlap is None or all(overlap_share(finding.mask, other.mask) < overlap for other in kept):
            kept.append(finding)
    return kept


def _walk_through_slices(
    hu: _FloatVolume,
    spacing_mm: tuple[float, float, float],
    walks: Sequence[MaskWalk],
    runner: Engine,
    settings: CharacteriseSettings,
) -> None:
    """Let all masks grow together, one slice a round, so that the network sees full batches."""
    while True:
        wanted = [(walk, *step) for walk in walks for step in next_slices(walk, hu.shape, spacing_mm)]
        if not wanted:
            return
        centres = [(z, *walk.centre[1:]) for walk, _, z in wanted]
        outlines = _outlines(look(hu, centres, runner, ONE_VIEW)["segmentation"], settings)
        for (walk, direction, z), outline in zip(wanted, outlines, strict=True):
            extend(walk, direction, z, outline, hu.shape)


def look(
    hu: _FloatVolume,
    centres: Sequence[Index],
    runner: Engine,
    views: tuple[View, ...],
    progress: ShareCallback = lambda share: None,
) -> dict[str, Tensor]:
    """What the network says of places, at least one: its outputs, the mean over the views."""
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, len(centres), BATCH):
        chunk = centres[start : start + BATCH]
        batch = torch.from_numpy(np.stack([wide_input(hu, centre) for centre in chunk]))
        for key, value in ask(runner, batch, views).items():
            parts.setdefault(key, []).append(value)
        progress((start + len(chunk)) / len(centres))
    return {key: torch.cat(values) for key, values in parts.items()}


def _outlines(segmentation: Tensor, settings: CharacteriseSettings) -> npt.NDArray[np.bool_]:
    """Logits (B, 1, 64, 64) to bool (B, 64, 64)."""
    return (torch.sigmoid(segmentation[:, 0]) >= settings.mask_threshold).numpy()
