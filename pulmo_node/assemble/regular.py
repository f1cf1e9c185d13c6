"""Fill a grid from its frames: as they are, or interpolated where the grid was repaired.

Input: a `Grid`. Output: float32 HU of its shape. Few slices are in memory beside the volume.
Interpolation is linear. Where padding takes part, only what was measured counts, if that is at least half of the
weight, and else the voxel is -1024: padding never mixes into tissue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from pulmo_models.codes import RejectionCode
from pulmo_node.assemble.decoding import PROCESSES
from pulmo_node.assemble.geometry import Grid
from pulmo_node.assemble.pixels import AIR_HU
from pulmo_node.assemble.slices import BoolArray, Float32Array, SliceReader
from pulmo_node.errors import Rejected

ShareCallback = Callable[[float], None]
"""Called with the share of the work that is done, 0 to 1."""

_NOTHING = 1e-6  # of a pixel, or of the distance between two frames
_HALF = 0.5 - _NOTHING


def read_hu(grid: Grid, reader: SliceReader, progress: ShareCallback = lambda _: None) -> Float32Array:
    """Decode every frame of the grid and carry out its repairs; `progress` gets the share of the frames.

    Raises:
        Rejected: UNREADABLE, UNSUPPORTED_PIXELS or DECODE_FAILED; TOO_LARGE where there is no memory for it.
    """
    try:
        hu = np.empty(grid.shape, dtype=np.float32)
    except MemoryError as exc:
        raise _no_memory(grid) from exc
    with ThreadPoolExecutor(PROCESSES) as pool:
        if grid.native:
            for done, _ in enumerate(
                pool.map(reader.write_into, grid.frames, hu), start=1
            ):  # the first error comes out
                progress(done / len(grid.frames))
        else:
            _interpolate(grid, _placed(grid, reader, pool), hu, progress)
    return hu


def _no_memory(grid: Grid) -> Rejected:
    slices, rows, columns = grid.shape
    size = f"{slices * rows * columns * 4 / 1e9:.1f} GB"
    sentence = f"{slices} slices of {rows} x {columns} pixels need {size} of memory, which this machine does not have"
    return Rejected(RejectionCode.TOO_LARGE, sentence, file=grid.frames[0].path.name, tag="(0028,0010) Rows")


def _placed(grid: Grid, reader: SliceReader, pool: ThreadPoolExecutor) -> Iterator[tuple[Float32Array, BoolArray]]:
    """HU of each frame within the rows and columns of the grid, and where they are known."""

    def place(index: int) -> tuple[Float32Array, BoolArray]:
        hu, known = reader.hu_and_known(grid.frames[index])
        row, column = grid.offsets[index]
        return _shifted(hu, known, (float(row), float(column)), grid.shape[1:])

    for first in range(0, len(grid.frames), PROCESSES):  # a few at a time, so that few are waiting
        yield from pool.map(place, range(first, min(first + PROCESSES, len(grid.frames))))


def _shifted(
    hu: Float32Array, known: BoolArray, offset: tuple[float, float], shape: tuple[int, ...]
) -> tuple[Float32Array, BoolArray]:
    """Lay an image into a larger one, its pixel (0, 0) at a row and column that need not be whole."""
    if hu.shape == shape and max(offset) < _NOTHING:
        return hu, known
    value, weight = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    masked = np.where(known, hu, np.float32(0))
    rows, columns = hu.shape
    for row, row_share in _shares(offset[0]):
        for column, column_share in _shares(offset[1]):
            share = np.float32(row_share * column_share)
            value[row : row + rows, column : column + columns] += share * masked
            weight[row : row + rows, column : column + columns] += share * known
    return _weighted(value, weight)


def _shares(offset: float) -> list[tuple[int, float]]:
    """The whole offsets on either side, with the share of each."""
    whole = int(np.floor(offset + _NOTHING))
    fraction = offset - whole
    return [(whole, 1.0)] if fraction < _NOTHING else [(whole, 1 - fraction), (whole + 1, fraction)]


def _interpolate(
    grid: Grid, placed: Iterator[tuple[Float32Array, BoolArray]], out: Float32Array, progress: ShareCallback
) -> None:
    """Slices in ascending order between the frame before and the frame at hand."""
    before: tuple[Float32Array, BoolArray] | None = None
    k = 0
    for index, frame in enumerate(placed):
        while k < len(grid.at) and grid.at[k] <= index + _NOTHING:
            share = index - grid.at[k]  # of the frame before
            out[k] = _between(before, frame, share) if before and share > _NOTHING else _or_air(*frame)
            k += 1
        before = frame
        progress((index + 1) / len(grid.frames))


def _between(one: tuple[Float32Array, BoolArray], other: tuple[Float32Array, BoolArray], share: float) -> Float32Array:
    a, b = np.float32(share) * one[1], np.float32(1 - share) * other[1]
    return _or_air(*_weighted(a * one[0] + b * other[0], a + b))


def _weighted(value: Float32Array, weight: Float32Array) -> tuple[Float32Array, BoolArray]:
    known: npt.NDArray[np.bool_] = weight >= _HALF
    return np.divide(value, weight, out=np.full_like(value, AIR_HU), where=known), known


def _or_air(hu: Float32Array, known: BoolArray) -> Float32Array:
    return np.where(known, hu, np.float32(AIR_HU))
