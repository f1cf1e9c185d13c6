"""`pulmo-train cxr`. Heavy imports happen inside the command."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, cast

import typer

from pulmo_models.training.commands.common import DeviceName, plain_errors


class ModelName(StrEnum):
    """Classifiers."""

    densenet121 = "densenet121"
    resnet50 = "resnet50"
    efficientnet_b0 = "efficientnet_b0"


class UncertainName(StrEnum):
    """What an uncertain label of CheXpert counts as."""

    ones = "ones"
    zeros = "zeros"


class ViewsName(StrEnum):
    """Which films are used."""

    frontal = "frontal"
    all = "all"


class SubsetName(StrEnum):
    """What a share of the training films is drawn by."""

    patient = "patient"
    image = "image"


def register(app: typer.Typer) -> None:
    """Add the command to `pulmo-train`."""
    app.command()(cxr)


def cxr(  # noqa: PLR0913
    data: Annotated[Path, typer.Argument(help="Folder of CheXpert (train.csv, valid.csv) or of NIH ChestX-ray14.")],
    *,
    model: Annotated[ModelName, typer.Option(help="Network.")] = ModelName.densenet121,
    work: Annotated[Path, typer.Option(help="Folder; the training gets one of its own in it.")] = Path("runs"),
    epochs: Annotated[int, typer.Option(min=1)] = 5,
    batch: Annotated[int, typer.Option(min=2)] = 32,
    learning_rate: Annotated[float, typer.Option(min=0)] = 1e-4,
    dropout: Annotated[float, typer.Option(help="Before the last layer.", min=0, max=0.9)] = 0.0,
    seed: Annotated[int, typer.Option(help="Of weights, samples and their order.")] = 42,
    workers: Annotated[int, typer.Option(help="Processes that read films.", min=0)] = 0,
    amp: Annotated[bool, typer.Option("--amp", help="Mixed precision, on a GPU.")] = False,
    share: Annotated[float, typer.Option(help="Share of the training films.", min=0, max=1)] = 1.0,
    subset_mode: Annotated[SubsetName, typer.Option(help="What the share is drawn by.")] = SubsetName.patient,
    uncertain: Annotated[UncertainName, typer.Option(help="What an uncertain label counts as.")] = UncertainName.ones,
    views: Annotated[ViewsName | None, typer.Option(help="Films to use; default: frontal, --published: all.")] = None,
    published: Annotated[
        bool, typer.Option("--published", help="As published: films mirrored, valid.csv chooses and judges.")
    ] = False,
    init: Annotated[
        Path | None, typer.Option(help="Begin with these weights: torchvision's for ImageNet, or a best_model.pth.")
    ] = None,
    device: Annotated[DeviceName, typer.Option(help="Where the network runs.")] = DeviceName.auto,
) -> None:
    """Train a classifier of five findings in chest radiographs, and evaluate it."""
    from pulmo_models.device import resolve_device  # noqa: PLC0415
    from pulmo_models.training.films.collections import FilmOptions, Views  # noqa: PLC0415
    from pulmo_models.training.films.train import FilmTraining, train_films  # noqa: PLC0415

    chosen = views.value if views else "all" if published else "frontal"
    with plain_errors():
        training = FilmTraining(
            data=data,
            work=work,
            architecture=model.value,
            device=resolve_device(device.value),
            epochs=epochs,
            batch=batch,
            learning_rate=learning_rate,
            dropout=dropout,
            seed=seed,
            workers=workers,
            amp=amp,
            share=share,
            subset_mode=subset_mode.value,
            options=FilmOptions(uncertain=uncertain.value, views=cast("Views", chosen), published=published),
            start=init,
        )
        folder = train_films(training)
        typer.echo((folder / "final_evaluation_results.md").read_text(encoding="utf-8").rstrip())
        typer.echo(folder)
