"""What a pipeline found in a series, and which pipeline it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pulmo_models.types.films import ImageFindings
from pulmo_models.types.images import Caution, Laterality
from pulmo_models.types.nodules import Mask, Nodule


@dataclass(frozen=True, kw_only=True)
class AlgorithmStage:
    """One trained network of a pipeline, as a report identifies it."""

    name: str
    version: str
    weights_sha256: str
    parameters: Mapping[str, str] = field(default_factory=dict)  # thresholds and the like


@dataclass(frozen=True, kw_only=True)
class PipelineInfo:
    """Which program with which weights made a set of findings."""

    label: str  # registry key, for example "ct-nodules"
    name: str  # for people
    version: str
    weights_name: str
    weights_sha256: str  # over the digests of all its files, in order
    stages: tuple[AlgorithmStage, ...] = ()
    subject: str = "nodules"  # of its results, as the descriptions of their series name it
    description: str = "Detection, measurement and characterisation of lung nodules"
    series_base: int = 9000  # the series of its results have the next numbers: each pipeline its own


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """What a pipeline found in one series. Its nodules all have masks, or none has."""

    pipeline: PipelineInfo
    nodules: tuple[Nodule, ...] = ()
    images: tuple[ImageFindings, ...] = ()  # of a radiograph pipeline, one for each radiograph that it analysed
    lungs: Mapping[Laterality, Mask] = field(default_factory=dict)  # where the pipeline looked for them
    malignancy_bias: float | None = 0.0  # difference of the malignancy head: logit = sum of contributions + bias
    conclusions: tuple[str, ...] = ()  # of a pipeline that looks for no nodules, a sentence each
    cautions: tuple[Caution, ...] = ()  # of the volume and of the analysis
    timings_seconds: Mapping[str, float] = field(default_factory=dict)
    device: str = "cpu"
    computation: Mapping[str, str] = field(default_factory=dict)  # engine, precision, windows ...: for the record

    def __post_init__(self) -> None:
        if len({nodule.mask is None for nodule in self.nodules}) > 1:
            raise ValueError("some of the nodules have masks and others have none")

    @property
    def outlined(self) -> bool:
        """Whether there are nodules, with masks."""
        return bool(self.nodules) and self.nodules[0].mask is not None
