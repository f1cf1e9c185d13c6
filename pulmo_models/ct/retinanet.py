"""A detector of boxes: the 3D RetinaNet of MONAI's bundle ``lung_nodule_ct_detection`` from HU to boxes in the volume.

Input: HU with its affine, on any grid. It is turned to axes towards right, anterior and head (RAS), resampled to
0.703125 x 0.703125 x 1.25 mm by linear interpolation, and mapped from -1024..300 HU to 0..1, as the bundle does. The
network sees it whole, or in windows with a quarter of overlap whose maps of logits and codes are averaged level by
level. Output: boxes with scores, best first, as indices of the volume.

Corners go through the affine as indices of voxel centres, without half a voxel in between: so the bundle was trained.

Errors: :class:`DeviceOutOfMemory`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pulmo_models.ct.boxes import Boxes, SelectionSettings, select
from pulmo_models.device import Runner
from pulmo_models.nets.retinanet3d import DIVISIBLE_BY, LEVELS, STRIDES
from pulmo_models.orientation import upright

SPACING_MM = (0.703125, 0.703125, 1.25)  # x, y, z
HU_RANGE = (-1024.0, 300.0)
PUBLISHED_WINDOW = (512, 512, 192)
OVERLAP = 0.25
WINDOW_STEP = (64, 64, 32)  # windows are multiples of it, so that a quarter of one is whole cells of every level

ShareCallback = Callable[[float], None]
Size = tuple[int, int, int]
_FloatVolume = npt.NDArray[np.float32]
_Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DetectorSettings:
    """How the network looks at a volume; the published inference by default."""

    window: Size = PUBLISHED_WINDOW  # along x, y, z of the network's grid
    always_windows: bool = False  # also of an image that is smaller than a window: an engine takes no other shape
    selection: SelectionSettings = field(default_factory=SelectionSettings)


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A box in the volume: corners as indices (slice, row, column), not rounded, and its score 0..1."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    score: float

    @property
    def centre(self) -> tuple[float, float, float]:
        """The middle of the box."""
        z, y, x = ((a + b) / 2 for a, b in zip(self.low, self.high, strict=True))
        return z, y, x


@dataclass(frozen=True, kw_only=True, eq=False)
class NetworkImage:
    """A volume as the network sees it."""

    values: _FloatVolume  # (x, y, z), towards right, anterior and head; 0..1
    to_index: _Matrix  # 4 x 4: index of `values` to index (slice, row, column) of the volume


def detect(
    hu: _FloatVolume,
    affine: _Matrix,
    runner: Runner,
    settings: DetectorSettings,
    box: tuple[slice, slice, slice] | None = None,
    progress: ShareCallback = lambda share: None,
) -> list[Detection]:
    """The boxes of a volume, highest score first; with ``box`` only that part of the volume is looked at.

    ``runner`` wraps a :class:`pulmo_models.nets.retinanet3d.RetinaNet3D`; ``affine`` maps an index to LPS mm.

    Raises:
        DeviceOutOfMemory: from the runner.
    """
    image = network_image(hu, affine, box)
    logits, codes = head_maps(image.values, runner, settings, progress)
    found = select(logits, codes, image.values.shape, settings.selection)
    return list(_in_volume(found, image.to_index))


def network_image(hu: _FloatVolume, affine: _Matrix, box: tuple[slice, slice, slice] | None = None) -> NetworkImage:
    """The volume, or a box of it, on the network's grid; the first voxel of both is the same one."""
    box = box or (slice(0, hu.shape[0]), slice(0, hu.shape[1]), slice(0, hu.shape[2]))
    part = hu[box]
    turn = upright(affine, part.shape)
    # Upright is (head, posterior, left): reversed rows and columns, in the order of columns first, are RAS.
    values = turn.array(part)[:, ::-1, ::-1].transpose(2, 1, 0)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[[turn.axes[2], turn.axes[1], turn.axes[0]]]
    factors = np.asarray(SPACING_MM) / spacing
    to_index = np.eye(4)
    ny, nx = (part.shape[axis] for axis in turn.axes[1:])

    def place(x: int, y: int, z: int) -> npt.NDArray[np.float64]:
        return np.asarray(turn.index_back((z, ny - 1 - y, nx - 1 - x)), dtype=np.float64)

    origin = place(0, 0, 0)
    for column, step in enumerate(np.eye(3, dtype=int)):
        to_index[:3, column] = (place(*step.tolist()) - origin) * factors[column]
    to_index[:3, 3] = origin + [along.start for along in box]
    for axis, factor in enumerate(factors):
        values = _resampled(values, axis, float(factor))
    low, high = HU_RANGE
    scaled = (np.clip(values, low, high) - np.float32(low)) / np.float32(high - low)
    return NetworkImage(values=np.ascontiguousarray(scaled, dtype=np.float32), to_index=to_index)


