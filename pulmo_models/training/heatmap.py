"""Target and loss of stage 1 (penalty-reduced focal loss: Law and Deng, CornerNet, ECCV 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def draw_peak(target: Tensor, centre: Sequence[float], diameter_mm: float, spacing_mm: Sequence[float]) -> None:
    """Draw a Gaussian with peak 1 at the rounded centre into a target ``(slices, rows, columns)``, by maximum.

    Its sigma is a quarter of the diameter, at least 1 voxel between slices and 1.5 within them.
    """
    rounded = [round(float(value)) for value in centre]
    if any(not 0 <= index < size for index, size in zip(rounded, target.shape, strict=True)):
        return
    factors = []
    for axis, least in enumerate((1.0, 1.5, 1.5)):
        sigma = max(least, diameter_mm / (4 * float(spacing_mm[axis])))
        offset = torch.arange(target.shape[axis], dtype=torch.float32) - rounded[axis]
        factors.append(torch.exp(-(offset**2) / (2 * sigma**2)))
    peak = factors[0][:, None, None] * factors[1][None, :, None] * factors[2][None, None, :]
    torch.maximum(target, peak, out=target)


def focal_loss(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Sum over voxels, divided by the number of peaks (at least 1).

    At a peak (target >= 0.9999) -(1 - p)^2 log p; elsewhere -(1 - t)^4 p^2 log(1 - p). `weight` is 0 where the truth is
    not known.
    """
    p = torch.sigmoid(logits.float()).clamp(1e-6, 1 - 1e-6)
    peak = target >= 0.9999
    loss = torch.where(peak, -((1 - p) ** 2) * p.log(), -((1 - target) ** 4) * p**2 * (1 - p).log())
    if weight is not None:
        loss = loss * weight
    return loss.sum() / peak.sum().clamp(min=1)
