"""`pulmo-train cxr`: from a collection of radiographs to a classifier, its log and its evaluation.

A folder ``<work>/cxr-<architecture>`` holds ``run_config.json``, ``training_log.csv``, ``curves.png``,
``best_model.pth`` (in the form of the published trainer, from which a set of weights is made), ``last.ckpt`` to go on
from, and the evaluation of the best model on the films that judge: ``final_evaluation_results.csv`` and ``.md``,
``evaluation.json``, ``probabilities.csv``.

What the published training got wrong and is right here, unless ``published`` asks for it: films are not mirrored (the
heart lies on the left), the films that choose the epoch do not judge it, lateral films are left out. Its gradient
scaler was made anew each epoch; here it lives as long as the training.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import platform
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from pulmo_models.checkpoints import checked_state, read_container
from pulmo_models.cxr.networks import ARCHITECTURES, load_published
from pulmo_models.cxr.settings import LABELS
from pulmo_models.errors import WeightsCorrupt
from pulmo_models.nets.heads import dropout_linear, linear
from pulmo_models.training.films.collections import (
    FilmOptions,
    FilmSample,
    FilmsInvalid,
    SubsetMode,
    read_films,
    subset,
)
from pulmo_models.training.films.data import Films
from pulmo_models.training.films.figures import Scored, figures
from pulmo_models.training.films.module import BEST_MODEL, EpochFiles, FilmModule
from pulmo_models.training.fitting.runs import begin_run, finish_run, only_one

log = logging.getLogger(__name__)

LAST = "last.ckpt"
CONFIG = "run_config.json"
_HEADS = ("fc.", "classifier.")
_OLD_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")


@dataclass(frozen=True, kw_only=True)
class FilmTraining:
    """What the command line says of a training; the defaults are the published ones."""

    data: Path
    work: Path
    architecture: str
    device: torch.device
    epochs: int = 5
    batch: int = 32
    learning_rate: float = 1e-4
    dropout: float = 0.0
    seed: int = 42
    workers: int = 0
    amp: bool = False
    share: float = 1.0
    subset_mode: SubsetMode = "patient"
    options: FilmOptions = field(default_factory=FilmOptions)
    start: Path | None = None  # weights to begin with: torchvision's for ImageNet, or a trained classifier

    @property
    def folder(self) -> Path:
        """Where everything of this training lies."""
        return self.work / f"cxr-{self.architecture}"


def train_films(training: FilmTraining) -> Path:
    """Train, evaluate, and return the folder; a training that was finished is only looked up.

    Raises:
        FilmsInvalid: the films cannot be used.
        RunMismatch, RunBusy: the folder holds another training.
        WeightsMissing, WeightsCorrupt: of the weights to begin with.
    """
    folder = training.folder
    samples = read_films(training.data, training.options)
    about = _about(training, samples)
    with only_one(folder):
        if begin_run(folder, about, {"device": str(training.device)}):
            log.info("%s is trained already", folder)
            return folder
        chosen = subset(samples, training.share, training.subset_mode, training.seed)
        splits = _splits(chosen, training.options)
        begun = time.monotonic()
        config = _config(training)
        _write_json(folder / CONFIG, config)
        seed_everything(training.seed, workers=False, verbose=False)
        network = new_classifier(training)
        _fit(training, network, splits, config)
        spent = time.monotonic() - begun
        ended = {
            "end_time": datetime.now(UTC).isoformat(timespec="seconds"),
            "training_time_seconds": round(spent, 1),
            "training_time_minutes": round(spent / 60, 2),
        }
        _write_json(folder / CONFIG, {**config, **ended})
        evaluate_films(folder, splits["test"], training)
        finish_run(folder)
    return folder


def new_classifier(training: FilmTraining) -> nn.Module:
    """With fresh weights, or with those to begin with: their head too, where it has five outputs."""
    head = dropout_linear(len(LABELS), training.dropout) if training.dropout > 0 else linear(len(LABELS))
    network = ARCHITECTURES[training.architecture](head)
    if training.start is None:
        return network
    try:
        architecture, state = load_published(training.start)
    except WeightsCorrupt:
        return _from_imagenet(network, training, training.start)
    if architecture != training.architecture:
        raise WeightsCorrupt(f"{training.start} holds a {architecture}, not a {training.architecture}")
    keys = {
        key.replace(".1.", ".") if key.startswith(("fc.1.", "classifier.1.")) else key: key
        for key in network.state_dict()
    }
    network.load_state_dict({keys[key]: value for key, value in state.items()})
    return network


def _from_imagenet(network: nn.Module, training: FilmTraining, path: Path) -> nn.Module:
    """The body of a classifier of other classes with torchvision's keys; the head stays fresh.

    Torchvision's oldest files have no counters of batches, and a dot within the names of the layers of a DenseNet.
    """
    body = ARCHITECTURES[training.architecture](lambda _: nn.Identity())
    counters = {key: value for key, value in body.state_dict().items() if key.endswith("num_batches_tracked")}
    read = {_OLD_DENSE_LAYER.sub(r"\1", str(key)): value for key, value in read_container(path).items()}
    state = {**counters, **{key: value for key, value in read.items() if not key.startswith(_HEADS)}}
    network.load_state_dict({**network.state_dict(), **checked_state(state, body, path)})
    return network


class _Loaders(LightningDataModule):
    """Batches in an order that depends on seed and epoch alone, so that a training can go on where it stopped."""

    def __init__(self, training: FilmTraining, splits: dict[str, tuple[FilmSample, ...]]) -> None:
        super().__init__()
        self._training = training
        self._films = Films(splits["train"], seed=training.seed, augmented=True, mirrored=training.options.published)
        self._seen = Films(splits["validation"], seed=training.seed, augmented=False)

    def train_dataloader(self) -> DataLoader[Any]:
        """The next epoch's."""
        epoch = self.trainer.current_epoch  # type: ignore[union-attr]
        self._films.epoch = epoch
        size = self._training.batch
        # Drawn here and not by the loader, which draws anew each time that somebody looks at it.
        drawn = torch.Generator().manual_seed(self._training.seed * 100_003 + epoch)
        order = torch.randperm(len(self._films), generator=drawn).tolist()
        batches = [order[first : first + size] for first in range(0, len(order), size)]
        if len(batches) > 1 and len(batches[-1]) == 1:
            batches.pop()  # a batch norm of one film has no variance
        return DataLoader(self._films, batch_sampler=batches, num_workers=self._training.workers)

    def val_dataloader(self) -> DataLoader[Any]:
        """Every film that chooses."""
        return DataLoader(self._seen, batch_size=self._training.batch, num_workers=self._training.workers)


