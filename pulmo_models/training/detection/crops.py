"""Crops of a volume on the network's grid with their boxes, and what the bundle's recipe does to them.

An image is ``(x, y, z)`` in 0..1, boxes are ``(n, 6)`` in its indices: low corner, high corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Image = npt.NDArray[np.float32]
Boxes = npt.NDArray[np.float64]

CROP = (192, 192, 80)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Ranges and how often; the published numbers."""

    zoom: tuple[float, float] = (0.7, 1.4)
    zoom_share: float = 0.2
    flip_share: float = 0.5
    quarter_turn_share: float = 0.75
    rotation_rad: float = 0.5236
    rotation_share: float = 0.2
    noise: float = 0.1
    noise_share: float = 0.1
    smooth: tuple[float, float] = (0.5, 1.0)
    smooth_share: float = 0.1
    scale: float = 0.25
    scale_share: float = 0.15
    shift: float = 0.1
    shift_share: float = 0.15
    gamma: tuple[float, float] = (0.7, 1.5)
    gamma_share: float = 0.3


def crop_at(image: Image, boxes: Boxes, start: Sequence[int], size: Sequence[int]) -> tuple[Image, Boxes]:
    """A part of the image, 0 beyond its end, and the boxes in it; one that is less than a voxel thick is dropped."""
    out = np.zeros(tuple(size), dtype=np.float32)
    low = [max(0, first) for first in start]
    high = [min(have, first + length) for have, first, length in zip(image.shape, start, size, strict=True)]
    if all(a < b for a, b in zip(low, high, strict=True)):
        target = tuple(slice(a - first, b - first) for a, b, first in zip(low, high, start, strict=True))
        out[target] = image[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return out, clipped(boxes - np.tile(start, 2), size)


def draw_crop(
    image: Image, boxes: Boxes, size: Sequence[int], positive: bool, random: np.random.Generator
) -> tuple[Image, Boxes]:
    """A crop with one of the boxes wholly in it, or anywhere."""
    last = [max(0, have - length) for have, length in zip(image.shape, size, strict=True)]
    ranges = [(0, end) for end in last]
    if positive and len(boxes):
        box = boxes[random.integers(len(boxes))]
        for axis, length in enumerate(size):
            least, most = int(np.ceil(box[axis + 3])) - length, int(np.floor(box[axis]))
            ranges[axis] = (min(max(0, least), last[axis]), min(max(0, most), last[axis]))
    start = [int(random.integers(min(a, b), max(a, b) + 1)) for a, b in ranges]
    return crop_at(image, boxes, start, size)


def augmented(
    image: Image, boxes: Boxes, random: np.random.Generator, how: Augmentation | None = None
) -> tuple[Image, Boxes]:
    """A crop zoomed, turned, mirrored, smoothed, and of other intensities, each now and then."""
    how = how or Augmentation()

    def happens(share: float) -> bool:
        return bool(random.random() < share)

    zoom = random.uniform(*how.zoom) if happens(how.zoom_share) else 1.0
    angles = random.uniform(-how.rotation_rad, how.rotation_rad, 3) if happens(how.rotation_share) else np.zeros(3)
    if zoom != 1.0 or angles.any():
        image, boxes = moved(image, boxes, zoom * rotation(angles))
    for axis in range(3):
        if happens(how.flip_share):
            image, boxes = np.flip(image, axis), mirrored(boxes, axis, image.shape[axis])
    if image.shape[0] == image.shape[1] and happens(how.quarter_turn_share):
        for _ in range(int(random.integers(1, 4))):
            image, boxes = (
                np.flip(image.transpose(1, 0, 2), 0),
                mirrored(boxes[:, [1, 0, 2, 4, 3, 5]], 0, image.shape[1]),
            )
    if happens(how.noise_share):
        image = image + random.normal(0, how.noise, image.shape).astype(np.float32)
    if happens(how.smooth_share):
        image = ndimage.gaussian_filter(image, random.uniform(*how.smooth))
    if happens(how.scale_share):
        image = image * (1 + random.uniform(-how.scale, how.scale))
    if happens(how.shift_share):
        image = image + random.uniform(-how.shift, how.shift)
    if happens(how.gamma_share):
        image = np.clip(image, 0, 1) ** random.uniform(*how.gamma)
    return np.ascontiguousarray(image, dtype=np.float32), boxes


def rotation(angles_rad: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """About x, then y, then z."""
    found = np.eye(3)
    for axis, angle in enumerate(angles_rad):
        turn, (a, b) = np.eye(3), [n for n in range(3) if n != axis]
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        found = turn @ found
    return found


def moved(image: Image, boxes: Boxes, matrix: npt.NDArray[np.float64]) -> tuple[Image, Boxes]:
    """The image under a linear map about its middle. A box stands for the ellipsoid in it."""
    middle = (np.array(image.shape) - 1) / 2
    inverse = np.linalg.inv(matrix)
    turned = ndimage.affine_transform(image, inverse, middle - inverse @ middle, order=1, mode="constant", cval=0.0)
    centre, half = (boxes[:, :3] + boxes[:, 3:]) / 2, (boxes[:, 3:] - boxes[:, :3]) / 2
    centre = (centre - middle) @ matrix.T + middle
    half = np.sqrt((half**2) @ (matrix**2).T)
    return turned, clipped(np.concatenate((centre - half, centre + half), axis=1), image.shape)


def mirrored(boxes: Boxes, axis: int, size: int) -> Boxes:
    """Boxes of an image that was flipped: index i became size - 1 - i."""
    found = boxes.copy()
    found[:, axis], found[:, axis + 3] = size - 1 - boxes[:, axis + 3], size - 1 - boxes[:, axis]
    return found


def clipped(boxes: Boxes, size: Sequence[int]) -> Boxes:
    """Boxes confined to the image, those that remain a voxel thick."""
    found = np.clip(boxes, 0, np.tile(size, 2))
    return found[(found[:, 3:] - found[:, :3] >= 1).all(axis=1)]
