"""Running `pulmo-train` in a test: in this process, or in one that is killed at a known step."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from typer.testing import CliRunner

from pulmo_models.training.cli import app

_KILLED = """
import os, signal, sys
import torch
from pulmo_models.training.cli import app
from pulmo_models.training.fitting.modules import PlannedModule

torch.set_num_threads(1)
step, started = int(sys.argv.pop(1)), PlannedModule.on_train_batch_start

def killed(self, batch, batch_idx):
    if self.global_step == step:
        os.kill(os.getpid(), signal.SIGKILL)
    started(self, batch, batch_idx)

PlannedModule.on_train_batch_start = killed
app()
"""


def train(*arguments: str | Path) -> str:
    """Run a command to its end, on one thread as in `train_and_kill`; what it printed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    finally:
        torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: str | Path, exit_code: int = 1) -> str:
    """Run a command that ends with an error, by 2 where the call itself is wrong; the sentence."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == exit_code
    return result.output


def train_and_kill(step: int, *arguments: str | Path) -> None:
    """Run a command in a process of its own, which is killed when that step begins."""
    line = [sys.executable, "-c", _KILLED, str(step), *map(str, arguments)]
    ended = subprocess.run(line, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def same_weights(first: Path, second: Path) -> bool:
    """Whether two checkpoints hold the same tensors, bit by bit."""
    states = [torch.load(path, weights_only=True)["state_dict"] for path in (first, second)]
    assert states[0].keys() == states[1].keys()
    return all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def changes(*lines: str) -> Sequence[str]:
    """As options of the command line."""
    return [word for line in lines for word in ("--set", line)]
