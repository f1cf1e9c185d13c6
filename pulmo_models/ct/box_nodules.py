"""The pipeline of a detector of boxes: lungs, boxes, and with ``characterise`` the second stage of ct-nodules.

Input: a :class:`Volume`. Output: :class:`Findings`. Alone, each nodule has a box, its sides as diameters and a score,
and neither mask nor malignancy; nodules by score, highest first. With the characteriser, the boxes' middles are its
candidates, and nodules are as those of :mod:`pulmo_models.ct.nodules`.
Errors: :class:`Rejection` ``NO_LUNGS`` (protocol ``tuned`` only), :class:`DeviceOutOfMemory`; when it is built also
:class:`WeightsMissing`, :class:`WeightsCorrupt`, :class:`DeviceUnavailable` and ``ValueError`` for settings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from pulmo_models import __version__
from pulmo_models.checkpoints import load_network, load_stage2
from pulmo_models.ct.boxes import SelectionSettings
from pulmo_models.ct.candidates import Candidate
from pulmo_models.ct.characterise import CharacteriseSettings, MalignancyHead, characterise
from pulmo_models.ct.engine import Engine, choose_engine, set_threads
from pulmo_models.ct.looks import Looks, ShareCallback
from pulmo_models.ct.lung_boxes import lungs_by, told_by
from pulmo_models.ct.lungs import LungRegion
from pulmo_models.ct.nodules import MAX_NODULES, known, nodules_of, step, too_many
from pulmo_models.ct.retinanet import PUBLISHED_WINDOW, Detection, DetectorSettings, Size, detect
from pulmo_models.ct.scope import partial_lungs
from pulmo_models.ct.settings import RetinaNetSettings
from pulmo_models.ct.site import laterality
from pulmo_models.ct.tensorrt import load_engine
from pulmo_models.device import Precision, Runner, resolve_device
from pulmo_models.errors import WeightsMissing
from pulmo_models.geometry import index_to_lps
from pulmo_models.nets.retinanet3d import RetinaNet3D
from pulmo_models.network_sets import NetworkSet, load_networks
from pulmo_models.orientation import upright
from pulmo_models.pipeline import ProgressCallback, Rejection, no_progress
from pulmo_models.settings import checked_settings
from pulmo_models.types import AlgorithmStage, Axis, Box, Caution, Findings, Nodule, PipelineInfo, Radiograph, Volume
from pulmo_models.weights import WeightSet, load_set

LABEL = "ct-retinanet"
NETWORK = "detector"
"""Name of the network in a set for this pipeline."""

SMALL_WINDOW: Size = (256, 256, 96)
LARGE_GPU_BYTES = 20e9  # from here on the published window fits with room to spare

_ADVICE = "it is fetched with `pulmo-node weights fetch monai-luna16`, or imported with `weights import`"


def build(settings: Mapping[str, Any], device: str = "auto") -> BoxPipeline:
    """The pipeline with its networks loaded; the factory of the registry.

    Raises:
        ValueError: a setting or the device's name is wrong; every fault names its key.
        WeightsMissing, WeightsCorrupt: the weights cannot be used.
        DeviceUnavailable: ``cuda`` or an engine was asked for and there is none.
    """
    return BoxPipeline(checked_settings(RetinaNetSettings, settings, LABEL), device)


class BoxPipeline:
    """The detector and, if it is asked for, the characteriser; call it for one volume after another."""

    def __init__(self, settings: RetinaNetSettings, device: str = "auto") -> None:
        self._device = resolve_device(device)
        self._published = settings.protocol == "published"
        try:
            weights = load_networks(settings.weights, LABEL)
        except WeightsMissing as exc:
            raise WeightsMissing(f"{exc}; {_ADVICE}") from exc
        if NETWORK not in weights.networks:
            raise WeightsMissing(f"the set {weights.name} for {LABEL} has no network called {NETWORK}")
        self._detector: nn.Module
        self._engine = "tensorrt" if settings.tensorrt else Runner.name
        if settings.tensorrt:
            self._detector = load_engine(settings.tensorrt, self._device)
        else:
            self._detector = load_network(weights.networks[NETWORK], RetinaNet3D())
        exact = self._published and settings.precision == "auto"
        self._precision: Precision = "fp32" if exact else settings.precision
        second = load_set(settings.characteriser) if settings.characterise else None
        least = settings.score_threshold if second is None else settings.candidate_threshold
        self._detect = DetectorSettings(
            window=_window(settings, self._device),
            always_windows=bool(settings.tensorrt),
            selection=SelectionSettings(score_threshold=least),
        )
        self._characteriser = (
            None if second is None else _Characteriser(second, settings.detection_threshold, self._device)
        )
        self._localise = lungs_by(settings, device)
        info = _describe(weights, settings, self._detect, self._precision, second)
        self._info = told_by(info, self._localise, settings)

    @property
    def info(self) -> PipelineInfo:
        """Which program with which weights."""
        return self._info

    def __call__(self, image: Volume | Radiograph, progress: ProgressCallback = no_progress) -> Findings:
        """Find the nodules of one CT volume.

        Raises:
            Rejection: there are no lungs in the volume (protocol ``tuned``).
            DeviceOutOfMemory: not even the CPU has memory for one window.
        """
        if not isinstance(image, Volume):
            raise TypeError(f"{LABEL} analyses a CT volume, not a {type(image).__name__}")
        runner = Runner(self._detector, self._device, self._precision)
        timings: dict[str, float] = {}
        cautions = list(image.cautions)
        with step("lungs", timings, progress):
            region = self._lungs(image)
        box = None
        if region is not None and not self._published:
            box = region.box
            cautions += known(partial_lungs(image, region.mask))
        with step("stage1", timings, progress):
            found = detect(image.hu, image.affine, runner, self._detect, box, partial(progress, "stage1"))
            if region is not None and not self._published:
                found = [each for each in found if region.search[_voxel(each, image.hu.shape)]]
        devices = [runner.device.type]
        if self._characteriser is None:
            reported = found if self._published else found[:MAX_NODULES]
            nodules = [box_nodule(image, region, each) for each in reported]
            cautions += [*runner.cautions, *known(too_many(len(found), len(reported)))]
        else:
            second = self._characteriser.engine()
            with step("stage2", timings, progress):
                share = partial(progress, "stage2")
                nodules, more = self._characteriser.nodules(image, region, found, second, share)
            devices.append(second.device.type)
            cautions += [*runner.cautions, *second.cautions, *known(more)]
        return Findings(
            pipeline=self._info,
            nodules=tuple(nodules),
            lungs={} if region is None else region.lungs(),
            malignancy_bias=None if self._characteriser is None else self._characteriser.head.bias,
            cautions=tuple(cautions),
            timings_seconds=timings,
            device="+".join(dict.fromkeys(devices)),
            computation={"engine": self._engine, "precision": runner.precision},
        )

    def _lungs(self, volume: Volume) -> LungRegion | None:
        """The lungs; None where the published inference goes on without."""
        try:
            return self._localise(volume)
        except Rejection:
            if self._published:
                return None
            raise


class _Characteriser:
    """The second stage of ct-nodules, at the threshold of its set of weights or of the configuration."""

    def __init__(self, weights: WeightSet, detection_threshold: float | None, device: torch.device) -> None:
        self._network = load_stage2(weights)
        self._device = device
        self._choice = choose_engine(self._network, device, "auto", "fp32")
        self._ready: Engine | None = None
        self.head = MalignancyHead.of(self._network, weights.concept_scale)
        least = weights.operating_point.detection_threshold if detection_threshold is None else detection_threshold
        self._settings = CharacteriseSettings(detection_threshold=least)

    def engine(self) -> Engine:
        """That of the last volume, unless it had to leave its device: there may be room again."""
        if self._ready is None or self._ready.cautions:
            self._ready = self._choice.make(self._network, self._device, set_threads())
        return self._ready

    def nodules(
        self,
        volume: Volume,
        region: LungRegion | None,
        found: Sequence[Detection],
        engine: Engine,
        progress: ShareCallback,
    ) -> tuple[list[Nodule], Caution | None]:
        """Nodules with masks and malignancy, most probably malignant first, and a caution where there were too many."""
        turn = upright(volume.affine, volume.hu.shape)
        shape = volume.hu.shape
        candidates = [Candidate(index=turn.index(_voxel(each, shape)), score=each.score) for each in found]
        candidates = list({each.index: each for each in reversed(candidates)}.values())  # two boxes, one middle
        looks = Looks(turn.array(volume.hu), engine, self._settings)
        kept = characterise(looks, turn.spacing_mm(volume.spacing_mm), candidates, self.head, progress)
        nodules = nodules_of(volume, turn, region, kept[:MAX_NODULES])
        return nodules, too_many(len(kept), len(nodules))


def box_nodule(volume: Volume, region: LungRegion | None, found: Detection) -> Nodule:
    """The nodule of a box: its sides in the plane, on the slice of its middle, are the diameters."""
    limits = [size - 0.5 for size in volume.hu.shape]
    low = _triple(np.clip(found.low, -0.5, limits))
    high = _triple(np.clip(found.high, -0.5, limits))
    middle = _triple((np.asarray(low) + high) / 2)
    k, row, column = _voxel(replace(found, low=low, high=high), volume.hu.shape)
    _, row_mm, column_mm = volume.spacing_mm

    def side(step_mm: float, axis: int) -> Axis:
        start, end = [float(k), middle[1], middle[2]], [float(k), middle[1], middle[2]]
        start[axis], end[axis] = low[axis], high[axis]
        return Axis(length_mm=(high[axis] - low[axis]) * step_mm, start=_triple(start), end=_triple(end))

    sides = sorted((side(row_mm, 1), side(column_mm, 2)), key=lambda axis: -axis.length_mm)
    box = Box(low=low, high=high, corners_lps_mm=(index_to_lps(volume.affine, low), index_to_lps(volume.affine, high)))
    return Nodule(
        centre_lps_mm=index_to_lps(volume.affine, middle),
        centre_index=(k, row, column),
        box=box,
        candidate_score=found.score,
        detection_probability=found.score,
        long_axis=sides[0],
        short_axis=sides[1],
        laterality=None if region is None else laterality(box.voxels(volume.hu.shape), region),
    )


def _voxel(found: Detection, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The voxel in the middle of a box."""
    z, y, x = (min(max(round(at), 0), size - 1) for at, size in zip(found.centre, shape, strict=True))
    return z, y, x


