"""`pulmo-train data inserted`, `patches` and `realism`. Heavy imports happen inside the commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pulmo_models.training.commands.common import describe, parse_shape, plain_errors
from pulmo_models.training.splits import SPLITS, Split

DataOption = Annotated[Path, typer.Option(help="Folder with lidc_patches/ and the CT series.")]
OutOption = Annotated[Path, typer.Option(help="The store to write (.h5).")]
WorkOption = Annotated[Path, typer.Option(help="Folder that keeps prepared series.")]
WORK = Path("runs")


def inserted(  # noqa: PLR0913, PLR0917 - each is an option of the command
    data: DataOption,
    out: OutOption,
    seed: Annotated[int, typer.Option(help="Of every sample.")] = 1,
    windows: Annotated[str, typer.Option(help="Windows of stage 1 for each split, or split=number,... .")] = "0",
    patches: Annotated[str, typer.Option(help="Patches of stage 2 for each split, or split=number,... .")] = "0",
    splits: Annotated[str, typer.Option(help="Which splits a plain number is for.")] = "train",
    window: Annotated[str, typer.Option(help="Slices,rows,columns of a window.")] = "64,128,128",
    patch: Annotated[str, typer.Option(help="Slices,rows,columns of a patch.")] = "20,72,72",
    hosts: Annotated[list[str] | None, typer.Option(help="Series to train on, instead of the usual; repeat.")] = None,
    leave_out: Annotated[list[str] | None, typer.Option(help="Series that serves no split; repeat.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Set, or checkpoint of stage 1, whose false findings become hard negatives.")
    ] = None,
    phantoms: Annotated[float, typer.Option(min=0, max=1, help="Share of phantoms among the hosts.")] = 0.05,
    drawn: Annotated[float, typer.Option(min=0, max=1, help="Share of drawn nodules, of rare kinds.")] = 0.12,
    processes: Annotated[int, typer.Option(min=1, help="The store is the same for any number.")] = 1,
    work: WorkOption = WORK,
) -> None:
    """Real LIDC nodules in the lungs of other patients, and what is no nodule: samples of both stages."""
    from pulmo_models.training.material.hosts import TRAINING_HOSTS  # noqa: PLC0415
    from pulmo_models.training.material.inserted import Request, write_store  # noqa: PLC0415
    from pulmo_models.training.material.samples import Shares  # noqa: PLC0415

    request = Request(
        data=data,
        out=out,
        work=work,
        seed=seed,
        windows=parse_counts(windows, splits),
        patches=parse_counts(patches, splits),
        window=parse_shape(window),
        patch=parse_shape(patch),
        train_hosts=tuple(hosts or TRAINING_HOSTS),
        leave_out=tuple(leave_out or ()),
        weights=weights,
        processes=processes,
        shares=Shares(phantoms=phantoms, drawn=drawn),
    )
    if not any((*request.windows.values(), *request.patches.values())):
        raise typer.BadParameter("no window and no patch is asked for: give --windows or --patches")
    with _bar() as progress, plain_errors():
        write_store(request, progress)
    typer.echo(describe(out))


def patches(
    folder: Annotated[Path, typer.Argument(help="Folder lidc_patches.")],
    out: OutOption,
    patch: Annotated[str, typer.Option(help="Slices,rows,columns of a patch.")] = "9,72,72",
) -> None:
    """LIDC's cut-outs in their own surroundings, those with enough slices: patches of nodules for stage 2."""
    from pulmo_models.training.material.patches import write_patches  # noqa: PLC0415

    with plain_errors():
        write_patches(folder, out, parse_shape(patch))
    typer.echo(describe(out))


def realism(
    data: DataOption,
    out: Annotated[Path, typer.Option(help="File for the figures, JSON.")] = Path("realism.json"),
    seed: Annotated[int, typer.Option(help="Of places, nodules and the classifier.")] = 1,
    work: WorkOption = WORK,
) -> None:
    """Ask a small classifier whether insertions give themselves away, and measure the levels of the 8-bit cut-outs."""
    from pulmo_models.training.material.realism import realism as measure  # noqa: PLC0415

    with _bar() as progress, plain_errors():
        figures = measure(data, work, seed, lambda text: progress(text, 0.0))
    out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    typer.echo(json.dumps(figures, indent=1))


def parse_counts(text: str, splits: str) -> dict[Split, int]:
    """``1200`` for each of the splits named in `splits`, or ``train=1200,test=60``.

    Raises:
        typer.BadParameter: it is neither, or a split is none.
    """
    pairs = [part.split("=") for part in text.split(",")]
    if len(pairs) == 1 and len(pairs[0]) == 1:
        pairs = [[name, text] for name in splits.split(",")]
    found: dict[Split, int] = {}
    for pair in pairs:
        name = next((split for split in SPLITS if split == pair[0].strip()), None)
        if len(pair) != 2 or name is None or not pair[1].strip().isdigit():
            raise typer.BadParameter(f"{text!r} for splits {splits!r}: a number, or e.g. train=1200,test=60")
        found[name] = int(pair[1])
    return found


@contextmanager
def _bar() -> Iterator[Callable[[str, float], None]]:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    with Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), transient=True
    ) as bar:
        task = bar.add_task("begin", total=1000)

        def progress(text: str, share: float) -> None:
            bar.update(task, description=text, completed=round(share * 1000))

        yield progress
