"""The regressor as Lightning trains it: smooth L1 in pixels, Adam, a rate that falls where validation stands still.

Its attribute ``model`` gives checkpoints the published prefix. Boxes are read as centre and size through a sigmoid,
which has a gradient everywhere; a slice without lungs asks for a box without size.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional

from pulmo_models.ct.lung_boxes import DEVIATION, MEAN, SIZE, read_boxes

CRITERION = "val_loss"


class LungBoxModule(LightningModule):
    """A batch is images ``(B, 1, size, size)`` in 0..1 and boxes ``(B, 4)`` in shares."""

    def __init__(self, network: nn.Module, learning_rate: float, seed: int) -> None:
        super().__init__()
        self.model = network
        self._learning_rate = learning_rate
        self._seed = seed

    def configure_optimizers(self) -> Any:
        """As published."""
        adam = torch.optim.Adam(self.parameters(), lr=self._learning_rate)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, mode="min", factor=0.1, patience=10)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "monitor": CRITERION}}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch that was moved, scaled, mirrored and darkened by the seed of its step."""
        generator = torch.Generator().manual_seed((self._seed << 32) + self.global_step)
        loss = self._loss(*augmented(*batch, generator))
        self.log("train_loss", loss, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The loss, and the mean overlap on slices with lungs."""
        images, boxes = batch
        outputs = self.model((images - MEAN) / DEVIATION).float()
        self.log(CRITERION, box_loss(outputs, boxes), batch_size=len(images))
        with_lungs = has_lungs(boxes)
        if with_lungs.any():
            found = read_boxes(outputs, "centre_size")[with_lungs]
            self.log("val_iou", overlap(found, boxes[with_lungs]).mean(), batch_size=int(with_lungs.sum()))

    def _loss(self, images: Tensor, boxes: Tensor) -> Tensor:
        return box_loss(self.model((images - MEAN) / DEVIATION).float(), boxes)


def box_loss(outputs: Tensor, boxes: Tensor) -> Tensor:
    """Smooth L1 in pixels of the published input: of the four edges, or of the size where there are no lungs."""
    share = torch.sigmoid(outputs)
    half = share[:, 2:] / 2
    edges = torch.cat((share[:, :2] - half, share[:, :2] + half), dim=1)
    with_lungs = has_lungs(boxes)[:, None]
    found = torch.where(with_lungs, edges, torch.cat((share[:, 2:], share[:, 2:]), dim=1))
    wanted = torch.where(with_lungs, boxes, torch.zeros_like(boxes))
    return functional.smooth_l1_loss(found * SIZE, wanted * SIZE)


def has_lungs(boxes: Tensor) -> Tensor:
    """Which of the boxes are any."""
    return boxes[:, 2] > boxes[:, 0]


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of pairs of boxes, ``(n,)``."""
    low, high = torch.maximum(first[:, :2], second[:, :2]), torch.minimum(first[:, 2:], second[:, 2:])
    common = (high - low).clamp(min=0).prod(dim=1)
    both = (first[:, 2:] - first[:, :2]).prod(dim=1) + (second[:, 2:] - second[:, :2]).prod(dim=1)
    return common / (both - common).clamp(min=1e-9)


def augmented(images: Tensor, boxes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images moved by up to 10 % and scaled by up to 15 %, half of them mirrored, of another gamma, with noise."""

    def drawn(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(images), generator=generator)

    scale, mirror = drawn(0.85, 1.15), torch.where(drawn(0, 1) < 0.5, -1.0, 1.0)
    shift = torch.stack((drawn(-0.1, 0.1), drawn(-0.1, 0.1)), dim=1)
    # A point at share p of the image goes to 0.5 + (mirror) * scale * (p - 0.5) + shift.
    factors = torch.stack((mirror * scale, scale), dim=1)
    matrix = torch.zeros(len(images), 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1] = 1 / factors[:, 0], 1 / factors[:, 1]
    matrix[:, :, 2] = -2 * shift / factors
    grid = functional.affine_grid(matrix.to(images), list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
    gamma = drawn(0.75, 1.35)[:, None, None, None].to(images)
    noise = 0.02 * torch.randn(images.shape, generator=generator).to(images)
    moved = (moved.clamp(0, 1) ** gamma + noise).clamp(0, 1)
    edges = boxes.reshape(-1, 2, 2)
    placed = (0.5 + factors[:, None].to(boxes) * (edges - 0.5) + shift[:, None].to(boxes)).clamp(0, 1)
    ordered = torch.cat((placed.min(dim=1).values, placed.max(dim=1).values), dim=1)
    return moved, torch.where(has_lungs(boxes)[:, None], ordered, boxes)
