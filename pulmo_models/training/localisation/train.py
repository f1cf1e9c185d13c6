"""`pulmo-train lungs`: from CT series to a set of weights of the lung localisation, and what it is worth.

A folder ``<work>/lungs-<architecture>`` holds ``run.json``, ``last.ckpt`` to go on from, ``best.ckpt`` by the loss on
the validation series, and Lightning's logs; ``<work>/lungs.json`` the evaluation on the series of the test.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from pulmo_models.checkpoints import load_state, save_network
from pulmo_models.ct.lung_boxes import LABEL, SIZE, Readout, load_localiser
from pulmo_models.nets.lung_boxes import ARCHITECTURES
from pulmo_models.network_sets import NetworkSet, NetworkSpec, Setting, write_networks
from pulmo_models.training.fitting.runs import begin_run, finish_run, only_one
from pulmo_models.training.localisation.data import LabelledSeries, Slices, read_series
from pulmo_models.training.localisation.evaluation import evaluate
from pulmo_models.training.localisation.module import CRITERION, LungBoxModule
from pulmo_models.weights import sha256_of

log = logging.getLogger(__name__)

LAST, BEST, REPORT = "last.ckpt", "best.ckpt", "lungs.json"
PREFIX = "model."
ATTRIBUTION = (
    "Where the default series were used: QIN LUNG CT (Kalpathy-Cramer et al., TCIA, doi:10.7937/K9/TCIA.2015.NPGZYZBZ, "
    "CC BY), Lung-PET-CT-Dx (Li et al., TCIA, doi:10.7937/TCIA.2020.NNC2-0461, CC BY 4.0) and Lung-Fused-CT-Pathology "
    "(Madabhushi and Rusu, TCIA, doi:10.7937/K9/TCIA.2018.SMT36LPN, CC BY); boxes by the classical lung segmentation. "
    "Research use only"
)


@dataclass(frozen=True, kw_only=True)
class LungTraining:
    """What the command line says of a training."""

    data: Path
    work: Path
    splits: Mapping[str, Sequence[str]]  # names of series for "train", "validation" and "test"
    architectures: Sequence[str]
    device: torch.device
    epochs: int = 100
    batch: int = 8
    learning_rate: float = 1e-4
    seed: int = 1
    size: int = SIZE
    max_steps: int | None = None
    name: str = "ct-lungs"
    out: Path = Path("sets")


def train_lungs(training: LungTraining) -> Path:
    """Train each network, write the set, judge it on the test series; returns the set's manifest.

    Raises:
        SeriesMissing: a split has no series.
        RunMismatch, RunBusy: the folder holds another training.
    """
    series = {split: read_series(training.data, names, training.size) for split, names in training.splits.items()}
    best = {architecture: _train(training, architecture, series) for architecture in training.architectures}
    manifest = write_lung_set(
        best,
        training.out,
        name=training.name,
        settings={"readout": "centre_size", "size": training.size},
        about={
            "version": "1",
            "licence": "not stated",
            "origin": f"pulmo-train lungs on {', '.join(training.splits['train'])}",
            "attribution": ATTRIBUTION,
        },
    )
    localiser = load_localiser(str(manifest), training.device.type)
    members = [replace(localiser, networks=(network,)) for network in localiser.networks]
    report: dict[str, Any] = {
        "truth": "the classical segmentation: agreement is measured, not correctness",
        "series": {split: list(names) for split, names in training.splits.items()},
        "size": training.size,
        "ensemble": evaluate(localiser, series["test"]),
    }
    if len(members) > 1:
        for architecture, member in zip(training.architectures, members, strict=True):
            report[architecture] = evaluate(member, series["test"])
    (training.work / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return manifest


def write_lung_set(
    checkpoints: Mapping[str, Path], out: Path, *, name: str, settings: Mapping[str, Setting], about: Mapping[str, str]
) -> Path:
    """Checkpoints of Lightning, by architecture, as a set; keys have the prefix ``model.``. Returns the manifest.

    ``settings`` says how the four outputs are read, ``{"readout": "corners"}`` for checkpoints of the published recipe.

    Raises:
        WeightsMissing, WeightsCorrupt: a file is no checkpoint of that network.
    """
    readout: Readout = "corners" if settings.get("readout") == "corners" else "centre_size"
    out.mkdir(parents=True, exist_ok=True)
    networks = {}
    for architecture, path in checkpoints.items():
        network = ARCHITECTURES[architecture]()
        state = load_state(path, network, containers=("state_dict",), prefix=PREFIX)
        spec = save_network(out / f"{name}-{architecture}.safetensors", state, network)
        source = {"source_file": path.name, "source_digest": f"sha256:{sha256_of(path)}"}
        networks[architecture] = NetworkSpec(**{**vars(spec), **source}, architecture=architecture)
    manifest = out / f"{name}.toml"
    whole = {**settings, "readout": readout}
    write_networks(manifest, NetworkSet(name=name, pipeline=LABEL, networks=networks, settings=whole, **about))
    return manifest


def _train(training: LungTraining, architecture: str, series: Mapping[str, Sequence[LabelledSeries]]) -> Path:
    """The best checkpoint of one network; a training that was interrupted goes on at its last epoch."""
    folder = training.work / f"lungs-{architecture}"
    about = {
        "architecture": architecture,
        "splits": {split: list(names) for split, names in training.splits.items()},
        "size": training.size,
        "batch": training.batch,
        "learning_rate": training.learning_rate,
        "epochs": training.epochs,
        "max_steps": training.max_steps,
        "seed": training.seed,
    }
    with only_one(folder):
        if begin_run(folder, about, {"device": str(training.device)}):
            return _chosen(folder)
        seed_everything(training.seed, workers=False, verbose=False)
        module = LungBoxModule(ARCHITECTURES[architecture](), training.learning_rate, training.seed)
        trainer = Trainer(
            accelerator="gpu" if training.device.type == "cuda" else "cpu",
            devices=1,
            max_epochs=training.epochs,
            max_steps=training.max_steps or -1,
            logger=CSVLogger(folder / "logs", name=""),
            callbacks=[
                ModelCheckpoint(folder, BEST[:-5], CRITERION, save_weights_only=True, enable_version_counter=False),
                ModelCheckpoint(
                    folder, LAST[:-5], save_last=False, save_on_train_epoch_end=True, enable_version_counter=False
                ),
            ],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=10,
        )
        train = DataLoader(Slices(series["train"]), batch_size=training.batch, shuffle=True, drop_last=True)
        validation = DataLoader(Slices(series["validation"]), batch_size=training.batch)
        last = folder / LAST
        trainer.fit(module, train, validation, ckpt_path=str(last) if last.exists() else None)
        finish_run(folder)
    return _chosen(folder)


def _chosen(folder: Path) -> Path:
    """The checkpoint of the best epoch; of a training that ended within its first one, the last."""
    return folder / BEST if (folder / BEST).exists() else folder / LAST
