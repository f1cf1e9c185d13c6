"""Stage 2: what a candidate is. Detection, eight concepts, malignancy through the concepts, and a mask.

Input: HU at native spacing and candidates. Output: those candidates whose detection probability reaches the threshold,
each with a 3D mask, duplicates merged unless told otherwise. Each candidate is seen from several sides
(`pulmo_models.ct.views`) unless told otherwise, the further slices of a mask from one.

Malignancy is a linear read-out of the concepts: its logit is the sum of the concepts' contributions plus one bias, and
a contribution is the difference of the two class weights times the network's output (zero baseline).

Errors: :class:`DeviceOutOfMemory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pulmo_models.ct.candidates import Candidate
from pulmo_models.ct.looks import CharacteriseSettings, Looks, ShareCallback
from pulmo_models.ct.masks import grow_from_hu, overlap_share, walk
from pulmo_models.nets.student2p5d import Student2p5D
from pulmo_models.types import CONCEPT_NAMES, Concept, Mask
from pulmo_models.weights import ConceptScale

__all__ = [
    "CharacteriseSettings",
    "CharacterisedCandidate",
    "MalignancyHead",
    "characterise",
    "merge_duplicates",
]


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

    def probability(self, outputs: Sequence[float]) -> float:
        """Of malignancy, from the network's outputs: exactly that of the contributions, however they were rounded."""
        return float(1.0 / (1.0 + np.exp(-(self.weights @ np.asarray(outputs) + self.bias))))


@dataclass(frozen=True, kw_only=True, eq=False)
class CharacterisedCandidate:
    """A candidate that stage 2 takes for a nodule."""

    candidate: Candidate
    detection_probability: float
    malignancy_probability: float
    concepts: tuple[Concept, ...]
    mask: Mask


def characterise(
    looks: Looks,
    spacing_mm: tuple[float, float, float],
    candidates: Sequence[Candidate],
    head: MalignancyHead,
    progress: ShareCallback = lambda share: None,
) -> list[CharacterisedCandidate]:
    """The candidates that are nodules, highest detection probability first, duplicates merged.

    Raises:
        DeviceOutOfMemory: from the engines.
    """
    settings = looks.settings
    answers = looks.at([c.index for c in candidates], lambda share: progress(0.5 * share))
    asked = [(c, answer) for c, answer in zip(candidates, answers, strict=True) if answer is not None]
    kept = [(c, answer) for c, answer in asked if answer.detection_probability >= settings.detection_threshold]
    if not kept:
        return []
    outlines = looks.outlined(torch.stack([answer.segmentation for _, answer in kept]))
    masks = walk(looks.hu.shape, spacing_mm, [c.index for c, _ in kept], outlines, looks.outlines, looks.ahead)
    progress(1.0)
    found = [
        CharacterisedCandidate(
            candidate=candidate,
            detection_probability=answer.detection_probability,
            malignancy_probability=head.probability(answer.concepts.tolist()),
            concepts=head.concepts(answer.concepts.tolist()),
            mask=grow_from_hu(looks.hu, spacing_mm, candidate.index) if mask is None else mask,
        )
        for (candidate, answer), mask in zip(kept, masks, strict=True)
    ]
    return merge_duplicates(found, settings.merge_overlap)


def merge_duplicates(found: Sequence[CharacterisedCandidate], overlap: float | None) -> list[CharacterisedCandidate]:
    """Of findings whose masks overlap substantially, keep the one with the highest detection probability."""
    kept: list[CharacterisedCandidate] = []
    for finding in sorted(found, key=lambda f: -f.detection_probability):
        if overlap is None or all(overlap_share(finding.mask, other.mask) < overlap for other in kept):
            kept.append(finding)
    return kept
