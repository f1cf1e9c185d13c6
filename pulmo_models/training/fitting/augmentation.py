"""Random changes of a sample: flips and quarter turns of its cut, intensities, noise and reconstruction kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pulmo_models.training.fitting.recipe import Augmentation

HU_RANGE = (-1000.0, 1000.0)
"""What the networks take for 0 and 1 (the published clipping)."""

_KERNEL_PIXELS = 1.0  # standard deviation of what is taken for the smooth part


def normalised(hu: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """HU as the networks take them: clipped to [-1000, 1000], from 0 to 1."""
    low, high = HU_RANGE
    return (np.clip(hu.astype(np.float32), low, high) - low) / (high - low)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Flips of the axes (slices, rows, columns), then quarter turns in the plane."""

    flips: tuple[bool, bool, bool] = (False, False, False)
    quarters: int = 0

    def __call__(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A view of ``(slices, rows, columns)``, flipped and turned."""
        axes = tuple(axis for axis in range(3) if self.flips[axis])
        return np.rot90(np.flip(values, axes), self.quarters, (1, 2))


def draw_turn(random: np.random.Generator, how: Augmentation, *, square: bool = True) -> Turn:
    """Flips and quarter turns; a plane that is no square is turned by half or not at all."""
    flips = tuple(bool(random.random() < how.flip) for _ in range(3))
    quarters = int(random.integers(4)) if how.rotate else 0
    return Turn(flips=(flips[0], flips[1], flips[2]), quarters=quarters if square else quarters // 2 * 2)


def draw_offset(random: np.random.Generator, how: Augmentation) -> tuple[int, int, int]:
    """A translation in voxels: slices, rows, columns."""
    reach = (how.jitter_slices, how.jitter_pixels, how.jitter_pixels)
    z, y, x = (int(random.integers(-most, most + 1)) for most in reach)
    return z, y, x


def cut_around(
    values: npt.NDArray[Any], centre: Sequence[int], shape: Sequence[int], turn: Turn, *, centred: bool
) -> npt.NDArray[Any]:
    """A box of that shape, flipped and turned; the voxel `centre` comes to index size // 2 of each axis.

    With ``centred=False`` a flip moves it to size - 1 - size // 2 instead, one voxel off for an even size, as it was in
    the published training.

    Raises:
        ValueError: the box is not inside.
    """
    sizes = [size + 1 - size % 2 if centred else size for size in shape]  # odd: the middle of it stays there
    starts = [place - size // 2 for place, size in zip(centre, sizes, strict=True)]
    ends = [start + size for start, size in zip(starts, sizes, strict=True)]
    if min(starts) < 0 or any(end > size for end, size in zip(ends, values.shape, strict=True)):
        raise ValueError(f"a box of {list(sizes)} around {list(centre)} is not inside of {list(values.shape)}")
    box = tuple(slice(start, end) for start, end in zip(starts, ends, strict=True))
    return turn(values[box])[: shape[0], : shape[1], : shape[2]]


def change_intensities(
    random: np.random.Generator, how: Augmentation, image: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Shift, gamma, noise and kernel, each with its probability; 0..1 in, 0..1 out, (slices, rows, columns).

    The kernel comes after the noise, since a scanner's kernel sharpens or smooths the noise too.
    """
    if random.random() < how.shift_probability:
        image = np.clip(image + np.float32(random.uniform(-how.shift, how.shift)), 0, 1)
    if random.random() < how.gamma_probability:
        image = image ** np.float32(random.uniform(*how.gamma))
    if random.random() < how.noise_probability:
        image = image + np.float32(how.noise) * random.standard_normal(image.shape, dtype=np.float32)
    if random.random() < how.kernel_probability:
        fine = image - ndimage.gaussian_filter(image, (0, _KERNEL_PIXELS, _KERNEL_PIXELS))
        image = image + np.float32(random.uniform(*how.kernel)) * fine
    return np.clip(image, 0, 1)
