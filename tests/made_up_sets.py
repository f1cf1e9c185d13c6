"""Sets of weights for the CT pipelines that come without any: networks as they are built, or as a test makes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from pulmo_models.checkpoints import save_network
from pulmo_models.nets.lung_boxes import ARCHITECTURES
from pulmo_models.network_sets import NetworkSet, NetworkSpec, write_networks

_ABOUT = {"version": "0", "licence": "none", "origin": "made up", "attribution": "nobody"}
_BOX = (0.0, 0.0, 1.4, 0.8)  # centre and size before the sigmoid: the middle of a slice, most of it


def write_network_set(folder: Path, pipeline: str, networks: Mapping[str, nn.Module], name: str = "some") -> Path:
    """A set of these networks, each by its name in the set; the path of its manifest.

    A detector is a ``RetinaNet3D``, everything else is called as its architecture.
    """
    specs = {}
    for key, network in networks.items():
        spec = save_network(folder / f"{name}-{key}.safetensors", network.state_dict(), network)
        specs[key] = NetworkSpec(**vars(spec), architecture="RetinaNet3D" if key == "detector" else key)
    write_networks(folder / f"{name}.toml", NetworkSet(name=name, pipeline=pipeline, networks=specs, **_ABOUT))
    return folder / f"{name}.toml"


def drawing_regressor(architecture: str) -> nn.Module:
    """A regressor of ct-lungs that draws the same box in every slice."""
    network = ARCHITECTURES[architecture]()
    *_, last = (module for module in network.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor(_BOX))
    return network
