"""Places a nodule of one patient into the lung of another, in Hounsfield units.

A voxel of the nodule's cut-out is taken for a mixture of its own lung and of tissue: HU = (1 - f) * lung + f * tissue,
with tissue at 40 HU, or denser where the voxel itself is (calcification). The fraction f, not the picture, is carried
over: host' = (1 - f) * host + f * tissue. So the surroundings stay the host's, an edge keeps its partial volume, and
where the host has a vessel or the chest wall already nothing gets brighter. Outside of what any reader outlined f fades
over a resolution's width, which cuts off the source's vessels and pleura; outside of the host's lung nothing changes.

In-plane sharpness and noise follow the host: the cut-out is blurred or sharpened until the noise of its plain lung is
that of the host's, since a kernel that resolves more is noisier; what is missing after that is added as noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pulmo_models.training.material.nodules import RealNodule, noise_of

Floats = npt.NDArray[np.floating[Any]]

TISSUE_HU = 40.0
_FADE_MM = 2.2  # from the outline outwards
_BLURS = (1.0, 0.8, 0.65, 0.5, 0.35)  # sigma in pixels
_SHARPENINGS = (0.25, 0.5)  # of the unsharp mask
_LEAST_NOISE_HU = 0.5
_NOISE_BLUR = 0.6  # sigma in pixels of what is added: reconstructed noise is never white
_NOISE_GAIN = 2.81  # 1 / the spread that `noise_of` sees of such noise made from white noise of 1 HU
_LEAST_LEFT = 0.6  # of the outline's volume that must lie in the host's lung
_LEAST_CONTRAST_HU = 100.0  # that the nodule must add within its outline: nobody finds one in a vessel or a thick slice


@dataclass(frozen=True, kw_only=True, eq=False)
class Insert:
    """A nodule on the grid of a host, float32 (slices, rows, columns)."""

    fraction: Floats
    tissue: Floats  # fraction times the tissue's HU
    outline: Floats  # share of each voxel that is inside of the consensus outline, 0..1
    diameter_mm: float

    @property
    def centre(self) -> npt.NDArray[np.float64]:
        """Centroid of the outline, in indices of the insert."""
        return np.array(ndimage.center_of_mass(self.outline), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Pose:
    """How a nodule is turned: flips along its axes, then a turn within the slices."""

    flips: tuple[bool, bool, bool] = (False, False, False)
    angle: float = 0.0  # radians, from rows towards columns
    scale: float = 1.0
    phase: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of the centre within a voxel, -0.5..0.5


def draw_pose(
    random: np.random.Generator, nodule: RealNodule, size_range: tuple[float, float], outwards: float | None = None
) -> Pose:
    """A random pose; with `outwards`, the side of the nodule that touches something dense turns to that angle."""
    flips = (bool(random.random() < 0.5), bool(random.random() < 0.5), bool(random.random() < 0.5))
    angle = float(random.uniform(0, 2 * np.pi))
    attached = attachment(nodule)
    if outwards is not None and attached is not None:
        down, right = (np.where(flips[1:], -1, 1) * np.array([np.sin(attached), np.cos(attached)])).tolist()
        angle = outwards - float(np.arctan2(down, right)) + float(random.normal(0, 0.25))
    return Pose(
        flips=flips,
        angle=angle,
        scale=float(random.uniform(*size_range)),
        phase=(float(random.uniform(-0.5, 0.5)), float(random.uniform(-0.5, 0.5)), float(random.uniform(-0.5, 0.5))),
    )


def attachment(nodule: RealNodule) -> float | None:
    """Angle (arctan2 of rows and columns) of the side on which a nodule touches dense tissue; None where it is free."""
    middle = int(nodule.mask.sum(axis=(1, 2)).argmax())
    away = ndimage.distance_transform_edt(~nodule.reach[middle]) * nodule.spacing_mm[1]
    ring = (away > 1.5) & (away < 4.0)
    dense = ring & (nodule.hu[middle] > -250)
    if not ring.any() or dense.sum() < 0.25 * ring.sum():
        return None
    down, right = np.argwhere(dense).mean(axis=0) - np.argwhere(nodule.mask[middle]).mean(axis=0)
    return float(np.arctan2(down, right))


def real_insert(
    random: np.random.Generator,
    nodule: RealNodule,
    spacing_mm: npt.ArrayLike,
    pose: Pose,
    noise_hu: float = float("nan"),
) -> Insert | None:
    """A nodule on a grid of that spacing; None where nothing of it is left on so coarse a grid.

    `noise_hu` is the host's, as `noise_of` measures it; NaN leaves the nodule's sharpness and noise as they are.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    own = np.array(nodule.spacing_mm) * pose.scale
    matched, missing = match_noise(nodule, noise_hu)
    depth = np.stack([_signed_distance(plane) for plane in nodule.mask]) * own[1]
    reach = np.stack([_signed_distance(plane) for plane in nodule.reach]) * own[1]
    axes = tuple(axis for axis in range(3) if pose.flips[axis])
    flipped = [np.flip(values, axes) for values in (matched, depth, reach)]
    hu, depth, reach = _turned(flipped[0], flipped[1], flipped[2], own, spacing, pose)
    fade = max(_FADE_MM, 2 * own[1])
    window = np.clip(1 + reach / fade, 0, 1)
    window = window**2 * (3 - 2 * window)
    tissue = np.maximum(hu, TISSUE_HU)
    fraction = np.clip((hu - nodule.lung_hu) / (tissue - nodule.lung_hu), -0.1, 1.0)
    noise = 0.0 if np.isnan(nodule.noise_hu) else nodule.noise_hu
    above = np.clip((hu - nodule.lung_hu) / max(3 * noise, 30.0), 0, 1)  # outside, what is no more than noise stays out
    fraction = fraction * window * np.where(reach < 0, above, 1.0)
    if missing > 0:
        tissue = tissue + missing * host_noise(random, tissue.shape)
    inside = np.clip(0.5 + depth / spacing[1], 0, 1)
    stacked = _along_slices(np.stack([fraction, fraction * tissue, inside]), own[0], spacing[0], pose.phase[0])
    peak = float(stacked[2].max())
    if peak < 0.05:
        return None
    outline = stacked[2] if peak > 0.6 else stacked[2] / peak * 0.9  # thin ones keep an outline on thick slices
    return Insert(
        fraction=stacked[0].astype(np.float32),
        tissue=stacked[1].astype(np.float32),
        outline=outline.astype(np.float32),
        diameter_mm=nodule.diameter_mm * pose.scale,
    )


