"""Which lung a place belongs to, by the patient's side, also where both lungs are one piece.

They often are: the main bronchi join them, and in front of and behind the heart nothing but two thin pleurae may lie
between them. The lungs are therefore worn down from their surface until two large pieces lie beside each other, which
then grow back over the depth of the lungs and meet where these are thinnest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pulmo_models.ct.morphology import box_around, depth_mm, extent, flood, labels_of
from pulmo_models.types import BoolArray

WEAR_MM = tuple(range(0, 18, 2))
SMALLEST_SHARE = 0.05  # of the larger piece: a lung that is mostly collapsed still counts
BESIDE = (0.1, 0.9)  # a piece lies beside another where its middle is outside of that part of the other's breadth
ONE_LUNG_SHARE = 0.8  # of the lungs on one side of the midline: more is one lung that reaches across
MARGIN_MM = 10.0
ONE_LUNG_MM = 145.0  # breadth of a lung alone: 105 to 141 on three chest series of the test data
BOTH_LUNGS_MM = 185.0  # breadth of two: 221 to 298
CUT_SHARE = 0.4  # of the border of a field of view that lies in the body
_LEFT, _RIGHT = 1, 2

_FloatVolume = npt.NDArray[np.float32]


def left_lung(lungs: BoolArray, body: BoolArray, spacing_mm: tuple[float, ...], leftward_mm: _FloatVolume) -> BoolArray:
    """As :func:`left_side`, of lungs in a body of which the field of view may show a part only.

    In a reconstruction of one lung alone nothing tells the middle of the body, and parts of that lung may lie beside
    each other as two lungs do. The middle of the scanner, where x of LPS is 0, tells: patients are laid there.
    """
    breadth_mm = float(np.ptp(np.quantile(leftward_mm[lungs], (0.01, 0.99))))
    if breadth_mm >= BOTH_LUNGS_MM or not _is_cut(body, leftward_mm):
        return left_side(lungs, spacing_mm, leftward_mm, float(leftward_mm[body].mean()))
    if breadth_mm >= ONE_LUNG_MM:
        return left_side(lungs, spacing_mm, leftward_mm, 0.0)
    return np.full(lungs.shape, float(leftward_mm[lungs].mean()) > 0)


def _is_cut(body: BoolArray, leftward_mm: _FloatVolume) -> bool:
    """Whether the field of view ends within the body on the patient's left or right."""
    down, right = (abs(float(step)) for step in leftward_mm[0, [1, 0], [0, 1]] - leftward_mm[0, 0, 0])
    borders = np.moveaxis(body, 1 if down > right else 2, 0)[[0, -1]]
    return bool(borders.mean(axis=(1, 2)).max() >= CUT_SHARE)


def left_side(
    lungs: BoolArray, spacing_mm: tuple[float, ...], leftward_mm: _FloatVolume, midline_mm: float
) -> BoolArray:
    """True where the left lung is, or where it is the nearer one; for the whole grid.

    ``lungs`` is not empty and without the gaps closed that vessels make. ``leftward_mm`` is the position of each voxel
    along the patient's right-to-left axis (x of LPS), ``midline_mm`` that of the middle of the body: it decides where
    there are no two pieces, which is one lung alone or two that nothing sets apart.
    """
    box = box_around(extent(lungs), spacing_mm, lungs.shape, MARGIN_MM)
    depth, leftward = depth_mm(lungs[box], spacing_mm), leftward_mm[box]
    markers = _markers(depth, leftward)
    if markers is not None:
        left = flood(markers, -depth) == _LEFT
    else:
        share = float((leftward[lungs[box]] > midline_mm).mean())
        one_lung = max(share, 1 - share) > ONE_LUNG_SHARE
        left = np.full(depth.shape, share > 0.5) if one_lung else leftward > midline_mm
    margins = [(found.start, size - found.stop) for found, size in zip(box, lungs.shape, strict=True)]
    return np.pad(left, margins, mode="edge")


def _markers(depth: _FloatVolume, leftward_mm: _FloatVolume) -> npt.NDArray[np.uint8] | None:
    """The first two large pieces that lie beside each other as the lungs are worn down; None where there are none."""
    for wear in WEAR_MM:
        labels = labels_of(depth > wear)
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        first, *others = np.argsort(-sizes, kind="stable")[:5]
        for other in others:
            if sizes[other] < max(1.0, SMALLEST_SHARE * sizes[first]):
                break
            a, b = labels == first, labels == other
            if _beside(leftward_mm[a], leftward_mm[b]):
                a_is_left = leftward_mm[a].mean() > leftward_mm[b].mean()
                left, right = (a, b) if a_is_left else (b, a)
                return np.where(left, _LEFT, np.where(right, _RIGHT, 0)).astype(np.uint8)
    return None


def _beside(a: _FloatVolume, b: _FloatVolume) -> bool:
    """The middle of each lies outside of the other's breadth."""

    def within(middle: float, other: _FloatVolume) -> bool:
        low, high = np.quantile(other, BESIDE)
        return bool(low <= middle <= high)

    return not within(float(a.mean()), b) and not within(float(b.mean()), a)
