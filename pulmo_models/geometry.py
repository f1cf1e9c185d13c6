"""Voxel index <-> patient position, and crops that may reach over the border. Pure functions on arrays.

Indices are ``(slice, row, column)``, 0 at the centre of the first voxel; positions are LPS mm ``(x, y, z)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def index_to_lps(affine: npt.NDArray[np.float64], index: Sequence[float]) -> tuple[float, float, float]:
    """Position in LPS mm of a voxel index, which may be fractional."""
    x, y, z = affine[:3, :3] @ np.asarray(index, dtype=np.float64) + affine[:3, 3]
    return float(x), float(y), float(z)


def lps_to_index(affine: npt.NDArray[np.float64], lps_mm: Sequence[float]) -> tuple[float, float, float]:
    """Fractional voxel index of a position in LPS mm."""
    s, r, c = np.linalg.solve(affine[:3, :3], np.asarray(lps_mm, dtype=np.float64) - affine[:3, 3])
    return float(s), float(r), float(c)


def crop(
    array: npt.NDArray[np.float32], origin: Sequence[int], shape: Sequence[int], fill: float
) -> npt.NDArray[np.float32]:
    """A box of the array; what lies outside the array is ``fill``. The box may lie outside altogether."""
    out = np.full(tuple(shape), fill, dtype=array.dtype)
    source, target = [], []
    for first, length, size in zip(origin, shape, array.shape, strict=True):
        low, high = max(0, first), min(size, first + length)
        if low >= high:
            return out
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    out[tuple(target)] = array[tuple(source)]
    return out
