"""`pulmo-train`: from data to a set of weights that the node can use. Heavy imports happen inside the commands."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Train the networks of Pulmo Node. Running an interrupted command again goes on where it stopped.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DataOption = Annotated[Path, typer.Option(help="Folder with lidc_patches/ and the CT series.")]
WorkOption = Annotated[Path, typer.Option(help="Folder for caches, checkpoints and logs.")]
WORK = Path("runs")


def main() -> None:
    """Entry point of the console script."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    app()


@app.command()
def stage1(
    data: DataOption,
    work: WorkOption = WORK,
    seed: Annotated[int, typer.Option(help="Of weights, samples and their order.")] = 1,
    shorten: Annotated[float, typer.Option(help="Multiply the number of steps; below 1 for a try.")] = 1.0,
) -> None:
    """Train the detector: nodules placed into real lungs and phantoms."""
    from pulmo_models.training.stages import Stage1Settings, train_stage1  # noqa: PLC0415

    settings = Stage1Settings(seed=seed)
    phases = tuple((window, batch, max(1, round(steps * shorten))) for window, batch, steps in settings.phases)
    train_stage1(data, work, replace(settings, phases=phases))


@app.command()
def mine(
    data: DataOption,
    work: WorkOption = WORK,
    threshold: Annotated[float, typer.Option(help="Smallest heat of a candidate.")] = 0.1,
) -> None:
    """Collect the false candidates of the trained detector in the training hosts, as hard negatives of stage 2."""
    from pulmo_models.ct.candidates import CandidateSettings  # noqa: PLC0415
    from pulmo_models.training.mining import mine as run  # noqa: PLC0415

    # A coarser stride than the node's: a candidate that only some windows see is welcome here.
    settings = CandidateSettings(window=(48, 96, 96), stride=(36, 72, 72), peak_threshold=threshold, batch=2)
    typer.echo(run(data, work, settings))


@app.command()
def stage2(
    data: DataOption,
    work: WorkOption = WORK,
    seed: Annotated[int, typer.Option(help="Of weights, samples and their order.")] = 2,
    shorten: Annotated[float, typer.Option(help="Multiply the number of steps; below 1 for a try.")] = 1.0,
) -> None:
    """Train the characteriser: detection, concepts, malignancy through the concepts, mask. Uses what `mine` found."""
    from pulmo_models.training.stages import Stage2Settings, train_stage2  # noqa: PLC0415

    settings = Stage2Settings(seed=seed)
    train_stage2(data, work, replace(settings, steps=max(1, round(settings.steps * shorten))))


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="Folder of the set.")],
    name: Annotated[str, typer.Option(help="Name of the set.")],
    work: WorkOption = WORK,
    version: Annotated[str, typer.Option(help="Version of the set.")] = "1",
) -> None:
    """Write the trained networks as a set of weights: safetensors and a manifest."""
    from pulmo_models.training.export import export_set  # noqa: PLC0415

    typer.echo(export_set(work, out, name=name, version=version))


@app.command()
def evaluate(
    weights: Annotated[str, typer.Argument(help="Name of an installed set, or path of a manifest.")],
    data: DataOption,
    work: WorkOption = WORK,
    out: Annotated[Path, typer.Option(help="File for the figures, JSON.")] = Path("evaluation.json"),
    precision: Annotated[str, typer.Option(help="Arithmetic: auto, fp32 or bf16.")] = "auto",
) -> None:
    """Measure a set: phantoms of unseen seeds, real series with known nodules, test patients."""
    from pulmo_models.training.evaluate import evaluate_set  # noqa: PLC0415

    figures = evaluate_set(weights, data, work, precision)
    out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    typer.echo(json.dumps(figures, indent=1))
