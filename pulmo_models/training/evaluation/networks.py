"""What is evaluated: an installed set of weights, or the checkpoint of a training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pulmo_models.checkpoints import load_stage1, load_stage2
from pulmo_models.errors import WeightsCorrupt, WeightsMissing
from pulmo_models.nets.heatmap_unet3d import HeatmapUNet3D
from pulmo_models.nets.student2p5d import Student2p5D
from pulmo_models.weights import ConceptScale, load_set

CHECKPOINTS = (".ckpt", ".pt")

_Network = TypeVar("_Network", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, eq=False)
class Networks:
    """The networks of a set, on the CPU and in evaluation mode; a checkpoint has one of the two."""

    name: str
    version: str
    concept_scale: ConceptScale
    sha256: str
    digests: Mapping[str, str]  # of each file
    stage1: HeatmapUNet3D | None
    stage2: Student2p5D | None

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
    if weights.endswith(CHECKPOINTS):
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
    )


def _of_checkpoint(path: Path) -> Networks:
    """A checkpoint holds a state dict below ``state_dict`` (Lightning) or ``network``, whatever its keys begin with."""
    if not path.is_file():
        raise WeightsMissing(f"checkpoint {path} does not exist")
    container = torch.load(path, map_location="cpu", weights_only=True)
    state = container.get("state_dict", container.get("network")) if isinstance(container, Mapping) else None
    if not isinstance(state, Mapping):
        raise WeightsCorrupt(f"checkpoint {path} holds no state dict")
    stage1, stage2 = _fitted(HeatmapUNet3D(), state), _fitted(Student2p5D(), state)
    if stage1 is None and stage2 is None:
        raise WeightsCorrupt(f"checkpoint {path} holds neither a detector nor a characteriser")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Networks(
        name=path.stem,
        version="checkpoint",
        concept_scale="unit",
        sha256=digest,
        digests={"stage1" if stage1 is not None else "stage2": digest},
        stage1=stage1,
        stage2=stage2,
    )


def _fitted(network: _Network, state: Mapping[str, Tensor]) -> _Network | None:
    """The network with those tensors of a state dict whose keys end as its own; None where one is missing."""
    expected = network.state_dict()
    first = next(iter(expected))
    prefixes = {key.removesuffix(first) for key in state if key.endswith(first)}
    for prefix in sorted(prefixes):
        found = {key: state[prefix + key] for key in expected if prefix + key in state}
        if len(found) == len(expected) and all(found[key].shape == expected[key].shape for key in expected):
            network.load_state_dict(found)
            return network.eval()
    return None
