"""`pulmo-train data`: from collections of images to patch stores. Heavy imports happen inside the commands."""

from __future__ import annotations

import typer

from pulmo_models.training.commands import collections as cli_collections
from pulmo_models.training.commands import inserted as cli_inserted

data_app = typer.Typer(help="Make patch stores, the input of every training and evaluation.", no_args_is_help=True)

data_app.command()(cli_inserted.inserted)
data_app.command()(cli_inserted.patches)
data_app.command()(cli_inserted.realism)
data_app.command()(cli_collections.luna16)
data_app.command()(cli_collections.lidc)
