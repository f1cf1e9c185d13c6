"""The pipeline of the learned lung localisation: the lungs as segments, their volumes in the report.

Input: a :class:`Volume`. Output: :class:`Findings` with both lungs and a conclusion for each, and no nodules: none are
looked for. Errors: :class:`Rejection` ``NO_LUNGS``, :class:`DeviceOutOfMemory`; when it is built
:class:`WeightsMissing`, :class:`WeightsCorrupt`, :class:`DeviceUnavailable` and ``ValueError`` for settings.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from pulmo_models import __version__
from pulmo_models.ct.lung_boxes import LABEL, load_localiser
from pulmo_models.ct.nodules import known
from pulmo_models.ct.scope import partial_lungs
from pulmo_models.ct.settings import LungSettings
from pulmo_models.network_sets import load_networks
from pulmo_models.pipeline import ProgressCallback, no_progress
from pulmo_models.settings import checked_settings
from pulmo_models.types import AlgorithmStage, Findings, PipelineInfo, Radiograph, RadiographSeries, Volume


def build(settings: Mapping[str, Any], device: str = "auto") -> LungPipeline:
    """The pipeline with its networks loaded; the factory of the registry.

    Raises:
        ValueError: a setting or the device's name is wrong; every fault names its key.
        WeightsMissing, WeightsCorrupt: the weights cannot be used.
        DeviceUnavailable: ``cuda`` was asked for and there is none.
    """
    return LungPipeline(checked_settings(LungSettings, settings, LABEL), device)


class LungPipeline:
    """The ensemble; call it for one volume after another."""

    def __init__(self, settings: LungSettings, device: str = "auto") -> None:
        self._localise = load_localiser(settings.weights, device)
        weights = load_networks(settings.weights, LABEL)
        self._info = PipelineInfo(
            label=LABEL,
            name="Pulmo Node lung localisation",
            version=__version__,
            weights_name=weights.name,
            weights_sha256=weights.sha256,
            stages=tuple(
                AlgorithmStage(
                    name=f"{spec.architecture} box regressor", version=weights.version, weights_sha256=spec.sha256
                )
                for spec in weights.networks.values()
            ),
            subject="lungs",
            description="Localisation of the lungs",
            series_base=9040,
        )

    @property
    def info(self) -> PipelineInfo:
        """Which program with which weights."""
        return self._info

    def __call__(
        self, image: Volume | Radiograph | RadiographSeries, progress: ProgressCallback = no_progress
    ) -> Findings:
        """Find the lungs of one CT volume.

        Raises:
            Rejection: there are none.
            DeviceOutOfMemory: not even the CPU has memory for one batch of slices.
        """
        if not isinstance(image, Volume):
            raise TypeError(f"{LABEL} analyses a CT volume, not a {type(image).__name__}")
        progress("lungs", 0.0)
        begun = time.perf_counter()
        region = self._localise(image)
        lungs = region.lungs()
        voxel_ml = abs(float(np.linalg.det(image.affine[:3, :3]))) / 1000
        said = [
            f"{side.capitalize()} lung: {mask.voxels.sum() * voxel_ml:.0f} ml." for side, mask in sorted(lungs.items())
        ]
        progress("lungs", 1.0)
        return Findings(
            pipeline=self._info,
            lungs=lungs,
            malignancy_bias=None,
            conclusions=(" ".join(said), "Nodules were not looked for."),
            cautions=(*image.cautions, *known(partial_lungs(image, region.mask))),
            timings_seconds={"lungs": time.perf_counter() - begun},
            device=self._localise.device.type,
        )
