"""Settings of the radiograph pipelines, free of torch so that a configuration can be checked without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

LABELS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The five findings in the order of the outputs."""

Label = Literal["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True, kw_only=True)
class CxrFindingsSettings:
    """The table ``[pipelines.cxr-findings]``. A threshold that is not given is that of the set of weights, else 0.5."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    weights: str = "cxr-findings"  # name of a set, or path of a set's .toml
    views: Literal["frontal", "all"] = (
        "frontal"  # all: also lateral and other views, as the published training had them
    )
    thresholds: Mapping[Label, Probability] = field(default_factory=dict)
    precision: Literal["auto", "fp32", "bf16"] = "fp32"


@dataclass(frozen=True, kw_only=True)
class LungRiskSettings:
    """The table ``[pipelines.cxr-lung-risk]``."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    weights: str = "cxr-lung-risk"  # name of a set, or path of a set's .toml
    resize: Literal["crop", "squash"] = (
        "crop"  # to a square: the notebook's way (known outputs), or the helper script's
    )
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
