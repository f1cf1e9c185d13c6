"""Checkpoints as Pulmo was published: random networks in the published containers, with the published read-out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pulmo_models.nets.heatmap_unet3d import HeatmapUNet3D
from pulmo_models.nets.student2p5d import Student2p5D

STAGE1_FILE = "stage1_detector_v2.pth"
STAGE2_FILE = "student_2p5d_best.pth"

# As printed by the authors; on purpose not taken from the package.
WEIGHT_DIFFERENCES = (0.118, 0.107, 0.082, -0.416, 0.166, 0.793, -0.878, -0.018)
BIAS_DIFFERENCE = -0.172

METADATA_1 = {
    "epoch": 34,
    "val_loss": 0.5332,
    "PATCH": (64, 128, 128),
    "HU_CLIP": (-1000, 1000),
    "base": 16,
    "loss": "focal",
}
METADATA_2 = {
    "epoch": 20,
    "val": {"det_auc": np.float64(0.99), "mal_auc": np.float64(0.98), "dice": np.float32(0.86), "r2": -0.7},
    "n_slices": 7,
}


def published_states(seed: int = 3) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """State dicts of both stages."""
    torch.manual_seed(seed)
    stage1, stage2 = HeatmapUNet3D(), Student2p5D()
    with torch.no_grad():
        head = stage2.malignancy_head
        head.weight[1] = head.weight[0] + torch.tensor(WEIGHT_DIFFERENCES)
        head.bias[1] = head.bias[0] + BIAS_DIFFERENCE
    return stage1.state_dict(), stage2.state_dict()


def write_published(folder: Path, seed: int = 3) -> tuple[Path, Path]:
    """Both checkpoint files."""
    stage1, stage2 = published_states(seed)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model_state_dict": stage1, **METADATA_1}, folder / STAGE1_FILE)
    torch.save({"model_state_dict": stage2, **METADATA_2}, folder / STAGE2_FILE)
    return folder / STAGE1_FILE, folder / STAGE2_FILE
