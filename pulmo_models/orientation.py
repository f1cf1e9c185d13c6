"""Axial volumes in the one orientation that the networks were trained on, and results back from it.

A series may be stored feet first, prone, on the side or mirrored; the grid of its volume stays as it is in the files.
Networks are not indifferent to that, so they see the voxels with slices towards the head, rows towards posterior and
columns towards the patient's left, as nearly as turning and swapping whole axes can do it. No voxel is interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pulmo_models.mapping import frames_of_grid
from pulmo_models.types import Mask, Volume

Index = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """How the axes of an array are swapped, then reversed; and back. `shape` is that of the array as it was."""

    axes: Index  # axis n of the turned array was axis axes[n]
    reversed_axes: tuple[int, ...]  # of the turned array
    shape: Index

    def array(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The array turned: a view."""
        return np.flip(array.transpose(self.axes), self.reversed_axes)

    def array_back(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A turned array as it was: a view."""
        return np.flip(array, self.reversed_axes).transpose(np.argsort(self.axes))

    def spacing_mm(self, spacing_mm: tuple[float, float, float]) -> tuple[float, float, float]:
        """The spacing of the turned array."""
        a, b, c = (spacing_mm[axis] for axis in self.axes)
        return a, b, c

    def index(self, index: Index) -> Index:
        """The index in the turned array of a voxel of the array as it was."""
        a, b, c = (
            self.shape[axis] - 1 - index[axis] if n in self.reversed_axes else index[axis]
            for n, axis in enumerate(self.axes)
        )
        return a, b, c

    def index_back(self, index: Index) -> Index:
        """The index in the array as it was."""
        back = [0, 0, 0]
        for n, axis in enumerate(self.axes):
            back[axis] = self.shape[axis] - 1 - index[n] if n in self.reversed_axes else index[n]
        return back[0], back[1], back[2]

    def mask_back(self, mask: Mask) -> Mask:
        """The mask on the array as it was."""
        last = tuple(first + size - 1 for first, size in zip(mask.origin, mask.voxels.shape, strict=True))
        ends = self.index_back(mask.origin), self.index_back((last[0], last[1], last[2]))
        low = tuple(min(pair) for pair in zip(*ends, strict=True))
        voxels = np.flip(mask.voxels, self.reversed_axes).transpose(np.argsort(self.axes))
        return Mask(origin=(low[0], low[1], low[2]), voxels=np.ascontiguousarray(voxels))


def no_turn(shape: tuple[int, ...]) -> Turn:
    """The turn that leaves everything as it is."""
    return Turn(axes=(0, 1, 2), reversed_axes=(), shape=(shape[0], shape[1], shape[2]))


def upright(affine: npt.NDArray[np.float64], shape: tuple[int, ...]) -> Turn:
    """The turn that brings a near axial volume of this affine (index to LPS mm) and shape nearest to the training's.

    Slices stay slices. Of an oblique volume, each axis goes to the direction that it is nearest to.
    """
    _, row, column = affine[:3, :3].T / np.linalg.norm(affine[:3, :3], axis=0)[:, None]
    swap = abs(row[0]) + abs(column[1]) > abs(row[1]) + abs(column[0])
    axes = (0, 2, 1) if swap else (0, 1, 2)
    directions = affine[:3, :3][:, list(axes)]
    wanted = (2, 1, 0)  # slices along z, rows along y, columns along x
    reversed_axes = tuple(n for n, axis in enumerate(wanted) if directions[axis, n] < 0)
    return Turn(axes=axes, reversed_axes=reversed_axes, shape=(shape[0], shape[1], shape[2]))


def turned_upright(volume: Volume) -> Volume:
    """The volume as the networks see it: the same positions in the patient, axes swapped and reversed by `upright`.

    For training and evaluation, which write no results: where anything is turned, the frames are those of the new grid
    and point at no file.
    """
    turn = upright(volume.affine, volume.hu.shape)
    if turn == no_turn(volume.hu.shape):
        return volume
    hu = np.ascontiguousarray(turn.array(volume.hu))
    affine = volume.affine.copy()
    affine[:3, :3] = volume.affine[:3, list(turn.axes)]
    for axis in turn.reversed_axes:
        affine[:3, axis] *= -1
    affine[:3, 3] = (volume.affine @ (*turn.index_back((0, 0, 0)), 1))[:3]
    return replace(volume, hu=hu, affine=affine, frames=frames_of_grid(affine, hu.shape), native=True, interpolated=())
