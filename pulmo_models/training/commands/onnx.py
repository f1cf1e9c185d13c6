"""`pulmo-train export-onnx`. Heavy imports happen inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pulmo_models.training.commands.common import parse_shape, plain_errors


def register(app: typer.Typer) -> None:
    """Add the command to `pulmo-train`."""
    app.command()(export_onnx)


def export_onnx(
    weights: Annotated[str, typer.Argument(help="Manifest (.toml) of a set for ct-retinanet.")],
    out: Annotated[Path, typer.Argument(help="File to write.")],
    window: Annotated[
        str | None, typer.Option(help="Size of the input, x,y,z: 512,512,192 as published (default: any size).")
    ] = None,
) -> None:
    """Write the detector of ct-retinanet as ONNX, from which TensorRT makes its engine."""
    from pulmo_models.training.onnx import export_onnx as export  # noqa: PLC0415

    with plain_errors():
        typer.echo(export(weights, out, window=None if window is None else parse_shape(window)))
