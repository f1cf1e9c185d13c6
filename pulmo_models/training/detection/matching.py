"""Which anchors learn what: ATSS, hard negatives, and the loss, by the numbers of the bundle.

ATSS: Zhang et al., CVPR 2020. Around each true box the anchors nearest to its centre are candidates, as many on each
level; those that overlap it by more than mean plus deviation of the candidates learn it, wherever their centre lies.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pulmo_models.ct.boxes import encode, iou
from pulmo_models.nets.retinanet3d import ANCHORS

CANDIDATES = 4  # positions a level
SAMPLES = 64  # anchors an image
POSITIVE_SHARE = 0.3
LEAST_NEGATIVES = 16
POOL = 20  # times as many of the highest scoring negatives are drawn from
SMOOTH_L1_BETA = 1.0 / 9.0


def match(truth: Tensor, anchors: Tensor, positions: Sequence[int]) -> Tensor:
    """For each anchor the number of the true box that it learns, or -1; ``positions`` counts those of each level."""
    matches = torch.full((len(anchors),), -1, dtype=torch.long)
    if not len(truth):
        return matches
    centres = [(boxes[:, :3] + boxes[:, 3:]) / 2 for boxes in (truth, anchors)]
    distance = torch.cdist(centres[0], centres[1], compute_mode="donot_use_mm_for_euclid_dist")
    chosen, start = [], 0
    for count in positions:
        end = start + count * ANCHORS
        nearest = distance[:, start:end].topk(min(CANDIDATES * ANCHORS, count), dim=1, largest=False)
        chosen.append(nearest.indices + start)
        start = end
    candidates = torch.cat(chosen, dim=1)
    overlaps = iou(truth, anchors)
    of_candidates = overlaps.gather(1, candidates)
    least = of_candidates.mean(dim=1) + of_candidates.std(dim=1)
    learns = torch.full_like(overlaps, -torch.inf)
    rows, columns = torch.nonzero(of_candidates >= least[:, None], as_tuple=True)
    places = rows, candidates[rows, columns]
    learns[places] = overlaps[places]
    best, number = learns.max(dim=0)
    matches[best > -torch.inf] = number[best > -torch.inf]
    return matches


def sample(matches: Tensor, logits: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Indices of the positive and of the negative anchors of an image that the classification learns from."""
    positive, negative = torch.nonzero(matches >= 0)[:, 0], torch.nonzero(matches < 0)[:, 0]
    wanted = min(len(positive), int(SAMPLES * POSITIVE_SHARE))
    positive = positive[torch.randperm(len(positive), generator=generator)[:wanted]]
    count = min(len(negative), max(int(max(1, wanted) * abs(1 - 1 / POSITIVE_SHARE)), LEAST_NEGATIVES))
    pool = logits[negative].topk(min(len(negative), count * POOL)).indices
    return positive, negative[pool[torch.randperm(len(pool), generator=generator)[:count]]]


def losses(
    logits: Sequence[Tensor],
    codes: Sequence[Tensor],
    truths: Sequence[Tensor],
    anchors: Tensor,
    positions: Sequence[int],
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of the drawn anchors, and smooth L1 of the codes of all positive ones, over a batch.

    ``logits`` ``(n,)`` and ``codes`` ``(n, 6)`` of each image, in the order of the anchors.
    """
    said, wanted, found, coded = [], [], [], []
    for of_image, code, truth in zip(logits, codes, truths, strict=True):
        matches = match(truth, anchors, positions)
        positive, negative = sample(matches, of_image.detach().float().cpu(), generator)
        chosen = torch.cat((positive, negative)).to(of_image.device)
        said.append(of_image[chosen])
        wanted.append((matches >= 0).float().to(of_image.device)[chosen])
        learns = matches >= 0
        found.append(code[learns.to(code.device)])
        coded.append(encode(truth[matches[learns]], anchors[learns]).to(code.device))
    classification = functional.binary_cross_entropy_with_logits(torch.cat(said).float(), torch.cat(wanted))
    boxes, targets = torch.cat(found).float(), torch.cat(coded)
    if not len(boxes):
        return classification, boxes.sum()  # 0, with a gradient
    return classification, functional.smooth_l1_loss(boxes, targets, beta=SMOOTH_L1_BETA)
