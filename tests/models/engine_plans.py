"""Both stages by any plan of windows, and what it finds that another does not: for tests and benchmarks."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pulmo_models.checkpoints import load_stage1, load_stage2
from pulmo_models.ct.candidates import CandidateSettings, FloatVolume, find_candidates, windows_of
from pulmo_models.ct.characterise import CharacterisedCandidate, CharacteriseSettings, MalignancyHead, characterise
from pulmo_models.ct.doubt import settle, with_doubt
from pulmo_models.ct.engine import Engine
from pulmo_models.ct.looks import Looks
from pulmo_models.ct.lungs import localise_lungs
from pulmo_models.ct.masks import overlap_share
from pulmo_models.ct.nodules import LEAST_SLICE_OVERLAP
from pulmo_models.ct.settings import NoduleSettings
from pulmo_models.ct.windows import fit_windows, sizes_of
from pulmo_models.training.series import read_ct
from pulmo_models.types import BoolArray
from pulmo_models.weights import load_set

REAL_SERIES = (
    "ct_cptac_c3n-00247/dicom",
    "ct_lidc_idri_0063/dicom",
    "ct_lungdx_a0001/dicom",
    "ct_lungdx_a0002_thick8mm/dicom",
    "ct_lungfcp_0001_slab/dicom",
    "ct_qin_lsc_0055/dicom",
    "ct_ricord1a_jpeglossless_slab/dicom",
)
"""Every series of the test data that is a chest CT."""

SAME_MM = 8.0
DOUBT = NoduleSettings().doubt
WEIGHTS = load_set("pulmo-node-3")
PUBLISHED = CandidateSettings(peak_threshold=WEIGHTS.operating_point.peak_threshold)


def over_lungs(overlap: float) -> CandidateSettings:
    """The plan of the pipeline at that overlap."""
    overlaps = (max(overlap, LEAST_SLICE_OVERLAP), overlap, overlap)
    z, y, x = (round(size * (1 - share)) for size, share in zip(PUBLISHED.window, overlaps, strict=True))
    return replace(PUBLISHED, stride=(z, y, x), anchor="lungs", blend="centred")


@dataclass(frozen=True, kw_only=True, eq=False)
class Chest:
    """A CT as the networks see it."""

    name: str
    hu: FloatVolume
    spacing_mm: tuple[float, float, float]
    search: BoolArray

    @classmethod
    def read(cls, folder: Path) -> Chest:
        """Errors: those of `read_ct`; :class:`Rejection` where there are no lungs."""
        volume = read_ct(folder)
        name = folder.parent.name if folder.name == "dicom" else folder.name
        return cls(name=name, hu=volume.hu, spacing_mm=volume.spacing_mm, search=localise_lungs(volume).search)


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What a plan found, and what it took."""

    found: list[CharacterisedCandidate]
    candidates: int
    windows: float  # as many of the published size would be as much to compute
    anew: int  # further windows, for candidates in doubt, of the published size
    stage1_seconds: float  # all windows, peaks and doubts
    stage2_seconds: float


class Stages:
    """Both networks at the operating point of the shipped weights."""

    def __init__(self) -> None:
        self.detector, self.characteriser = load_stage1(WEIGHTS), load_stage2(WEIGHTS)
        self.head = MalignancyHead.of(self.characteriser, WEIGHTS.concept_scale)
        self.settings = CharacteriseSettings(detection_threshold=WEIGHTS.operating_point.detection_threshold)

    def run(
        self,
        chest: Chest,
        engines: tuple[Engine, Engine],
        plan: CandidateSettings,
        doubt: float,
        sieve: Engine | None = None,
    ) -> Outcome:
        """As the pipeline runs them."""
        detector, characteriser = engines
        begin = time.perf_counter()
        base = plan
        plan = fit_windows(plan, chest.search) if plan.anchor == "lungs" else plan
        windows = windows_of(chest.hu, plan, chest.search)
        wide = with_doubt(plan, doubt)
        found = find_candidates(chest.hu, chest.spacing_mm, detector, wide, chest.search, windows=windows)
        looks = Looks(chest.hu, characteriser, self.settings, sieve)
        settled = settle(chest.hu, found, detector, base, doubt, looks.reported)
        middle = time.perf_counter()
        nodules = characterise(looks, chest.spacing_mm, settled.candidates, self.head)
        return Outcome(
            found=nodules,
            candidates=len(settled.candidates),
            windows=sum(n * math.prod(size) for size, n in sizes_of(windows, plan).items()) / math.prod(base.window),
            anew=settled.windows,
            stage1_seconds=middle - begin,
            stage2_seconds=time.perf_counter() - middle,
        )


def matched(
    some: Sequence[CharacterisedCandidate], others: Sequence[CharacterisedCandidate], spacing_mm: tuple[float, ...]
) -> list[tuple[CharacterisedCandidate, CharacterisedCandidate]]:
    """Pairs of findings that are one: within 8 mm, or with masks that overlap. Each is in one pair at most."""
    free, pairs = list(others), []
    for finding in some:
        near = [o for o in free if _distance(finding, o, spacing_mm) <= SAME_MM or overlap_share(finding.mask, o.mask)]
        if near:
            nearest = min(near, key=lambda other: _distance(finding, other, spacing_mm))
            free.remove(nearest)
            pairs.append((finding, nearest))
    return pairs


def _distance(a: CharacterisedCandidate, b: CharacterisedCandidate, spacing_mm: tuple[float, ...]) -> float:
    return float(np.linalg.norm(np.subtract(a.candidate.index, b.candidate.index) * np.asarray(spacing_mm)))


def told(finding: CharacterisedCandidate) -> str:
    """Place and scores of a finding in a few words."""
    z, y, x = finding.candidate.index
    return f"({z}, {y}, {x}) score {finding.candidate.score:.3f}, detection {finding.detection_probability:.3f}"
