"""`pulmo-train retinanet` and `evaluate-boxes`. Heavy imports happen inside the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pulmo_models.training.commands.common import DeviceName, parse_shape, plain_errors

FoldArgument = Annotated[Path, typer.Argument(help="A fold of LUNA16 as JSON, as the MONAI bundle has them.")]
ImagesArgument = Annotated[
    Path, typer.Argument(help="Folder of the scans: .mhd or .nii.gz at any depth, or a folder of DICOM files each.")
]
WindowOption = Annotated[str, typer.Option(help="Window of the inference on whole scans, x,y,z.")]
SeedOption = Annotated[int, typer.Option(help="Of weights, splits, crops and their order.")]
DeviceOption = Annotated[DeviceName, typer.Option(help="Where the network runs.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `pulmo-train`."""
    app.command()(retinanet)
    app.command()(evaluate_boxes)


def retinanet(  # noqa: PLR0913
    fold: FoldArgument,
    images: ImagesArgument,
    *,
    out: Annotated[Path, typer.Option(help="Folder of the set of weights.")] = Path("sets"),
    name: Annotated[str, typer.Option(help="Name of the set.")] = "retinanet",
    work: Annotated[Path, typer.Option(help="Folder for checkpoints, logs and the evaluation.")] = Path("runs"),
    init: Annotated[str | None, typer.Option(help="Begin with these weights: manifest of a set.")] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 300,
    every: Annotated[int, typer.Option(help="Validate every so many epochs.", min=1)] = 5,
    crops: Annotated[int, typer.Option(help="Crops of a scan in a step.", min=1)] = 4,
    crop: Annotated[str, typer.Option(help="Size of a crop, x,y,z.")] = "192,192,80",
    window: WindowOption = "512,512,192",
    learning_rate: Annotated[float, typer.Option(min=0)] = 0.01,
    seed: SeedOption = 0,
    max_steps: Annotated[int | None, typer.Option(help="End after so many steps.", min=1)] = None,
    device: DeviceOption = DeviceName.auto,
) -> None:
    """Train the detector of ct-retinanet on a fold of LUNA16 by the bundle's recipe, and judge it."""
    from pulmo_models.device import resolve_device  # noqa: PLC0415
    from pulmo_models.training.detection.train import RetinaNetTraining, train_retinanet  # noqa: PLC0415

    with plain_errors():
        training = RetinaNetTraining(
            fold=fold,
            images=images,
            work=work,
            out=out,
            name=name,
            device=resolve_device(device),
            epochs=epochs,
            every=every,
            crops=crops,
            size=parse_shape(crop),
            window=parse_shape(window),
            learning_rate=learning_rate,
            seed=seed,
            max_steps=max_steps,
            start=init,
        )
        typer.echo(train_retinanet(training))


def evaluate_boxes(
    weights: Annotated[str, typer.Argument(help="Manifest (.toml) of a set for ct-retinanet.")],
    fold: FoldArgument,
    images: ImagesArgument,
    *,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("evaluation.json"),
    window: WindowOption = "512,512,192",
    device: DeviceOption = DeviceName.auto,
) -> None:
    """COCO's mAP and mAR and LUNA16's FROC of a set on the test scans of a fold."""
    from pulmo_models.checkpoints import load_network  # noqa: PLC0415
    from pulmo_models.ct.box_nodules import LABEL, NETWORK  # noqa: PLC0415
    from pulmo_models.device import resolve_device  # noqa: PLC0415
    from pulmo_models.nets.retinanet3d import RetinaNet3D  # noqa: PLC0415
    from pulmo_models.network_sets import load_networks  # noqa: PLC0415
    from pulmo_models.training.detection.evaluation import evaluate  # noqa: PLC0415
    from pulmo_models.training.detection.folds import read_fold  # noqa: PLC0415

    with plain_errors():
        network = load_network(load_networks(weights, LABEL).networks[NETWORK], RetinaNet3D())
        scans = read_fold(fold, images)["test"]
        report = {"weights": weights, **evaluate(network, scans, parse_shape(window), resolve_device(device))}
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        typer.echo(out)
