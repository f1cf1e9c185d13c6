"""Measures of a nodule from its mask.

The outline of a mask is where the mask, interpolated linearly between voxel centres, crosses one half: half way between
a voxel of the mask and its neighbour outside. So a single voxel has an extent of one voxel, and a sampled disc of
diameter d measures d within one pixel.

Long axis: the largest distance between two points of the outline on the slice of largest area. Short axis: the longest
chord on the same slice perpendicular to it (as radiologists measure; RECIST 1.1, Fleischner Society 2017). A chord may
leave the mask in between where the outline is concave.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pulmo_models.geometry import index_to_lps
from pulmo_models.types import Axis, BoolArray, Mask, Volume

CHORD_STEPS_PER_PIXEL = 8

_Points = npt.NDArray[np.float64]  # (n, 2)


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured on one mask."""

    centre_lps_mm: tuple[float, float, float]  # centroid
    long_axis: Axis
    short_axis: Axis
    volume_mm3: float
    mean_hu: float
    min_hu: float
    max_hu: float


def measure(volume: Volume, mask: Mask) -> Measures:
    """All measures of a mask on the grid of its volume."""
    long_axis, short_axis = measure_axes(mask, volume.spacing_mm)
    hu = volume.hu[mask.slices][mask.voxels]
    centroid = np.argwhere(mask.voxels).mean(axis=0) + mask.origin
    return Measures(
        centre_lps_mm=index_to_lps(volume.affine, centroid),
        long_axis=long_axis,
        short_axis=short_axis,
        volume_mm3=float(mask.voxels.sum()) * abs(float(np.linalg.det(volume.affine[:3, :3]))),
        mean_hu=float(hu.mean(dtype=np.float64)),
        min_hu=float(hu.min()),
        max_hu=float(hu.max()),
    )


def measure_axes(mask: Mask, spacing_mm: tuple[float, float, float]) -> tuple[Axis, Axis]:
    """Long and short axis; end points are indices of the volume (slice, row, column), not rounded."""
    slice_index = int(np.argmax(mask.voxels.sum(axis=(1, 2))))
    layer = mask.voxels[slice_index]
    step_mm = np.asarray(spacing_mm[1:])
    outline = _outline(layer)
    first, second = _farthest_pair(outline * step_mm)
    direction = second - first
    short = _longest_chord(layer, step_mm, direction / np.linalg.norm(direction))

    def axis(a: _Points, b: _Points) -> Axis:
        ends = [tuple((point / step_mm + mask.origin[1:]).tolist()) for point in (a, b)]
        z = float(mask.origin[0] + slice_index)
        return Axis(length_mm=float(np.linalg.norm(b - a)), start=(z, *ends[0]), end=(z, *ends[1]))

    return axis(first, second), axis(*short)


def _outline(layer: BoolArray) -> _Points:
    """Points (row, column) half way between a pixel of the mask and each of its four neighbours outside."""
    padded = np.pad(layer, 1)
    points = []
    for shift in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        outside = ~np.roll(padded, (-shift[0], -shift[1]), axis=(0, 1))
        points.append(np.argwhere(padded & outside) - 1 + 0.5 * np.asarray(shift))
    return np.concatenate(points)


def _farthest_pair(points_mm: _Points) -> tuple[_Points, _Points]:
    """The two points with the largest distance; of each row only its outermost points can be one of them."""
    extremes = []
    for row in np.unique(points_mm[:, 0]):
        columns = points_mm[points_mm[:, 0] == row, 1]
        extremes += [(row, columns.min()), (row, columns.max())]
    candidates = np.asarray(extremes)
    distances = np.linalg.norm(candidates[:, None] - candidates[None], axis=2)
    i, j = np.unravel_index(int(np.argmax(distances)), distances.shape)
    return candidates[i], candidates[j]


def _longest_chord(layer: BoolArray, step_mm: _Points, normal: _Points) -> tuple[_Points, _Points]:
    """The end points in mm of the longest chord perpendicular to ``normal`` (unit vector, row and column)."""
    along = np.array((-normal[1], normal[0]))
    corners = np.array([(r, c) for r in (-1, layer.shape[0]) for c in (-1, layer.shape[1])]) * step_mm
    fine = float(step_mm.min()) / CHORD_STEPS_PER_PIXEL
    across_mm = np.arange((corners @ normal).min(), (corners @ normal).max() + fine, fine)
    along_mm = np.arange((corners @ along).min(), (corners @ along).max() + fine, fine)
    lines = across_mm[:, None, None] * normal + along_mm[None, :, None] * along
    inside = _interpolate(layer, lines / step_mm) >= 0.5
    hit = inside.any(axis=1)
    first = np.argmax(inside, axis=1)
    last = inside.shape[1] - 1 - np.argmax(inside[:, ::-1], axis=1)
    best = int(np.argmax(np.where(hit, last - first, -1)))
    return lines[best, first[best]], lines[best, last[best]]


def _interpolate(layer: BoolArray, indices: _Points) -> npt.NDArray[np.float64]:
    """Bilinear interpolation of the mask at (row, column) indices of shape (..., 2); 0 outside."""
    padded = np.pad(layer, 2).astype(np.float64)
    limits = np.asarray(padded.shape) - 2
    shifted = np.clip(indices + 2.0, 0.0, limits + 0.999)
    low = np.floor(shifted).astype(np.int64)
    r, c = np.moveaxis(shifted - low, -1, 0)
    i, j = np.moveaxis(low, -1, 0)
    top = padded[i, j] * (1 - c) + padded[i, j + 1] * c
    bottom = padded[i + 1, j] * (1 - c) + padded[i + 1, j + 1] * c
    return top * (1 - r) + bottom * r
