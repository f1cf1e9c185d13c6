"""Change one key of the configuration file and leave the rest of it, comments and order included, as it is."""

from __future__ import annotations

import os
import stat
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.items import AbstractTable
from tomlkit.toml_document import TOMLDocument

from pulmo_node.config import Config, resolve
from pulmo_node.errors import ConfigError


def set_pipeline_weights(path: Path, label: str, weights: str) -> Config:
    """Write the ``weights`` key of a pipeline into the file, whole or not at all; returns what the file says then.

    Raises:
        ConfigError: the file cannot be read or written, does not configure that pipeline, or would not be valid.
    """
    path = path.resolve()  # of a link, the file that it points to is replaced
    try:
        text = path.read_text(encoding="utf-8")
        mode = path.stat().st_mode
    except OSError as exc:
        raise ConfigError([f"{path}: {exc.strerror}"]) from exc
    if not mode & stat.S_IWUSR or not os.access(path, os.W_OK):  # root may write, but the file says that nobody shall
        raise ConfigError([f"{path}: the file is read-only"])
    try:
        document = tomlkit.parse(text)
    except tomlkit.exceptions.ParseError as exc:
        raise ConfigError([f"{path}: {exc}"]) from exc
    _table(document, label)["weights"] = weights
    changed = tomlkit.dumps(document)
    config = resolve(tomllib.loads(changed), base=path.parent)
    _replace(path, changed, mode)
    return config


def _table(document: TOMLDocument, label: str) -> dict[str, Any]:
    """The table of a pipeline; where the file names no pipeline at all, ct-nodules is configured by default."""
    pipelines = document.get("pipelines")
    if pipelines is None and label in Config().pipelines:
        document["pipelines"] = pipelines = tomlkit.table(is_super_table=True)
        pipelines[label] = tomlkit.table()
    if not isinstance(pipelines, AbstractTable | dict) or not isinstance(pipelines.get(label), dict):
        raise ConfigError([f"pipelines.{label}: not configured"])
    found: dict[str, Any] = pipelines[label]
    return found


def _replace(path: Path, text: str, mode: int) -> None:
    try:
        owner = path.stat()
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                os.fchmod(stream.fileno(), stat.S_IMODE(mode))
                if (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(stream.fileno(), owner.st_uid, owner.st_gid)
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise ConfigError([f"{path}: cannot be written: {exc.strerror}"]) from exc
