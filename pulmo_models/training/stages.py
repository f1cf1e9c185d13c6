"""The two trainings: what each network sees and what it is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from pulmo_models.nets.heatmap_unet3d import HeatmapUNet3D
from pulmo_models.nets.student2p5d import Student2p5D
from pulmo_models.training.heatmap import focal_loss
from pulmo_models.training.hosts import TRAINING_HOSTS, load_hosts, load_phantoms
from pulmo_models.training.loop import LoopSettings, Phase, train
from pulmo_models.training.mining import load_hard_negatives
from pulmo_models.training.nodules import load_nodules, split_of
from pulmo_models.training.sampler import Material, Stage1Samples, Stage2Samples

_PHANTOM_SEEDS = range(100, 110)  # the demo's is another one

PeakFigures = tuple[Tensor, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Stage1Settings:
    """Windows grow towards those of inference, since the instance norm sees the whole window."""

    phases: Sequence[tuple[tuple[int, int, int], int, int]] = (
        # window, batch, steps
        ((32, 64, 64), 4, 2000),
        ((48, 96, 96), 2, 600),
        ((64, 128, 128), 1, 450),
    )
    learning_rate: float = 6e-4
    prior_bias: float = -4.0  # of the last layer: almost no voxel is a centre
    seed: int = 1


@dataclass(frozen=True, kw_only=True)
class Stage2Settings:
    """One phase; the losses are weighted as in the published recipe."""

    batch: int = 32
    steps: int = 1500
    learning_rate: float = 1e-3
    beyond: float = 0.25  # of the nodules: seen away from their centre, for the mask alone
    seed: int = 2


def load_material(data: Path, work: Path, seed: int) -> Material:
    """Hosts, phantoms and nodules of the training split."""
    return Material(
        hosts=load_hosts(data, TRAINING_HOSTS, work),
        phantoms=load_phantoms(_PHANTOM_SEEDS, work),
        nodules=load_nodules(data / "lidc_patches", lambda patient: split_of(patient) == "train"),
        seed=seed,
    )


def train_stage1(data: Path, work: Path, settings: Stage1Settings) -> nn.Module:
    """Train the detector; see `loop.train` for what is resumed."""
    torch.manual_seed(settings.seed)
    network = HeatmapUNet3D()
    nn.init.constant_(network.out.bias, settings.prior_bias)  # type: ignore[arg-type]
    material = load_material(data, work, settings.seed)
    phases = [
        Phase(samples=Stage1Samples(material, window, 10_000_000), batch=batch, steps=steps)
        for window, batch, steps in settings.phases
    ]
    loop = LoopSettings(learning_rate=settings.learning_rate, seed=settings.seed)
    return train(network, phases, stage1_loss, loop, work / "stage1")


def stage1_loss(network: nn.Module, batch: Sequence[Tensor]) -> PeakFigures:
    """Focal loss, and the mean heat at the peaks: the detector's threshold is 0.3."""
    image, target, weight = batch
    logits = network(image).float()
    peaks = (target >= 0.9999) & (weight > 0)
    heat = torch.sigmoid(logits.detach())[peaks]
    return focal_loss(logits, target, weight), {"peak": float(heat.mean()) if peaks.any() else float("nan")}


def train_stage2(data: Path, work: Path, settings: Stage2Settings) -> nn.Module:
    """Train the characteriser; see `loop.train` for what is resumed."""
    torch.manual_seed(settings.seed)
    material = replace(load_material(data, work, settings.seed), hard_negatives=load_hard_negatives(work))
    samples = Stage2Samples(material, 10_000_000, settings.beyond)
    phase = Phase(samples=samples, batch=settings.batch, steps=settings.steps)
    loop = LoopSettings(learning_rate=settings.learning_rate, seed=settings.seed, clip_norm=1.0)
    return train(Student2p5D(), [phase], stage2_loss, loop, work / "stage2")


def stage2_loss(network: nn.Module, batch: Mapping[str, Tensor]) -> PeakFigures:
    """Detection, malignancy through the concepts, concepts where rated, mask of the nodules (weights 1, 1, 2, 1).

    A detection label of -1 is not known: only the mask of that sample counts.
    """
    out = {name: values.float() for name, values in network(batch["image"]).items()}
    labelled, outlined = batch["detection"] >= 0, batch["detection"] != 0
    detection = functional.cross_entropy(out["detection"][labelled], batch["detection"][labelled])
    graded = batch["malignancy"] >= 0
    zero = out["detection"].sum() * 0.0
    malignancy = (
        functional.cross_entropy(out["malignancy"][graded], batch["malignancy"][graded]) if graded.any() else zero
    )
    rated = batch["concepts"][:, 0] >= 0
    concepts = functional.mse_loss(out["concepts"][rated], batch["concepts"][rated]) if rated.any() else zero
    mask = mask_loss(out["segmentation"][outlined], batch["mask"][outlined]) if outlined.any() else zero
    right = (out["detection"].argmax(1) == batch["detection"])[labelled].float().mean()
    figures = {
        "detection": float(detection.detach()),
        "accuracy": float(right),
        "malignancy": float(malignancy.detach()),
        "concepts": float(concepts.detach()),
        "mask": float(mask.detach()),
    }
    return detection + malignancy + 2.0 * concepts + mask, figures


def mask_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Soft Dice per nodule (smoothed by 1) plus binary cross-entropy."""
    p = torch.sigmoid(logits)
    overlap = (p * mask).sum((1, 2, 3))
    dice = 1 - (2 * overlap + 1) / (p.sum((1, 2, 3)) + mask.sum((1, 2, 3)) + 1)
    return dice.mean() + functional.binary_cross_entropy_with_logits(logits, mask)
