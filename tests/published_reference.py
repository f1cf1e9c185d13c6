"""The published Pulmo inference, written down a second time: plain, slow, and without a line of the package.

Windows of 64 x 128 x 128 voxels at a stride of 32 x 64 x 64 with one more flush with the far border, clipped to
-1000..1000 HU; a window whose mean is below -980 HU is skipped; batches of four; sigmoids averaged uniformly; peaks are
the maxima of 5 x 9 x 9 voxels that reach the threshold; of peaks closer than 6 mm the highest stays. Stage 2 sees the
seven native slices z-3..z+3, rows y-32..y+31 and columns x-32..x+31, -1000 HU where the volume ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

PATCH = (64, 128, 128)
STRIDE = (32, 64, 64)


def starts(size: int, patch: int, stride: int) -> list[int]:
    """First voxels of the windows along one axis."""
    found = list(range(0, size - patch + 1, stride))
    if (size - patch) % stride != 0:
        found.append(size - patch)
    return found


def heatmap(hu: np.ndarray, network: torch.nn.Module) -> np.ndarray:
    """The averaged heat map on the grid of the volume, float32."""
    depth, height, width = hu.shape
    padded = np.full([max(size, patch) for size, patch in zip(hu.shape, PATCH, strict=True)], -1000.0, np.float32)
    padded[:depth, :height, :width] = hu
    total = np.zeros(padded.shape, np.float32)
    count = np.zeros(padded.shape, np.float32)
    waiting: list[tuple[int, int, int]] = []
    inputs: list[np.ndarray] = []

    def flush() -> None:
        with torch.inference_mode():
            logits = network(torch.from_numpy(np.stack(inputs)[:, None]))
        for (z, y, x), values in zip(waiting, torch.sigmoid(logits)[:, 0].numpy(), strict=True):
            total[z : z + 64, y : y + 128, x : x + 128] += values
            count[z : z + 64, y : y + 128, x : x + 128] += 1
        waiting.clear()
        inputs.clear()

    for z in starts(padded.shape[0], 64, 32):
        for y in starts(padded.shape[1], 128, 64):
            for x in starts(padded.shape[2], 128, 64):
                patch = np.clip(padded[z : z + 64, y : y + 128, x : x + 128], -1000, 1000)
                if patch.mean() < -980:
                    continue
                waiting.append((z, y, x))
                inputs.append((patch + 1000) / 2000)
                if len(waiting) == 4:
                    flush()
    if waiting:
        flush()
    heat = np.zeros_like(total)
    heat[count > 0] = total[count > 0] / count[count > 0]
    return heat[:depth, :height, :width]


def candidates(
    heat: np.ndarray, spacing_mm: tuple[float, float, float], threshold: float, cluster_mm: float = 6.0
) -> list[tuple[int, int, int]]:
    """The peaks that are kept, best first."""
    peaks = []
    for z, y, x in np.argwhere(heat >= threshold):
        around = heat[max(0, z - 2) : z + 3, max(0, y - 4) : y + 5, max(0, x - 4) : x + 5]
        if heat[z, y, x] == around.max():
            peaks.append((int(z), int(y), int(x)))
    peaks.sort(key=lambda peak: -heat[peak])
    kept: list[tuple[int, int, int]] = []
    for peak in peaks:
        if all(
            math.dist(np.multiply(peak, spacing_mm), np.multiply(other, spacing_mm)) >= cluster_mm for other in kept
        ):
            kept.append(peak)
    return kept


def crop(hu: np.ndarray, centre: tuple[int, int, int]) -> np.ndarray:
    """The input of stage 2, (7, 64, 64) float32 in 0..1, voxel by voxel."""
    found = np.full((7, 64, 64), -1000.0, np.float32)
    for k in range(7):
        for i in range(64):
            for j in range(64):
                z, y, x = centre[0] - 3 + k, centre[1] - 32 + i, centre[2] - 32 + j
                if 0 <= z < hu.shape[0] and 0 <= y < hu.shape[1] and 0 <= x < hu.shape[2]:
                    found[k, i, j] = hu[z, y, x]
    return (np.clip(found, -1000, 1000) + 1000) / 2000


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """What stage 2 says of one candidate."""

    index: tuple[int, int, int]
    score: float
    detection: float
    malignancy: float
    concepts: tuple[float, ...]  # as the network gives them
    outline: np.ndarray  # bool (64, 64), segmentation of the central slice


def characterise(
    hu: np.ndarray, heat: np.ndarray, indices: list[tuple[int, int, int]], network: torch.nn.Module
) -> list[Finding]:
    """Every candidate as stage 2 sees it, in the order given."""
    findings = []
    for index in indices:
        with torch.inference_mode():
            output = network(torch.from_numpy(crop(hu, index))[None])
        findings.append(
            Finding(
                index=index,
                score=float(heat[index]),
                detection=float(torch.softmax(output["detection"], 1)[0, 1]),
                malignancy=float(torch.softmax(output["malignancy"], 1)[0, 1]),
                concepts=tuple(output["concepts"][0].tolist()),
                outline=(torch.sigmoid(output["segmentation"])[0, 0] >= 0.5).numpy(),
            )
        )
    return findings
