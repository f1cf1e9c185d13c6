"""Training of the detector: penalty-reduced focal loss on heat maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pulmo_models.nets.heatmap_unet3d import HeatmapUNet3D
from pulmo_models.training.fitting.heatmap import PEAK, focal_loss
from pulmo_models.training.fitting.modules import PlannedModule
from pulmo_models.training.fitting.plan import Plan
from pulmo_models.training.fitting.recipe import Stage1Recipe

CRITERION = "validation/loss"


def new_detector(recipe: Stage1Recipe) -> HeatmapUNet3D:
    """A network with the recipe's prior."""
    network = HeatmapUNet3D()
    if recipe.prior_bias != "default":
        nn.init.constant_(network.out.bias, recipe.prior_bias)  # type: ignore[arg-type]
    return network


class Stage1Module(PlannedModule):
    """A batch is image, target and weight, each (B, 1, slices, rows, columns)."""

    def __init__(self, network: HeatmapUNet3D, plan: Plan, recipe: Stage1Recipe, seed: int) -> None:
        super().__init__(network, plan, recipe.optimiser, seed)
        self._recipe = recipe

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """The loss; the mean heat at the peaks is reported too, since the detector's threshold is one of heat."""
        loss, heat = self._loss(self.network, batch)
        self.report({"loss": loss.detach(), "peak": heat})
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Mean over the windows."""
        loss, heat = self._loss(self.evaluated, batch)
        self.log(CRITERION, loss, batch_size=len(batch[0]))
        if torch.isfinite(heat):
            self.log("validation/peak", heat, batch_size=len(batch[0]))

    def _loss(self, network: nn.Module, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        image, target, weight = batch
        logits = network(image).float()
        with torch.autocast(logits.device.type, enabled=False):
            loss = focal_loss(logits, target, weight, alpha=self._recipe.alpha, beta=self._recipe.beta)
        return loss, torch.sigmoid(logits.detach())[(target >= PEAK) & (weight > 0)].mean()
