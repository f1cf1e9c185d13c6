"""Stage 2 asked from several sides: one candidate, turned in its plane and mirrored, and the mean of the answers.

A nodule is what it is from either side, so the mean of the logits is steadier than one look (test-time augmentation;
the training turned its samples the same way). The candidate stays at index (3, 32, 32) in every view: it is cut with
one row and column more, turned about its middle, and the last ones left off. The outlines are turned back before the
mean. The mean of the malignancy logits is still the linear read-out of the mean concepts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pulmo_models.ct.masks import ROWS_COLUMNS

WIDE = ROWS_COLUMNS + 1  # odd, so that the candidate is the middle


@dataclass(frozen=True, kw_only=True)
class View:
    """Slices reversed or not, rows reversed or not, then quarter turns in the plane."""

    quarters: int = 0
    rows_reversed: bool = False
    slices_reversed: bool = False

    def turn(self, wide: Tensor) -> Tensor:
        """(B, 7, 65, 65) to the (B, 7, 64, 64) that the network sees."""
        axes = [axis for axis, reverse in ((1, self.slices_reversed), (2, self.rows_reversed)) if reverse]
        turned = torch.rot90(wide.flip(axes) if axes else wide, self.quarters, (2, 3))
        return turned[:, :, :ROWS_COLUMNS, :ROWS_COLUMNS].contiguous()

    def back(self, planes: Tensor) -> Tensor:
        """(B, 1, 64, 64) as the network saw it to (B, 1, 65, 65) as it was cut; 0 where it saw nothing."""
        wide = planes.new_zeros((*planes.shape[:2], WIDE, WIDE))
        wide[:, :, :ROWS_COLUMNS, :ROWS_COLUMNS] = planes
        wide = torch.rot90(wide, -self.quarters, (2, 3))
        return wide.flip((2,)) if self.rows_reversed else wide


ONE_VIEW = (View(),)
VIEWS = tuple(
    View(quarters=quarters, rows_reversed=mirrored, slices_reversed=(quarters + mirrored) % 2 == 1)
    for mirrored in (False, True)
    for quarters in range(4)
)
"""Every turn and every mirrored turn once, half of each with the slices reversed."""


def ask(run: Callable[[Tensor], dict[str, Tensor]], wide: Tensor, views: tuple[View, ...]) -> dict[str, Tensor]:
    """The mean outputs of a :class:`Student2p5D` over the views of ``wide``, (B, 7, 65, 65) in 0..1.

    ``run`` is called once, for all views. ``segmentation`` is (B, 1, 64, 64), as the first 64 rows and columns of
    ``wide`` lie.
    """
    out = run(torch.cat([view.turn(wide) for view in views]))
    mean = {
        key: value.unflatten(0, (len(views), -1)).mean(dim=0) for key, value in out.items() if key != "segmentation"
    }
    if "segmentation" not in out:
        return mean
    segmentation = torch.zeros((len(wide), 1, WIDE, WIDE))
    seen = torch.zeros((1, 1, WIDE, WIDE))
    for view, planes in zip(views, out["segmentation"].split(len(wide)), strict=True):
        segmentation += view.back(planes)
        seen += view.back(torch.ones((1, 1, ROWS_COLUMNS, ROWS_COLUMNS)))
    return mean | {"segmentation": (segmentation / seen.clamp(min=1))[:, :, :ROWS_COLUMNS, :ROWS_COLUMNS]}
