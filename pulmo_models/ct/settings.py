"""Settings of the CT pipelines, free of torch so that a configuration can be checked without loading it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from pulmo_models.weights import OperatingPoint

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True, kw_only=True)
class NoduleSettings:
    """The table ``[pipelines.ct-nodules]``. A threshold that is not given is that of the set of weights.

    ``protocol = "published"`` is the published inference and nothing else: stage 1 looks at the whole volume and not at
    the lungs only, its arithmetic is fp32 unless ``precision`` asks for bf16, every candidate that stage 2 takes for a
    nodule is reported, without merging and without a limit, and torch computes it unless ``engine`` asks for another.
    ``"tuned"`` is the node's own; ``overlap`` and ``doubt`` are for it alone.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    weights: str = "pulmo-node-3"  # name of a shipped set, or path of a set's .toml
    protocol: Literal["tuned", "published"] = "tuned"
    peak_threshold: Probability | None = None  # smallest heat-map value of a candidate
    cluster_mm: Annotated[float, Field(ge=0.0)] = 6.0  # a peak closer to a higher one is dropped
    detection_threshold: Probability | None = None  # smallest stage-2 probability of a reported nodule
    engine: Literal["auto", "torch", "compiled", "openvino"] = "auto"  # what computes
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # arithmetic of stage 1; what stage 2 reports is fp32
    overlap: Annotated[float, Field(ge=0.0, le=0.75)] = 0.0625  # least share of a window of stage 1 in its neighbour's
    doubt: Probability = 0.05  # candidates that near the peak threshold are computed anew in published windows
    threads: Annotated[int, Field(ge=0)] = 0  # on the CPU; 0: as many as there are cores

    def at(self, point: OperatingPoint) -> OperatingPoint:
        """The thresholds in force with weights that are to be used at `point`."""
        peak, detection = self.peak_threshold, self.detection_threshold
        return OperatingPoint(
            peak_threshold=point.peak_threshold if peak is None else peak,
            detection_threshold=point.detection_threshold if detection is None else detection,
        )
