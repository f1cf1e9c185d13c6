"""Cuts a piece of a host at a chosen spacing and places nodules into it. Tensors in HU, one sample at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pulmo_models.training.hosts import Host, KnownNodule
from pulmo_models.training.nodules import RealNodule

Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """A part of a host on a grid of its own; ``hu`` and ``mask`` are float32 (slices, rows, columns)."""

    hu: Tensor
    lung: Tensor  # bool
    spacing_mm: npt.NDArray[np.float64]
    known: tuple[KnownNodule, ...]  # the host's own nodules, in indices of the piece


@dataclass(frozen=True, kw_only=True, eq=False)
class Insert:
    """A nodule on the grid of a piece: HU, opacity 0..1, its outline 0..1, and its size."""

    hu: Tensor
    opacity: Tensor
    outline: Tensor
    diameter_mm: float

    @property
    def centre(self) -> Tensor:
        """Centroid of the outline, in indices of the insert."""
        weight = torch.where(self.outline > 0.5, self.outline, torch.zeros(()))
        weight = weight if float(weight.sum()) > 0 else self.outline
        places = torch.nonzero(weight > 0)
        values = weight[weight > 0]
        return (places * values[:, None]).sum(0) / values.sum()


def cut(host: Host, shape: Shape, spacing_mm: npt.NDArray[np.float64], around: npt.NDArray[np.float64]) -> Piece:
    """The part of a host around an index, resampled; what lies beyond the host is air."""
    factor = spacing_mm / host.spacing_mm
    extent = np.ceil(np.array(shape) * factor).astype(int)
    low = np.round(around - extent / 2).astype(int)
    slices, padding = [], []
    for axis in range(3):
        size = host.hu.shape[axis]
        if extent[axis] <= size:
            low[axis] = min(max(low[axis], 0), size - extent[axis])
            slices.append(slice(low[axis], low[axis] + extent[axis]))
            padding.append((0, 0))
        else:
            low[axis] = 0
            slices.append(slice(0, size))
            padding.append((0, extent[axis] - size))
    box = tuple(slices)
    hu = torch.from_numpy(np.pad(host.hu[box].astype(np.float32), padding, constant_values=-1000.0))[None, None]
    lung = torch.from_numpy(np.pad(host.lung[box].astype(np.float32), padding))[None, None]
    if factor[0] > 1.5:  # thicker slices average what thin ones resolved
        hu = functional.interpolate(hu, size=(shape[0], *hu.shape[3:]), mode="area")
    hu = functional.interpolate(hu, size=shape, mode="trilinear", align_corners=False)[0, 0]
    lung = functional.interpolate(lung, size=shape, mode="nearest")[0, 0] > 0.5
    scale = extent / np.array(shape)
    known = []
    for nodule in host.nodules:
        index = (np.array(nodule.centre_index) - low + 0.5) / scale - 0.5
        if all(-0.5 <= index[axis] < shape[axis] - 0.5 for axis in range(3)):
            place = (float(index[0]), float(index[1]), float(index[2]))
            known.append(KnownNodule(centre_index=place, diameter_mm=nodule.diameter_mm))
    return Piece(hu=hu, lung=lung, spacing_mm=spacing_mm, known=tuple(known))


def real_insert(
    random: np.random.Generator,
    nodule: RealNodule,
    spacing_mm: npt.NDArray[np.float64],
    size_range: tuple[float, float],
) -> Insert | None:
    """A real nodule, turned, mirrored and scaled; None where nothing of it is left on so coarse a grid."""
    scale = float(random.uniform(*size_range))
    hu = torch.from_numpy(nodule.hu.astype(np.float32))
    mask = torch.from_numpy(nodule.mask.astype(np.float32))
    turns = int(random.integers(4))
    axes = [axis for axis in range(3) if random.random() < 0.5]
    hu, mask = (torch.rot90(values, turns, (1, 2)).flip(axes) for values in (hu, mask))
    hu = torch.cat([hu[:1], hu, hu[-1:]])
    mask = torch.cat([torch.zeros_like(mask[:1]), mask, torch.zeros_like(mask[-1:])])
    own = np.array(nodule.spacing_mm) * scale
    grid = [max(1, round(hu.shape[axis] * own[axis] / spacing_mm[axis])) for axis in range(3)]
    grid[0] = max(grid[0], 2)
    mode = "area" if spacing_mm[0] / own[0] > 1.3 else "trilinear"
    hu, mask = (functional.interpolate(values[None, None], size=grid, mode=mode)[0, 0] for values in (hu, mask))
    peak = float(mask.max())
    if peak < 1e-3:
        return None
    outline = mask if peak > 0.5 else mask / peak
    opacity = functional.max_pool3d(outline[None, None], (1, 3, 3), 1, (0, 1, 1))
    opacity = functional.avg_pool3d(opacity, (1, 3, 3), 1, (0, 1, 1))[0, 0].clamp(0, 1)
    return Insert(hu=hu, opacity=opacity, outline=outline, diameter_mm=nodule.diameter_mm * scale)


def made_insert(random: np.random.Generator, spacing_mm: npt.NDArray[np.float64]) -> Insert:
    """A made nodule: an ellipsoid with lobes and spicules, solid or ground glass, 4 to 28 mm."""
    diameter = float(np.exp(random.uniform(np.log(4.0), np.log(28.0))))
    radius = diameter / 2
    half = [int(np.ceil(radius * 1.6 / step)) + 1 for step in spacing_mm]
    grid = np.stack(
        np.meshgrid(*[np.arange(-h, h + 1) * step for h, step in zip(half, spacing_mm, strict=True)], indexing="ij"), -1
    )
    turned, _ = np.linalg.qr(random.normal(size=(3, 3)))
    depth = radius - np.sqrt((((grid @ turned) / random.uniform(0.75, 1.25, 3)) ** 2).sum(-1))
    for _ in range(random.integers(0, 5)):
        lobe = random.normal(size=3)
        lobe *= radius * random.uniform(0.5, 0.8) / np.linalg.norm(lobe)
        depth = np.maximum(depth, radius * random.uniform(0.3, 0.6) - np.linalg.norm(grid - lobe, axis=-1))
    if random.random() < 0.4:
        for _ in range(random.integers(4, 14)):
            depth = np.maximum(depth, _spicule(random, grid, radius))
    outline = np.clip(depth / (0.8 * np.sqrt((spacing_mm**2).mean())) + 0.5, 0, 1).astype(np.float32)
    level = random.uniform(-60, 90) if random.random() < 0.7 else random.uniform(-700, -250)
    hu = (level + random.normal(0, 15, outline.shape)).astype(np.float32)
    edge = torch.from_numpy(outline)
    return Insert(hu=torch.from_numpy(hu), opacity=edge, outline=edge, diameter_mm=diameter)


def _spicule(random: np.random.Generator, grid: npt.NDArray[np.float64], radius: float) -> npt.NDArray[np.float64]:
    direction = random.normal(size=3)
    direction /= np.linalg.norm(direction)
    length = radius * random.uniform(1.1, 1.6)
    along = grid @ direction
    across = np.linalg.norm(grid - along[..., None] * direction, axis=-1)
    thickness = random.uniform(0.4, 0.9) * (1 - along / length) + 0.2
    return np.where((along > 0) & (along < length), thickness - across, -9.0)


def place(piece: Piece, insert: Insert, centre: Tensor) -> tuple[npt.NDArray[np.float64], Tensor] | None:
    """Blend an insert into a piece, in place; its centroid in the piece and its outline there, None if it misses it."""
    low = (centre - insert.centre).round().long()
    into, out_of = [], []
    for axis, size in enumerate(piece.hu.shape):
        start = max(0, int(low[axis]))
        stop = min(size, int(low[axis]) + insert.hu.shape[axis])
        if stop <= start:
            return None
        into.append(slice(start, stop))
        out_of.append(slice(start - int(low[axis]), stop - int(low[axis])))
    target, source = tuple(into), tuple(out_of)
    opacity = insert.opacity[source]
    piece.hu[target] = piece.hu[target] * (1 - opacity) + insert.hu[source] * opacity
    outline = torch.zeros_like(piece.hu)
    outline[target] = insert.outline[source]
    return (low + insert.centre).numpy().astype(np.float64), outline


def scanner(random: np.random.Generator, hu: Tensor) -> Tensor:
    """Another kernel, another noise, another calibration."""
    kind = random.random()
    smooth = functional.avg_pool3d(hu[None, None], (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)[0, 0]
    if kind < 0.35:
        hu = hu + (hu - smooth) * float(random.uniform(0.3, 1.5))
    elif kind < 0.55:
        hu = smooth
    if random.random() < 0.5:
        noise = torch.from_numpy(random.normal(0, random.uniform(5, 60), tuple(hu.shape)).astype(np.float32))
        if random.random() < 0.5:
            noise = 2 * functional.avg_pool3d(noise[None, None], (1, 3, 3), 1, (0, 1, 1))[0, 0]
        hu = hu + noise
    return hu + float(random.uniform(-25, 25))


def normalised(hu: Tensor) -> Tensor:
    """HU clipped to [-1000, 1000] as 0..1, as the networks take it."""
    return (hu.clamp(-1000, 1000) + 1000) / 2000
