"""Boxes of a 3D detector: anchors, codes, overlap, suppression. Pure functions on tensors.

A box is ``(x0, y0, z0, x1, y1, z1)`` in indices of the network's grid, on which a voxel's centre is an integer; its
size is ``x1 - x0`` and so on. Rules and numbers are those of MONAI's bundle ``lung_nodule_ct_detection`` (Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pulmo_models.nets.retinanet3d import ANCHORS, STRIDES

ANCHOR_SHAPES = ((6.0, 8.0, 4.0), (8.0, 6.0, 5.0), (10.0, 10.0, 6.0))  # of level 0; twice and four times that above
LARGEST_LOG_SCALE = math.log(1000.0 / 16.0)  # of a box to its anchor
SMALLEST_VOXELS = 1.0  # a box that is thinner after clipping is dropped


@dataclass(frozen=True, kw_only=True)
class SelectionSettings:
    """Which of the very many boxes are kept; the published numbers."""

    score_threshold: float = 0.02
    best_of_level: int = 1000
    overlap: float = 0.22  # IoU with a better box above which one is dropped
    most: int = 300


@dataclass(frozen=True, kw_only=True, eq=False)
class Boxes:
    """Boxes ``(n, 6)`` with their scores ``(n,)``, best first."""

    corners: Tensor
    scores: Tensor


def base_anchors(level: int) -> Tensor:
    """The anchors around the origin, ``(3, 6)``: half shapes rounded, a half to the even number."""
    half = (torch.tensor(ANCHOR_SHAPES) * 2.0**level / 2.0).round()
    return torch.cat((-half, half), dim=1)


def anchors(level: int, grid: Sequence[int]) -> Tensor:
    """All anchors of a level whose map has that shape, ``(x * y * z * 3, 6)``, the anchor's number running fastest."""
    return anchors_at(level, grid, torch.arange(math.prod(grid) * ANCHORS))


def anchors_at(level: int, grid: Sequence[int], indices: Tensor) -> Tensor:
    """The anchors of those indices into :func:`anchors`, ``(n, 6)``."""
    place, number = indices // ANCHORS, indices % ANCHORS
    _, ny, nz = grid
    cell = torch.stack((place // (ny * nz), place // nz % ny, place % nz), dim=1)
    stride = torch.tensor(STRIDES[level])
    centre = (cell * stride + stride // 2).to(torch.float32)
    return torch.cat((centre, centre), dim=1) + base_anchors(level)[number]


def flat_logits(maps: Tensor) -> Tensor:
    """Logits ``(3, X, Y, Z)`` in the order of :func:`anchors`, ``(n,)``."""
    return maps.permute(1, 2, 3, 0).reshape(-1)


def flat_codes(maps: Tensor) -> Tensor:
    """Codes ``(18, X, Y, Z)`` in the order of :func:`anchors`, ``(n, 6)``."""
    return maps.reshape(ANCHORS, 6, *maps.shape[1:]).permute(2, 3, 4, 0, 1).reshape(-1, 6)


def decode(codes: Tensor, reference: Tensor) -> Tensor:
    """Boxes ``(n, 6)`` from codes and their anchors: centre + d * size, size * exp(d)."""
    codes, reference = codes.float(), reference.float()
    size = reference[:, 3:] - reference[:, :3]
    centre = reference[:, :3] + 0.5 * size + codes[:, :3] * size
    half = 0.5 * size * torch.exp(codes[:, 3:].clamp(max=LARGEST_LOG_SCALE))
    return torch.cat((centre - half, centre + half), dim=1)


def encode(boxes: Tensor, reference: Tensor) -> Tensor:
    """Codes ``(n, 6)`` of boxes relative to their anchors: the inverse of :func:`decode`."""
    size, wanted = reference[:, 3:] - reference[:, :3], boxes[:, 3:] - boxes[:, :3]
    shift = (boxes[:, :3] + 0.5 * wanted - reference[:, :3] - 0.5 * size) / size
    return torch.cat((shift, torch.log(wanted / size)), dim=1)


def volumes(boxes: Tensor) -> Tensor:
    """Voxels in each box, ``(n,)``."""
    return (boxes[:, 3:] - boxes[:, :3]).prod(dim=1)


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every pair, ``(n, m)``."""
    low = torch.maximum(first[:, None, :3], second[None, :, :3])
    high = torch.minimum(first[:, None, 3:], second[None, :, 3:])
    common = (high - low).clamp(min=0).prod(dim=2)
    union = volumes(first)[:, None] + volumes(second)[None] - common
    return common / (union + torch.finfo(torch.float32).eps)


def clip(boxes: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Boxes confined to a grid of that shape, and which of them still are one voxel thick in every direction."""
    limit = torch.tensor((*shape, *shape), dtype=torch.float32)
    clipped = torch.minimum(boxes.clamp(min=0.0), limit)
    return clipped, (clipped[:, 3:] >= clipped[:, :3] + SMALLEST_VOXELS).all(dim=1)


def suppress(boxes: Tensor, scores: Tensor, overlap: float, most: int) -> Tensor:
    """Indices of the boxes that no better one overlaps by more than ``overlap`` (IoU), best first, at most ``most``."""
    left = torch.argsort(scores, descending=True, stable=True)
    kept: list[int] = []
    while len(left) and len(kept) < most:
        best, left = int(left[0]), left[1:]
        kept.append(best)
        left = left[iou(boxes[left], boxes[best : best + 1])[:, 0] <= overlap]
    return torch.tensor(kept, dtype=torch.long)


def select(
    logits: Sequence[Tensor], codes: Sequence[Tensor], shape: Sequence[int], settings: SelectionSettings
) -> Boxes:
    """The boxes of an image of that shape from the maps of its levels, logits ``(3, ...)`` and codes ``(18, ...)``."""
    corners, scores = [], []
    for level, (of_level, coded) in enumerate(zip(logits, codes, strict=True)):
        probability = torch.sigmoid(flat_logits(of_level).float())
        likely = torch.nonzero(probability > settings.score_threshold)[:, 0]
        best = probability[likely].topk(min(settings.best_of_level, len(likely)))
        likely = likely[best.indices]
        boxes = decode(flat_codes(coded)[likely], anchors_at(level, of_level.shape[1:], likely))
        boxes, whole = clip(boxes, shape)
        corners.append(boxes[whole])
        scores.append(best.values[whole])
    found, score = torch.cat(corners), torch.cat(scores)
    kept = suppress(found, score, settings.overlap, settings.most)
    return Boxes(corners=found[kept], scores=score[kept])
