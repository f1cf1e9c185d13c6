"""The classifier as Lightning trains it, and the files that each epoch leaves: log, curves, best model."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from pulmo_models.cxr.settings import LABELS
from pulmo_models.training.films.figures import Scored, areas

BEST_MODEL = "best_model.pth"
LOG = "training_log.csv"
CURVES = "curves.png"
COLUMNS = (
    "epoch", "train_loss", "val_loss", "val_macro_auroc", "val_macro_pr_auc",
    *(f"val_auc_{label}" for label in LABELS), *(f"val_pr_{label}" for label in LABELS),
)  # fmt: skip


class FilmModule(LightningModule):
    """Binary cross-entropy of each label, unweighted; Adam without decay."""

    def __init__(self, network: nn.Module, learning_rate: float, seed: int) -> None:
        super().__init__()
        self.network = network
        self.learning_rate = learning_rate
        self._seed = seed
        self.outcome: dict[str, float] = {}  # of the last epoch
        self._train: list[tuple[float, int]] = []
        self._seen: list[tuple[Tensor, Tensor]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, as published."""
        return torch.optim.Adam(self.network.parameters(), lr=self.learning_rate)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Dropout is drawn from the seed and the step alone: a training that goes on is as one that never stopped."""
        torch.manual_seed(self._seed * 1_000_003 + self.global_step)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """The mean loss of a batch."""
        images, targets = batch
        loss = nn.functional.binary_cross_entropy_with_logits(self.network(images), targets)
        self._train.append((float(loss.detach()), len(images)))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Logits and targets are kept for the end of the epoch."""
        images, targets = batch
        self._seen.append((self.network(images).float().cpu(), targets.cpu()))

    def on_validation_epoch_end(self) -> None:
        """Losses and areas of the epoch."""
        logits, targets = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        films = sum(number for _, number in self._train)
        found = areas(
            Scored(
                probabilities=torch.sigmoid(logits).double().numpy(),
                targets=targets.double().numpy(),
                patients=[""] * len(targets),
            )
        )
        self.outcome = {
            "train_loss": sum(loss * number for loss, number in self._train) / max(films, 1),
            "val_loss": float(nn.functional.binary_cross_entropy_with_logits(logits, targets)),
            **{f"val_{key}": value for key, value in found.items()},
        }
        self._train, self._seen = [], []


class EpochFiles(Callback):
    """After each epoch: a row of the log, the curves, and the model if it is the best so far by macro AUROC."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder = folder
        self._config = dict(config)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when an epoch, with its validation, is over."""
        if not isinstance(pl_module, FilmModule) or trainer.sanity_checking:
            return
        rows = [row for row in read_log(self._folder) if int(row["epoch"]) <= trainer.current_epoch]
        best = max((_auroc(row) for row in rows), default=-1.0)
        row = {"epoch": trainer.current_epoch + 1, **pl_module.outcome}
        with (self._folder / LOG).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows([*rows, row])
        draw_curves(self._folder)
        found = _auroc(row)
        if found > best:
            state = {key: value.detach().cpu() for key, value in pl_module.network.state_dict().items()}
            content = {
                "epoch": trainer.current_epoch + 1,
                "best_macro_auroc": found,
                "model_state": state,
                "optimizer_state": {},
                "config": self._config,
            }
            partial = self._folder / f"{BEST_MODEL}.part"
            torch.save(content, partial)
            partial.replace(self._folder / BEST_MODEL)


def _auroc(row: Mapping[str, Any]) -> float:
    """0 where no label has both classes: then the first epoch is the best."""
    value = float(row["val_macro_auroc"])
    return 0.0 if np.isnan(value) else value


def read_log(folder: Path) -> list[dict[str, str]]:
    """The rows of the log, none where there is no log yet."""
    if not (folder / LOG).is_file():
        return []
    with (folder / LOG).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def draw_curves(folder: Path) -> None:
    """Losses, and areas of the validation films, over the epochs."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    rows = read_log(folder)
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, found = figure.subplots(1, 2)
    epochs = [int(row["epoch"]) for row in rows]
    for axes, names, title in (
        (losses, ("train_loss", "val_loss"), "loss"),
        (found, ("val_macro_auroc", "val_macro_pr_auc"), "mean over the labels"),
    ):
        for name in names:
            axes.plot(epochs, [float(row[name]) for row in rows], marker="o", label=name)
        axes.set_xlabel("epoch")
        axes.set_title(title)
        axes.legend()
    figure.savefig(folder / CURVES)