def _triple(values: Sequence[float] | np.ndarray[Any, Any]) -> tuple[float, float, float]:
    a, b, c = (float(value) for value in values)
    return a, b, c


def _window(settings: RetinaNetSettings, device: torch.device) -> Size:
    """By the memory that a device has, not by what is free of it now: a result must not depend on that."""
    large = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= LARGE_GPU_BYTES
    if settings.window == "published" or settings.protocol == "published" or settings.tensorrt:
        return PUBLISHED_WINDOW
    return PUBLISHED_WINDOW if settings.window == "auto" and large else SMALL_WINDOW


def _describe(
    weights: NetworkSet,
    settings: RetinaNetSettings,
    detector: DetectorSettings,
    precision: Precision,
    second: WeightSet | None,
) -> PipelineInfo:
    names, digests = [weights.name], [weights.sha256]
    stages = [
        AlgorithmStage(
            name="RetinaNet3D detector",
            version=weights.version,
            weights_sha256=weights.networks[NETWORK].sha256,
            parameters={
                "protocol": settings.protocol,
                "score_threshold": f"{detector.selection.score_threshold:g}",
                "window": "x".join(map(str, detector.window)),
                "precision": precision,
            },
        )
    ]
    if second is not None:
        names.append(second.name)
        digests.append(second.sha256)
        point = second.operating_point
        least = point.detection_threshold if settings.detection_threshold is None else settings.detection_threshold
        stages.append(
            AlgorithmStage(
                name="Student2p5D characteriser",
                version=second.version,
                weights_sha256=second.stage2.sha256,
                parameters={"detection_threshold": f"{least:g}", "concept_scale": second.concept_scale},
            )
        )
    one = len(digests) == 1
    return PipelineInfo(
        label=LABEL,
        name="Pulmo Node RetinaNet nodules",
        version=__version__,
        weights_name="+".join(names),
        weights_sha256=digests[0] if one else hashlib.sha256("\n".join(digests).encode()).hexdigest(),
        stages=tuple(stages),
        subject="RetinaNet nodules",
        series_base=9010,
        description=f"Detection {'' if one else 'and characterisation '}of lung nodules by a 3D RetinaNet",
    )
