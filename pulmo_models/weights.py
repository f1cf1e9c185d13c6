"""Sets of weights: what they are, where they lie, and whether a file is the one that its manifest names.

A set is one TOML manifest with its safetensors files beside it. Shipped sets lie in ``pulmo_models/data``, fetched and
imported ones in a folder of their own inside the weights folder of the caller; both are known by name, which is that of
the manifest. Any other set is known by the path of its manifest. Nothing is read at import, and nothing is downloaded.
This module is free of torch; :mod:`pulmo_models.checkpoints` turns a verified file into a network.

Errors: :class:`WeightsMissing`, :class:`WeightsCorrupt`, each naming the file and the reason.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast

from pulmo_models.errors import WeightsCorrupt, WeightsMissing

ConceptScale = Literal["raw", "unit"]
"""``raw``: the network's concept outputs are LIDC ratings; ``unit``: they are (rating - 1) / 4."""

TEXT_KEYS = ("name", "version", "licence", "origin", "attribution")
OPTIONAL_KEYS = ("repository", "commit")
SOURCE_KEYS = ("source_file", "source_digest")
_STAGES = ("stage1", "stage2")


@dataclass(frozen=True, kw_only=True)
class WeightSpec:
    """One safetensors file of a set."""

    path: Path
    digest: str  # "sha256:" and 64 hexadecimal digits
    size_bytes: int
    source_file: str = ""  # name of the checkpoint that it was converted from
    source_digest: str = ""  # and the digest of that file

    @property
    def sha256(self) -> str:
        """The digest without the name of its algorithm."""
        return self.digest.removeprefix("sha256:")


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """The thresholds that a set of weights is to be used with; by default those of the published inference."""

    peak_threshold: float = 0.3  # smallest heat-map value of a candidate
    detection_threshold: float = 0.5  # smallest stage-2 probability of a reported nodule


@dataclass(frozen=True, kw_only=True)
class WeightSet:
    """The two networks of the nodule pipeline, trained together."""

    name: str
    version: str
    licence: str
    origin: str  # where the weights come from, one sentence
    attribution: str  # what the licences of weights and training data ask to be said
    concept_scale: ConceptScale
    stage1: WeightSpec
    stage2: WeightSpec
    repository: str = ""  # of the hub that the checkpoints came from
    commit: str = ""  # and their commit there
    operating_point: OperatingPoint = OperatingPoint()

    @property
    def sha256(self) -> str:
        """One hash for the whole set: SHA-256 over the digests of its files in order, joined by a line feed."""
        return hashlib.sha256(f"{self.stage1.digest}\n{self.stage2.digest}".encode()).hexdigest()


def shipped_folder() -> Path:
    """The folder of the sets that come with the package."""
    return Path(str(files("pulmo_models") / "data"))


def manifests(folder: Path | None = None) -> tuple[Path, ...]:
    """The manifests of every shipped set and of those in a weights folder; none is read."""
    found = sorted(shipped_folder().glob("*.toml"))
    if folder is not None:
        mine = (*folder.glob("*.toml"), *folder.glob("*/*.toml"))
        found += sorted(path for path in mine if not path.parent.name.startswith("."))
    return tuple(found)


def list_sets(folder: Path | None = None) -> tuple[WeightSet, ...]:
    """Every shipped set and those of a weights folder; the files of a set are not looked at. Errors: WeightsCorrupt.

    Sets of other pipelines (:mod:`pulmo_models.network_sets`) are passed over.
    """
    return tuple(read_manifest(path) for path in manifests(folder) if "networks" not in read_table(path))


def locate(name_or_path: str | Path, folder: Path | None = None) -> Path:
    """The manifest of the set of that name, or the path itself where it ends in ``.toml``.

    A shipped set goes before one of the same name in the folder.

    Raises:
        WeightsMissing: no set has that name.
    """
    if str(name_or_path).endswith(".toml"):
        return Path(name_or_path)
    found = manifests(folder)
    for path in found:
        if path.stem == str(name_or_path):
            return path
    raise WeightsMissing(
        f"no set of weights is called {str(name_or_path)!r}; there are: {', '.join(path.stem for path in found)}. "
        "Any other set is named by the path of its .toml manifest"
    )


def load_set(name_or_path: str | Path, folder: Path | None = None) -> WeightSet:
    """The set of that name, or of the manifest at that path (anything that ends in ``.toml``).

    Raises:
        WeightsMissing: there is no such manifest.
        WeightsCorrupt: the manifest cannot be understood.
    """
    return read_manifest(locate(name_or_path, folder))


def read_manifest(path: Path) -> WeightSet:
    """Read one manifest; the files that it names are not looked at.

    Raises:
        WeightsMissing: no such file.
        WeightsCorrupt: not TOML, or a key is missing or wrong.
    """
    table = read_table(path)
    scale = table.get("concept_scale")
    if scale not in ("raw", "unit"):
        raise WeightsCorrupt(f'weights manifest {path}: concept_scale must be "raw" or "unit", not {scale!r}')
    return WeightSet(
        name=table["name"],
        version=table["version"],
        licence=table["licence"],
        origin=table["origin"],
        attribution=table["attribution"],
        concept_scale=cast(ConceptScale, scale),
        stage1=read_spec(path, "stage1", table.get("stage1")),
        stage2=read_spec(path, "stage2", table.get("stage2")),
        repository=table.get("repository", ""),
        commit=table.get("commit", ""),
        operating_point=_operating_point(path, table.get("operating_point", {})),
    )


