"""What both stages' trainings share on Lightning: optimiser by plan, seeded steps, gradients, mean of the weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pulmo_models.training.fitting.plan import Plan, rate_factor
from pulmo_models.training.fitting.precision import make_safe
from pulmo_models.training.fitting.recipe import Optimiser

log = logging.getLogger(__name__)

NEVER = 10**9


class PlannedModule(LightningModule):
    """A network that is trained by a plan. Step n depends on nothing but the weights before it, seed and n."""

    skipped: Tensor

    def __init__(self, network: nn.Module, plan: Plan, optimiser: Optimiser, seed: int) -> None:
        """`network` is freshly made, or has the weights to go on from."""
        super().__init__()
        self.network = make_safe(network)
        self.average: AveragedModel | None = None
        if optimiser.average_decay:
            self.average = AveragedModel(network, multi_avg_fn=_running_mean(optimiser.average_decay))
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64))
        self._plan = plan
        self._optimiser = optimiser
        self._seed = seed

    @property
    def evaluated(self) -> nn.Module:
        """The network that validation and export take: the running mean of the weights where one is kept."""
        return self.network if self.average is None else self.average.module

    def constrain(self) -> None:
        """Called after each step, before the mean of the weights takes it up."""

    def configure_optimizers(self) -> Any:
        """AdamW; the rate follows the plan."""
        how = self._optimiser
        adam = torch.optim.AdamW(self.network.parameters(), lr=how.learning_rate, weight_decay=how.weight_decay)
        schedule = LambdaLR(adam, lambda step: rate_factor(self._plan, how, step))
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is of the end of a chunk: nothing of the next one, whatever its length, has begun.

        Lightning would take the number of batches that are done from the chunk before.
        """
        progress = checkpoint["loops"]["fit_loop"]
        for counts in progress["epoch_progress"].values():
            counts.update(dict.fromkeys(counts, counts["processed"]))
        batches = progress["epoch_loop.batch_progress"]
        batches["current"].update(dict.fromkeys(batches["current"], 0))
        batches["is_last_batch"] = False

    def on_train_epoch_start(self) -> None:
        """To Lightning a chunk is an epoch; only the last one of ours is validated."""
        chunk = self._plan.chunk_at(self.global_step)
        self.trainer.check_val_every_n_epoch = 1 if chunk.validates else NEVER

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Dropout draws from the step's own seed, so a resumed training draws what an uninterrupted one does."""
        torch.manual_seed((self._seed << 32) + self.global_step)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip; leave out a step whose gradients are not finite, which would spoil the weights for good."""
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self._optimiser.clip_norm or math.inf)
        if not torch.isfinite(norm):
            optimizer.zero_grad(set_to_none=True)
            self.skipped += 1

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The step, the constraint, the mean."""
        super().optimizer_step(*args, **kwargs)
        self.constrain()
        if self.average is not None:
            self.average.update_parameters(self.network)

    def report(self, figures: Mapping[str, Tensor | float]) -> None:
        """Figures of a training step; one that is not finite (nothing of its kind in the batch) is left out."""
        finite = {f"train/{name}": float(value) for name, value in figures.items() if math.isfinite(float(value))}
        self.log("train/loss", finite.pop("train/loss", math.nan), batch_size=1, prog_bar=True)
        self.log_dict(finite, batch_size=1)
        self.log("train/rate", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=1)
        self.log("train/skipped", self.skipped.float(), batch_size=1)

    def on_train_epoch_end(self) -> None:
        """A line for whoever has no progress bar."""
        seen = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        chunk = self._plan.chunk_at(self.global_step - 1)
        text = ", ".join(
            f"{name} {value:.4g}"
            for name, value in seen.items()
            if name.startswith("train/") or (chunk.validates and name.startswith("validation/"))
        )
        log.info("step %d of %d, epoch %d of %d: %s", self.global_step, self._plan.steps, chunk.epoch + 1,
                 self._plan.epochs, text)  # fmt: skip


def _running_mean(decay: float) -> Callable[[Any, Any, Any], None]:
    """Exponential, but shorter in the beginning, so that the first weights are soon forgotten."""

    def update(mean: Any, current: Any, count: Any) -> None:
        number = int(count)
        get_ema_multi_avg_fn(min(decay, (1 + number) / (10 + number)))(mean, current, count)

    return update