def match_noise(nodule: RealNodule, noise_hu: float) -> tuple[npt.NDArray[np.float64], float]:
    """A nodule's HU, blurred or sharpened towards a noise, and the spread of the noise that is then still missing."""
    hu = nodule.hu.astype(np.float64)
    if np.isnan(noise_hu) or np.isnan(nodule.noise_hu):
        return hu, 0.0
    noise_hu, own_hu = max(noise_hu, _LEAST_NOISE_HU), max(nodule.noise_hu, _LEAST_NOISE_HU)
    ratio = noise_hu / own_hu
    if 0.9 < ratio < 1.1:
        return hu, 0.0
    middle = int(nodule.mask.sum(axis=(1, 2)).argmax())

    def left_over(filtered: npt.NDArray[np.float64]) -> float:
        measured = noise_of(filtered, nodule.reach[middle])[1]
        return own_hu if np.isnan(measured) else max(measured, _LEAST_NOISE_HU)

    strengths = _BLURS if ratio < 1 else _SHARPENINGS
    found = {0.0: own_hu}
    found.update({strength: left_over(_filtered(hu[middle], strength, ratio < 1)) for strength in strengths})
    best = min(found, key=lambda strength: abs(np.log(found[strength] / noise_hu)))
    missing = float(np.sqrt(max(0.0, noise_hu**2 - found[best] ** 2)))
    return (_filtered(hu, best, ratio < 1) if best else hu), missing


def _filtered(hu: npt.NDArray[np.float64], strength: float, blur: bool) -> npt.NDArray[np.float64]:
    """In-plane blur of that sigma, or an unsharp mask of that strength."""
    between = (0.0,) * (hu.ndim - 2)
    if blur:
        return np.asarray(ndimage.gaussian_filter(hu, (*between, strength, strength)))
    return np.asarray(hu + strength * (hu - ndimage.gaussian_filter(hu, (*between, 1.0, 1.0))))


