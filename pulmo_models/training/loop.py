"""The training loop of both stages: seeded, resumable, with a progress bar. Running the same command goes on."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

log = logging.getLogger(__name__)

Batch = Any
Loss = Callable[[nn.Module, Batch], tuple[Tensor, Mapping[str, float]]]
"""Network and batch on the device -> loss and figures to report."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a training with one data set and batch size."""

    samples: Dataset[Any]
    batch: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Optimiser and habits of a training."""

    learning_rate: float
    weight_decay: float = 1e-4
    warm_up_steps: int = 200
    clip_norm: float = 5.0
    checkpoint_steps: int = 100
    report_steps: int = 25
    workers: int = 1
    seed: int = 0


def train(
    network: nn.Module,
    phases: Sequence[Phase],
    loss: Loss,
    settings: LoopSettings,
    work: Path,
    *,
    stop_after: int | None = None,
) -> nn.Module:
    """Train to the end of the last phase; AdamW, linear warm-up, then cosine to 2 % of the rate.

    `network` is freshly made; where the folder `work` holds a `checkpoint.pt`, the training goes on from there.
    `log.jsonl` beside it has the figures. `stop_after` leaves off after that many steps of this call.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    total = sum(phase.steps for phase in phases)
    work.mkdir(parents=True, exist_ok=True)
    step, skipped = _resume(work / "checkpoint.pt", network, optimiser, device)
    begun, figures = step, _Figures(work / "log.jsonl")
    with _progress() as bar:
        task = bar.add_task("training", total=total, completed=step)
        for batch in _batches(phases, step, settings, device):
            rate = _rate(settings, step, total)
            for group in optimiser.param_groups:
                group["lr"] = rate
            with torch.autocast(device.type, torch.bfloat16):
                value, seen = loss(network, batch)
            optimiser.zero_grad()
            value.backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
            # An instance norm over nearly constant air amplifies gradients beyond all bounds now and then.
            if torch.isfinite(norm):
                optimiser.step()
            else:
                skipped += 1
            step += 1
            figures.add({"loss": float(value.detach()), **seen})
            bar.update(task, completed=step)
            if step % settings.report_steps == 0:
                bar.update(task, description=figures.report(step, rate, skipped))
            stop = stop_after is not None and step - begun >= stop_after
            if step % settings.checkpoint_steps == 0 or step == total or stop:
                _save(work / "checkpoint.pt", network, optimiser, step, skipped)
            if stop:
                break
    return network.cpu().eval()


def _rate(settings: LoopSettings, step: int, total: int) -> float:
    warm = min(1.0, (step + 1) / settings.warm_up_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))
    return settings.learning_rate * warm * (0.02 + 0.98 * cosine)


def _batches(phases: Sequence[Phase], step: int, settings: LoopSettings, device: torch.device) -> Iterator[Batch]:
    """Batches from a step on; sample numbers count through, so a resumed run sees what an uninterrupted one sees."""
    first = 0
    for phase in phases:
        done = max(0, step - first)
        first += phase.steps
        if done >= phase.steps:
            continue
        loader = DataLoader(
            phase.samples,
            batch_size=phase.batch,
            sampler=range(done * phase.batch, phase.steps * phase.batch),
            num_workers=settings.workers,
            worker_init_fn=_one_thread,
            # Its own generator: otherwise each new loader draws from the one that the dropout uses.
            generator=torch.Generator().manual_seed(settings.seed),
        )
        for batch in loader:
            yield _to(batch, device)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _to(batch: Batch, device: torch.device) -> Batch:
    if isinstance(batch, dict):
        return {name: values.to(device) for name, values in batch.items()}
    return [values.to(device) for values in batch]


def _resume(path: Path, network: nn.Module, optimiser: torch.optim.Optimizer, device: torch.device) -> tuple[int, int]:
    if not path.exists():
        return 0, 0
    stored = torch.load(path, map_location=device, weights_only=True)
    network.load_state_dict(stored["network"])
    optimiser.load_state_dict(stored["optimiser"])
    torch.set_rng_state(stored["random"].cpu())
    log.info("resumed at step %d", stored["step"])
    return int(stored["step"]), int(stored["skipped"])


def _save(path: Path, network: nn.Module, optimiser: torch.optim.Optimizer, step: int, skipped: int) -> None:
    temporary = path.with_suffix(".part")
    torch.save(
        {
            "network": network.state_dict(),
            "optimiser": optimiser.state_dict(),
            "random": torch.get_rng_state(),
            "step": step,
            "skipped": skipped,
        },
        temporary,
    )
    os.replace(temporary, path)


class _Figures:
    """Means of what the loss reports, over the steps since the last report; one JSON line each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sums: dict[str, list[float]] = {}
        self._since = time.monotonic()

    def add(self, seen: Mapping[str, float]) -> None:
        for name, value in seen.items():
            if math.isfinite(value):
                self._sums.setdefault(name, []).append(value)

    def report(self, step: int, rate: float, skipped: int) -> str:
        means = {name: sum(values) / len(values) for name, values in self._sums.items()}
        now = time.monotonic()
        line = {"step": step, "rate": rate, "skipped": skipped, "seconds": now - self._since, **means}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: round(value, 6) for name, value in line.items()}) + "\n")
        self._sums, self._since = {}, now
        return ", ".join(f"{name} {value:.3f}" for name, value in means.items())


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn())