def _fit(
    training: FilmTraining, network: nn.Module, splits: dict[str, tuple[FilmSample, ...]], config: dict[str, Any]
) -> None:
    folder, last = training.folder, training.folder / LAST
    keep = ModelCheckpoint(dirpath=folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    cuda = training.device.type == "cuda"
    trainer = Trainer(
        accelerator="gpu" if cuda else "cpu",
        devices=1,
        precision="16-mixed" if training.amp and cuda else "32-true",
        max_epochs=training.epochs,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        deterministic="warn" if cuda else True,
        logger=False,
        callbacks=[EpochFiles(folder, config), keep],
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(
        FilmModule(network, training.learning_rate, training.seed),
        datamodule=_Loaders(training, splits),
        ckpt_path=last if last.exists() else None,
        weights_only=True,
    )


def evaluate_films(folder: Path, samples: Sequence[FilmSample], training: FilmTraining) -> dict[str, Any]:
    """The best model on films, as figures with intervals by patient; written into the folder too."""
    architecture, state = load_published(folder / BEST_MODEL)
    network = ARCHITECTURES[architecture](linear(len(LABELS)))
    network.load_state_dict(state)
    probabilities = predict(network, samples, training)
    scored = Scored(
        probabilities=probabilities,
        targets=np.array([sample.targets for sample in samples]),
        patients=[sample.patient for sample in samples],
    )
    found = figures(scored, training.seed)
    write_tables(folder, architecture, found)
    with (folder / "probabilities.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["film", *LABELS])
        writer.writerows(
            [sample.path.name, *(f"{value:.6f}" for value in row)]
            for sample, row in zip(samples, probabilities, strict=True)
        )
    _write_json(folder / "evaluation.json", {"films": len(samples), "model": architecture, "figures": found})
    return found


def predict(network: nn.Module, samples: Sequence[FilmSample], training: FilmTraining) -> np.ndarray[Any, Any]:
    """Probabilities (films, labels), each film as the pipeline sees it."""
    films = Films(samples, seed=training.seed, augmented=False)
    network.eval().to(training.device)
    parts = []
    with torch.inference_mode():
        for images, _ in DataLoader(films, batch_size=training.batch, num_workers=training.workers):
            parts.append(torch.sigmoid(network(images.to(training.device)).double()).cpu().numpy())
    return np.concatenate(parts)


def write_tables(folder: Path, model: str, found: dict[str, dict[str, Any]]) -> None:
    """``final_evaluation_results.csv`` with the published columns, and the same with intervals as Markdown."""
    columns = [
        *((f"AUROC_{label}", f"auc_{label}") for label in LABELS),
        *((f"PR_AUC_{label}", f"pr_{label}") for label in LABELS),
        ("Macro_AUROC", "macro_auroc"),
        ("Macro_PR_AUC", "macro_pr_auc"),
    ]
    with (folder / "final_evaluation_results.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Model", *(name for name, _ in columns)])
        writer.writerow([model, *("" if (value := found[key]["value"]) is None else value for _, key in columns)])
    lines = [f"| {model} | value | 95 % interval | positive films |", "|---|---|---|---|"]
    for name, key in columns:
        figure = found[key]
        ends = "" if figure["ci95"] is None else "{:.3f} to {:.3f}".format(*figure["ci95"])
        value = "none" if figure["value"] is None else f"{figure['value']:.3f}"
        films = f"{figure['positives']} of {figure['films']}" if "films" in figure else ""
        lines.append(f"| {name} | {value} | {ends} | {films} |")
    (folder / "final_evaluation_results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _splits(samples: Sequence[FilmSample], options: FilmOptions) -> dict[str, tuple[FilmSample, ...]]:
    """Each split with at least one film. Raises `FilmsInvalid`."""
    splits = {name: tuple(s for s in samples if s.split == name) for name in ("train", "validation", "test")}
    if options.published and not splits["validation"]:
        splits["validation"] = tuple(replace(sample, split="validation") for sample in splits["test"])
    for name, found in splits.items():
        if not found:
            raise FilmsInvalid(f"there are no films to {'train' if name == 'train' else name}")
    return splits


def _about(training: FilmTraining, samples: Sequence[FilmSample]) -> dict[str, Any]:
    """What may not change when a training goes on. The films are told by their content: they may lie elsewhere then."""
    about = asdict(training)
    for key in ("work", "device", "workers", "data"):
        del about[key]
    films = repr([(sample.path.name, sample.patient, sample.targets, sample.split) for sample in samples])
    digest = hashlib.sha256(films.encode()).hexdigest()
    start = training.start.name if training.start else None
    return {**about, "training": "cxr", "start": start, "films": f"{len(samples)}, sha256:{digest}"}


def _config(training: FilmTraining) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    config: dict[str, Any] = {
        "model": training.architecture,
        "epochs": training.epochs,
        "batch_size": training.batch,
        "lr": training.learning_rate,
        "num_workers": training.workers,
        "seed": training.seed,
        "subset": training.share,
        "subset_mode": training.subset_mode,
        "amp": training.amp,
        "data_dir": str(training.data),
        "out_dir": str(training.folder),
        "uncertain_policy": training.options.uncertain,
        "views": training.options.views,
        "published": training.options.published,
        "dropout": training.dropout,
        "python_version": platform.python_version(),
        "platform": platform.platform(),
        "pytorch_version": str(torch.__version__),
        "cuda_available": cuda,
        "cuda_version": torch.version.cuda,
        "cudnn_version": torch.backends.cudnn.version() if cuda else None,
        "device": str(training.device),
        "use_amp": training.amp and training.device.type == "cuda",
        "start_time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if cuda:
        config["gpu_name"] = torch.cuda.get_device_name(0)
        config["gpu_count"] = torch.cuda.device_count()
        config["gpu_capability"] = ".".join(map(str, torch.cuda.get_device_capability(0)))
    return config


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