def head_maps(
    image: _FloatVolume, runner: Runner, settings: DetectorSettings, progress: ShareCallback = lambda share: None
) -> tuple[list[Tensor], list[Tensor]]:
    """The maps of logits ``(3, ...)`` and codes ``(18, ...)`` of each level, float32.

    The image is padded with 0 at the end to what the network can divide. With fewer voxels than a window it is seen
    whole, whatever its shape, as in the bundle; else in windows, an axis that is shorter than the window padded on
    both sides. There the bundle may split a cell of the coarse maps; here the padding before is whole cells.
    """
    padded = [-(-size // by) * by for size, by in zip(image.shape, DIVISIBLE_BY, strict=True)]
    values = functional.pad(torch.from_numpy(image)[None, None], _end_padding(image.shape, padded))
    window = settings.window
    if math.prod(padded) < math.prod(window) and not settings.always_windows:
        outputs = runner(values)
        progress(1.0)
        return _levels({key: value[0] for key, value in outputs.items()})
    before = [max(0, size - have) // 2 // by * by for have, size, by in zip(padded, window, DIVISIBLE_BY, strict=True)]
    whole = [max(have, size) for have, size in zip(padded, window, strict=True)]
    after = [total - have - first for total, have, first in zip(whole, padded, before, strict=True)]
    values = functional.pad(values, [n for pair in reversed(list(zip(before, after, strict=True))) for n in pair])
    stitched = _stitched(values, runner, window, progress)
    return _levels({key: value[_cells(int(key[-1]), before, padded)].contiguous() for key, value in stitched.items()})


def window_starts(size: int, window: int) -> list[int]:
    """Where windows begin along an axis: a quarter of overlap, the last one flush with the end."""
    step = int(window * (1.0 - OVERLAP))
    starts = [start for start in range(0, size, step) if start + window < size]
    return [*starts, size - window]


def _stitched(values: Tensor, runner: Runner, window: Size, progress: ShareCallback) -> dict[str, Tensor]:
    """The mean of the maps of all windows."""
    size = values.shape[-3:]
    starts = list(product(*(window_starts(have, want) for have, want in zip(size, window, strict=True))))
    totals: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    for number, start in enumerate(starts, start=1):
        slices, rows, columns = (slice(first, first + want) for first, want in zip(start, window, strict=True))
        part = values[..., slices, rows, columns]
        for key, output in runner(part).items():
            level = int(key[-1])
            if key not in totals:
                grid = [have // by for have, by in zip(size, STRIDES[level], strict=True)]
                totals[key] = torch.zeros(output.shape[1], *grid)
                counts[key] = torch.zeros(1, *grid)
            cells = _cells(level, start, window)
            totals[key][cells] += output[0]
            counts[key][cells] += 1
        progress(number / len(starts))
    return {key: total / counts[key] for key, total in totals.items()}


def _cells(level: int, start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    """The part of a level's map, channels first, that belongs to a box of the grid."""
    along = zip(start, size, STRIDES[level], strict=True)
    return (slice(None), *(slice(first // by, (first + length) // by) for first, length, by in along))


def _levels(maps: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    return [maps[f"logits_{n}"] for n in range(LEVELS)], [maps[f"codes_{n}"] for n in range(LEVELS)]


def _end_padding(shape: Sequence[int], padded: Sequence[int]) -> list[int]:
    """As `torch.nn.functional.pad` counts: last axis first, before and after."""
    return [n for have, want in zip(reversed(shape), reversed(padded), strict=True) for n in (0, want - have)]


def _resampled(values: _FloatVolume, axis: int, factor: float) -> _FloatVolume:
    """Linear interpolation along one axis to steps of ``factor`` voxels, from the first voxel to the last one."""
    last = values.shape[axis] - 1
    count = round(last / factor) + 1
    if count == values.shape[axis] and math.isclose(factor, 1.0):
        return values
    places = np.minimum(np.arange(count) * factor, last)
    low = np.minimum(places.astype(np.int64), max(0, last - 1))
    weight = np.expand_dims((places - low).astype(np.float32), tuple(n for n in range(3) if n != axis))
    lower = np.take(values, low, axis=axis)
    upper = np.take(values, np.minimum(low + 1, last), axis=axis)
    found: _FloatVolume = lower + (upper - lower) * weight
    return found


def _in_volume(found: Boxes, to_index: _Matrix) -> Iterator[Detection]:
    for corners, score in zip(found.corners.double().numpy(), found.scores.tolist(), strict=True):
        ends = [(to_index @ (*corner, 1.0))[:3] for corner in (corners[:3], corners[3:])]
        z0, y0, x0 = np.minimum(*ends).tolist()
        z1, y1, x1 = np.maximum(*ends).tolist()
        yield Detection(low=(z0, y0, x0), high=(z1, y1, x1), score=score)
