"""The folder of a training: what was begun there, its checkpoints, and the network that came out.

A work folder has a folder for each training (``stage1``, ``teacher``, ``distill``) with ``run.json`` (recipe, seed,
stores, versions), ``last.ckpt`` (everything to go on from), ``best.ckpt`` (weights alone) and ``logs/version_N`` with
``metrics.csv`` and TensorBoard's events, one version each time the command was run.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor

from pulmo_models.checkpoints import read_container
from pulmo_models.errors import ModelError, WeightsCorrupt, WeightsMissing

Training = Literal["stage1", "teacher", "distill"]

LAST = "last.ckpt"
BEST = "best.ckpt"
_PREFIXES = ("average.module.", "network.")


class RunMismatch(ModelError):
    """The folder holds another training than the one that is asked for. The message says what differs."""


class RunBusy(ModelError):
    """Another process trains in the folder. The message names it."""


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keep the folder for this process; the lock ends with the process, however that ends.

    Raises:
        RunBusy: another one has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise RunBusy(f"{folder}: another process trains there") from exc
        yield


def begin_run(folder: Path, about: Mapping[str, Any], notes: Mapping[str, Any]) -> bool:
    """Note what is trained in a folder; whether that training was finished before. `notes` may differ when it goes on.

    Raises:
        RunMismatch: something else was begun there.
    """
    path = folder / "run.json"
    wanted = json.loads(json.dumps(about))
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, {**wanted, **notes, "finished": False})
        return False
    found = read_run(folder)
    for key, value in wanted.items():
        if found.get(key) != value:
            raise RunMismatch(
                f"{folder} holds another training: {_differing(key, found.get(key), value)}; "
                "give another --work, or delete that folder"
            )
    return bool(found["finished"])


def finish_run(folder: Path) -> None:
    """Note that the training reached its end."""
    _write(folder / "run.json", {**read_run(folder), "finished": True})


def read_run(folder: Path) -> dict[str, Any]:
    """What was noted of a training.

    Raises:
        WeightsMissing: nothing was trained there.
    """
    path = folder / "run.json"
    if not path.exists():
        raise WeightsMissing(f"{path}: not there; run pulmo-train {folder.name} first")
    return cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))


def trained_state(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint of a training, as its network names them: the running mean where one was kept.

    Raises:
        WeightsMissing: no such file.
        WeightsCorrupt: it is no checkpoint of a training.
    """
    state = read_container(path).get("state_dict")
    tensors = state if isinstance(state, Mapping) else {}
    for prefix in _PREFIXES:
        found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if found:
            return found
    raise WeightsCorrupt(f"checkpoint {path} is none of pulmo-train")


def _write(path: Path, table: Mapping[str, Any]) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def _differing(key: str, found: Any, wanted: Any) -> str:
    """The first key below `key` at which two values differ, and both."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in sorted({*found, *wanted}):
            if found.get(name) != wanted.get(name):
                return _differing(f"{key}.{name}", found.get(name), wanted.get(name))
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        number = next(number for number, pair in enumerate(zip(found, wanted, strict=True)) if pair[0] != pair[1])
        return _differing(f"{key}[{number}]", found[number], wanted[number])
    if isinstance(found, list) and isinstance(wanted, list):
        return f"{len(found)} {key} there, {len(wanted)} asked for"
    return f"{key} is {json.dumps(found)} there, {json.dumps(wanted)} asked for"
