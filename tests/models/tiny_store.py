"""A patch store of bright balls in dark lungs, small enough to train on in a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pulmo_models.training.splits import Split
from pulmo_models.training.store import Patch, StoreWriter, Window

SPACING_MM = (1.5, 0.7, 0.7)


def ball(shape: Sequence[int], centre: Sequence[float], diameter_mm: float) -> npt.NDArray[np.bool_]:
    axes = [
        ((np.arange(size) - place) * step) ** 2 for size, place, step in zip(shape, centre, SPACING_MM, strict=True)
    ]
    return axes[0][:, None, None] + axes[1][None, :, None] + axes[2][None, None, :] <= (diameter_mm / 2) ** 2


def lung(random: np.random.Generator, shape: Sequence[int]) -> npt.NDArray[np.int16]:
    return random.normal(-850, 25, shape).astype(np.int16)


def window(random: np.random.Generator, shape: Sequence[int], number: int, split: Split) -> Window:
    hu = lung(random, shape)
    nodules = []
    for _ in range(number % 3):
        centre, diameter_mm = [float(random.integers(5, size - 5)) for size in shape], float(random.uniform(5, 12))
        hu[ball(shape, centre, diameter_mm)] = 30
        nodules.append([*centre, diameter_mm])
    return Window(
        hu=hu,
        spacing_mm=SPACING_MM,
        nodules=np.array(nodules, np.float32).reshape(-1, 4),
        patient=f"{split} {number}",
        split=split,
        source="ball",
    )


def patch(random: np.random.Generator, shape: Sequence[int], number: int, split: Split) -> Patch:
    """Every third is none, a bar through the patch; large balls are malignant and lobulated."""
    hu, middle = lung(random, shape), [size // 2 for size in shape]
    common = {"spacing_mm": SPACING_MM, "patient": f"{split} {number}", "split": split, "source": "ball"}
    if number % 3 == 2:
        hu[:, middle[1] - 2 : middle[1] + 3] = 30
        return Patch(hu=hu, detection=0, **common)  # type: ignore[arg-type]
    large = number % 3
    diameter_mm = float(random.uniform(12, 16) if large else random.uniform(5, 8))
    mask = ball(shape, middle, diameter_mm)
    hu[mask] = 30
    noise = random.uniform(-0.4, 0.4, 8)
    ratings = np.array([3 + large, 1, 5 + large, 4.5 - large, 4, 1.5 + 2 * large, 1.5 + large, 4.5])
    ratings[[0, 2, 3, 4, 5, 6, 7]] += noise[1:]
    return Patch(
        hu=hu,
        mask=mask,
        detection=1,
        malignancy=1.5 + 3 * large,
        ratings=ratings.astype(np.float32),
        readers=4,
        diameter_mm=diameter_mm,
        **common,  # type: ignore[arg-type]
    )


def write_tiny_store(
    path: Path,
    *,
    windows: tuple[int, int] = (12, 4),
    patches: tuple[int, int] = (24, 12),
    window_shape: tuple[int, int, int] = (32, 48, 48),
    patch_shape: tuple[int, int, int] = (20, 72, 72),
    seed: int = 1,
) -> Path:
    """Numbers of samples are those of the training and the validation split."""
    random = np.random.default_rng(seed)
    with StoreWriter(path, window=window_shape, patch=patch_shape, provenance={"command": "test"}) as store:
        splits: tuple[Split, Split] = ("train", "validation")
        for split, count in zip(splits, windows, strict=True):
            for number in range(count):
                store.add_window(window(random, window_shape, number, split))
        for split, count in zip(splits, patches, strict=True):
            for number in range(count):
                store.add_patch(patch(random, patch_shape, number, split))
    return path
