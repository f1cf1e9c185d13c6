"""Training of the teacher, and of the student from labels and from a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pulmo_models.nets.student2p5d import Student2p5D
from pulmo_models.nets.teacher3d import HybridMultiTaskCBM
from pulmo_models.training.fitting.modules import PlannedModule
from pulmo_models.training.fitting.plan import Plan
from pulmo_models.training.fitting.recipe import Bottleneck, DistillRecipe, TeacherRecipe
from pulmo_models.training.fitting.stage2_loss import (
    TASKS,
    ConceptFacts,
    HardLoss,
    concept_targets,
    hold_signs,
    soft_loss,
    start_weights,
)
from pulmo_models.training.metrics.classification import auc
from pulmo_models.types import CONCEPT_NAMES

CRITERION = "validation/criterion"
_MIXUP = 3  # so that a seed gives other numbers than for the samples
_LEAST_R2 = -1.0  # of a concept in the criterion: what is worse says nothing more

Batch = Mapping[str, Tensor]


def prepare(network: nn.Module, bottleneck: Bottleneck, facts: ConceptFacts, *, fresh: bool) -> None:
    """Set the dropout of the heads and, in a fresh network, where the bottleneck begins; hold the signs."""
    network.detection_head[3].p = bottleneck.dropout  # type: ignore[index, union-attr]
    network.concept_head[3].p = bottleneck.concept_dropout  # type: ignore[index, union-attr]
    if fresh and bottleneck.concept_bias == "mean":
        with torch.no_grad():
            network.concept_head[4].bias.copy_(torch.tensor(facts.means))  # type: ignore[index, union-attr]
    if fresh:
        start_weights(network.malignancy_head, bottleneck, facts)  # type: ignore[arg-type]
    hold_signs(network.malignancy_head, bottleneck, facts)  # type: ignore[arg-type]


class _Stage2Module(PlannedModule):
    def __init__(
        self, network: nn.Module, plan: Plan, recipe: TeacherRecipe | DistillRecipe, facts: ConceptFacts, seed: int
    ) -> None:
        super().__init__(network, plan, recipe.optimiser, seed)
        self._labels = recipe.labels
        self._bottleneck = recipe.bottleneck
        self._criterion = recipe.criterion
        self._facts = facts
        self._hard = HardLoss(recipe.losses, recipe.labels, facts)
        self._seen: list[dict[str, Tensor]] = []

    def constrain(self) -> None:
        hold_signs(self.network.malignancy_head, self._bottleneck, self._facts)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Outputs of the network that is trained, as float32."""
        return _float(self.network(image))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Says on which scale the concepts are."""
        checkpoint["concept_scale"] = self._labels.concepts

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keeps what the figures are made of."""
        out = _float(self.evaluated(batch["image"]))
        axes = tuple(range(1, batch["mask"].ndim))
        drawn = out["segmentation"] > 0
        sizes = drawn.sum(axes) + batch["mask"].sum(axes)
        asked = batch["outlined"] & (batch["detection"] == 1)
        self._seen.append(
            {
                "detected": out["detection"][:, 1] - out["detection"][:, 0],
                "detection": batch["detection"],
                "malignancy": out["malignancy"][:, 1] - out["malignancy"][:, 0],
                "graded": batch["graded"],
                "errors": out["concepts"] - concept_targets(batch["ratings"], self._labels),
                "targets": concept_targets(batch["ratings"], self._labels),
                "dice": torch.where(asked, 2 * (drawn * batch["mask"]).sum(axes) / sizes, torch.nan),
            }
        )

    def on_validation_epoch_end(self) -> None:
        """Figures over the whole validation split."""
        seen = {name: torch.cat([part[name] for part in self._seen]).cpu().numpy() for name in self._seen[0]}
        self._seen.clear()
        figures = stage2_figures(seen, self._bottleneck)
        known = {f"validation/{name}": value for name, value in figures.items() if np.isfinite(value)}
        chosen = figures["sum"] if self._criterion == "sum" else figures["malignancy_auc"]
        self.log_dict({**known, CRITERION: chosen})


