"""The pipeline `cxr-lung-risk`: the CXR-Lung-Risk score of a frontal chest radiograph.

Input: a :class:`RadiographSeries`. Output: :class:`Findings` with one number for each film: 49.848 plus the weighted
outputs of thirteen regressors (Weiss et al., Nature Communications 14:2797, 2023). It is counted in years and is no
age: it ranks the risk of death from lung disease among asymptomatic people of the PLCO trial. It is no diagnosis.

A film is what its detector gave, trimmed of a frame of one colour, stretched from its darkest to its brightest pixel, 8
bit, shorter side to 512; then the middle square to 224 x 224 (``crop``, as the published notebook does it), or all of
it squashed (``squash``, as its helper script). Errors: :class:`Rejection` ``NOT_FRONTAL``,
:class:`DeviceOutOfMemory`; when it is built also :class:`WeightsMissing`, :class:`WeightsCorrupt`,
:class:`DeviceUnavailable` and ``ValueError`` for settings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as Picture
from torch import Tensor, nn

from pulmo_models import __version__
from pulmo_models.checkpoints import checked_state, load_network, read_container
from pulmo_models.cxr.films import Bytes, as_bytes, chosen_films, film_cautions, normalised
from pulmo_models.cxr.settings import LungRiskSettings
from pulmo_models.device import Runner, resolve_device
from pulmo_models.errors import WeightsCorrupt
from pulmo_models.nets.heads import fastai_head, linear
from pulmo_models.nets.inceptionv4 import inceptionv4_regressor
from pulmo_models.nets.resnet import resnet34
from pulmo_models.nets.tiny_cxr import TinyCXR
from pulmo_models.network_sets import NetworkSet, load_networks
from pulmo_models.pipeline import ProgressCallback, no_progress
from pulmo_models.settings import checked_settings
from pulmo_models.types import (
    AlgorithmStage,
    Estimate,
    Findings,
    Image,
    ImageFindings,
    PipelineInfo,
    Radiograph,
    RadiographSeries,
)

LABEL = "cxr-lung-risk"
SCORE = "CXR-Lung-Risk"
NOTE = "A score counted in years: neither an age nor a diagnosis"

INTERCEPT = 49.8484258
MEMBERS: Mapping[int, tuple[str, float]] = MappingProxyType(
    {
        0: ("inceptionv4", -1.1551714),
        2: ("inceptionv4", 2.0036473),
        3: ("tiny", -1.6726215),
        4: ("tiny", 1.8010226),
        5: ("inceptionv4", -0.4853279),
        9: ("resnet34", -0.2161772),
        10: ("inceptionv4", 0.9842884),
        12: ("resnet34", -0.1226132),
        14: ("tiny", 2.9479456),
        15: ("inceptionv4", 2.7946917),
        16: ("tiny", -0.8413967),
        17: ("tiny", 2.7057807),
        18: ("resnet34", 0.9817661),
    }
)
"""Architecture and weight of those of the twenty published networks whose weight is not 0, by their number."""

SHORTER_SIDE = 512
SIZE = 224


def regressor(architecture: str) -> nn.Module:
    """A member of the ensemble with fresh weights. Raises `WeightsCorrupt` where the name is unknown."""
    builders: dict[str, Callable[[], nn.Module]] = {
        "inceptionv4": inceptionv4_regressor,
        "resnet34": _resnet34_regressor,
        "tiny": TinyCXR,
    }
    if architecture not in builders:
        raise WeightsCorrupt(f"architecture {architecture!r} is unknown; there are: {', '.join(builders)}")
    return builders[architecture]()


def _resnet34_regressor() -> nn.Sequential:
    body = nn.Sequential(*list(resnet34(linear(1)).children())[:-2])
    return nn.Sequential(body, fastai_head(512))


def load_published(path: Path, architecture: str) -> dict[str, Tensor]:
    """The state of one published ``.pth``: a bare state dict, or exactly ``model`` and ``opt``, as fastai saves it.

    Raises:
        WeightsMissing: no such file.
        WeightsCorrupt: more than tensors and plain values in it, or the weights of another network.
    """
    container = read_container(path)
    state = container["model"] if set(container) == {"model", "opt"} else container
    if not isinstance(state, Mapping):
        raise WeightsCorrupt(f"checkpoint {path}: model is a {type(state).__name__}, not a state dict")
    return checked_state(state, regressor(architecture), path)


def member_name(number: int) -> str:
    """How a set of weights names a member."""
    return f"member{number:02d}"


def score(outputs: Mapping[int, float]) -> float:
    """The score from the outputs of the members, by their number."""
    return INTERCEPT + sum(weight * outputs[number] for number, (_, weight) in MEMBERS.items())


def risk_group(value: float) -> str:
    """The group of the publication."""
    return "below 65" if value < 65 else "65 to below 75" if value < 75 else "75 and above"


def network_film(film: npt.NDArray[np.floating], resize: Literal["crop", "squash"], pixel_aspect: float = 1.0) -> Bytes:
    """The film as the members see it, uint8 (224, 224); see the head of this module."""
    trimmed = _trimmed(film)
    low, high = float(trimmed.min()), float(trimmed.max())
    grey = as_bytes((trimmed - low) / max(high - low, 1e-9))
    rows, columns = grey.shape
    height, width = (rows * pixel_aspect, float(columns)) if pixel_aspect > 1 else (float(rows), columns / pixel_aspect)
    scale = SHORTER_SIDE / min(height, width)
    picture = Picture.fromarray(grey).resize((round(width * scale), round(height * scale)), Picture.Resampling.LANCZOS)
    return squared(picture, resize)


def squared(picture: Picture.Image, resize: Literal["crop", "squash"]) -> npt.NDArray[np.uint8]:
    """A picture to 224 x 224: its middle square, or all of it."""
    if resize == "crop":
        side = min(picture.size)
        left, top = ((extent - side) // 2 for extent in picture.size)
        picture = picture.crop((left, top, left + side, top + side))
    return np.asarray(picture.resize((SIZE, SIZE), Picture.Resampling.BILINEAR))


def _trimmed(film: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Without rows and columns at the edges that are of the colour of the first corner throughout."""
    kept = film != film[0, 0]
    rows, columns = np.flatnonzero(kept.any(axis=1)), np.flatnonzero(kept.any(axis=0))
    if not len(rows):
        return film
    return film[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def build(settings: Mapping[str, Any], device: str = "auto") -> LungRiskPipeline:
    """The pipeline with its networks loaded; the factory of the registry.

    Raises:
        ValueError: a setting or the device's name is wrong; every fault names its key.
        WeightsMissing, WeightsCorrupt: the weights cannot be used.
        DeviceUnavailable: ``cuda`` was asked for and there is none.
    """
    return LungRiskPipeline(checked_settings(LungRiskSettings, settings, LABEL), device)


class LungRiskPipeline:
    """The thirteen members, loaded once; call it for one series after another."""

    def __init__(self, settings: LungRiskSettings, device: str = "auto") -> None:
        self._device = resolve_device(device)
        self._settings = settings
        weights = load_networks(settings.weights, LABEL)
        _check_members(weights)
        self._networks = {
            number: load_network(weights.networks[member_name(number)], regressor(architecture))
            for number, (architecture, _) in MEMBERS.items()
        }
        self._info = _describe(weights, settings)

    @property
    def info(self) -> PipelineInfo:
        """Which program with which weights."""
        return self._info

    def __call__(self, image: Image, progress: ProgressCallback = no_progress) -> Findings:
        """Score the frontal films of one series.

        Raises:
            Rejection: the series holds no frontal film.
            DeviceOutOfMemory: not even the CPU has memory for one film.
        """
        if not isinstance(image, RadiographSeries):
            raise TypeError(f"{LABEL} analyses radiographs, not a {type(image).__name__}")
        begun = time.perf_counter()
        films, cautions = chosen_films(image)
        batch = torch.stack([normalised(self._seen(film)) for film in films])
        outputs, fallbacks, devices = {}, [], []
        for place, (number, network) in enumerate(self._networks.items()):
            progress("score", place / len(self._networks))
            runner = Runner(network, self._device, self._settings.precision)
            outputs[number] = runner(batch)["output"][:, 0].double()
            fallbacks += runner.cautions
            devices.append(runner.device.type)
        progress("score", 1.0)
        found = []
        for place, film in enumerate(films):
            value = score({number: float(output[place]) for number, output in outputs.items()})
            estimate = Estimate(label=SCORE, value=value, unit="a", group=risk_group(value), note=NOTE)
            found.append(ImageFindings(source=film.source, estimates=(estimate,), cautions=film_cautions(film)))
        return Findings(
            pipeline=self._info,
            images=tuple(found),
            malignancy_bias=None,
            cautions=(*image.cautions, *cautions, *fallbacks),
            timings_seconds={"score": time.perf_counter() - begun},
            device="+".join(dict.fromkeys(devices)),
            computation={"engine": Runner.name, "precision": runner.precision},
        )

    def _seen(self, film: Radiograph) -> Bytes:
        return network_film(film.pixels, self._settings.resize, film.pixel_aspect)


def _check_members(weights: NetworkSet) -> None:
    expected = {member_name(number): architecture for number, (architecture, _) in MEMBERS.items()}
    found = {name: spec.architecture for name, spec in weights.networks.items()}
    if found != expected:
        wrong = sorted(set(expected.items()) ^ set(found.items()))[0]
        raise WeightsCorrupt(f"set {weights.name} does not hold the {len(expected)} members: see {' '.join(wrong)}")


def _describe(weights: NetworkSet, settings: LungRiskSettings) -> PipelineInfo:
    return PipelineInfo(
        label=LABEL,
        name="Pulmo Node CXR-Lung-Risk",
        version=__version__,
        weights_name=weights.name,
        weights_sha256=weights.sha256,
        stages=(
            AlgorithmStage(
                name="CXR-Lung-Risk ensemble",
                version=weights.version,
                weights_sha256=weights.sha256,
                parameters={"resize": settings.resize, "precision": settings.precision, "members": str(len(MEMBERS))},
            ),
        ),
        subject="lung risk",
        series_base=9030,
        description="Mortality risk score from frontal chest radiographs",
    )
