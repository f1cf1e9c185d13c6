"""The RetinaNet as Lightning trains it: the bundle's losses, SGD with warm-up, whole scans to choose the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset

from pulmo_models.ct.boxes import anchors, flat_codes, flat_logits
from pulmo_models.ct.retinanet import Size
from pulmo_models.nets.retinanet3d import LEVELS, RetinaNet3D
from pulmo_models.training.detection.crops import augmented, draw_crop
from pulmo_models.training.detection.evaluation import find_boxes
from pulmo_models.training.detection.folds import FoldScan, on_grid
from pulmo_models.training.detection.matching import losses
from pulmo_models.training.metrics.boxes import ImageBoxes, box_figures

CRITERION = "validation/selection"
WARM_UP_EPOCHS, STEP_EPOCHS = 10, 160

Batch = tuple[Tensor, list[Tensor]]


def rate_factor(epoch: int) -> float:
    """Of the learning rate: linear to 1 over ten epochs, then a tenth after every 160.

    The bundle's first epoch has the rate 0 and learns nothing; here it has a tenth.
    """
    if epoch < WARM_UP_EPOCHS:
        return (epoch + 1) / WARM_UP_EPOCHS
    return float(0.1 ** ((epoch - WARM_UP_EPOCHS) // STEP_EPOCHS))


class Crops(Dataset[Batch]):
    """One scan an item: some crops of it, half of them with a nodule, augmented. What is drawn depends on the epoch."""

    def __init__(self, scans: Sequence[FoldScan], size: Size, crops: int, seed: int) -> None:
        self._scans, self._size, self._crops, self._seed = scans, size, crops, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._scans)

    def __getitem__(self, index: int) -> Batch:
        random = np.random.default_rng((self._seed, self.epoch, index))
        scan = on_grid(self._scans[index])
        images, truths = [], []
        for number in range(self._crops):
            image, boxes = draw_crop(scan.image, scan.boxes, self._size, number % 2 == 0, random)
            image, boxes = augmented(image, boxes, random)
            images.append(torch.from_numpy(image)[None])
            truths.append(torch.from_numpy(boxes).float())
        return torch.stack(images), truths


class RetinaNetModule(LightningModule):
    """A batch is crops ``(B, 1, x, y, z)`` of one scan and the boxes of each."""

    def __init__(self, network: RetinaNet3D, choose: Sequence[FoldScan], window: Size, learning_rate: float) -> None:
        super().__init__()
        self.network = network
        self._choose = choose
        self._window = window
        self._learning_rate = learning_rate

    def configure_optimizers(self) -> Any:
        """SGD, as the bundle's configuration says (its README says Adam)."""
        sgd = torch.optim.SGD(
            self.network.parameters(), lr=self._learning_rate, momentum=0.9, weight_decay=3e-5, nesterov=True
        )
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": LambdaLR(sgd, rate_factor), "interval": "epoch"}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of both losses."""
        images, truths = batch
        maps = self.network(images)
        grids = [maps[f"logits_{level}"].shape[-3:] for level in range(LEVELS)]
        logits = [torch.cat([flat_logits(maps[f"logits_{n}"][k]) for n in range(LEVELS)]) for k in range(len(images))]
        codes = [torch.cat([flat_codes(maps[f"codes_{n}"][k]) for n in range(LEVELS)]) for k in range(len(images))]
        every = torch.cat([anchors(level, grid) for level, grid in enumerate(grids)])
        truths = [truth.cpu() for truth in truths]
        classification, boxes = losses(logits, codes, truths, every, [grid.numel() for grid in grids])
        loss = classification + boxes
        self.log_dict(
            {"train/loss": loss.detach(), "train/classification": classification, "train/boxes": boxes},
            batch_size=len(images),
        )
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Nothing: whole scans are looked at once, at the end."""

    def on_validation_epoch_end(self) -> None:
        """COCO's figures on the scans that choose the model."""
        seen = []
        for scan in self._choose:
            grid = on_grid(scan)
            found = find_boxes(self.network, grid, self._window, self.device)
            seen.append(ImageBoxes(boxes=found[0], scores=found[1], truth=grid.boxes))
        figures = box_figures(seen)
        if figures is not None:
            self.log(CRITERION, figures.selection)
            self.log_dict({"validation/mAP": figures.mean_precision, "validation/mAR": figures.mean_recall})
