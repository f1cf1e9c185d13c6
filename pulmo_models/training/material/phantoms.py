"""Synthetic chest CT volumes with nodules at known places. Numpy only; nothing of it is a patient.

A phantom is built from shapes with partial-volume edges in a body frame in mm (x to the patient's left, y to posterior,
z to the head, origin in the middle of the volume): body, fat, ribs, spine, mediastinum, heart, aorta, airways, domes of
the diaphragm, two trees of vessels, and nodules, then blur and noise of a reconstruction. It is made to be processed
like a chest CT, not to be mistaken for one: scores on phantoms are scores on synthetic data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Point = tuple[float, float, float]  # (x, y, z) in mm in the body frame

AIR_HU, FAT_HU, MUSCLE_HU, BLOOD_HU, BONE_HU, LUNG_HU = -1000.0, -100.0, 45.0, 60.0, 450.0, -860.0
_SUBSLICES = 3  # a slice is the mean of that many planes, so that small things fade over its thickness


@dataclass(frozen=True, kw_only=True)
class PlantedNodule:
    """The truth about one nodule."""

    centre_index: tuple[float, float, float]  # (slice, row, column), not rounded
    centre_lps_mm: Point
    diameter_mm: float
    kind: str  # "solid", "lobulated", "spiculated" or "ground glass"


@dataclass(frozen=True, kw_only=True, eq=False)
class PhantomScan:
    """A phantom: HU ``(slices, rows, columns)``, affine index -> LPS mm, and what was planted where."""

    hu: Floats
    affine: npt.NDArray[np.float64]
    spacing_mm: tuple[float, float, float]
    nodules: tuple[PlantedNodule, ...]


@dataclass(frozen=True, kw_only=True)
class NoduleSpec:
    """A nodule to plant."""

    place: Point
    diameter_mm: float
    kind: str = "solid"


DEMO_NODULES = (
    NoduleSpec(place=(70.0, -38.0, 52.0), diameter_mm=12.0, kind="solid"),  # high, left, anterior
    NoduleSpec(place=(-72.0, 48.0, -38.0), diameter_mm=16.0, kind="spiculated"),  # low, right, posterior
    NoduleSpec(place=(-88.0, -12.0, 12.0), diameter_mm=9.0, kind="lobulated"),  # middle, right, lateral
)


def make_demo_phantom() -> PhantomScan:
    """The phantom of `pulmo-node demo`: three nodules, placed without any symmetry."""
    return make_phantom(2026, nodules=DEMO_NODULES)


def make_phantom(
    seed: int,
    *,
    shape: tuple[int, int, int] = (80, 384, 384),
    spacing_mm: tuple[float, float, float] = (2.5, 0.8, 0.8),
    nodules: Sequence[NoduleSpec] | None = None,
) -> PhantomScan:
    """Make a phantom; the same arguments give the same voxels.

    Args:
        seed: of anatomy, nodules and noise.
        shape: slices, rows, columns.
        spacing_mm: of slices, rows, columns.
        nodules: what to plant; None for three to seven at random.
    """
    random = np.random.default_rng(seed)
    canvas = _Canvas(shape, spacing_mm)
    scale = float(random.uniform(0.93, 1.05)) if nodules is None else 1.0
    _draw_body(canvas, random, scale)
    _draw_vessels(canvas, random, scale)
    planted = list(nodules) if nodules is not None else _random_nodules(canvas, random, scale)
    for spec in planted:
        _draw_nodule(canvas, random, spec)
    hu = _reconstruct(canvas.hu, random)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, spacing_mm[2]], [0, spacing_mm[1], 0], [spacing_mm[0], 0, 0]])
    affine[:3, 3] = [canvas.x[0], canvas.y[0], canvas.z[0]]
    truth = tuple(
        PlantedNodule(
            centre_index=canvas.index(spec.place),
            centre_lps_mm=spec.place,
            diameter_mm=spec.diameter_mm,
            kind=spec.kind,
        )
        for spec in planted
    )
    return PhantomScan(hu=hu, affine=affine, spacing_mm=spacing_mm, nodules=truth)


class _Canvas:
    """The volume under construction and its body frame; shapes are drawn within their bounding boxes."""

    def __init__(self, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> None:
        self.hu = np.full(shape, AIR_HU, dtype=np.float32)
        self.spacing_mm = spacing_mm
        self.z, self.y, self.x = (
            ((np.arange(count) - (count - 1) / 2) * step).astype(np.float32)
            for count, step in zip(shape, spacing_mm, strict=True)
        )

    def index(self, place: Point) -> tuple[float, float, float]:
        x, y, z = place
        dz, dy, dx = self.spacing_mm
        return float((z - self.z[0]) / dz), float((y - self.y[0]) / dy), float((x - self.x[0]) / dx)

    def box(self, centre: Point, reach_mm: Point) -> tuple[slice, slice, slice] | None:
        """Index of the voxels within reach of a point; None where there are none."""
        found = []
        axes = ((self.z, centre[2], reach_mm[2]), (self.y, centre[1], reach_mm[1]), (self.x, centre[0], reach_mm[0]))
        for axis, place, reach in axes:
            low, high = np.searchsorted(axis, [place - reach, place + reach])
            if low >= high:
                return None
            found.append(slice(int(low), int(high)))
        return found[0], found[1], found[2]

    def ellipsoid(self, centre: Point, radii_mm: Point, hu: float, soft_mm: float = 1.0) -> None:
        """An ellipsoid; a radius of infinity makes it a cylinder."""
        reach = tuple(min(radius, 1e4) + soft_mm for radius in radii_mm)
        box = self.box(centre, (reach[0], reach[1], reach[2]))
        if box is None:
            return
        x, y, z = self.x[box[2]], self.y[box[1]][:, None], self.z[box[0]][:, None, None]
        norm = np.sqrt(
            ((x - centre[0]) / radii_mm[0]) ** 2
            + ((y - centre[1]) / radii_mm[1]) ** 2
            + ((z - centre[2]) / radii_mm[2]) ** 2
        )
        alpha = np.clip(0.5 + (1.0 - norm) * min(radii_mm) / soft_mm, 0.0, 1.0)
        self.blend(box, alpha, hu)

    def blend(self, box: tuple[slice, slice, slice], alpha: Floats, hu: float | Floats) -> None:
        self.hu[box] += alpha * (hu - self.hu[box])

    def ball(self, centre: Point, radius_mm: float, hu: float) -> None:
        """A small sphere with partial volume over the slice thickness."""
        dz, dy, _ = self.spacing_mm
        reach = radius_mm + dy
        box = self.box(centre, (reach, reach, radius_mm + dz))
        if box is None:
            return
        flat = (self.x[box[2]] - centre[0]) ** 2 + (self.y[box[1]][:, None] - centre[1]) ** 2
        alpha = np.zeros((box[0].stop - box[0].start, *flat.shape), dtype=np.float32)
        for offset in (np.arange(_SUBSLICES) - (_SUBSLICES - 1) / 2) * dz / _SUBSLICES:
            distance = np.sqrt(flat + (self.z[box[0]][:, None, None] + offset - centre[2]) ** 2)
            alpha += np.clip(0.5 + (radius_mm - distance) / dy, 0.0, 1.0) / _SUBSLICES
        # The brighter one stays where things meet: a vessel does not cut a hole into the heart.
        self.hu[box] = np.maximum(self.hu[box], self.hu[box] + alpha * (hu - self.hu[box]))


def _draw_body(canvas: _Canvas, random: np.random.Generator, scale: float) -> None:
    endless = float("inf")
    canvas.ellipsoid((0, 0, 0), (148 * scale, 108 * scale, endless), FAT_HU)
    canvas.ellipsoid((0, 0, 0), (133 * scale, 94 * scale, endless), MUSCLE_HU)
    for side in (-1, 1):
        canvas.ellipsoid((side * 66 * scale, 0, -5), (54 * scale, 78 * scale, 96 * scale), LUNG_HU, 1.2)
    _texture_of_lungs(canvas, random)
    canvas.ellipsoid((0, 8, 0), (26, 62, endless), 35.0)
    canvas.ellipsoid((22, -22, -32), (47, 44, 46), 45.0)
    for side, height in ((-1, -92.0), (1, -104.0)):
        canvas.ellipsoid((side * 66 * scale, 4, height), (58 * scale, 84 * scale, 44), 55.0)
    canvas.ellipsoid((24, 50, 0), (12, 12, endless), BLOOD_HU)
    canvas.ellipsoid((0, 80 * scale, 0), (19, 17, endless), BONE_HU)
    canvas.ellipsoid((0, 80 * scale, 0), (16, 14, endless), 180.0)
    canvas.ellipsoid((0, 12, 60), (8.5, 9.5, 55), -985.0)
    for side in (-1, 1):
        for step in np.linspace(0, 1, 40):
            canvas.ellipsoid((side * (2 + 30 * step), 12, 8 - 18 * step), (6, 6, 6), -985.0)
    _draw_ribs(canvas, random, scale)


def _texture_of_lungs(canvas: _Canvas, random: np.random.Generator) -> None:
    """Smooth variation of the lung, and blood that settles where the patient lies on it."""
    lung = canvas.hu < -500
    lung &= (np.abs(canvas.x) < 130) & (np.abs(canvas.y) < 90)[:, None]
    coarse = random.normal(0, 22, tuple(max(2, count // 6) for count in canvas.hu.shape)).astype(np.float32)
    for axis, count in enumerate(canvas.hu.shape):
        coarse = np.take(coarse, np.arange(count) * coarse.shape[axis] // count, axis=axis)
    inside = canvas.hu < -700
    canvas.hu += np.where(lung & inside, _box_mean(coarse, 2) + 0.3 * canvas.y[:, None], 0).astype(np.float32)


def _draw_ribs(canvas: _Canvas, random: np.random.Generator, scale: float) -> None:
    tilt = random.uniform(18, 30)
    for height in np.arange(-110, 111, 27) + random.uniform(-6, 6):
        for angle in np.linspace(0, 2 * np.pi, 260, endpoint=False):
            x, y = 128 * scale * np.sin(angle), -89 * scale * np.cos(angle)
            canvas.ball((x, y, height + tilt * np.cos(angle + np.pi) / 2), 5.0, BONE_HU)


def _draw_vessels(canvas: _Canvas, random: np.random.Generator, scale: float) -> None:
    for side in (-1, 1):
        for _ in range(9):
            start = np.array([side * 34.0, 5.0, -5.0]) + random.normal(0, 5, 3)
            heading = np.array([side * random.uniform(0.3, 1.0), random.uniform(-1, 1), random.uniform(-1, 1)])
            _grow(canvas, random, start, heading, float(random.uniform(3.0, 4.8)), side, scale)


def _grow(
    canvas: _Canvas,
    random: np.random.Generator,
    start: npt.NDArray[np.float64],
    heading: npt.NDArray[np.float64],
    radius_mm: float,
    side: int,
    scale: float,
) -> None:
    """One vessel from the hilum outwards: it bends, tapers and branches until it is too thin or leaves the lung."""
    stack = [(start, heading / np.linalg.norm(heading), radius_mm)]
    while stack:
        place, direction, radius = stack.pop()
        for _ in range(int(random.integers(12, 34))):
            canvas.ball((float(place[0]), float(place[1]), float(place[2])), radius, BLOOD_HU)
            direction = direction + random.normal(0, 0.09, 3)
            direction /= np.linalg.norm(direction)
            place = place + direction * max(radius * 0.7, 0.6)
            radius *= 0.992
            if not _in_lung(place, side, scale):
                break
        else:
            if radius > 0.7:
                for _ in range(2):
                    turned = direction + random.normal(0, 0.45, 3)
                    stack.append((place, turned / np.linalg.norm(turned), radius * float(random.uniform(0.68, 0.88))))


def _in_lung(place: npt.NDArray[np.float64] | Point, side: int, scale: float, margin_mm: float = 3.0) -> bool:
    radii = (54 * scale - margin_mm, 78 * scale - margin_mm, 96 * scale - margin_mm)
    offset = (place[0] - side * 66 * scale, place[1], place[2] + 5)
    return sum((o / r) ** 2 for o, r in zip(offset, radii, strict=True)) < 1.0


def _random_nodules(canvas: _Canvas, random: np.random.Generator, scale: float) -> list[NoduleSpec]:
    found: list[NoduleSpec] = []
    wanted = int(random.integers(3, 8))
    for _ in range(2000):
        if len(found) == wanted:
            break
        side = int(random.choice([-1, 1]))
        place = (side * random.uniform(30, 118), random.uniform(-75, 75), random.uniform(canvas.z[0], canvas.z[-1]))
        diameter = float(np.exp(random.uniform(np.log(5), np.log(24))))
        kind = str(random.choice(["solid", "lobulated", "spiculated", "ground glass"], p=[0.4, 0.25, 0.2, 0.15]))
        point = (float(place[0]), float(place[1]), float(place[2]))
        if not _in_lung(point, side, scale, margin_mm=float(random.uniform(0, diameter / 2))):
            continue
        z, y, x = (round(value) for value in canvas.index(point))
        inside = all(0 <= i < n for i, n in zip((z, y, x), canvas.hu.shape, strict=True))
        clear = all(np.linalg.norm(np.subtract(point, o.place)) > (diameter + o.diameter_mm) for o in found)
        if inside and clear and canvas.hu[z, y, x] < -600:
            found.append(NoduleSpec(place=point, diameter_mm=diameter, kind=kind))
    return found


def _draw_nodule(canvas: _Canvas, random: np.random.Generator, spec: NoduleSpec) -> None:
    radius, centre = spec.diameter_mm / 2, np.array(spec.place)
    hu = -620.0 if spec.kind == "ground glass" else float(random.uniform(10, 60))
    canvas.ball(spec.place, radius if spec.kind != "lobulated" else 0.86 * radius, hu)
    if spec.kind == "lobulated":
        for direction in _directions(random, 7):
            lobe = centre + direction * 0.55 * radius
            canvas.ball((lobe[0], lobe[1], lobe[2]), 0.5 * radius, hu)
    if spec.kind == "spiculated":
        for direction in _directions(random, 16):
            for step in np.linspace(0.8, random.uniform(1.3, 1.8), 10):
                tip = centre + direction * step * radius
                canvas.ball((tip[0], tip[1], tip[2]), max(0.9 * (1.9 - step), 0.4), hu)


def _directions(random: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """Unit vectors in opposite pairs, so that what grows along them leaves the centre where it is."""
    half = random.normal(size=((count + 1) // 2, 3))
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    return np.concatenate([half, -half])


def _reconstruct(hu: Floats, random: np.random.Generator) -> Floats:
    """In-plane blur of the kernel, correlated noise, and the limits of a 12-bit scanner."""
    noise = random.normal(0, 1, hu.shape).astype(np.float32)
    noise = 0.6 * noise + 1.2 * _box_mean(noise, 1)
    blurred = 0.5 * hu + 0.5 * _box_mean(hu, 1)
    scanned: Floats = np.clip(blurred + float(random.uniform(12, 28)) * noise, -1024, 3071).astype(np.float32)
    return scanned


def _box_mean(values: Floats, half_width: int) -> Floats:
    """Mean over a square of rows and columns, edges repeated."""
    width = 2 * half_width + 1
    for axis in (1, 2):
        pad = [(0, 0)] * 3
        pad[axis] = (half_width, half_width)
        padded = np.pad(values, pad, mode="edge")
        count = values.shape[axis]
        total = np.zeros_like(values)
        for start in range(width):
            total += np.take(padded, np.arange(start, start + count), axis=axis)
        values = total / np.float32(width)
    return values