def read_table(path: Path) -> dict[str, Any]:
    """A manifest as plain values, the texts that every set has checked.

    Raises:
        WeightsMissing: no such file.
        WeightsCorrupt: not TOML, or a text is missing.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise WeightsMissing(f"weights manifest {path} does not exist") from exc
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise WeightsCorrupt(f"weights manifest {path} cannot be read: {exc}") from exc
    for key in TEXT_KEYS:
        if not isinstance(table.get(key), str) or not table[key]:
            raise WeightsCorrupt(f"weights manifest {path}: {key} must be a text")
    for key in OPTIONAL_KEYS:
        if not isinstance(table.get(key, ""), str):
            raise WeightsCorrupt(f"weights manifest {path}: {key} must be a text")
    return table


def write_manifest(path: Path, weights: WeightSet) -> None:
    """Write the manifest of a set whose files lie beside ``path``."""
    lines = [f"{key} = {toml_text(getattr(weights, key))}" for key in (*TEXT_KEYS, "concept_scale")]
    lines += [f"{key} = {toml_text(value)}" for key in OPTIONAL_KEYS if (value := getattr(weights, key))]
    for stage in _STAGES:
        spec: WeightSpec = getattr(weights, stage)
        lines += [
            "",
            f"[{stage}]",
            f"file = {toml_text(spec.path.name)}",
            f"digest = {toml_text(spec.digest)}",
            f"size_bytes = {spec.size_bytes}",
            *(f"{key} = {toml_text(value)}" for key in SOURCE_KEYS if (value := getattr(spec, key))),
        ]
    if weights.operating_point != OperatingPoint():
        lines += [
            "",
            "[operating_point]",
            *(f"{key} = {value}" for key, value in asdict(weights.operating_point).items()),
        ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def describe_file(path: Path) -> WeightSpec:
    """The specification of a file as it lies there, for a new manifest."""
    return WeightSpec(path=path, digest=f"sha256:{sha256_of(path)}", size_bytes=path.stat().st_size)


def verify_file(spec: WeightSpec) -> Path:
    """The path of a file that is present, whole and has the right digest.

    Raises:
        WeightsMissing: no such file.
        WeightsCorrupt: truncated, or the digest is another one, or it cannot be read.
    """
    if not spec.path.is_file():
        raise WeightsMissing(f"weights file {spec.path} does not exist")
    size_bytes = spec.path.stat().st_size
    if size_bytes < spec.size_bytes:
        raise WeightsCorrupt(f"weights file {spec.path} is truncated: {size_bytes} of {spec.size_bytes} bytes")
    try:
        found = sha256_of(spec.path)
    except OSError as exc:  # of another user, perhaps
        raise WeightsCorrupt(f"weights file {spec.path} cannot be read: {exc.strerror or exc}") from exc
    if found != spec.sha256:
        raise WeightsCorrupt(f"weights file {spec.path} has the wrong digest: sha256:{found}, not {spec.digest}")
    return spec.path


def verify_set(weights: WeightSet) -> None:
    """Check every file of a set.

    Raises:
        WeightsMissing, WeightsCorrupt: the first fault.
    """
    for spec in (weights.stage1, weights.stage2):
        verify_file(spec)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_spec(manifest: Path, stage: str, table: Any) -> WeightSpec:
    """The file that a table of a manifest names; ``stage`` is the name of the table. Errors: WeightsCorrupt."""
    if not isinstance(table, Mapping):
        raise WeightsCorrupt(f"weights manifest {manifest}: table [{stage}] is missing")
    file, digest, size_bytes = table.get("file"), table.get("digest"), table.get("size_bytes")
    if not isinstance(file, str) or Path(file).name != file:
        raise WeightsCorrupt(f"weights manifest {manifest}: {stage}.file must name a file beside the manifest")
    algorithm, _, digits = str(digest).partition(":")
    if algorithm != "sha256" or len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        raise WeightsCorrupt(f'weights manifest {manifest}: {stage}.digest must be "sha256:" and 64 hexadecimal digits')
    if not isinstance(size_bytes, int) or size_bytes <= 0:
        raise WeightsCorrupt(f"weights manifest {manifest}: {stage}.size_bytes must be a positive integer")
    source = {key: table.get(key, "") for key in SOURCE_KEYS}
    if not all(isinstance(value, str) for value in source.values()):
        raise WeightsCorrupt(f"weights manifest {manifest}: {stage}.source_file and source_digest must be texts")
    return WeightSpec(path=manifest.parent / file, digest=str(digest), size_bytes=size_bytes, **source)


def _operating_point(manifest: Path, table: Any) -> OperatingPoint:
    known = asdict(OperatingPoint())
    if not isinstance(table, Mapping) or set(table) - set(known):
        raise WeightsCorrupt(f"weights manifest {manifest}: [operating_point] may hold {' and '.join(known)} only")
    for key, value in table.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise WeightsCorrupt(f"weights manifest {manifest}: operating_point.{key} must be a number from 0 to 1")
    return OperatingPoint(**{key: float(value) for key, value in table.items()})


def toml_text(value: str) -> str:
    """A text as TOML writes it: a JSON string is a TOML basic string."""
    return json.dumps(value, ensure_ascii=False)
