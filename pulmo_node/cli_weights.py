"""`pulmo-node weights`: get, check and choose the weights of the networks.

The conversion of checkpoints needs torch and is imported by its path when it is called.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from pulmo_models import registry
from pulmo_models.errors import ModelError, WeightsMissing
from pulmo_models.network_sets import NetworkSet, read_any, verify_any
from pulmo_models.published import MODELS, NETWORKS, PULMO
from pulmo_models.weights import WeightSet, locate, manifests
from pulmo_node.cli_common import ConfigOption, JsonOption, err, out, print_json, progress_bar, read_config
from pulmo_node.cli_weights_films import register as register_films
from pulmo_node.config import ENVIRONMENT_PREFIX, default_path
from pulmo_node.config_edit import set_pipeline_weights
from pulmo_node.errors import ConfigError, Permanent

app = typer.Typer(help="Weights of the networks.", no_args_is_help=True)

_IMPORTS = "pulmo_models.imports"
_NETWORK_IMPORTS = "pulmo_models.network_imports"


class ConceptScale(StrEnum):
    """What the concept outputs of imported weights are."""

    raw = "raw"
    unit = "unit"


NameOption = Annotated[str | None, typer.Option("--name", help="Name of the new set (default: that of the model).")]


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ModelError as exc:
        raise Permanent(str(exc)) from exc


@app.command("list")
def weights_list(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the sets of weights that are there, shipped, fetched and imported, and where each lies."""
    settings = read_config(config)
    used = _used(settings.pipelines, settings.weights_folder)
    sets: list[tuple[Path, WeightSet | NetworkSet]] = []
    faults = []
    for path in manifests(settings.weights_folder):
        try:
            sets.append((path, read_any(path)))
        except ModelError as exc:
            faults.append(str(exc))
    if as_json:
        print_json([{**vars(s), "sha256": s.sha256, "manifest": path, "used": path in used} for path, s in sets])
    else:
        for path, s in sets:
            kind = f"concept scale {s.concept_scale}" if isinstance(s, WeightSet) else f"for {s.pipeline}"
            about = f"version {s.version}, {kind}, {s.licence}, sha256 {s.sha256[:16]}"
            out.print(
                f"[bold]{escape(path.stem)}[/]{' (in use)' if path in used else ''}: {escape(about)}", highlight=False
            )
            out.print(f"  {_details(s)}", highlight=False, markup=False)
            out.print(f"  {path}", highlight=False, markup=False)
    _report(faults)


