"""What stage 2 is asked: hard losses against labels, soft ones against a teacher, the signs of the bottleneck."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from pulmo_models.training.fitting.recipe import Bottleneck, Labels, Losses
from pulmo_models.training.fitting.stage2_data import Rows
from pulmo_models.types import CONCEPT_NAMES

TASKS = ("detection", "malignancy", "segmentation", "concepts")


@dataclass(frozen=True, kw_only=True)
class ConceptFacts:
    """What the ratings of the training rows are like, on the scale of the targets; in the order of CONCEPT_NAMES."""

    means: tuple[float, ...]
    variances: tuple[float, ...]
    correlations: tuple[float, ...]  # with the malignancy rating; 0: it does not vary, or nobody rated

    @property
    def signs(self) -> tuple[int, ...]:
        """Of the correlations: -1, 0 or 1."""
        return tuple(int(np.sign(value)) for value in self.correlations)


def concept_facts(rows: Rows, labels: Labels) -> ConceptFacts:
    """Means, variances and correlations of the rated rows."""
    targets = concept_targets(torch.from_numpy(rows.ratings), labels).numpy().astype(np.float64)
    means, variances, correlations = [], [], []
    for column in targets.T:
        known = np.isfinite(column)
        means.append(float(column[known].mean()) if known.any() else 0.0)
        variances.append(float(column[known].var()) if known.any() else 0.0)
        both = known & np.isfinite(rows.malignancy)
        correlations.append(_correlation(column[both], rows.malignancy[both].astype(np.float64)))
    return ConceptFacts(means=tuple(means), variances=tuple(variances), correlations=tuple(correlations))


def _correlation(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    if len(first) < 2 or first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def concept_targets(ratings: Tensor, labels: Labels) -> Tensor:
    """Ratings on the scale that the network is taught; NaN stays."""
    return ratings if labels.concepts == "raw" else (ratings - 1) / 4


class HardLoss:
    """Losses against labels. A task that nothing in the batch is labelled for gives 0."""

    def __init__(self, losses: Losses, labels: Labels, facts: ConceptFacts) -> None:
        self._losses = losses
        self._labels = labels
        scale = torch.tensor(facts.variances).clamp(min=losses.least_variance)
        self._concept_scale = scale if losses.concept_error == "variance" else torch.ones_like(scale)

    def __call__(self, out: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One loss a task, not yet weighted; float32 outputs in."""
        return {
            "detection": self.detection(out["detection"], batch["detection"]),
            "malignancy": self.malignancy(out["malignancy"], batch["malignancy"]),
            "segmentation": self.segmentation(out["segmentation"], batch["mask"], batch["outlined"]),
            "concepts": self.concepts(out["concepts"], batch["ratings"]),
        }

    def detection(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy, focal or not, over what is labelled 0 or 1."""
        weight = torch.tensor(self._losses.detection_weights, device=logits.device)
        return self._cross_entropy(logits, labels, weight)

    def malignancy(self, logits: Tensor, probability: Tensor) -> Tensor:
        """Cross entropy, focal or not, against a probability of being malignant; -1 is not taught."""
        return self._cross_entropy(logits, probability, None)

    def _cross_entropy(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        known = labels >= 0
        if not known.any():
            return logits.sum() * 0.0
        logits, labels = logits[known], labels[known]
        if labels.is_floating_point():
            labels = torch.stack([1 - labels, labels], dim=1)
        if self._losses.gamma == 0:
            return functional.cross_entropy(logits, labels, weight)
        loss = functional.cross_entropy(logits, labels, weight, reduction="none")
        # As published: the class weight is inside of the probability that tames the loss.
        return ((1 - torch.exp(-loss)) ** self._losses.gamma * loss).mean()

    def segmentation(self, logits: Tensor, mask: Tensor, outlined: Tensor) -> Tensor:
        """Soft Dice of each nodule plus binary cross entropy, focal or not, where an outline is known."""
        if not outlined.any():
            return logits.sum() * 0.0
        logits, mask = logits[outlined], mask[outlined]
        p, axes = torch.sigmoid(logits), tuple(range(1, mask.ndim))
        smooth = self._losses.dice_smooth
        dice = 1 - (2 * (p * mask).sum(axes) + smooth) / (p.sum(axes) + mask.sum(axes) + smooth)
        entropy = functional.binary_cross_entropy_with_logits(logits, mask, reduction="none")
        if self._losses.mask_gamma:
            entropy = (1 - torch.exp(-entropy)) ** self._losses.mask_gamma * entropy
        return dice.mean() + entropy.mean()

    def concepts(self, concepts: Tensor, ratings: Tensor) -> Tensor:
        """Mean squared error of what is rated, each concept in units of its variance where the recipe says so."""
        targets = concept_targets(ratings, self._labels)
        known = torch.isfinite(targets)
        if not known.any():
            return concepts.sum() * 0.0
        errors = (concepts - targets.nan_to_num()) ** 2 / self._concept_scale.to(concepts.device)
        return errors[known].mean()

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The parts by their weights."""
        return torch.stack([getattr(self._losses, task) * parts[task] for task in TASKS]).sum()


def soft_loss(out: Mapping[str, Tensor], taught: Mapping[str, Tensor], temperature: float) -> dict[str, Tensor]:
    """Losses against a teacher's outputs, over all samples: KL divergence of the classes, squared errors otherwise.

    The teacher's mask is its central slice, D // 2.
    """
    parts = {}
    for task in ("detection", "malignancy"):
        student = functional.log_softmax(out[task] / temperature, dim=1)
        teacher = functional.log_softmax(taught[task] / temperature, dim=1)
        parts[task] = functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
    volume = taught["segmentation"]
    slice_logits = volume[:, :, volume.shape[2] // 2]
    parts["segmentation"] = functional.mse_loss(torch.sigmoid(out["segmentation"]), torch.sigmoid(slice_logits))
    parts["concepts"] = functional.mse_loss(out["concepts"], taught["concepts"])
    return parts


@torch.no_grad()
def start_weights(head: nn.Linear, bottleneck: Bottleneck, facts: ConceptFacts) -> None:
    """Begin the malignancy head where each rating speaks as its correlation says, and mean ratings say even odds."""
    if bottleneck.start_gain == 0:
        return
    spread = torch.tensor(facts.variances).clamp(min=1e-4).sqrt()
    weight = bottleneck.start_gain * torch.tensor(facts.correlations) / spread
    bias = -(weight * torch.tensor(facts.means)).sum()
    head.weight.copy_(torch.stack([-weight, weight]) / 2)
    head.bias.copy_(torch.stack([-bias, bias]) / 2)


@torch.no_grad()
def hold_signs(head: nn.Linear, bottleneck: Bottleneck, facts: ConceptFacts) -> None:
    """Move the weights of the malignancy head to where the recipe holds them; half of the way in each class."""
    if bottleneck.signs == "free":
        return
    signs = torch.tensor(facts.signs, dtype=head.weight.dtype, device=head.weight.device)
    without = torch.tensor([name in bottleneck.without for name in CONCEPT_NAMES], device=head.weight.device)
    found = head.weight[1] - head.weight[0]
    wanted = torch.where(signs == 0, found, signs * (signs * found).clamp(min=bottleneck.least_weight))
    step = (torch.where(without, torch.zeros_like(found), wanted) - found) / 2
    head.weight[1] += step
    head.weight[0] -= step
