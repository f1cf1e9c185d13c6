"""Hounsfield units of the 8-bit slices of `lidc_patches`: each was stretched on its own, HU = slope * value + offset.

A slice holds the middle 72 x 72 of a square of 128 x 128 pixels, stretched from the least to the largest value of that
square (found on LIDC-IDRI-0063, whose whole series is at hand: it holds on all 14 slices). So slope and offset differ
from slice to slice and between two nodules of one image. Where a slice is also in the true-HU set, a line through both
gives them exactly. A neighbour follows by what barely changes between adjacent slices: lung, chest wall, large vessels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

LEAST_CORRELATION = 0.999
_REACH = 3  # pixels by which the two sets may be centred differently
_ROUNDS = 8
_LUNG_HU = -650.0
_LEAST_LUNG = 200  # pixels that are needed to take the lung's level as an anchor
_BIN_HU, _FULL_BIN = 100.0, 300.0  # bins with more pixels than that weigh no more: lung must not outvote the rest
_SLOPE_CHANGE = 2.0  # the most by which the slope may differ between neighbours
_ERROR_FACTOR = 70.0  # HU of error in soft tissue per unit of residual / spread, by tests on whole series


@dataclass(frozen=True, kw_only=True)
class Line:
    """HU = slope * value + offset, and what it is worth."""

    slope: float
    offset: float
    error_hu: float  # of a slice with true HU: mean residual; of a neighbour: estimated error of soft tissue

    def hu(self, values: npt.NDArray[np.generic]) -> Floats:
        """Hounsfield units of stretched values."""
        return self.slope * values.astype(np.float64) + self.offset


def shared_slice(stretched: Bytes, hu: npt.NDArray[np.int16]) -> tuple[float, Line, tuple[int, int]]:
    """Correlation and line of the best alignment of a stretched slice (72, 72) with one in true HU (71, 71).

    The pair of offsets says where the true one lies: ``stretched[row + offset]`` shows what ``hu[row]`` does.
    """
    offsets = [(down, right) for down in range(1 - _REACH, _REACH + 1) for right in range(1 - _REACH, _REACH + 1)]
    offset = max(offsets, key=lambda shift: _correlation(*_pair(stretched, hu, shift)))
    values, truth = _pair(stretched, hu, offset)
    correlation = _correlation(values, truth)
    if correlation <= 0:
        return correlation, Line(slope=1.0, offset=0.0, error_hu=np.inf), offset
    slope, intercept = np.polyfit(values.ravel(), truth.ravel(), 1)
    line = Line(slope=float(slope), offset=float(intercept), error_hu=0.0)
    return correlation, replace(line, error_hu=float(np.abs(line.hu(values) - truth).mean())), offset


def _pair(stretched: Bytes, hu: npt.NDArray[np.int16], offset: tuple[int, int]) -> tuple[Floats, Floats]:
    into, out_of = overlap(stretched.shape, hu.shape, offset)
    return stretched[into].astype(np.float64), hu[out_of].astype(np.float64)


def _correlation(one: Floats, other: Floats) -> float:
    """Pearson's; -1 where one of them is constant."""
    a, b = (one - one.mean()).ravel(), (other - other.mean()).ravel()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else -1.0


def overlap(
    shape: tuple[int, ...], other: tuple[int, ...], offset: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where two images meet when the other's first pixel lies at `offset` in the first: box in each."""
    into, out_of = [], []
    for size, length, start in zip(shape, other, offset, strict=True):
        low, high = max(0, start), min(size, start + length)
        into.append(slice(low, high))
        out_of.append(slice(low - start, high - start))
    return (into[0], into[1]), (out_of[0], out_of[1])


def neighbour(stretched: Bytes, reference: Floats, known: Line) -> Line:
    """The line of a slice whose neighbour is in HU (``reference``, the same pixels), `known` being that one's own line.

    A robust fit between the two slices, smoothed over 3 x 3 pixels, that treats both alike (the ratio of their spreads,
    not a regression, which noise would flatten): pixels that changed count little, and levels that many pixels have
    count no more than others. The offset makes the lungs agree. `error_hu` is the known one's and this one's together.
    """
    values = ndimage.uniform_filter(stretched.astype(np.float64), 3)
    levels = ndimage.uniform_filter(reference, 3)
    quantiles = np.linspace(0.02, 0.98, 49)
    low, high = known.slope / _SLOPE_CHANGE, known.slope * _SLOPE_CHANGE
    spread = float(np.std(np.quantile(values, quantiles)))
    slope = float(np.clip(np.std(np.quantile(levels, quantiles)) / max(spread, 1e-6), low, high))
    lung = levels < _LUNG_HU + 50
    anchor = lung if lung.sum() > _LEAST_LUNG else np.ones_like(lung)
    offset = float(np.median(levels[anchor]) - slope * np.median(values[anchor]))
    residual, contrast = 0.0, 1.0
    for _ in range(_ROUNDS):
        difference = levels - (slope * values + offset)
        middle = levels - difference / 2
        residual = float(np.median(np.abs(difference)))
        steady = 1 / (1 + (difference / max(20.0, 1.5 * residual)) ** 2) ** 2
        bins = np.clip((middle + 1050) / _BIN_HU, 0, 25).astype(int)
        filled = np.bincount(bins.ravel(), steady.ravel(), 26)
        weight = steady / np.maximum(filled[bins], _FULL_BIN)
        spreads = [_spread(levels, weight), _spread(values, weight)]
        slope = float(np.clip(spreads[0] / max(spreads[1], 1e-6), low, high))
        lung = middle < _LUNG_HU
        anchor = lung if lung.sum() > _LEAST_LUNG else np.ones_like(lung)
        offset = float(np.average((levels - slope * values)[anchor], weights=steady[anchor]))
        contrast = float(spreads[0])
    error = _ERROR_FACTOR * residual / max(contrast, 1.0)
    return Line(slope=slope, offset=offset, error_hu=known.error_hu + error)


def _spread(values: Floats, weight: Floats) -> float:
    total = weight.sum()
    mean = (values * weight).sum() / total
    return float(np.sqrt((((values - mean) ** 2) * weight).sum() / total))


def stack_lines(stack: Bytes, truths: dict[int, Line]) -> list[Line]:
    """A line for each slice of a stack (n, 72, 72), from those of its slices with true HU outwards."""
    lines = dict(truths)
    for step in (1, -1):
        order = range(len(stack)) if step > 0 else range(len(stack) - 1, -1, -1)
        previous: int | None = None
        chain: dict[int, Line] = {}
        for index in order:
            if index in truths:
                previous, chain[index] = index, truths[index]
            elif previous is not None:
                chain[index] = neighbour(stack[index], chain[previous].hu(stack[previous]), chain[previous])
                previous = index
        for index, line in chain.items():
            if index not in lines or line.error_hu < lines[index].error_hu:
                lines[index] = line
    return [lines[index] for index in range(len(stack))]
