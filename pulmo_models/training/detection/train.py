"""`pulmo-train retinanet`: a fold of LUNA16 to a set of weights for ct-retinanet, and its evaluation.

A folder ``<work>/retinanet`` holds ``run.json``, ``last.ckpt`` to go on from, ``best.ckpt`` by the figures on the scans
that choose the model, logs, and ``evaluation.json`` on those that judge.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from pulmo_models.checkpoints import load_network, load_state, save_network
from pulmo_models.ct.box_nodules import LABEL, NETWORK
from pulmo_models.ct.retinanet import Size
from pulmo_models.nets.retinanet3d import RetinaNet3D
from pulmo_models.network_sets import NetworkSet, NetworkSpec, load_networks, write_networks
from pulmo_models.training.detection.evaluation import evaluate
from pulmo_models.training.detection.folds import read_fold
from pulmo_models.training.detection.module import CRITERION, Crops, RetinaNetModule
from pulmo_models.training.fitting.runs import begin_run, finish_run, only_one
from pulmo_models.training.lidc.luna16 import CollectionInvalid
from pulmo_models.weights import sha256_of

LAST, BEST, REPORT = "last.ckpt", "best.ckpt", "evaluation.json"
ATTRIBUTION = (
    "LUNA16 (Setio et al., Medical Image Analysis 42, 2017, CC BY 4.0) from LIDC-IDRI (CC BY 3.0); recipe of the MONAI "
    "bundle lung_nodule_ct_detection. Research use only"
)


@dataclass(frozen=True, kw_only=True)
class RetinaNetTraining:
    """What the command line says of a training; numbers by default are the bundle's."""

    fold: Path
    images: Path
    work: Path
    out: Path
    name: str
    device: torch.device
    epochs: int = 300
    every: int = 5  # epochs from one validation to the next
    crops: int = 4
    size: Size = (192, 192, 80)
    window: Size = (512, 512, 192)
    learning_rate: float = 0.01
    seed: int = 0
    max_steps: int | None = None
    start: str | None = None  # name or manifest of a set to begin with


def train_retinanet(training: RetinaNetTraining) -> Path:
    """Train, write the set, judge it; returns the set's manifest.

    Raises:
        CollectionInvalid: the fold or its images cannot be used, or cannot choose a model.
        RunMismatch, RunBusy: the folder holds another training.
        WeightsMissing, WeightsCorrupt: of the weights to begin with.
    """
    scans = read_fold(training.fold, training.images, training.seed)
    if not any(len(scan.boxes_lps_mm) for scan in scans["choose"]):
        raise CollectionInvalid(
            f"{training.fold}: none of the scans that choose the model has a nodule; take another seed, or leave scans "
            "without a nodule out, as LUNA16's folds do"
        )
    folder = training.work / "retinanet"
    with only_one(folder):
        if not begin_run(folder, _about(training), {"device": str(training.device)}):
            seed_everything(training.seed, workers=False, verbose=False)
            network = RetinaNet3D()
            if training.start is not None:
                load_network(load_networks(training.start, LABEL).networks[NETWORK], network)
                network.train()
            crops = Crops(scans["fit"], training.size, training.crops, training.seed)
            module = RetinaNetModule(network, scans["choose"], training.window, training.learning_rate)
            last = folder / LAST
            _trainer(training, folder, crops).fit(
                module,
                DataLoader(crops, batch_size=None, shuffle=True),
                DataLoader(TensorDataset(torch.zeros(1)), batch_size=None),  # validation looks at whole scans by itself
                ckpt_path=str(last) if last.exists() else None,
            )
            finish_run(folder)
        network = RetinaNet3D()
        best = folder / BEST
        state = load_state(
            best if best.exists() else folder / LAST, network, containers=("state_dict",), prefix="network."
        )
        network.load_state_dict(state)
        report = evaluate(network.eval(), scans["test"], training.window, training.device, training.seed)
        (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        return _write_set(training, state, network)


class _NextEpoch(Callback):
    """The crops of an epoch are its own."""

    def __init__(self, crops: Crops) -> None:
        self._crops = crops

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first batch."""
        self._crops.epoch = trainer.current_epoch


def _trainer(training: RetinaNetTraining, folder: Path, crops: Crops) -> Trainer:
    on_gpu = training.device.type == "cuda"
    return Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=1,
        precision="16-mixed" if on_gpu else "32-true",
        max_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        check_val_every_n_epoch=training.every,
        logger=CSVLogger(folder / "logs", name=""),
        callbacks=[
            _NextEpoch(crops),
            ModelCheckpoint(
                folder, BEST[:-5], CRITERION, mode="max", save_weights_only=True, enable_version_counter=False
            ),
            ModelCheckpoint(folder, LAST[:-5], save_on_train_epoch_end=True, enable_version_counter=False),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )


def _write_set(training: RetinaNetTraining, state: dict[str, torch.Tensor], network: RetinaNet3D) -> Path:
    training.out.mkdir(parents=True, exist_ok=True)
    spec = save_network(training.out / f"{training.name}-{NETWORK}.safetensors", state, network)
    manifest = training.out / f"{training.name}.toml"
    weights = NetworkSet(
        pipeline=LABEL,
        name=training.name,
        version="1",
        licence="not stated",
        origin=f"pulmo-train retinanet on {training.fold.name}",
        attribution=ATTRIBUTION,
        networks={NETWORK: NetworkSpec(**vars(spec), architecture="RetinaNet3D")},
    )
    write_networks(manifest, weights)
    return manifest


def _about(training: RetinaNetTraining) -> dict[str, Any]:
    kept = ("epochs", "every", "crops", "size", "window", "learning_rate", "seed", "max_steps", "start")
    fold = f"{training.fold.name}, sha256:{sha256_of(training.fold)}"
    return {"fold": fold, **{key: getattr(training, key) for key in kept}}
