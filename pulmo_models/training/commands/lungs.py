"""`pulmo-train lungs`. Heavy imports happen inside the command."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pulmo_models.training.commands.common import DeviceName, plain_errors


class RegressorName(StrEnum):
    """Networks of the lung localisation."""

    resnet50 = "resnet50"
    efficientnet_b0 = "efficientnet_b0"


def register(app: typer.Typer) -> None:
    """Add the command to `pulmo-train`."""
    app.command()(lungs)


def lungs(  # noqa: PLR0913
    data: Annotated[Path, typer.Argument(help="Folder that holds a folder of DICOM files for each series.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the set of weights.")] = Path("sets"),
    name: Annotated[str, typer.Option(help="Name of the set.")] = "ct-lungs",
    model: Annotated[list[RegressorName] | None, typer.Option(help="Network; may be repeated (default: both).")] = None,
    train: Annotated[list[str] | None, typer.Option(help="Series to train with; may be repeated.")] = None,
    validation: Annotated[list[str] | None, typer.Option(help="Series that choose the epoch.")] = None,
    test: Annotated[list[str] | None, typer.Option(help="Series that judge.")] = None,
    work: Annotated[Path, typer.Option(help="Folder for checkpoints, logs and the evaluation.")] = Path("runs"),
    epochs: Annotated[int, typer.Option(min=1)] = 100,
    batch: Annotated[int, typer.Option(min=2)] = 8,
    learning_rate: Annotated[float, typer.Option(min=0)] = 1e-4,
    size: Annotated[int, typer.Option(help="Rows and columns of the input; 512 as published.", min=64)] = 512,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 1,
    max_steps: Annotated[int | None, typer.Option(help="End after so many steps.", min=1)] = None,
    device: Annotated[DeviceName, typer.Option(help="Where the networks run.")] = DeviceName.auto,
) -> None:
    """Train the learned lung localisation on real series, and compare it with the classical one."""
    from pulmo_models.device import resolve_device  # noqa: PLC0415
    from pulmo_models.training.localisation.train import LungTraining, train_lungs  # noqa: PLC0415
    from pulmo_models.training.material.hosts import SPLIT_HOSTS  # noqa: PLC0415

    with plain_errors():
        typer.echo(
            train_lungs(
                LungTraining(
                    data=data,
                    work=work,
                    splits={
                        "train": train or SPLIT_HOSTS["train"],
                        "validation": validation or SPLIT_HOSTS["validation"],
                        "test": test or SPLIT_HOSTS["test"],
                    },
                    architectures=[each.value for each in model or RegressorName],
                    device=resolve_device(device),
                    epochs=epochs,
                    batch=batch,
                    learning_rate=learning_rate,
                    seed=seed,
                    size=size,
                    max_steps=max_steps,
                    name=name,
                    out=out,
                )
            )
        )
