"""The nodule pipeline: lungs, candidates (stage 1), characterisation (stage 2), measures.

Input: a :class:`Volume`. Output: :class:`Findings`, nodules by malignancy probability, highest first. The networks see
the volume upright (:mod:`pulmo_models.orientation`); what is reported lies on its own grid. The protocol ``published``
leaves out that turn and all else that the published inference does not have; the lungs then only tell in which of them
a nodule lies, and how deep. Errors: :class:`Rejection` ``NO_LUNGS`` (protocol ``tuned`` only),
:class:`DeviceOutOfMemory`; when it is built also :class:`WeightsMissing`, :class:`WeightsCorrupt`,
:class:`DeviceUnavailable` and ``ValueError`` for settings.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from pulmo_models import __version__
from pulmo_models.checkpoints import load_stage1, load_stage2
from pulmo_models.codes import CautionCode
from pulmo_models.ct.candidates import CandidateSettings, find_candidates, windows_of
from pulmo_models.ct.characterise import CharacterisedCandidate, CharacteriseSettings, MalignancyHead, characterise
from pulmo_models.ct.doubt import Settled, settle, with_doubt
from pulmo_models.ct.engine import Engine, EngineChoice, EngineName, choose_engine, set_threads
from pulmo_models.ct.looks import N_SLICES, Looks
from pulmo_models.ct.lung_boxes import lungs_by, told_by
from pulmo_models.ct.lungs import LungRegion
from pulmo_models.ct.masks import ROWS_COLUMNS
from pulmo_models.ct.measure import measure
from pulmo_models.ct.scope import partial_lungs, touches_interpolated
from pulmo_models.ct.settings import NoduleSettings
from pulmo_models.ct.site import laterality, pleura_distance_mm
from pulmo_models.ct.views import ONE_VIEW, VIEWS
from pulmo_models.ct.windows import Start, WindowPlan, fit_windows, sizes_of
from pulmo_models.device import Precision, has_native_bf16, resolve_device
from pulmo_models.nets.student2p5d import Detection2p5D
from pulmo_models.orientation import Turn, no_turn, upright
from pulmo_models.pipeline import ProgressCallback, Rejection, no_progress
from pulmo_models.settings import checked_settings
from pulmo_models.types import AlgorithmStage, BoolArray, Caution, Findings, Image, Nodule, PipelineInfo, Volume
from pulmo_models.weights import OperatingPoint, WeightSet, load_set

LABEL = "ct-nodules"

MAX_NODULES = 100
"""The most probable are kept and a caution says that there were more: a report of hundreds helps nobody.

