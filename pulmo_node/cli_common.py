"""What the commands share: the two consoles, the options that many of them have, and JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from pulmo_node.config import Config, default_path, load

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Configuration file (default: $PULMO_NODE_CONFIG or config/node.toml)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

_TERMINAL = sys.stdout is not None and sys.stdout.isatty()
_PIPE_WIDTH = 1000  # so that a table is as wide as it needs, and `grep` finds a UID in it

# Without emoji: an IPv6 address holds what rich takes for one, ":a:".
out = Console(soft_wrap=not _TERMINAL, width=None if _TERMINAL else _PIPE_WIDTH, emoji=False)
err = Console(stderr=True, soft_wrap=True, emoji=False)


def read_config(path: Path | None) -> Config:
    """The configuration of a command. Raises `ConfigError`."""
    return load(path or default_path())


def print_json(value: Any) -> None:
    """Values of dataclasses, paths and times as JSON."""

    def plain(item: Any) -> Any:
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return dataclasses.asdict(item)
        return item.isoformat() if isinstance(item, datetime) else str(item)

    sys.stdout.write(json.dumps(value, default=plain, indent=1) + "\n")


@contextmanager
def progress_bar() -> Iterator[tuple[Progress, TaskID]]:
    """A bar on standard error with one task, whose total is 1.0."""
    columns = (TextColumn("{task.description:>12}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), console=err) as progress:
        yield progress, progress.add_task("", total=1.0)
