"""What the commands share: errors as one sentence, and what a store holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

import typer

from pulmo_models.errors import ModelError
from pulmo_models.training.splits import SPLITS


class DeviceName(StrEnum):
    """Where the networks run."""

    auto = "auto"
    cuda = "cuda"
    cpu = "cpu"


@contextmanager
def plain_errors() -> Iterator[None]:
    """What the user can put right is said in one sentence."""
    try:
        yield
    except BrokenPipeError:  # whoever read the output has enough: Click ends quietly
        raise
    except OSError as exc:
        problem = "not there" if isinstance(exc, FileNotFoundError) else exc.strerror
        typer.echo(f"error: {exc.filename}: {problem}" if exc.filename else f"error: {exc}", err=True)
        raise typer.Exit(1) from exc
    except ModelError as exc:
        typer.echo(f"error: {exc}", err=True)
        raise typer.Exit(1) from exc


def describe(path: Path) -> str:
    """What a store holds, and what was left out."""
    from pulmo_models.training.store import STAGES, PatchStore  # noqa: PLC0415

    store = PatchStore(path)
    lines = [f"{path}: {path.stat().st_size / 1e6:.0f} MB"]
    for stage in STAGES:
        counts = {split: len(store.rows(stage, split)) for split in SPLITS}
        lines.append(f"  {stage}: " + ", ".join(f"{count} {split}" for split, count in counts.items()))
    lines += [f"  left out: {count} x {reason}" for reason, count in sorted(store.dropped.items())]
    return "\n".join(lines)


def parse_shape(text: str, least: int = 1) -> tuple[int, int, int]:
    """``20,72,72``.

    Raises:
        typer.BadParameter: not three whole numbers from `least` on.
    """
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) >= least for part in parts):
        raise typer.BadParameter(f"{text!r}: three numbers, slices,rows,columns")
    return int(parts[0]), int(parts[1]), int(parts[2])