def host_noise(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Noise with the grain of a reconstruction in the last two axes; `noise_of` measures 1 HU of it."""
    white = random.normal(0, 1, shape)
    return np.asarray(
        ndimage.gaussian_filter(white, (*(0.0,) * (len(shape) - 2), _NOISE_BLUR, _NOISE_BLUR)) * _NOISE_GAIN
    )


def _signed_distance(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Distance in pixels to the outline, positive inside; far outside where the slice has none."""
    if not mask.any():
        return np.full(mask.shape, -1000.0)
    inside = np.asarray(ndimage.distance_transform_edt(mask))
    outside = np.asarray(ndimage.distance_transform_edt(~mask))
    return np.where(mask, inside - 0.5, 0.5 - outside)


def _turned(
    hu: Floats, depth: Floats, reach: Floats, own_mm: Floats, spacing_mm: Floats, pose: Pose
) -> tuple[Floats, Floats, Floats]:
    """Resample slices to the pixels of the host, turned about the nodule's middle, no larger than needed."""
    places = np.argwhere((reach > 0).any(axis=0))
    middle = (places.min(axis=0) + places.max(axis=0)) / 2
    farthest = float(np.linalg.norm(places - middle, axis=1).max()) * own_mm[1] + _FADE_MM + 3 * own_mm[1]
    half = int(np.ceil(farthest / spacing_mm[1])) + 1
    cosine, sine = np.cos(pose.angle), np.sin(pose.angle)
    matrix = np.array([[cosine, -sine], [sine, cosine]]) * spacing_mm[1] / own_mm[1]
    offset = middle - matrix @ (np.array([half, half]) + np.array(pose.phase[1:]))
    shape = (2 * half + 1, 2 * half + 1)

    def turn(values: Floats, order: int, beyond: str) -> Floats:
        return np.stack(
            [ndimage.affine_transform(v, matrix, offset, shape, order=order, mode=beyond, cval=-1000.0) for v in values]
        )

    return turn(hu, 3, "nearest"), turn(depth, 1, "constant"), turn(reach, 1, "constant")


def _along_slices(values: Floats, own_mm: float, target_mm: float, phase: float) -> Floats:
    """Resample axis 1 of (kinds, slices, rows, columns); beyond the ends there is nothing.

    Thicker slices are means over their thickness, thinner ones are interpolated.
    """
    count = values.shape[1]
    half = int(np.ceil(((count + 1) / 2 * own_mm + target_mm) / target_mm))
    targets = (np.arange(-half, half + 1) + phase) * target_mm
    sources = (np.arange(count) - (count - 1) / 2) * own_mm
    return np.asarray(
        np.einsum("ts,ksyx->ktyx", slice_weights(sources, own_mm, targets, target_mm), values, optimize=True)
    )


def slice_weights(
    sources_mm: Floats, source_mm: float, targets_mm: Floats, target_mm: float
) -> npt.NDArray[np.float64]:
    """(targets, sources): what each source slice gives to each target slice; rows add up to 1 inside of the sources."""
    distance = np.abs(targets_mm[:, None] - sources_mm[None, :])
    if target_mm <= source_mm:
        return np.clip(1 - distance / source_mm, 0, None)
    return np.clip(((source_mm + target_mm) / 2 - distance) / target_mm, 0, source_mm / target_mm)


@dataclass(frozen=True, kw_only=True, eq=False)
class Placed:
    """Where a nodule is now."""

    centre: npt.NDArray[np.float64]  # index of the centroid of its outline
    mask: npt.NDArray[np.bool_]  # of the whole array


def place(
    hu: npt.NDArray[np.float32], lung: npt.NDArray[np.bool_] | None, insert: Insert, centre: npt.ArrayLike
) -> Placed | None:
    """Blend an insert into an array, in place, its centroid at the index `centre` up to half a voxel.

    None, and nothing changed, where less than 60 % of its outline's volume would lie in the array and in the lung, or
    where it would add less than 100 HU within its outline: there is nothing to be seen.
    """
    low = np.round(np.asarray(centre, dtype=np.float64) - insert.centre).astype(int)
    into, out_of = [], []
    for axis, size in enumerate(hu.shape):
        start, stop = max(0, int(low[axis])), min(size, int(low[axis]) + insert.outline.shape[axis])
        if stop <= start:
            return None
        into.append(slice(start, stop))
        out_of.append(slice(start - int(low[axis]), stop - int(low[axis])))
    target, source = tuple(into), tuple(out_of)
    inside = np.ones(1) if lung is None else ndimage.uniform_filter(lung[target].astype(np.float32), (1, 3, 3))
    outline = insert.outline[source] * (inside > 0.5)
    if outline.sum() < _LEAST_LEFT * insert.outline.sum():
        return None
    part = outline > 0.5
    if not part.any():
        part = outline >= outline.max()
    blended = hu[target] * (1 - insert.fraction[source] * inside) + insert.tissue[source] * inside
    if float((blended - hu[target])[part].mean()) < _LEAST_CONTRAST_HU:
        return None
    hu[target] = blended
    mask = np.zeros(hu.shape, dtype=bool)
    mask[target] = part
    where = np.array(ndimage.center_of_mass(outline)) + [box.start for box in target]
    return Placed(centre=where, mask=mask)
