"""Published checkpoints, fetched or given as files, become a set of weights in a weights folder.

Whatever is wrong is found before the folder is touched, and a set appears whole or not at all: it is written into a
hidden folder beside its place and renamed. :mod:`pulmo_models.checkpoints` checks structure and values, and the
fingerprint of :mod:`pulmo_models.published` shows whether the weights are the published ones.

Errors: :class:`WeightsMissing`, :class:`WeightsCorrupt`, :class:`WeightsUnknown`, :class:`WeightsUnavailable`.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from pulmo_models import hub
from pulmo_models.checkpoints import load_published_checkpoint, write_set
from pulmo_models.errors import ModelError, WeightsUnavailable, WeightsUnknown
from pulmo_models.nets.heatmap_unet3d import HeatmapUNet3D
from pulmo_models.nets.student2p5d import Student2p5D
from pulmo_models.published import MODELS, PULMO, PublishedModel
from pulmo_models.types import CONCEPT_NAMES
from pulmo_models.weights import ConceptScale, manifests, read_manifest, verify_set

DOWNLOADS = ".downloads"
"""Folder inside the weights folder for what is being fetched; gone once the set is there."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def fetch_published(
    model_name: str,
    folder: Path,
    *,
    name: str | None = None,
    revision: str = "main",
    progress: hub.ByteCallback = lambda file, done, total: None,
) -> Path:
    """Fetch a published model and import it; returns the path of the manifest.

    A set of that name that is of the same commit already is verified and nothing is transferred. An interrupted
    transfer goes on where it ended; files that turn out not to be the published ones are thrown away.

    Raises:
        WeightsUnavailable: from the hub, or the name is taken.
        WeightsCorrupt, WeightsUnknown: what came is no such checkpoint.
    """
    model = MODELS.get(model_name)
    if model is None:
        raise WeightsUnavailable(f"there is no published model {model_name!r}; there are: {', '.join(MODELS)}")
    name = name or model.name
    if (found := _same_commit(model, folder, name, revision)) is not None:
        return found
    check_name(folder, name)
    downloads = folder / DOWNLOADS
    files = hub.download(model, downloads, revision=revision, progress=progress)
    origin = f"{files.endpoint}/{model.repository} at commit {files.commit}"
    about = {**_about(model, origin), "repository": model.repository, "commit": files.commit}
    try:
        manifest = _import_published(model, (files.stage1, files.stage2), folder, name, about)
    except ModelError:
        shutil.rmtree(downloads)
        _remove_if_empty(folder)
        raise
    shutil.rmtree(downloads)
    return manifest


def import_checkpoints(
    stage1: Path, stage2: Path, folder: Path, *, name: str, concept_scale: ConceptScale | None = None
) -> Path:
    """Import two checkpoints from files; returns the path of the manifest.

    They must be the published ones, unless ``concept_scale`` says how the concepts of other weights of the same
    architecture are to be read; then licence and attribution are left to whoever made them.

    Raises:
        WeightsMissing: no such file.
        WeightsCorrupt: no checkpoint of the two networks.
        WeightsUnknown: not the published weights.
        WeightsUnavailable: the name is taken or the folder cannot be written.
    """
    check_name(folder, name)
    origin = f"imported from the files {stage1.name} and {stage2.name}"
    if concept_scale is None:
        return _import_published(PULMO, (stage1, stage2), folder, name, _about(PULMO, origin))
    about = {"version": "imported", "licence": "not stated", "origin": origin, "attribution": "not stated"}
    return _write(folder, name, _read(stage1, stage2), (stage1, stage2), concept_scale, about)


def check_fingerprint(model: PublishedModel, stage1: Mapping[str, Tensor], stage2: Mapping[str, Tensor]) -> None:
    """Whether two states are those of a published model: counts of tensors and parameters, malignancy read-out.

    Of stage 1 no value is known, only its structure.

    Raises:
        WeightsUnknown: they are not, with the first difference.
    """
    for stage, state, known in (("stage 1", stage1, model.stage1), ("stage 2", stage2, model.stage2)):
        counts = (len(state), sum(value.numel() for value in state.values()))
        if counts != (known.tensors, known.parameters):
            raise WeightsUnknown(
                f"{stage} has {counts[0]} tensors with {counts[1]} parameters, published are {known.tensors} with "
                f"{known.parameters}"
            )
    weights, bias = stage2["malignancy_head.weight"].double(), stage2["malignancy_head.bias"].double()
    found = dict(zip(CONCEPT_NAMES, (weights[1] - weights[0]).tolist(), strict=True))
    expected = [(concept, value, model.weight_tolerance) for concept, value in model.malignancy_weights.items()]
    expected.append(("bias", model.malignancy_bias, model.bias_tolerance))
    found["bias"] = float(bias[1] - bias[0])
    for label, value, tolerance in expected:
        if abs(found[label] - value) > tolerance:
            raise WeightsUnknown(
                f"these are not the published weights of {model.repository}: the malignancy difference of {label} is "
                f"{found[label]:+.3f}, published is {value:+.3f}"
            )


def _same_commit(model: PublishedModel, folder: Path, name: str, revision: str) -> Path | None:
    """The manifest of a set of that name, if it is the model at the commit of the revision and sound."""
    path = folder / name / f"{name}.toml"
    if not path.is_file():
        return None
    weights = read_manifest(path)
    if weights.repository != model.repository or weights.commit != hub.resolve(model, revision):
        return None
    verify_set(weights)
    return path


def _import_published(
    model: PublishedModel, sources: tuple[Path, Path], folder: Path, name: str, about: Mapping[str, str]
) -> Path:
    states = _read(*sources)
    try:
        check_fingerprint(model, *states)
    except WeightsUnknown as exc:
        raise WeightsUnknown(f"{sources[0].name}, {sources[1].name}: {exc}") from exc
    return _write(folder, name, states, sources, "raw", about)


def _about(model: PublishedModel, origin: str) -> dict[str, str]:
    return {"version": "published", "licence": model.licence, "origin": origin, "attribution": model.attribution}


def _read(stage1: Path, stage2: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return load_published_checkpoint(stage1, HeatmapUNet3D()), load_published_checkpoint(stage2, Student2p5D())


def check_name(folder: Path, name: str) -> None:
    """Whether a set may be called that. Raises `WeightsUnavailable`."""
    if not _NAME.fullmatch(name) or name.endswith(".toml"):
        raise WeightsUnavailable(f"{name!r} is no name for a set: letters, digits, '.', '_' and '-' only")
    taken = [path for path in manifests(folder) if path.stem == name]
    if taken or (folder / name).exists():
        where = taken[0] if taken else folder / name
        raise WeightsUnavailable(f"a set called {name!r} is there already ({where}): choose another name or remove it")


def _write(
    folder: Path,
    name: str,
    states: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    sources: tuple[Path, Path],
    concept_scale: ConceptScale,
    about: Mapping[str, str],
) -> Path:
    with writable(folder), tempfile.TemporaryDirectory(prefix=".import-", dir=folder) as part:
        write_set(
            Path(part) / name,
            name=name,
            stage1=states[0],
            stage2=states[1],
            concept_scale=concept_scale,
            about=about,
            sources={"stage1": sources[0], "stage2": sources[1]},
        )
        (Path(part) / name).rename(folder / name)
    return folder / name / f"{name}.toml"


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """A weights folder that is there; what the system says against writing it, as one sentence."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as exc:
        raise WeightsUnavailable(f"weights folder {folder} cannot be written: {exc.strerror or exc}") from exc


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()
