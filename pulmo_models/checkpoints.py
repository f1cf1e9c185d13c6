"""From files of weights to networks, from state dicts to a set of weights, and the reading of published checkpoints.

Nothing here unpickles arbitrary objects: shipped and imported weights are safetensors, and a published ``.pth`` is read
by ``torch.load(weights_only=True)`` with exactly the numpy globals that the scalars of its ``val`` entry need.

Errors: :class:`WeightsMissing`, :class:`WeightsCorrupt`, each naming the file and the reason.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pulmo_models.errors import WeightsCorrupt, WeightsMissing
from pulmo_models.nets.heatmap_unet3d import HeatmapUNet3D
from pulmo_models.nets.student2p5d import Student2p5D
from pulmo_models.weights import (
    ConceptScale,
    WeightSet,
    WeightSpec,
    describe_file,
    sha256_of,
    verify_file,
    write_manifest,
)

PUBLISHED_METADATA: Mapping[str, object] = {
    "base": 16,
    "n_slices": 7,
    "PATCH": (64, 128, 128),
    "HU_CLIP": (-1000, 1000),
}
"""What a published checkpoint says of itself and the code takes for granted; checked where it is there."""

_SCALAR = np.float64(0).__reduce__()[0]  # the function that rebuilds a pickled numpy scalar
_NUMPY_GLOBALS: list[Any] = [
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),  # as numpy 1 wrote it
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
]

# torch.load has no error of its own: a file that is none of its kinds ends in any of these.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
)


def load_network(spec: WeightSpec, network: nn.Module) -> nn.Module:
    """The network with the weights of a verified safetensors file, in evaluation mode.

    Raises:
        WeightsMissing: no such file.
        WeightsCorrupt: truncated, wrong digest, no safetensors, foreign or missing keys, wrong shapes, not finite.
    """
    path = verify_file(spec)
    try:
        state = load_file(path)
    except SafetensorError as exc:
        raise WeightsCorrupt(f"weights file {path} is no safetensors file: {exc}") from exc
    network.load_state_dict(checked_state(state, network, path), strict=True)
    return network.eval()


def load_stage1(weights: WeightSet) -> HeatmapUNet3D:
    """The detector of a set. Errors as :func:`load_network`."""
    network = HeatmapUNet3D()
    load_network(weights.stage1, network)
    return network


def load_stage2(weights: WeightSet) -> Student2p5D:
    """The characteriser of a set. Errors as :func:`load_network`."""
    network = Student2p5D()
    load_network(weights.stage2, network)
    return network


def load_published_checkpoint(path: Path, network: nn.Module) -> dict[str, Tensor]:
    """The state of a published ``.pth``: a dict with ``model_state_dict`` and metadata, or a bare state dict.

    ``network`` gives the keys and shapes that are expected; it is not changed.

    Raises:
        WeightsMissing: no such file.
        WeightsCorrupt: anything but tensors and plain metadata in it, other keys or shapes, other metadata.
    """
    container = read_container(path, _NUMPY_GLOBALS)
    state = container
    if "model_state_dict" in container:
        state = container["model_state_dict"]
        for key, expected in PUBLISHED_METADATA.items():
            if key in container and _plain(container[key]) != expected:
                raise WeightsCorrupt(f"checkpoint {path}: {key} is {container[key]!r}, not {expected!r}")
    if not isinstance(state, Mapping):
        raise WeightsCorrupt(f"checkpoint {path}: model_state_dict is a {type(state).__name__}, not a state dict")
    return checked_state(state, network, path)


def read_container(path: Path, known_globals: Sequence[Any] = ()) -> Mapping[Any, Any]:
    """The mapping that a file of ``torch.save`` holds: tensors, plain values and the globals that are named.

    Raises:
        WeightsMissing: no such file.
        WeightsCorrupt: it is no such file, or holds anything else.
    """
    if not path.is_file():
        raise WeightsMissing(f"checkpoint {path} does not exist")
    try:
        with torch.serialization.safe_globals(list(known_globals)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a foreign file's format; what matters is raised
            container = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as exc:
        # Of a KeyError that would be the key alone; torch's further sentences advise to trust the file.
        words = "" if isinstance(exc, KeyError) else str(exc).partition("\n")[0].partition(". ")[0]
        reason = words or type(exc).__name__
        raise WeightsCorrupt(f"checkpoint {path} cannot be read as tensors and plain values: {reason}") from exc
    if not isinstance(container, Mapping):
        raise WeightsCorrupt(f"checkpoint {path} holds a {type(container).__name__}, not a state dict")
    return container


def load_state(
    path: Path,
    network: nn.Module,
    *,
    containers: Sequence[str] = (),
    prefix: str = "",
    known_globals: Sequence[Any] = (),
) -> dict[str, Tensor]:
    """The state of any published checkpoint: a bare state dict, or a mapping that holds one under one of the keys.

    ``network`` gives the keys and shapes that are expected; it is not changed. ``prefix`` stands before every key, as
    Lightning writes those of a module's attribute.

    Raises:
        WeightsMissing: no such file.
        WeightsCorrupt: anything but tensors and plain values in it, or other keys or shapes.
    """
    state = read_container(path, known_globals)
    for key in containers:
        if key in state and not isinstance(state[key], Tensor):
            state = state[key]
            break
    if not isinstance(state, Mapping):
        raise WeightsCorrupt(f"checkpoint {path} holds a {type(state).__name__} where its weights should be")
    if prefix:
        if foreign := sorted(str(key) for key in state if not str(key).startswith(prefix)):
            raise WeightsCorrupt(f"{path}: {len(foreign)} keys do not begin with {prefix}, the first is {foreign[0]}")
        state = {str(key).removeprefix(prefix): value for key, value in state.items()}
    return checked_state(state, network, path)


def save_network(path: Path, state: Mapping[str, Tensor], network: nn.Module) -> WeightSpec:
    """Write a state as a safetensors file and return what a manifest says of it.

    Raises:
        WeightsCorrupt: keys or shapes are not those of the network.
    """
    # Not by save_file, which lets nobody but the writer read: a node may run as another user.
    path.write_bytes(save({key: value.contiguous() for key, value in checked_state(state, network, path).items()}))
    return describe_file(path)


def write_set(
    out_dir: Path,
    *,
    name: str,
    stage1: Mapping[str, Tensor],
    stage2: Mapping[str, Tensor],
    concept_scale: ConceptScale,
    about: Mapping[str, str],
    sources: Mapping[str, Path] | None = None,
) -> Path:
    """Write two state dicts as a set and return the path of its manifest, ``<out_dir>/<name>.toml``.

    ``about`` gives ``version``, ``licence``, ``origin`` and ``attribution``, and where there are such ``repository``
    and ``commit``. ``sources`` gives the files that ``stage1`` and ``stage2`` were converted from.

    Raises:
        WeightsCorrupt: keys or shapes are not those of the two networks.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    specs = {}
    parts: tuple[tuple[str, Mapping[str, Tensor], nn.Module], ...] = (
        ("stage1", stage1, HeatmapUNet3D()),
        ("stage2", stage2, Student2p5D()),
    )
    for stage, state, network in parts:
        path = out_dir / f"{name}-{stage}.safetensors"
        specs[stage] = save_network(path, state, network)
        if sources:
            source = sources[stage]
            digest = f"sha256:{sha256_of(source)}"
            specs[stage] = replace(specs[stage], source_file=source.name, source_digest=digest)
    manifest = out_dir / f"{name}.toml"
    weights = WeightSet(
        name=name,
        version=about["version"],
        licence=about["licence"],
        origin=about["origin"],
        attribution=about["attribution"],
        concept_scale=concept_scale,
        stage1=specs["stage1"],
        stage2=specs["stage2"],
        repository=about.get("repository", ""),
        commit=about.get("commit", ""),
    )
    write_manifest(manifest, weights)
    return manifest


