"""Nodules of rare kinds: the readers' shape and ratings from the LIDC database, pixels drawn by those ratings.

Ground glass, calcified, very small, and large spiculated ones: the cut-outs have few of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pulmo_models.training.lidc.database import LidcDatabase, Nodule
from pulmo_models.training.lidc.shapes import occupancy
from pulmo_models.training.material.insertion import host_noise
from pulmo_models.training.material.nodules import RealNodule
from pulmo_models.types import CONCEPT_NAMES

_LUNG_HU = -850.0
_NOISE_HU = 15.0
_PIXEL_MM = 0.7
_SIZE = 72
_BLUR = 0.6  # in pixels, of the reconstruction
_SMALL_MM, _LARGE_MM = 5.0, 20.0


def drawn_nodules(wanted: Callable[[int], bool], seed: int, database: LidcDatabase | None = None) -> list[RealNodule]:
    """One for each nodule of a rare kind of the patients that are wanted; always the same for a seed."""
    database = database or LidcDatabase()
    found = []
    for scan in database.scans(wanted):
        for number, nodule in enumerate(scan.nodules):
            kind = rare_kind(nodule)
            if kind is None:
                continue
            random = np.random.default_rng([seed, scan.id, number])
            drawn = draw(random, nodule, f"nodule-{number} drawn as {kind}", _step(scan.slice_zs_mm))
            if drawn is not None:
                found.append(drawn)
    return found


def rare_kind(nodule: Nodule) -> str | None:
    """Why a nodule is drawn, None where there are enough like it."""
    rated = dict(zip(CONCEPT_NAMES, nodule.ratings.tolist(), strict=True))
    if rated["calcification"] <= 5.0:
        return "calcified"
    if rated["texture"] <= 3.0:
        return "ground glass"
    if nodule.median_diameter_mm > _LARGE_MM and rated["spiculation"] >= 3.0:
        return "spiculated"
    return "small" if nodule.median_diameter_mm < _SMALL_MM and nodule.readers >= 2 else None


def draw(random: np.random.Generator, nodule: Nodule, name: str, step_mm: float) -> RealNodule | None:
    """A nodule as a stack of slices; None where its shape is empty or larger than the stack's pixels."""
    shape = occupancy(nodule, (step_mm, _PIXEL_MM, _PIXEL_MM))
    if shape.max() < 0.5 or max(shape.shape[1:]) > _SIZE - 4:
        return None
    before = [(_SIZE - size) // 2 for size in shape.shape[1:]]
    padding = [(b, _SIZE - size - b) for b, size in zip(before, shape.shape[1:], strict=True)]
    share = np.pad(shape, [(0, 0), *padding])
    rated = dict(zip(CONCEPT_NAMES, nodule.ratings.tolist(), strict=True))
    tissue = _tissue(random, share, rated["texture"], round(rated["calcification"]), step_mm)
    hu = _LUNG_HU + share * (tissue - _LUNG_HU)
    hu = ndimage.gaussian_filter(hu, (0, _BLUR, _BLUR)) + _NOISE_HU * host_noise(random, share.shape)
    ratings = nodule.ratings.copy()
    ratings[[CONCEPT_NAMES.index("subtlety"), CONCEPT_NAMES.index("internalStructure")]] = np.nan  # drawn by nobody
    return RealNodule(
        patient=nodule.patient,
        name=name,
        hu=np.rint(hu).astype(np.int16),
        mask=share >= 0.5,
        reach=share > 0.05,
        spacing_mm=(step_mm, _PIXEL_MM, _PIXEL_MM),
        diameter_mm=max(nodule.median_diameter_mm, 3.0),
        ratings=ratings,
        malignancy=nodule.malignancy,
        readers=nodule.readers,
        error_hu=0.0,
        lung_hu=_LUNG_HU,
        noise_hu=_NOISE_HU,
        drawn=True,
    )


def _step(zs: npt.NDArray[np.float64]) -> float:
    steps = np.diff(zs)
    return float(np.median(steps[steps > 0])) if (steps > 0).any() else 2.5


def _tissue(
    random: np.random.Generator, share: npt.NDArray[np.float32], texture: float, calcification: int, step_mm: float
) -> npt.NDArray[np.float64]:
    """HU of what fills the shape. Texture: 1 ground glass .. 5 solid; calcification: 1 popcorn, 2 laminated, 3 solid,
    4 not central, 5 central, 6 none (LIDC-IDRI's scales)."""
    depth = np.asarray(ndimage.distance_transform_edt(share >= 0.5, sampling=(step_mm, _PIXEL_MM, _PIXEL_MM)))
    relative = depth / max(float(depth.max()), 1e-6)
    glass, solid = float(random.uniform(-680, -420)), float(random.uniform(0, 70))
    core = 1.0 if texture >= 4 else 0.0 if texture <= 1.5 else (texture - 1) / 4
    tissue = np.where(relative > 1 - core, solid, glass) if core < 1 else np.full(share.shape, solid)
    tissue = tissue + 60 * ndimage.gaussian_filter(random.normal(0, 1, share.shape), (0.5, 1.5, 1.5)) * (core < 1)
    lime = float(random.uniform(250, 900))
    if calcification == 3:
        return np.full(share.shape, lime)
    if calcification == 5:
        return np.where(relative > 0.5, lime, tissue)
    if calcification == 2:
        return np.where((relative > 0.35) & (relative < 0.7), lime, tissue)
    if calcification in (1, 4):
        grains = ndimage.gaussian_filter(random.normal(0, 1, share.shape), (0.7, 2, 2))
        within = grains[share >= 0.5]
        return np.where(grains > np.quantile(within, 0.6 if calcification == 1 else 0.8), lime, tissue)
    return np.asarray(tissue)
