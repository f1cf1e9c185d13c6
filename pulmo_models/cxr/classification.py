"""The pipeline `cxr-findings`: five findings of a frontal chest radiograph, with a heat map for each.

Input: a :class:`RadiographSeries`. Output: :class:`Findings` with one :class:`ImageFindings` for each film that was
analysed. A film is what its file asks a viewer to show, 8 bit, shorter side to 255, the middle 224 x 224, as in the
evaluation of the published trainer. Several networks are an ensemble: the mean of their probabilities, and of their
heat maps, each from 0 to 1. Errors: :class:`Rejection` ``NOT_FRONTAL``, :class:`DeviceOutOfMemory`; when it is built
also :class:`WeightsMissing`, :class:`WeightsCorrupt`, :class:`DeviceUnavailable` and ``ValueError`` for settings.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pulmo_models import __version__
from pulmo_models.cxr.films import NetworkFilm, as_bytes, chosen_films, cropped, film_cautions
from pulmo_models.cxr.gradcam import WithGradCam, scaled
from pulmo_models.cxr.networks import load_classifier
from pulmo_models.cxr.settings import LABELS, CxrFindingsSettings
from pulmo_models.device import Runner, resolve_device
from pulmo_models.errors import WeightsCorrupt
from pulmo_models.network_sets import NetworkSet, load_networks
from pulmo_models.pipeline import ProgressCallback, no_progress
from pulmo_models.settings import checked_settings
from pulmo_models.types import (
    AlgorithmStage,
    ClassScore,
    Findings,
    HeatMap,
    Image,
    ImageFindings,
    PipelineInfo,
    Radiograph,
    RadiographSeries,
)

LABEL = "cxr-findings"

SHORTER_SIDE = 255  # int(224 * 1.14), as the evaluation of the published trainer has it
SIZE = 224


def build(settings: Mapping[str, Any], device: str = "auto") -> FindingsPipeline:
    """The pipeline with its networks loaded; the factory of the registry.

    Raises:
        ValueError: a setting or the device's name is wrong; every fault names its key.
        WeightsMissing, WeightsCorrupt: the weights cannot be used.
        DeviceUnavailable: ``cuda`` was asked for and there is none.
    """
    return FindingsPipeline(checked_settings(CxrFindingsSettings, settings, LABEL), device)


class FindingsPipeline:
    """One classifier or several, loaded once; call it for one series after another."""

    def __init__(self, settings: CxrFindingsSettings, device: str = "auto") -> None:
        self._device = resolve_device(device)
        self._settings = settings
        weights = load_networks(settings.weights, LABEL)
        self._thresholds = _thresholds(weights, settings)
        self._networks = [WithGradCam(load_classifier(spec)) for spec in weights.networks.values()]
        self._info = _describe(weights, self._thresholds, settings)

    @property
    def info(self) -> PipelineInfo:
        """Which program with which weights."""
        return self._info

    def __call__(self, image: Image, progress: ProgressCallback = no_progress) -> Findings:
        """Classify the frontal films of one series.

        Raises:
            Rejection: the series holds no frontal film.
            DeviceOutOfMemory: not even the CPU has memory for one film.
        """
        if not isinstance(image, RadiographSeries):
            raise TypeError(f"{LABEL} analyses radiographs, not a {type(image).__name__}")
        begun = time.perf_counter()
        films, cautions = chosen_films(image, self._settings.views)
        runners = [Runner(network, self._device, self._settings.precision) for network in self._networks]
        found = []
        for number, film in enumerate(films):
            progress("classify", number / len(films))
            found.append(self._film(film, runners))
        progress("classify", 1.0)
        fallbacks = [caution for runner in runners for caution in runner.cautions]
        return Findings(
            pipeline=self._info,
            images=tuple(found),
            malignancy_bias=None,
            cautions=(*image.cautions, *cautions, *fallbacks),
            timings_seconds={"classify": time.perf_counter() - begun},
            device="+".join(dict.fromkeys(runner.device.type for runner in runners)),
            computation={"engine": Runner.name, "precision": runners[0].precision},
        )

    def _film(self, film: Radiograph, runners: Sequence[Runner]) -> ImageFindings:
        seen = network_film(film)
        outputs = [runner(seen.values[None]) for runner in runners]
        probabilities = torch.stack([torch.sigmoid(out["logits"][0].double()) for out in outputs]).mean(dim=0)
        maps = torch.stack([scaled(out["maps"][0]) for out in outputs]).mean(dim=0)
        scores = tuple(
            ClassScore(
                label=label,
                probability=float(probability),
                threshold=self._thresholds[label],
                heat_map=_heat_map(heat, seen),
            )
            for label, probability, heat in zip(LABELS, probabilities, maps, strict=True)
        )
        return ImageFindings(source=film.source, class_scores=scores, cautions=film_cautions(film))


def network_film(film: Radiograph) -> NetworkFilm:
    """A film as the classifiers see it."""
    return cropped(as_bytes(film.display), film.pixel_aspect, SHORTER_SIDE, SIZE)


def _heat_map(heat: Tensor, seen: NetworkFilm) -> HeatMap | None:
    """None where nothing in the film spoke for the finding."""
    if not bool((heat > 0).any()):
        return None
    return HeatMap(values=scaled(heat).numpy().astype(np.float32), box=seen.box)


def _thresholds(weights: NetworkSet, settings: CxrFindingsSettings) -> dict[str, float]:
    """Those of the configuration, else of the set, else 0.5."""
    given = weights.settings.get("thresholds", [0.5] * len(LABELS))
    if not isinstance(given, list) or len(given) != len(LABELS):
        raise WeightsCorrupt(f"set {weights.name}: settings.thresholds must hold {len(LABELS)} numbers, one a finding")
    chosen = {str(label): value for label, value in settings.thresholds.items()}
    return {label: chosen.get(label, float(value)) for label, value in zip(LABELS, given, strict=True)}


def _describe(weights: NetworkSet, thresholds: Mapping[str, float], settings: CxrFindingsSettings) -> PipelineInfo:
    parameters = {f"threshold {label}": f"{value:g}" for label, value in thresholds.items()}
    return PipelineInfo(
        label=LABEL,
        name="Pulmo Node chest radiograph findings",
        version=__version__,
        weights_name=weights.name,
        weights_sha256=weights.sha256,
        stages=tuple(
            AlgorithmStage(
                name=f"{spec.architecture} classifier",
                version=weights.version,
                weights_sha256=spec.sha256,
                parameters={**parameters, "views": settings.views, "precision": settings.precision},
            )
            for spec in weights.networks.values()
        ),
        subject="chest findings",
        series_base=9020,
        description="Classification of findings in frontal chest radiographs",
    )