@app.command("verify")
def weights_verify(
    name: Annotated[
        str | None, typer.Argument(help="Name or .toml path of a set (default: every one there is).")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Read every file of a set and compare its digest."""
    folder = read_config(config).weights_folder
    with _translated():
        paths = [locate(name, folder)] if name else manifests(folder)
    faults = []
    for path in paths:
        try:
            found = read_any(path)
            verify_any(found)
        except ModelError as exc:
            faults.append(str(exc))
        else:
            out.print(f"{path.stem}: ok, sha256 {found.sha256}", highlight=False)
    _report(faults)


@app.command("fetch")
def weights_fetch(
    model: Annotated[str, typer.Argument(help=f"Published model: {', '.join((*MODELS, *NETWORKS))}.")],
    revision: Annotated[str, typer.Option(help="Branch, tag or commit of its repository on the hub.")] = "main",
    url: Annotated[
        str | None, typer.Option(help="Another place of the same file, for a model that has an address of its own.")
    ] = None,
    name: NameOption = None,
    config: ConfigOption = None,
) -> None:
    """Fetch published weights from the Hugging Face hub ($HF_ENDPOINT) or their own address, check and convert them."""
    if model not in MODELS and model not in NETWORKS:
        there_are = ", ".join((*MODELS, *NETWORKS))
        raise typer.BadParameter(f"there is no published model {model!r}; there are: {there_are}", param_hint="MODEL")
    folder = read_config(config).weights_folder
    if url is not None and model not in NETWORKS:
        raise typer.BadParameter(f"{model} comes from a hub: set HF_ENDPOINT", param_hint="--url")
    imports = importlib.import_module(_NETWORK_IMPORTS if model in NETWORKS else _IMPORTS)
    with progress_bar() as (progress, task):

        def report(file: str, done: int, total: int) -> None:
            progress.update(task, description=file, completed=done / total if total else 0.0)

        with _translated():
            if model in NETWORKS:
                _announce(imports.fetch_network(NETWORKS[model], folder, name=name, url=url, progress=report))
                return
            manifest = imports.fetch_published(model, folder, name=name, revision=revision, progress=report)
    _announce(manifest)


@app.command("import")
def weights_import(
    stage1: Annotated[Path, typer.Argument(help=f"Checkpoint of the detector, {PULMO.stage1.file}; or of --model.")],
    stage2: Annotated[
        Path | None, typer.Argument(help=f"Checkpoint of the characteriser, {PULMO.stage2.file}.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help=f"The one file is a network that is published alone: {', '.join(NETWORKS)}.")
    ] = None,
    name: NameOption = None,
    any_weights: Annotated[
        bool, typer.Option("--any", help="Other weights of the same architecture are meant, not the published ones.")
    ] = False,
    concept_scale: Annotated[
        ConceptScale | None,
        typer.Option(help="With --any: the network gives LIDC ratings (raw) or (rating - 1) / 4 (unit)."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Check checkpoint files, the two of Pulmo or the one of --model, and convert them into a set of weights."""
    folder = read_config(config).weights_folder
    if model is not None:
        _import_network(model, stage1, stage2, name, folder, any_weights)
        return
    if stage2 is None:
        raise typer.BadParameter("two files are needed; one alone needs --model", param_hint="STAGE2")
    if any_weights and concept_scale is None:
        raise typer.BadParameter("--any needs --concept-scale raw or unit", param_hint="--concept-scale")
    if any_weights and name is None:
        raise typer.BadParameter("--any needs a name for the set", param_hint="--name")
    if concept_scale is not None and not any_weights:
        raise typer.BadParameter("the scale of the published weights is known; use it with --any", param_hint="--any")
    imports = importlib.import_module(_IMPORTS)
    scale = None if concept_scale is None else concept_scale.value
    try:
        with _translated():
            manifest = imports.import_checkpoints(stage1, stage2, folder, name=name or PULMO.name, concept_scale=scale)
    except Permanent as exc:
        if isinstance(exc.__cause__, imports.WeightsUnknown):
            raise Permanent(f"{exc}; --any imports other weights of the same architecture") from exc
        raise
    _announce(manifest)


def _import_network(
    model: str, file: Path, second: Path | None, name: str | None, folder: Path, any_weights: bool
) -> None:
    if model not in NETWORKS:
        raise typer.BadParameter(f"there are: {', '.join(NETWORKS)}", param_hint="--model")
    if second is not None:
        raise typer.BadParameter(f"{model} is one file", param_hint="STAGE2")
    if any_weights and name is None:
        raise typer.BadParameter("--any needs a name for the set", param_hint="--name")
    imports = importlib.import_module(_NETWORK_IMPORTS)
    with _translated():
        _announce(imports.import_network(NETWORKS[model], file, folder, name=name, any_weights=any_weights))


@app.command("use")
def weights_use(
    name: Annotated[str, typer.Argument(help="Name or .toml path of a set.")],
    pipeline: Annotated[str, typer.Option(help="Label of the pipeline.")] = "ct-nodules",
    config: ConfigOption = None,
) -> None:
    """Let a pipeline use a set: writes its `weights` key into the configuration file."""
    path = config or default_path()
    if path is None:
        raise ConfigError(["there is no configuration file to write: name one with --config"])
    folder = read_config(path).weights_folder
    with _translated():
        weights = read_any(locate(name, folder))
        verify_any(weights)
    made_for = weights.pipeline if isinstance(weights, NetworkSet) else "ct-nodules"
    if made_for != pipeline:
        raise Permanent(f"{name} is a set for the pipeline {made_for}, not for {pipeline}: name it with --pipeline")
    if name.endswith(".toml"):
        name = str(Path(name).resolve())
    set_pipeline_weights(path, pipeline, name)
    key = f"pipelines.{pipeline}.weights"
    out.print(f"{path}: {key} = {name}; a running node reads it when it is started again", markup=False)
    variable = f"{ENVIRONMENT_PREFIX}PIPELINES__{pipeline.replace('-', '_')}__WEIGHTS".upper()
    if any(key.upper() == variable for key in os.environ):
        err.print(f"[yellow]caution:[/] {variable} is set and goes before the file")


def _used(pipelines: dict[str, dict[str, Any]], folder: Path) -> set[Path]:
    """The manifests that the configured pipelines name, by default included."""
    found = set()
    for label, table in pipelines.items():
        entry = registry.entry(label)
        for key in entry.weights_keys:
            if name := table.get(key, getattr(entry.settings(), key, None)):
                with suppress(WeightsMissing):  # a list shows what there is; `healthchecks` says what is missing
                    found.add(locate(name, folder))
    return found


def _details(weights: WeightSet | NetworkSet) -> str:
    """What a pipeline does with a set: thresholds, or its networks and settings."""
    if isinstance(weights, WeightSet):
        point = weights.operating_point
        return f"peak threshold {point.peak_threshold:g}, detection threshold {point.detection_threshold:g}"
    settings = (f"{key} {value}" for key, value in weights.settings.items())
    return ", ".join((*(f"{name}: {spec.architecture}" for name, spec in weights.networks.items()), *settings))


def _announce(manifest: Path) -> None:
    weights = read_any(manifest)
    out.print(f"{weights.name}: sha256 {weights.sha256}", highlight=False, markup=False)
    out.print(f"  {weights.origin}", highlight=False, markup=False)
    out.print(f"  licence {weights.licence}; {weights.attribution}", highlight=False, markup=False)
    choose = f"choose it with: pulmo-node weights use {weights.name}{_for(weights)}"
    out.print(f"  {manifest}; {choose}", highlight=False, markup=False)


register_films(app, _announce)


def _for(weights: WeightSet | NetworkSet) -> str:
    return f" --pipeline {weights.pipeline}" if isinstance(weights, NetworkSet) else ""


def _report(faults: list[str]) -> None:
    for fault in faults:
        err.print(f"[red]failed:[/] {escape(fault)}", highlight=False)
    if faults:
        raise typer.Exit(1)
