"""Settings of the CT pipelines, free of torch so that a configuration can be checked without loading it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True, kw_only=True)
class NoduleSettings:
    """The table ``[pipelines.ct-nodules]``; the defaults of the thresholds are the published operating point.

    ``protocol = "published"`` is the published inference and nothing else: stage 1 looks at the whole volume and not at
    the lungs only, its arithmetic is fp32 unless ``precision`` asks for bf16, every candidate that stage 2 takes for a
    nodule is reported, without merging and without a limit. ``"tuned"`` is the node's own.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    weights: str = "pulmo-node-2"  # name of a shipped set, or path of a set's .toml
    protocol: Literal["tuned", "published"] = "tuned"
    peak_threshold: Probability = 0.3  # smallest heat-map value of a candidate
    cluster_mm: Annotated[float, Field(ge=0.0)] = 6.0  # a peak closer to a higher one is dropped
    detection_threshold: Probability = 0.5  # smallest stage-2 probability of a reported nodule
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # arithmetic of stage 1; stage 2 is always fp32
