"""Sets of weights of any pipeline but the two-stage one: a manifest that names networks in order, and a file for each.

The manifest is TOML: texts as those of :mod:`pulmo_models.weights`, the label of the pipeline, a table
``[networks.NAME]`` for each network with its architecture and its safetensors file beside the manifest, and where the
pipeline needs it ``[settings]``: plain values that belong to the weights (thresholds, weights of an ensemble).
Free of torch; :func:`pulmo_models.checkpoints.load_network` turns a file into a network.

Errors: :class:`WeightsMissing`, :class:`WeightsCorrupt`, each naming the file and the reason.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pulmo_models.errors import WeightsCorrupt
from pulmo_models.weights import (
    OPTIONAL_KEYS,
    SOURCE_KEYS,
    TEXT_KEYS,
    WeightSet,
    WeightSpec,
    locate,
    read_manifest,
    read_spec,
    read_table,
    toml_text,
    verify_file,
)

Setting = str | float | int | bool | list[float]


@dataclass(frozen=True, kw_only=True)
class NetworkSpec(WeightSpec):
    """One network of a set: its file and what it is."""

    architecture: (
        str  # name of the module of `pulmo_models.nets` and what its constructor is told, as the pipeline reads it
    )


@dataclass(frozen=True, kw_only=True)
class NetworkSet:
    """The networks of one pipeline, used together."""

    pipeline: str  # registry label
    name: str
    version: str
    licence: str
    origin: str  # where the weights come from, one sentence
    attribution: str  # what the licences of weights and training data ask to be said
    networks: Mapping[str, NetworkSpec]  # by name, in order
    settings: Mapping[str, Setting] = field(default_factory=dict)
    repository: str = ""
    commit: str = ""

    @property
    def sha256(self) -> str:
        """One hash for the whole set: SHA-256 over the digests of its files in order, joined by a line feed."""
        return hashlib.sha256("\n".join(spec.digest for spec in self.networks.values()).encode()).hexdigest()


def read_networks(path: Path, pipeline: str | None = None) -> NetworkSet:
    """Read one manifest; the files that it names are not looked at.

    Raises:
        WeightsMissing: no such file.
        WeightsCorrupt: not such a manifest, or, where ``pipeline`` is given, that of another one.
    """
    table = read_table(path)
    label, networks, settings = table.get("pipeline"), table.get("networks"), table.get("settings", {})
    if not isinstance(label, str) or not isinstance(networks, Mapping) or not networks:
        raise WeightsCorrupt(f"weights manifest {path}: it names no pipeline, or no [networks.NAME]")
    if pipeline is not None and label != pipeline:
        raise WeightsCorrupt(f"weights manifest {path}: its networks are for the pipeline {label}, not for {pipeline}")
    if not isinstance(settings, Mapping):
        raise WeightsCorrupt(f"weights manifest {path}: [settings] must be a table")
    return NetworkSet(
        pipeline=label,
        name=table["name"],
        version=table["version"],
        licence=table["licence"],
        origin=table["origin"],
        attribution=table["attribution"],
        networks={name: _network(path, name, entry) for name, entry in networks.items()},
        settings=dict(settings),
        repository=table.get("repository", ""),
        commit=table.get("commit", ""),
    )


def load_networks(name_or_path: str | Path, pipeline: str, folder: Path | None = None) -> NetworkSet:
    """The set of that name, or of the manifest at that path, for one pipeline. Errors as :func:`read_networks`."""
    return read_networks(locate(name_or_path, folder), pipeline)


def read_any(path: Path) -> WeightSet | NetworkSet:
    """Read a manifest of either kind. Errors as :func:`read_networks`."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return read_manifest(path)  # which says what is wrong
    return read_networks(path) if "networks" in table else read_manifest(path)


def specs_of(weights: WeightSet | NetworkSet) -> tuple[WeightSpec, ...]:
    """The files of a set, in order."""
    if isinstance(weights, NetworkSet):
        return tuple(weights.networks.values())
    return weights.stage1, weights.stage2


def verify_any(weights: WeightSet | NetworkSet) -> None:
    """Check every file of a set.

    Raises:
        WeightsMissing, WeightsCorrupt: the first fault.
    """
    for spec in specs_of(weights):
        verify_file(spec)


def write_networks(path: Path, weights: NetworkSet) -> None:
    """Write the manifest of a set whose files lie beside ``path``."""
    lines = [f"{key} = {toml_text(getattr(weights, key))}" for key in (*TEXT_KEYS, "pipeline")]
    lines += [f"{key} = {toml_text(value)}" for key in OPTIONAL_KEYS if (value := getattr(weights, key))]
    for name, spec in weights.networks.items():
        lines += [
            "",
            f"[networks.{name}]",
            f"architecture = {toml_text(spec.architecture)}",
            f"file = {toml_text(spec.path.name)}",
            f"digest = {toml_text(spec.digest)}",
            f"size_bytes = {spec.size_bytes}",
            *(f"{key} = {toml_text(value)}" for key in SOURCE_KEYS if (value := getattr(spec, key))),
        ]
    if weights.settings:
        lines += ["", "[settings]", *(f"{key} = {_plain(value)}" for key, value in weights.settings.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _network(manifest: Path, name: str, table: Any) -> NetworkSpec:
    spec = read_spec(manifest, f"networks.{name}", table)
    architecture = table.get("architecture")
    if not isinstance(architecture, str) or not architecture:
        raise WeightsCorrupt(f"weights manifest {manifest}: networks.{name}.architecture must be a text")
    return NetworkSpec(**vars(spec), architecture=architecture)


def _plain(value: Setting) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return toml_text(value)
    return f"[{', '.join(map(repr, value))}]" if isinstance(value, list) else repr(value)