def stage2_figures(seen: Mapping[str, Any], bottleneck: Bottleneck) -> dict[str, float]:
    """AUCs, Dice and R2 of what was kept in validation; NaN where the split cannot tell.

    ``sum`` adds detection AUC, malignancy AUC, Dice and mean R2 (of concepts that have a weight), as far as there are.
    """
    asked, graded = seen["detection"] >= 0, seen["graded"] >= 0
    figures = {
        "detection_auc": auc(seen["detected"][asked], seen["detection"][asked] == 1),
        "malignancy_auc": auc(seen["malignancy"][graded], seen["graded"][graded] == 1),
        "dice": float(np.nanmean(seen["dice"])) if np.isfinite(seen["dice"]).any() else np.nan,
    }
    r2 = {name: _r2(seen["errors"][:, n], seen["targets"][:, n]) for n, name in enumerate(CONCEPT_NAMES)}
    counted = [max(_LEAST_R2, r2[name]) for name in r2 if name not in bottleneck.without and np.isfinite(r2[name])]
    main = [*figures.values(), float(np.mean(counted)) if counted else np.nan]
    figures |= {"r2": main[-1], **{f"r2_{name}": value for name, value in r2.items()}}
    return figures | {"sum": float(np.nansum(main))}


def _r2(errors: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> float:
    known = np.isfinite(targets)
    spread = float(targets[known].var()) if known.sum() > 1 else 0.0
    return 1 - float((errors[known] ** 2).mean()) / spread if spread > 1e-9 else float("nan")


class TeacherModule(_Stage2Module):
    """A batch has image (B, 1, D, H, W) and mask of the same shape."""

    def __init__(
        self, network: HybridMultiTaskCBM, plan: Plan, recipe: TeacherRecipe, facts: ConceptFacts, seed: int
    ) -> None:
        super().__init__(network, plan, recipe, facts, seed)
        self._mixup = (recipe.mixup_probability, recipe.mixup_alpha)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss, of a mixed batch where it is its turn."""
        random = np.random.default_rng([self._seed, _MIXUP, self.global_step])
        probability, alpha = self._mixup
        if random.random() < probability:
            drawn = float(random.beta(alpha, alpha))
            other = torch.from_numpy(random.permutation(len(batch["image"]))).to(batch["image"].device)
            parts = self._mixed(batch, other, max(drawn, 1 - drawn))
        else:
            parts = self._hard(self(batch["image"]), batch)
        loss = self._hard.total(parts)
        self.report({"loss": loss.detach(), **{task: parts[task].detach() for task in TASKS}})
        return loss

    def _mixed(self, batch: Batch, other: Tensor, share: float) -> dict[str, Tensor]:
        """MixUp as published: images and masks are mixed, the losses of the classes too, concept targets are not."""
        mixed = {name: share * batch[name] + (1 - share) * batch[name][other] for name in ("image", "mask")}
        outlined = batch["outlined"] | batch["outlined"][other]
        out = self(mixed["image"])
        parts = self._hard(out, {**batch, "mask": mixed["mask"], "outlined": outlined})
        for task, loss in (("detection", self._hard.detection), ("malignancy", self._hard.malignancy)):
            parts[task] = share * parts[task] + (1 - share) * loss(out[task], batch[task][other])
        return parts


class StudentModule(_Stage2Module):
    """A batch has image (B, 7, 64, 64), mask (B, 1, 64, 64) and, where there is a teacher, volume (B, 1, D, 64, 64)."""

    def __init__(
        self,
        network: Student2p5D,
        plan: Plan,
        recipe: DistillRecipe,
        facts: ConceptFacts,
        seed: int,
        teacher: nn.Module | None,
    ) -> None:
        super().__init__(network, plan, recipe, facts, seed)
        self._share = recipe.teacher_share if teacher is not None else 0.0
        self._temperature = recipe.temperature
        # In a list it is no part of this module: neither trained nor saved.
        self._teachers = [] if teacher is None else [teacher.eval().requires_grad_(False)]

    def on_fit_start(self) -> None:
        """The teacher goes where the student is."""
        for teacher in self._teachers:
            teacher.to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss: labels, and the teacher's outputs by their share."""
        out = self(batch["image"])
        hard = self._hard(out, batch)
        loss = (1 - self._share) * self._hard.total(hard)
        figures = {task: hard[task].detach() for task in TASKS}
        for teacher in self._teachers:
            with torch.no_grad():
                taught = _float(teacher(batch["volume"]))
            soft = soft_loss(out, taught, self._temperature)
            loss = loss + self._share * self._hard.total(soft)
            figures |= {f"soft_{task}": soft[task].detach() for task in TASKS}
        self.report({"loss": loss.detach(), **figures})
        return loss


def _float(out: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.float() for name, values in out.items()}