def checked_state(state: Mapping[Any, Any], network: nn.Module, path: Path) -> dict[str, Tensor]:
    """The state if its keys and shapes are exactly those of the network and every value is finite.

    Floating point becomes float32; the counters of batch norms stay integers.
    """
    expected = network.state_dict()
    if missing := sorted(set(expected) - set(state)):
        raise WeightsCorrupt(f"{path}: {len(missing)} keys are missing, the first is {missing[0]}")
    if foreign := sorted(map(str, set(state) - set(expected))):
        raise WeightsCorrupt(f"{path}: {len(foreign)} keys are foreign, the first is {foreign[0]}")
    found = {}
    for key, want in expected.items():
        value = state[key]
        if not isinstance(value, Tensor) or value.is_floating_point() != want.is_floating_point():
            kind = "floating point numbers" if want.is_floating_point() else "integers"
            raise WeightsCorrupt(f"{path}: {key} is no tensor of {kind}")
        if value.shape != want.shape:
            raise WeightsCorrupt(f"{path}: {key} has shape {list(value.shape)}, not {list(want.shape)}")
        if value.layout != torch.strided or value.is_meta:
            raise WeightsCorrupt(f"{path}: {key} is sparse or without values")
        found[key] = value.detach().to(want.dtype)
        if not bool(torch.isfinite(found[key]).all()):
            raise WeightsCorrupt(f"{path}: {key} holds values that are not finite")
    return found


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
