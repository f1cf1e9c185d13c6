"""`pulmo-train`: from data to a set of weights that the node can use. Heavy imports happen inside the commands."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pulmo_models.training.commands import evaluate as cli_evaluate
from pulmo_models.training.commands import films as cli_films
from pulmo_models.training.commands import lungs as cli_lungs
from pulmo_models.training.commands import onnx as cli_onnx
from pulmo_models.training.commands import retinanet as cli_retinanet
from pulmo_models.training.commands.common import DeviceName, plain_errors
from pulmo_models.training.commands.data import data_app

if TYPE_CHECKING:
    from pulmo_models.training.fitting.recipe import Recipe
    from pulmo_models.training.fitting.trainings import Job

app = typer.Typer(
    help="Train the networks of Pulmo Node. Running an interrupted command again goes on where it stopped.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
cli_evaluate.register(app)
cli_films.register(app)
cli_lungs.register(app)
cli_onnx.register(app)
cli_retinanet.register(app)

StoreOption = Annotated[list[Path], typer.Option(help="Patch store, written by pulmo-train data; may be repeated.")]
RecipeOption = Annotated[str, typer.Option(help="tuned, published, or the path of a .toml file.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Change a key of the recipe: distill.epochs=3; may be repeated.")
]
WorkOption = Annotated[Path, typer.Option(help="Folder for checkpoints and logs.")]
SeedOption = Annotated[int, typer.Option(help="Of weights, samples and their order.")]
DeviceOption = Annotated[DeviceName, typer.Option(help="Where the network runs.")]
ShortenOption = Annotated[float, typer.Option(help="Multiply the number of steps; below 1 for a try.")]
StepsOption = Annotated[int | None, typer.Option(help="Number of steps of the whole training; overrides --shorten.")]
InitOption = Annotated[
    str | None, typer.Option(help="Begin with these weights: a set's name or manifest, a .ckpt, or a published .pth.")
]
MemoryOption = Annotated[float, typer.Option(help="GiB for the patches; what does not fit is read again and again.")]
WORK = Path("runs")
EXTRA = ("h5py", "lightning", "matplotlib", "pylidc", "scipy", "skimage", "tensorboard")  # the packages of `[train]`


def main() -> None:
    """Entry point of the console script."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        app()
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in EXTRA:
            raise
        sys.exit(f'pulmo-train needs {exc.name}, which is not installed: pip install "pulmo-node[train]"')


@app.command()
def stage1(  # noqa: PLR0913
    *,
    store: StoreOption,
    recipe: RecipeOption = "tuned",
    change: SetOption = None,
    work: WorkOption = WORK,
    seed: SeedOption = 1,
    device: DeviceOption = DeviceName.auto,
    shorten: ShortenOption = 1.0,
    max_steps: StepsOption = None,
    init: InitOption = None,
) -> None:
    """Train the detector on the windows of patch stores."""
    from pulmo_models.training.fitting.trainings import train_stage1  # noqa: PLC0415

    with plain_errors():
        job = _job(stores=store, work=work, seed=seed, device=device, shorten=shorten, max_steps=max_steps, init=init)
        typer.echo(train_stage1(_recipe(recipe, change).stage1, job))


@app.command()
def teacher(  # noqa: PLR0913
    *,
    store: StoreOption,
    recipe: RecipeOption = "tuned",
    change: SetOption = None,
    work: WorkOption = WORK,
    seed: SeedOption = 1,
    device: DeviceOption = DeviceName.auto,
    shorten: ShortenOption = 1.0,
    max_steps: StepsOption = None,
    init: InitOption = None,
    memory: MemoryOption = 8.0,
) -> None:
    """Train the 3D teacher on the patches of patch stores."""
    from pulmo_models.training.fitting.trainings import train_teacher  # noqa: PLC0415

    with plain_errors():
        job = _job(
            stores=store,
            work=work,
            seed=seed,
            device=device,
            shorten=shorten,
            max_steps=max_steps,
            init=init,
            memory_gib=memory,
        )
        typer.echo(train_teacher(_recipe(recipe, change).teacher, job))


@app.command()
def distill(  # noqa: PLR0913
    *,
    store: StoreOption,
    recipe: RecipeOption = "tuned",
    change: SetOption = None,
    work: WorkOption = WORK,
    seed: SeedOption = 1,
    device: DeviceOption = DeviceName.auto,
    shorten: ShortenOption = 1.0,
    max_steps: StepsOption = None,
    init: InitOption = None,
    memory: MemoryOption = 8.0,
    teacher: Annotated[
        Path | None, typer.Option(help="Checkpoint of the teacher; by default the one in the work folder.")
    ] = None,
    no_teacher: Annotated[bool, typer.Option("--no-teacher", help="Train the student from labels alone.")] = False,
) -> None:
    """Train the student, the characteriser that the node uses, from labels and the teacher."""
    from pulmo_models.training.fitting.trainings import train_student  # noqa: PLC0415

    with plain_errors():
        job = _job(
            stores=store,
            work=work,
            seed=seed,
            device=device,
            shorten=shorten,
            max_steps=max_steps,
            init=init,
            memory_gib=memory,
        )
        changes = [*(change or []), *(["distill.teacher_share = 0"] if no_teacher else [])]
        typer.echo(train_student(_recipe(recipe, changes).distill, job, teacher))


def _recipe(name: str, changes: list[str] | None) -> Recipe:
    from pulmo_models.training.fitting.recipe import load_recipe  # noqa: PLC0415

    return load_recipe(name, changes or ())


def _job(  # noqa: PLR0913
    *,
    stores: list[Path],
    work: Path,
    seed: int,
    device: str,
    shorten: float,
    max_steps: int | None,
    init: str | None,
    memory_gib: float = 8.0,
) -> Job:
    from pulmo_models.device import resolve_device  # noqa: PLC0415
    from pulmo_models.training.fitting.trainings import Job  # noqa: PLC0415

    return Job(
        stores=stores,
        work=work,
        seed=seed,
        device=resolve_device(device),
        shorten=shorten,
        max_steps=max_steps,
        start=init,
        memory_gib=memory_gib,
    )


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="Folder of the set.")],
    name: Annotated[str, typer.Option(help="Name of the set.")],
    work: WorkOption = WORK,
    version: Annotated[str, typer.Option(help="Version of the set.")] = "1",
    attribution: Annotated[
        str | None, typer.Option(help="What the licences of the data ask to be said; default: that of `data inserted`.")
    ] = None,
) -> None:
    """Write the trained networks as a set of weights: safetensors and a manifest."""
    from pulmo_models.training.fitting.export import export_set  # noqa: PLC0415

    with plain_errors():
        typer.echo(export_set(work, out, name=name, version=version, attribution=attribution))


@app.command()
def operating_point(
    weights: Annotated[Path, typer.Argument(help="Manifest (.toml) of the set.")],
    report: Annotated[Path, typer.Argument(help="report.json of an evaluation of that set with the part stage1.")],
) -> None:
    """Write the thresholds of a report's FROC into a set: what the node takes where its configuration gives none."""
    from pulmo_models.training.fitting.export import set_operating_point  # noqa: PLC0415

    with plain_errors():
        point = set_operating_point(weights, report)
        typer.echo(f"peak_threshold {point.peak_threshold:g}, detection_threshold {point.detection_threshold:g}")