Protocol ``tuned`` only."""


LEAST_SLICE_OVERLAP = 0.125
"""Along the slices windows overlap by that share at least: the series on which less was measured are short."""

GPU_BATCH = 8
"""Windows at once on a GPU: enough to fill it, in less than 4 GB in half precision."""


def build(settings: Mapping[str, Any], device: str = "auto") -> NodulePipeline:
    """The pipeline with its networks loaded; the factory of the registry.

    Raises:
        ValueError: a setting or the device's name is wrong; every fault names its key.
        WeightsMissing, WeightsCorrupt: the weights cannot be used.
        DeviceUnavailable: ``cuda`` was asked for and there is none.
    """
    return NodulePipeline(checked_settings(NoduleSettings, settings, LABEL), device)


class NodulePipeline:
    """Two networks, loaded once; call it for one volume after another."""

    def __init__(self, settings: NoduleSettings, device: str = "auto") -> None:
        self._device = resolve_device(device)
        weights = load_set(settings.weights)
        stage1, stage2 = load_stage1(weights), load_stage2(weights)
        self._networks = {"stage1": stage1, "stage2": stage2, "sieve": Detection2p5D(stage2)}
        self._head = MalignancyHead.of(stage2, weights.concept_scale)
        point = settings.at(weights.operating_point)
        self._published = settings.protocol == "published"
        self._candidates = _stage1_settings(settings, point, self._device)
        self._doubt = 0.0 if self._published else settings.doubt
        self._characterise = CharacteriseSettings(
            detection_threshold=point.detection_threshold,
            merge_overlap=None if self._published else CharacteriseSettings.merge_overlap,
            views=ONE_VIEW if self._published else VIEWS,
        )
        # The published arithmetic was bf16 on one GPU, which no other device reproduces; fp32 is what it rounds.
        exact = self._published and settings.precision == "auto"
        precision: Precision = "fp32" if exact else settings.precision
        name = "torch" if self._published and settings.engine == "auto" else settings.engine
        self._choice = choose_engine(stage1, self._device, name, precision)
        self._choices = _choices(self._networks, self._device, self._choice, settings)
        self._threads = set_threads(settings.threads)
        self._ready: dict[str, Engine] = {}
        self._localise = lungs_by(settings, device)
        self._info = told_by(_describe(weights, settings, point, self._choice), self._localise, settings)

    @property
    def info(self) -> PipelineInfo:
        """Which program with which weights."""
        return self._info

    def __call__(self, image: Image, progress: ProgressCallback = no_progress) -> Findings:
        """Find, characterise and measure the nodules of one CT volume.

        Raises:
            Rejection: there are no lungs in the volume (protocol ``tuned``).
            DeviceOutOfMemory: not even the CPU has memory for one window.
        """
        if not isinstance(image, Volume):
            raise TypeError(f"{LABEL} analyses a CT volume, not a {type(image).__name__}")
        detector, characteriser, sieve = self._engines()
        timings: dict[str, float] = {}
        cautions = list(image.cautions)
        turn = no_turn(image.hu.shape) if self._published else upright(image.affine, image.hu.shape)
        hu, spacing_mm = turn.array(image.hu), turn.spacing_mm(image.spacing_mm)
        with step("lungs", timings, progress):
            region = self._lungs(image)
        search = None
        if region is not None and not self._published:
            search = turn.array(region.search)
            cautions += known(partial_lungs(image, region.mask))
        with step("stage1", timings, progress):
            share = partial(progress, "stage1")
            plan = self._fitted(search)
            windows = windows_of(hu, plan, search)
            wide = with_doubt(plan, self._doubt)
            peaks = find_candidates(hu, spacing_mm, detector, wide, search, share, windows)
        looks = Looks(hu, characteriser, self._characterise, sieve)
        with step("doubt", timings, progress):
            settled = settle(hu, peaks, detector, self._candidates, self._doubt, looks.reported)
        with step("stage2", timings, progress):
            share = partial(progress, "stage2")
            found = characterise(looks, spacing_mm, settled.candidates, self._head, share)
        with step("measure", timings, progress):
            kept = found if self._published else found[:MAX_NODULES]
            nodules = nodules_of(image, turn, region, kept)
        cautions += [*detector.cautions, *characteriser.cautions, *known(too_many(len(found), len(kept)))]
        return Findings(
            pipeline=self._info,
            nodules=tuple(nodules),
            lungs={} if region is None else region.lungs(),
            malignancy_bias=self._head.bias,
            cautions=tuple(cautions),
            timings_seconds=timings,
            device="+".join(dict.fromkeys((detector.device.type, characteriser.device.type))),
            computation=self._computation(detector, plan, windows, settled),
        )

    def warm_up(self) -> None:
        """Compile and place the networks, and let each run once: the first volume then waits for nothing."""
        detector, *characterisers = self._engines()
        detector.run(torch.zeros((1, 1, *self._candidates.window)))
        for characteriser in filter(None, characterisers):
            characteriser(torch.zeros((1, N_SLICES, ROWS_COLUMNS, ROWS_COLUMNS)))

    def _engines(self) -> tuple[Engine, Engine, Engine | None]:
        """Of stage 1, of stage 2, and of what sieves its candidates where there is such a thing.

        They are those of the last volume, unless they had to leave their device: there may be room again.
        """
        for stage, choice in self._choices.items():
            if stage not in self._ready or self._ready[stage].cautions:
                self._ready[stage] = choice.make(self._networks[stage], self._device, self._threads)
        return self._ready["stage1"], self._ready["stage2"], self._ready.get("sieve")

    def _fitted(self, search: BoolArray | None) -> CandidateSettings:
        """The windows of stage 1 for these lungs; `torch.compile` takes minutes for each size, so it gets one."""
        if search is None or self._candidates.anchor == "volume" or self._choice.name == "compiled":
            return self._candidates
        return fit_windows(self._candidates, search)

    def _computation(
        self, detector: Engine, plan: WindowPlan, windows: Sequence[Start], settled: Settled
    ) -> dict[str, str]:
        """How the findings came about, for the record."""
        sizes = [f"{number} of {' x '.join(map(str, size))}" for size, number in sizes_of(windows, plan).items()]
        record = {"engine": detector.name, "precision": detector.precision, "windows": " and ".join(sizes) or "0"}
        if settled.asked_again:
            record["doubtful"] = f"{settled.asked_again} candidates in {settled.windows} windows more"
        if detector.device.type == "cpu":
            record["threads"] = str(self._threads)
        return record | ({"note": self._choice.reason} if self._choice.reason else {})

    def _lungs(self, volume: Volume) -> LungRegion | None:
        """The lungs; None where the published inference goes on without: it needs them for the sites alone."""
        try:
            return self._localise(volume)
        except Rejection:
            if self._published:
                return None
            raise


def nodules_of(
    volume: Volume, turn: Turn, region: LungRegion | None, found: Sequence[CharacterisedCandidate]
) -> list[Nodule]:
    """The nodules on the grid of the volume, where they are measured; most probably malignant first."""
    ranked = sorted(found, key=lambda each: -each.malignancy_probability)
    return [_nodule_of(volume, turn, region, each) for each in ranked]


def _nodule_of(volume: Volume, turn: Turn, region: LungRegion | None, found: CharacterisedCandidate) -> Nodule:
    mask = turn.mask_back(found.mask)
    measures = measure(volume, mask)
    return Nodule(
        centre_lps_mm=measures.centre_lps_mm,
        centre_index=turn.index_back(found.candidate.index),
        mask=mask,
        candidate_score=found.candidate.score,
        detection_probability=found.detection_probability,
        malignancy_probability=found.malignancy_probability,
        concepts=found.concepts,
        long_axis=measures.long_axis,
        short_axis=measures.short_axis,
        volume_mm3=measures.volume_mm3,
        mean_hu=measures.mean_hu,
        min_hu=measures.min_hu,
        max_hu=measures.max_hu,
        laterality=None if region is None else laterality(mask, region),
        pleura_distance_mm=None if region is None else pleura_distance_mm(mask, region, volume.spacing_mm),
        cautions=known(touches_interpolated(volume, mask)),
    )


def too_many(found: int, reported: int) -> Caution | None:
    """TOO_MANY_NODULES where not all that were found are reported."""
    if found == reported:
        return None
    sentence = f"{found} nodules were found; only the {reported} with the highest detection probability are reported."
    return Caution(code=CautionCode.TOO_MANY_NODULES, sentence=sentence)


def known(caution: Caution | None) -> tuple[Caution, ...]:
    """The caution, if it is one."""
    return () if caution is None else (caution,)


def _stage1_settings(settings: NoduleSettings, point: OperatingPoint, device: torch.device) -> CandidateSettings:
    chosen = CandidateSettings(
        peak_threshold=point.peak_threshold,
        cluster_mm=settings.cluster_mm,
        batch=GPU_BATCH if device.type == "cuda" else CandidateSettings.batch,
    )
    if settings.protocol == "published":
        return chosen
    overlaps = (max(settings.overlap, LEAST_SLICE_OVERLAP), settings.overlap, settings.overlap)
    z, y, x = (round(length * (1 - share)) for length, share in zip(chosen.window, overlaps, strict=True))
    return replace(chosen, anchor="lungs", stride=(z, y, x), blend="centred")


def _choices(
    networks: Mapping[str, nn.Module], device: torch.device, stage1: EngineChoice, settings: NoduleSettings
) -> dict[str, EngineChoice]:
    """Stage 2 is computed in fp32, by OpenVINO if stage 1 is; on a CPU made for bf16, that sieves its candidates.

    It is never compiled: its batches vary too much.
    """
    by: EngineName = "openvino" if stage1.name == "openvino" else "torch"
    choices = {"stage1": stage1, "stage2": choose_engine(networks["stage2"], device, by, "fp32")}
    if settings.protocol == "tuned" and stage1.precision == "bf16" and device.type == "cpu" and has_native_bf16(device):
        choices["sieve"] = choose_engine(networks["sieve"], device, by, "bf16")
    return choices


def _describe(
    weights: WeightSet, settings: NoduleSettings, point: OperatingPoint, choice: EngineChoice
) -> PipelineInfo:
    return PipelineInfo(
        label=LABEL,
        name="Pulmo Node lung nodules",
        version=__version__,
        weights_name=weights.name,
        weights_sha256=weights.sha256,
        stages=(
            AlgorithmStage(
                name="HeatmapUNet3D detector",
                version=weights.version,
                weights_sha256=weights.stage1.sha256,
                parameters={
                    "protocol": settings.protocol,
                    "peak_threshold": f"{point.peak_threshold:g}",
                    "cluster_mm": f"{settings.cluster_mm:g}",
                    "engine": choice.name,
                    "precision": choice.precision,
                },
            ),
            AlgorithmStage(
                name="Student2p5D characteriser",
                version=weights.version,
                weights_sha256=weights.stage2.sha256,
                parameters={
                    "detection_threshold": f"{point.detection_threshold:g}",
                    "concept_scale": weights.concept_scale,
                },
            ),
        ),
    )


@contextmanager
def step(name: str, timings: dict[str, float], progress: ProgressCallback) -> Iterator[None]:
    """Report that a step begins and ends, and note how long it took."""
    progress(name, 0.0)
    start = time.perf_counter()
    yield
    timings[name] = time.perf_counter() - start
    progress(name, 1.0)
