"""What is evaluated: an installed set of weights, or the checkpoint of a training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from pulmo_models.checkpoints import load_stage1, load_stage2
from pulmo_models.errors import WeightsCorrupt
from pulmo_models.nets.heatmap_unet3d import HeatmapUNet3D
from pulmo_models.nets.student2p5d import Student2p5D
from pulmo_models.nets.teacher3d import HybridMultiTaskCBM
from pulmo_models.training.fitting.runs import trained_state
from pulmo_models.weights import ConceptScale, OperatingPoint, load_set

CHECKPOINT = ".ckpt"


@dataclass(frozen=True, kw_only=True, eq=False)
class Networks:
    """The networks of a set, on the CPU and in evaluation mode; a checkpoint has one of the three."""

    name: str
    version: str
    concept_scale: ConceptScale
    sha256: str
    digests: Mapping[str, str]  # of each file
    stage1: HeatmapUNet3D | None
    stage2: Student2p5D | None
    teacher: HybridMultiTaskCBM | None = None
    operating_point: OperatingPoint = field(default_factory=OperatingPoint)

    def described(self) -> dict[str, Any]:
        """For the report."""
        return {
            "name": self.name,
            "version": self.version,
            "sha256": self.sha256,
            "files": dict(self.digests),
            "concept_scale": self.concept_scale,
        }


def load_networks(weights: str) -> Networks:
    """The networks of a set's name, of the path of its manifest, or of a training's checkpoint.

    Raises:
        WeightsMissing, WeightsCorrupt: there is no such thing, or it holds neither network.
    """
    if weights.endswith(CHECKPOINT):
        return _of_checkpoint(Path(weights))
    found = load_set(weights)
    return Networks(
        name=found.name,
        version=found.version,
        concept_scale=found.concept_scale,
        sha256=found.sha256,
        digests={"stage1": found.stage1.sha256, "stage2": found.stage2.sha256},
        stage1=load_stage1(found).eval(),
        stage2=load_stage2(found).eval(),
        operating_point=found.operating_point,
    )


def _of_checkpoint(path: Path) -> Networks:
    state = trained_state(path)
    networks = {"stage1": HeatmapUNet3D(), "stage2": Student2p5D(), "teacher": HybridMultiTaskCBM()}
    fitting = [name for name, network in networks.items() if _shapes(network.state_dict()) == _shapes(state)]
    if not fitting:
        raise WeightsCorrupt(f"checkpoint {path} holds neither a detector nor a characteriser nor a teacher")
    network = networks[fitting[0]]
    network.load_state_dict(state)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    found: dict[str, Any] = {"stage1": None, "stage2": None, fitting[0]: network.eval()}
    return Networks(
        name=f"{path.parent.name} {path.stem}",
        version="checkpoint",
        concept_scale=_concept_scale(path),
        sha256=digest,
        digests={fitting[0]: digest},
        **found,
    )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}


def _concept_scale(path: Path) -> ConceptScale:
    """A checkpoint of a characteriser or teacher says it; a detector has no concepts."""
    found = torch.load(path, map_location="cpu", weights_only=True).get("concept_scale", "unit")
    if found not in ("raw", "unit"):
        raise WeightsCorrupt(f"checkpoint {path}: concept_scale is {found!r}, not raw or unit")
    return cast(ConceptScale, found)
