"""The table of pipelines. Free of torch: a factory is imported by its path when a pipeline is first built."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from pulmo_models.ct.settings import LungSettings, NoduleSettings, RetinaNetSettings
from pulmo_models.cxr.settings import CxrFindingsSettings, LungRiskSettings
from pulmo_models.errors import UnknownPipeline
from pulmo_models.pipeline import Pipeline
from pulmo_models.types import SeriesDescription

log = logging.getLogger(__name__)

ENTRY_POINTS = "pulmo_node.pipelines"
"""Group of entry points by which another package adds pipelines: ``label = "module:entry"``."""

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2.1"
LEGACY_CONVERTED_ENHANCED_CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2.2"


def accepts_ct(series: SeriesDescription) -> str | None:
    """None where a CT pipeline may look at the series, otherwise the reason why not."""
    if series.modality != "CT":
        return f"modality is {series.modality or 'missing'}, not CT"
    return None


_CHEST = ("CHEST", "THORAX", "LUNG")


def accepts_radiograph(series: SeriesDescription) -> str | None:
    """None where a chest radiograph pipeline may look at the series, otherwise the reason why not.

    A series may hold several views; the pipeline looks at each.
    """
    if series.modality not in ("CR", "DX"):
        return f"modality is {series.modality or 'missing'}, not CR or DX"
    part = series.body_part_examined.upper()
    if part and not any(word in part for word in _CHEST):
        return f"the body part is {part}, not the chest"
    return None


@dataclass(frozen=True, kw_only=True)
class PipelineEntry:
    """How to recognise a series for a pipeline and how to build it."""

    label: str
    summary: str
    modality: str
    accepts: Callable[[SeriesDescription], str | None]  # None, or a reason in words
    factory: str  # "module:function"; called with (settings: Mapping, device: str)
    settings: type  # dataclass of its table in the configuration, to check one without building the pipeline
    requires: tuple[str, ...] = ()  # packages besides those of the project itself
    weights_keys: tuple[str, ...] = ("weights",)  # settings that name a set of weights; a caller says where it lies
    weights_hint: str = ""  # how to get weights that do not come with the package


_ENTRIES: dict[str, PipelineEntry] = {
    entry.label: entry
    for entry in (
        PipelineEntry(
            label="ct-nodules",
            summary="lung nodules in chest CT: detector, concept-bottleneck characteriser, masks",
            modality="CT",
            accepts=accepts_ct,
            factory="pulmo_models.ct.nodules:build",
            settings=NoduleSettings,
            weights_keys=("weights", "lung_weights"),
        ),
        PipelineEntry(
            label="cxr-findings",
            summary="five findings in frontal chest radiographs, with a heat map for each",
            modality="CR, DX",
            accepts=accepts_radiograph,
            factory="pulmo_models.cxr.classification:build",
            settings=CxrFindingsSettings,
            weights_hint="train some with pulmo-train cxr, or take published ones: pulmo-node weights import-findings",
        ),
        PipelineEntry(
            label="cxr-lung-risk",
            summary="CXR-Lung-Risk, a score of the risk of death from lung disease, from frontal chest radiographs",
            modality="CR, DX",
            accepts=accepts_radiograph,
            factory="pulmo_models.cxr.lung_risk:build",
            settings=LungRiskSettings,
            weights_hint="fetch those of Zenodo 7941660, then: pulmo-node weights import-lung-risk",
        ),
        PipelineEntry(
            label="ct-lungs",
            summary="lungs in chest CT: boxes by 2D regressors, both lungs as segments with their volumes",
            modality="CT",
            accepts=accepts_ct,
            factory="pulmo_models.ct.lung_region:build",
            settings=LungSettings,
            weights_hint="train some with pulmo-train lungs",
        ),
        PipelineEntry(
            label="ct-retinanet",
            summary="lung nodules in chest CT as boxes: MONAI's LUNA16 RetinaNet, alone or before the characteriser",
            modality="CT",
            accepts=accepts_ct,
            factory="pulmo_models.ct.box_nodules:build",
            settings=RetinaNetSettings,
            weights_hint="pulmo-node weights fetch monai-luna16",
            weights_keys=("weights", "characteriser", "lung_weights"),
        ),
    )
}


def entries() -> tuple[PipelineEntry, ...]:
    """Every registered pipeline, by label; those of other packages that can be loaded among them."""
    for label in _of_packages():
        try:
            entry(label)
        except UnknownPipeline as exc:
            log.warning("%s", exc)
    return tuple(_ENTRIES[label] for label in sorted(_ENTRIES))


def register(entry: PipelineEntry) -> None:
    """Add a pipeline, or put another in the place of the one under its label."""
    _ENTRIES[entry.label] = entry


def entry(label: str) -> PipelineEntry:
    """The entry of one pipeline, of this package or of another (docs/add-a-pipeline.md).

    Raises:
        UnknownPipeline: there is none under that label, or the package that has it is broken.
    """
    if label not in _ENTRIES:
        point = _of_packages().get(label)
        if point is None:
            labels = ", ".join(sorted({*_ENTRIES, *_of_packages()}))
            raise UnknownPipeline(f"no pipeline {label!r}; registered are: {labels}")
        register(_loaded(label, point))
    return _ENTRIES[label]


@cache
def _of_packages() -> dict[str, EntryPoint]:
    """What installed packages offer in the group of entry points, by label; none is loaded."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _loaded(label: str, point: EntryPoint) -> PipelineEntry:
    try:
        found = point.load()
    except (ImportError, AttributeError) as exc:
        raise UnknownPipeline(f"pipeline {label!r} of {point.value} cannot be loaded: {exc}") from exc
    if not isinstance(found, PipelineEntry) or found.label != label:
        raise UnknownPipeline(f"pipeline {label!r}: {point.value} is no PipelineEntry of that label")
    return found


def build(label: str, settings: Mapping[str, Any], device: str = "auto") -> Pipeline:
    """Import the factory of a pipeline and build it with its table of settings.

    Raises:
        UnknownPipeline: unknown label, or a package that it requires is missing.
        WeightsMissing, WeightsCorrupt: its weights cannot be used.
        DeviceUnavailable: the device asked for does not exist.
    """
    found = entry(label)
    for package in found.requires:
        try:
            importlib.import_module(package)
        except ImportError as exc:
            raise UnknownPipeline(f"pipeline {label!r} needs {package}: pip install {package}") from exc
    module, _, name = found.factory.partition(":")
    factory = getattr(importlib.import_module(module), name)
    return cast(Pipeline, factory(settings, device))
