"""Target and loss of stage 1 (penalty-reduced focal loss: Law and Deng, CornerNet, ECCV 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PEAK = 0.9999
"""A voxel with at least that target is the centre of a nodule."""


def draw_peak(
    target: Tensor,
    centre: Sequence[float] | npt.NDArray[np.floating[Any]],
    diameter_mm: float,
    spacing_mm: Sequence[float],
    *,
    share: float = 0.25,
    least: Sequence[float] = (1.0, 1.5, 1.5),
) -> None:
    """Draw a Gaussian with peak 1 at the rounded centre into a target ``(slices, rows, columns)``, by maximum.

    Its sigma is that share of the diameter, at least `least` voxels along each axis. A centre outside draws nothing.
    """
    rounded = [round(float(value)) for value in centre]
    if any(not 0 <= index < size for index, size in zip(rounded, target.shape, strict=True)):
        return
    factors = []
    for axis, smallest in enumerate(least):
        sigma = max(smallest, share * diameter_mm / float(spacing_mm[axis]))
        offset = torch.arange(target.shape[axis], dtype=torch.float32) - rounded[axis]
        factors.append(torch.exp(-(offset**2) / (2 * sigma**2)))
    peak = factors[0][:, None, None] * factors[1][None, :, None] * factors[2][None, None, :]
    torch.maximum(target, peak, out=target)


def focal_loss(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, *, alpha: float = 2.0, beta: float = 4.0
) -> Tensor:
    """Sum over voxels, divided by the number of peaks (at least 1).

    At a peak (target >= 0.9999) -(1 - p)^alpha log p; elsewhere -(1 - t)^beta p^alpha log(1 - p). `weight` is 0 where
    the truth is not known; peaks there do not count.
    """
    p = torch.sigmoid(logits.float()).clamp(1e-6, 1 - 1e-6)
    peak = target >= PEAK
    loss = torch.where(peak, -((1 - p) ** alpha) * p.log(), -((1 - target) ** beta) * p**alpha * (1 - p).log())
    if weight is not None:
        loss, peak = loss * weight, peak & (weight > 0)
    return loss.sum() / peak.sum().clamp(min=1)
