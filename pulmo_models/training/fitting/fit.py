"""Running a planned training on Lightning: loaders, checkpoints, early stop, logs, precision."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.utils.data import DataLoader, Dataset

from pulmo_models.device import has_native_bf16
from pulmo_models.training.fitting.modules import PlannedModule
from pulmo_models.training.fitting.plan import Plan, batches
from pulmo_models.training.fitting.runs import BEST, LAST

log = logging.getLogger(__name__)

_WORKERS = 8  # at most, beside a GPU


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What makes a network the best, and when it is time to stop."""

    criterion: str
    mode: str  # min or max
    patience: int  # epochs; 0: to the end of the plan


class PlannedData(LightningDataModule):
    """The batches of the chunk that the trainer is at, and the validation set."""

    def __init__(
        self,
        plan: Plan,
        train: Sequence[Dataset[Any]],
        weights: npt.NDArray[np.float64],
        validation: Dataset[Any],
        *,
        validation_batch: int,
        seed: int,
        workers: int,
    ) -> None:
        """`train` has a data set for each course of the plan; their rows are the same, with these weights."""
        super().__init__()
        self._plan = plan
        self._train = train
        self._weights = weights
        self._validation = validation
        self._validation_batch = validation_batch
        self._seed = seed
        self._workers = workers

    def train_dataloader(self) -> DataLoader[Any]:
        """From the step that the trainer is at to the end of its chunk."""
        chunk = self._plan.chunk_at(self.trainer.global_step)  # type: ignore[union-attr]
        return self._loader(self._train[chunk.course], batches(self._plan, chunk, self._weights, self._seed))

    def val_dataloader(self) -> DataLoader[Any]:
        """Every sample once; the number 0 means nothing without augmentation."""
        keys = [(index, 0) for index in range(len(self._validation))]  # type: ignore[arg-type]
        size = self._validation_batch
        return self._loader(self._validation, [keys[n : n + size] for n in range(0, len(keys), size)])

    def _loader(self, samples: Dataset[Any], order: list[list[tuple[int, int]]]) -> DataLoader[Any]:
        return DataLoader(
            samples,
            batch_sampler=order,
            num_workers=self._workers,
            # Its own generator: otherwise each new loader draws from the one that the dropout uses.
            generator=torch.Generator().manual_seed(self._seed),
            worker_init_fn=_one_thread,
            pin_memory=torch.cuda.is_available(),
        )


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def workers_for(device: torch.device) -> int:
    """Loader processes: none on the CPU, where the network needs every core."""
    return min(_WORKERS, os.cpu_count() or 1) if device.type == "cuda" else 0


def fit(module: PlannedModule, data: PlannedData, plan: Plan, folder: Path, device: torch.device, watch: Watch) -> None:
    """Train to the end of the plan, going on from the folder's last checkpoint where there is one."""
    last = folder / LAST
    if last.exists():
        log.info("going on from %s", last)
    with _settings():
        trainer = Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed" if has_native_bf16(device) else "32-true",
            max_epochs=len(plan.chunks),
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            log_every_n_steps=10,
            # CUDA has no deterministic kernel for max pooling in 3D: it is as reproducible there as the kernels are.
            deterministic="warn" if device.type == "cuda" else True,
            logger=_loggers(folder),
            callbacks=_callbacks(folder, watch),
            plugins=[_WholeFiles()],
            enable_progress_bar=sys.stderr.isatty(),
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, datamodule=data, ckpt_path=last if last.exists() else None, weights_only=True)


def _loggers(folder: Path) -> list[Any]:
    table = CSVLogger(folder, name="logs")
    return [table, TensorBoardLogger(folder, name="logs", version=table.version)]


def _callbacks(folder: Path, watch: Watch) -> list[Callback]:
    callbacks: list[Callback] = [
        ModelCheckpoint(
            dirpath=folder,
            filename=BEST.removesuffix(".ckpt"),
            monitor=watch.criterion,
            mode=watch.mode,
            save_weights_only=True,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        ),
        ModelCheckpoint(
            dirpath=folder,
            filename=LAST.removesuffix(".ckpt"),
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
    ]
    if watch.patience:
        callbacks.insert(
            0,
            EarlyStopping(
                watch.criterion,
                mode=watch.mode,
                patience=watch.patience,
                check_finite=False,
                check_on_train_epoch_end=False,
            ),
        )
    if sys.stderr.isatty():
        callbacks.append(_Bar())
    return callbacks


class _Bar(RichProgressBar):
    """Without the number of the log's version. What it calls an epoch is the part up to the next checkpoint."""

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(*args).items() if name != "v_num"}


class _WholeFiles(TorchCheckpointIO):
    """A checkpoint gets its name only when all of it is on the disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        partial = Path(path).with_suffix(".part")
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


@contextmanager
def _settings() -> Iterator[None]:
    """Lightning's advice that does not fit here is left out; torch's settings are put back afterwards."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    deterministic, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    memory: Any = torch.utils.deterministic  # whose attributes torch defines by a class of its own
    filling = memory.fill_uninitialized_memory
    memory.fill_uninitialized_memory = False  # costs time, and nothing here reads such memory
    with warnings.catch_warnings():
        for text in _UNFITTING:
            warnings.filterwarnings("ignore", message=text)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn)
            memory.fill_uninitialized_memory = filling


_UNFITTING = (
    ".*does not have many workers.*",  # on purpose on the CPU
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*your dataloader is not resumable.*",  # a chunk's loader begins where the chunk does
    ".*isinstance.treespec, LeafSpec.*",
)
