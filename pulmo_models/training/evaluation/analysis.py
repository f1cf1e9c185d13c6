"""One volume through both stages with the node's own code, keeping what the node throws away: the heat map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pulmo_models.ct.candidates import Candidate, CandidateSettings, heatmap, pick_peaks
from pulmo_models.ct.characterise import CharacterisedCandidate, CharacteriseSettings, MalignancyHead, characterise
from pulmo_models.ct.device import Precision, Runner, resolve_device
from pulmo_models.ct.looks import Looks, look
from pulmo_models.ct.lungs import localise_lungs
from pulmo_models.ct.settings import NoduleSettings
from pulmo_models.ct.views import VIEWS
from pulmo_models.errors import WeightsMissing
from pulmo_models.training.fitting.networks import Networks
from pulmo_models.training.metrics.resampling import Floats
from pulmo_models.types import BoolArray, Volume

LOWEST_HEAT = 0.01
"""Candidates below that are not looked at: a FROC ends there."""

Index = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Analyst:
    """Both networks on a device, at an operating point."""

    detector: Runner
    characteriser: Runner | None
    head: MalignancyHead | None
    peak_threshold: float
    detection_threshold: float
    cluster_mm: float

    @classmethod
    def of(cls, networks: Networks, settings: NoduleSettings, precision: Precision, device: str) -> Analyst:
        """Errors: :class:`WeightsMissing` without a detector, those of `resolve_device`."""
        if networks.stage1 is None:
            raise WeightsMissing(f"{networks.name} holds no detector, and whole scans need one")
        where = resolve_device(device)
        student, point = networks.stage2, settings.at(networks.operating_point)
        return cls(
            detector=Runner(networks.stage1, where, precision),
            characteriser=None if student is None else Runner(student, where, "fp32"),
            head=None if student is None else MalignancyHead.of(student, networks.concept_scale),
            peak_threshold=point.peak_threshold,
            detection_threshold=point.detection_threshold,
            cluster_mm=settings.cluster_mm,
        )

    def candidate_settings(self, peak_threshold: float) -> CandidateSettings:
        """The node's, at another threshold."""
        return CandidateSettings(peak_threshold=peak_threshold, cluster_mm=self.cluster_mm)

    def heat(self, volume: Volume, search: BoolArray) -> npt.NDArray[np.float32]:
        """The heat map of a volume."""
        return heatmap(volume.hu, self.detector, self.candidate_settings(LOWEST_HEAT), search)

    def peaks(
        self, heat: npt.NDArray[np.float32], volume: Volume, search: BoolArray, threshold: float
    ) -> list[Candidate]:
        """The candidates from a threshold on, best first."""
        return pick_peaks(heat, volume.spacing_mm, self.candidate_settings(threshold), search)

    def detection_probabilities(self, volume: Volume, places: list[Index]) -> Floats:
        """Stage 2's probability that there is a nodule at each place."""
        if self.characteriser is None:
            raise WeightsMissing("a detector alone gives no detection probability")
        if not places:
            return np.zeros(0)
        detection = look(volume.hu, places, self.characteriser, VIEWS)["detection"]
        return np.asarray(torch.softmax(detection, dim=1)[:, 1].double().numpy())

    def findings(self, volume: Volume, candidates: list[Candidate]) -> list[CharacterisedCandidate]:
        """What the node would report of candidates."""
        if self.characteriser is None or self.head is None:
            raise WeightsMissing("a detector alone gives no findings")
        settings = CharacteriseSettings(detection_threshold=self.detection_threshold)
        looks = Looks(volume.hu, self.characteriser, settings)
        return characterise(looks, volume.spacing_mm, candidates, self.head)


def search_mask(volume: Volume) -> BoolArray:
    """Where the node looks. Raises `Rejection` where there are no lungs."""
    return localise_lungs(volume).search
