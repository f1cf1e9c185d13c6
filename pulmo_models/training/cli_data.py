"""`pulmo-train data`: from collections of images to patch stores. Heavy imports happen inside the commands."""

from __future__ import annotations

import typer

data_app = typer.Typer(help="Make patch stores, the input of every training and evaluation.", no_args_is_help=True)
