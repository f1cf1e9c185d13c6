"""Single samples of both stages: real nodules in other patients' lungs, and places of lungs that are none.

A sample depends on nothing but its random generator, so its number and a seed say what it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pulmo_models.training.material import insertion
from pulmo_models.training.material.hosts import LOOKS_LIKE_A_NODULE, UNKNOWN_MM, Host
from pulmo_models.training.material.insertion import Pose
from pulmo_models.training.material.nodules import RealNodule, noise_of
from pulmo_models.training.material.pieces import Piece, as_stored, cut, scanner
from pulmo_models.training.splits import Split
from pulmo_models.training.store import Patch, Window

Shape = tuple[int, int, int]

SIZE_BINS_MM = (5.0, 8.0, 12.0, 18.0, 25.0)
PATCH_BIN_SHARES = (0.10, 0.22, 0.24, 0.20, 0.14, 0.10)
WINDOW_BIN_SHARES = (0.12, 0.30, 0.24, 0.16, 0.10, 0.08)
"""How often nodules of each size are drawn for training; there are few large ones, and they matter most."""

_TRIES, _TRIES_OF_A_NODULE = 80, 8
_APART_MM = 12.0  # between the surfaces of two nodules of a window
_DENSE_HU = -450.0
_CLEAR_MM = 12.0
_AROUND_MM, _AERATED_HU, _LEAST_LUNG = 10.0, (-960, -600), 0.25


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """What the samples of a split are made of."""

    split: Split
    hosts: Sequence[Host]
    nodules: Sequence[RealNodule]
    phantoms: Sequence[Host] = ()
    hard: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)  # host -> indices (n, 3) of false findings

    @property
    def varied(self) -> bool:
        """Training samples vary in spacing, kernel, noise and size; those that figures are taken on do not."""
        return self.split == "train"


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How the samples for training are mixed."""

    phantoms: float = 0.05
    drawn: float = 0.12  # of the nodules: shapes of rare kinds with drawn pixels
    beyond: float = 0.2  # of the nodule patches: seen from another slice, for the mask alone
    hard: float = 0.45  # of the patches without a nodule, where a detector's findings are given
    retouched: float = 0.35  # of those: processed as an insertion is, without one
    sizes: tuple[float, float] = (0.9, 1.12)


class Sampler:
    """Makes samples; `dropped` counts what was tried and given up."""

    def __init__(self, material: Material, seed: int, shares: Shares) -> None:
        self._material = material
        self._seed = seed
        self._shares = shares
        self.dropped: Counter[str] = Counter()
        self._real = [n for n, nodule in enumerate(material.nodules) if not nodule.drawn]
        self._drawn = [n for n, nodule in enumerate(material.nodules) if nodule.drawn]
        sizes = np.digitize([material.nodules[n].diameter_mm for n in self._real], SIZE_BINS_MM)
        self._bins = [np.flatnonzero(sizes == number) for number in range(len(SIZE_BINS_MM) + 1)]
        self._order = np.random.default_rng([seed, 9]).permutation(len(self._real))

    def window(self, number: int, shape: Shape) -> Window:
        """Sample `number` of stage 1."""
        random = np.random.default_rng([self._seed, 1, number])
        host = self._host(random)
        wanted = int(random.choice(5, p=[0.15, 0.3, 0.27, 0.18, 0.1]))
        spacing = self._spacing(random, host)
        extent = np.array(shape) * spacing / host.spacing_mm
        hard = self._material.hard.get(host.name)
        if hard is not None and len(hard) and random.random() < 0.3:
            aim = hard[int(random.integers(len(hard)))].astype(np.float64)
        elif host.nodules and random.random() < (0.5 if host.synthetic else 0.15):
            aim = np.array(host.nodules[int(random.integers(len(host.nodules)))].centre_index)
        else:
            aim = host.places[int(random.integers(len(host.places)))].astype(np.float64)
        around = _inside(np.round(aim + random.uniform(-0.3, 0.3, 3) * extent), extent, host, shape)
        piece = cut(host, shape, spacing, around)
        truth = [
            (*piece.index_of(known.centre_index), known.diameter_mm)
            for known in host.nodules
            if piece.contains(piece.index_of(known.centre_index))
        ]
        names = [] if not truth else ["own"]
        for turn in range(wanted):
            nodule = self._nodule(random, number * 5 + turn, WINDOW_BIN_SHARES)
            placed = self._into_window(random, host, piece, nodule, np.array(truth).reshape(-1, 4))
            if placed is not None:
                truth.append(placed)
                names.append(f"{nodule.patient} {nodule.name}")
        hu = scanner(random, piece.hu) if self._material.varied else piece.hu
        return Window(
            hu=as_stored(hu),
            spacing_mm=spacing.tolist(),
            nodules=np.array(truth, dtype=np.float32).reshape(-1, 4),
            unknown=_unknown(host, piece),
            patient=host.name,
            split=self._material.split,
            source="; ".join([host.name, *names]),
        )

    def patch(self, number: int, shape: Shape) -> Patch:
        """Sample `number` of stage 2: a nodule where it is even."""
        random = np.random.default_rng([self._seed, 2, number])
        odd = (shape[0], shape[1] // 2 * 2 + 1, shape[2] // 2 * 2 + 1)
        for attempt in range(_TRIES):
            turn = number // 2 + attempt // _TRIES_OF_A_NODULE  # some are too faint or thin for any place of this host
            patch = self._with_nodule(random, turn, odd) if number % 2 == 0 else self._without(random, odd)
            if patch is not None:
                return _flipped(random, patch, shape)
        raise RuntimeError(f"sample {number} of stage 2 could not be made in {_TRIES} tries")

    def _host(self, random: np.random.Generator) -> Host:
        phantoms = self._material.phantoms
        if phantoms and random.random() < self._shares.phantoms:
            return phantoms[int(random.integers(len(phantoms)))]
        return self._material.hosts[int(random.integers(len(self._material.hosts)))]

    def _spacing(self, random: np.random.Generator, host: Host) -> npt.NDArray[np.float64]:
        """A spacing that this host can give: inference is at native spacing, whatever that is."""
        factor = np.ones(3)
        if self._material.varied and random.random() < 0.5:
            most = 3.0 if host.spacing_mm[0] < 1.6 else 1.25
            factor[0] = np.exp(random.uniform(np.log(0.8), np.log(most)))
        if self._material.varied and random.random() < 0.5:
            factor[1:] = random.uniform(0.88, 1.15)
        return np.asarray(host.spacing_mm * factor)

    def _nodule(self, random: np.random.Generator, turn: int, shares: Sequence[float]) -> RealNodule:
        """By size and with drawn ones for training; one after the other where figures are taken."""
        nodules = self._material.nodules
        if not self._material.varied:
            return nodules[self._real[int(self._order[turn % len(self._order)])]]
        if self._drawn and random.random() < self._shares.drawn:
            return nodules[self._drawn[int(random.integers(len(self._drawn)))]]
        weights = np.array(shares) * [len(members) > 0 for members in self._bins]
        members = self._bins[int(random.choice(len(weights), p=weights / weights.sum()))]
        return nodules[self._real[int(members[int(random.integers(len(members)))])]]

    def _pose(self, random: np.random.Generator, host: Host, nodule: RealNodule, place: npt.NDArray[np.int16]) -> Pose:
        sizes = self._shares.sizes if self._material.varied else (1.0, 1.0)
        near = float(host.depth_at(place[None])[0]) < nodule.diameter_mm
        return insertion.draw_pose(random, nodule, sizes, host.outwards(place) if near else None)

    def _into_window(
        self, random: np.random.Generator, host: Host, piece: Piece, nodule: RealNodule, taken: npt.NDArray[np.float64]
    ) -> tuple[float, float, float, float] | None:
        """Index of the centre in the piece and diameter in mm of a nodule placed there."""
        low = piece.around - np.array(piece.hu.shape) // 2 * piece.step
        high = low + np.array(piece.hu.shape) * piece.step
        place = choose_place(random, host, nodule, (low, high))
        if place is None:
            self.dropped["no place for the nodule in the window"] += 1
            return None
        centre = piece.index_of(place)
        apart = np.linalg.norm((taken[:, :3] - centre) * piece.spacing_mm, axis=1) - taken[:, 3] / 2
        if (apart < _APART_MM + nodule.diameter_mm / 2).any():
            self.dropped["another nodule of the window too near"] += 1
            return None
        noise = _noise_near(piece, centre)
        insert = insertion.real_insert(random, nodule, piece.spacing_mm, self._pose(random, host, nodule, place), noise)
        placed = None if insert is None else insertion.place(piece.hu, piece.lung, insert, centre)
        if insert is None or placed is None or not piece.contains(placed.centre):
            self.dropped["the nodule did not fit there"] += 1
            return None
        z, y, x = placed.centre.tolist()
        return z, y, x, insert.diameter_mm

    def _with_nodule(self, random: np.random.Generator, turn: int, shape: Shape) -> Patch | None:
        host = self._host(random)
        nodule = self._nodule(random, turn, PATCH_BIN_SHARES)
        place = choose_place(random, host, nodule)
        if place is None:
            self.dropped["no place for the nodule in the lung"] += 1
            return None
        spacing = self._spacing(random, host)
        middle = np.array(shape) // 2
        beyond = self._material.varied and not nodule.drawn and random.random() < self._shares.beyond
        shift = 0
        if beyond:
            reach = min(nodule.diameter_mm / 2 / spacing[0] + 2, shape[0] // 2 - 1)
            shift = round(float(random.uniform(-reach, reach)))
        piece = cut(host, shape, spacing, place - [shift * spacing[0] / host.spacing_mm[0], 0, 0])
        centre = middle + np.array([shift, 0, 0])
        pose = self._pose(random, host, nodule, place)
        insert = insertion.real_insert(random, nodule, spacing, pose, _noise_near(piece, centre))
        placed = None if insert is None else insertion.place(piece.hu, piece.lung, insert, centre)
        if insert is None or placed is None:
            self.dropped["the nodule did not fit there"] += 1
            return None
        hu = scanner(random, piece.hu) if self._material.varied else piece.hu
        return Patch(
            hu=as_stored(hu),
            spacing_mm=spacing.tolist(),
            mask=placed.mask,
            detection=-1 if beyond and shift else 1,
            malignancy=float("nan") if nodule.drawn else nodule.malignancy,
            ratings=nodule.ratings,
            readers=nodule.readers,
            diameter_mm=insert.diameter_mm,
            inserted=True,
            patient=nodule.patient,
            split=self._material.split,
            source=f"{nodule.patient} {nodule.name} in {host.name}",
        )

    def _without(self, random: np.random.Generator, shape: Shape) -> Patch | None:
        host = self._host(random)
        hard = self._material.hard.get(host.name)
        if hard is not None and len(hard) and random.random() < self._shares.hard:
            place, kind = hard[int(random.integers(len(hard)))] + random.integers(-1, 2, 3), "found by a detector"
        else:
            place, kind = structure(random, host)
        if host.may_be_nodule(place):
            self.dropped["a place without a nodule that may be one"] += 1
            return None
        spacing = self._spacing(random, host)
        piece = cut(host, shape, spacing, place)
        if random.random() < self._shares.retouched:
            nodule = self._nodule(random, int(random.integers(1 << 30)), PATCH_BIN_SHARES)
            retouch(random, piece, nodule)
            kind += ", retouched"
        hu = scanner(random, piece.hu) if self._material.varied else piece.hu
        return Patch(
            hu=as_stored(hu),
            spacing_mm=spacing.tolist(),
            detection=0,
            patient=host.name,
            split=self._material.split,
            source=f"{host.name}: {kind}",
        )


def choose_place(
    random: np.random.Generator,
    host: Host,
    nodule: RealNodule,
    box: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = None,
) -> npt.NDArray[np.int16] | None:
    """An index of the host for the centre of a nodule: free in the lung, on a vessel, or on the pleura.

    One that touched something in its own patient goes to the pleura more often than not.
    """
    radius = nodule.diameter_mm / 2
    attached = insertion.attachment(nodule) is not None
    kinds = ["pleura", "vessel", "free"]
    first = str(random.choice(kinds, p=[0.65, 0.2, 0.15] if attached else [0.15, 0.3, 0.55]))
    places = host.places[random.integers(len(host.places), size=3000)]
    if box is not None:
        places = places[((places >= box[0]) & (places < box[1])).all(axis=1)]
    depth = host.depth_at(places)
    hu = host.hu[tuple(places.T)]
    fits = {
        "pleura": (depth > max(1.0, 0.25 * radius)) & (depth < max(2.5, 0.9 * radius)),
        "vessel": (depth > 5.0) & (hu > _DENSE_HU) & (hu < 300),
        "free": (depth > radius + 1.5) & (hu < -700),
    }
    for kind in (first, *kinds):
        candidates = places[fits[kind]]
        for place in candidates[:20]:
            if in_plain_lung(host, place) and not host.may_be_nodule(place, _CLEAR_MM + radius):
                return np.asarray(place)
    return None


def in_plain_lung(host: Host, place: npt.NDArray[np.integer]) -> bool:
    """Whether a square of 20 mm around a place holds aerated lung and no wide airway.

    The mask of the lungs may hold trachea and main bronchi, and nodules do not sit at their walls.
    """
    z, y, x = (int(value) for value in place)
    half = max(1, round(_AROUND_MM / host.spacing_mm[1]))
    around = host.hu[z, max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
    low, high = _AERATED_HU
    aerated, air = ((around > low) & (around < high)).mean(), (around <= low).mean()
    return float(aerated) > _LEAST_LUNG > float(air)


def structure(random: np.random.Generator, host: Host) -> tuple[npt.NDArray[np.int64], str]:
    """A place that a detector may stumble over, and what it is: a vessel, the hilum, the pleura; or anything."""
    places = host.places[random.integers(len(host.places), size=400)]
    depth, hu = host.depth_at(places), host.hu[tuple(places.T)]
    kind = str(random.choice(["vessel", "pleura", "airway", "anything"], p=[0.5, 0.25, 0.1, 0.15]))
    fits = {
        "vessel": (depth > 4) & (hu > -500),
        "pleura": (depth < 4) & (hu > -700),
        "airway": (depth > 4) & (hu < -960),
        "anything": np.ones(len(places), bool),
    }[kind]
    chosen = places[fits] if fits.any() else places
    return chosen[0].astype(np.int64), kind


def retouch(random: np.random.Generator, piece: Piece, nodule: RealNodule) -> None:
    """Process the middle of a piece as an insertion does, without inserting: whoever sees traces of it sees no nodule.

    Within a nodule's shape the piece is blurred or sharpened, and gets noise.
    """
    pose = insertion.draw_pose(random, nodule, (1.0, 1.0))
    insert = insertion.real_insert(random, nodule, piece.spacing_mm, pose)
    if insert is None:
        return
    middle = piece.hu.shape
    low = np.array(middle) // 2 - np.round(insert.centre).astype(int)
    box = tuple(
        slice(max(0, a), min(n, a + s)) for a, n, s in zip(low.tolist(), middle, insert.fraction.shape, strict=True)
    )
    part = tuple(slice(b.start - a, b.stop - a) for a, b in zip(low.tolist(), box, strict=True))
    opacity = np.clip(insert.fraction[part], 0, 1)
    own = piece.hu[box]
    if random.random() < 0.5:
        sigma = float(random.uniform(0.35, 0.8))
        other = _blurred(own, sigma)
    else:
        other = own + float(random.uniform(0.2, 0.8)) * (own - _blurred(own, 1.0))
    noise = noise_of(piece.hu[middle[0] // 2], ~piece.lung[middle[0] // 2])[1]
    if np.isfinite(noise):
        other = other + float(random.uniform(0, 0.8)) * noise * insertion.host_noise(random, own.shape)
    piece.hu[box] = own * (1 - opacity) + other * opacity


def _blurred(hu: npt.NDArray[np.float32], sigma: float) -> npt.NDArray[np.float32]:
    return np.asarray(ndimage.gaussian_filter(hu, (0, sigma, sigma)))


def _noise_near(piece: Piece, centre: npt.NDArray[np.float64]) -> float:
    """Noise of the plain lung around a place, of five slices and 64 x 64 pixels."""
    z, y, x = np.round(centre).astype(int).tolist()
    box = (slice(max(0, z - 2), z + 3), slice(max(0, y - 32), y + 32), slice(max(0, x - 32), x + 32))
    if not piece.lung[box].any():
        return float("nan")
    return noise_of(piece.hu[box], ~piece.lung[box])[1]


def _inside(
    around: npt.NDArray[np.float64], extent: npt.NDArray[np.float64], host: Host, shape: Shape
) -> npt.NDArray[np.float64]:
    """The nearest middle of a window that lies in the host; where the host is smaller, it begins with the window."""
    before = np.array([size // 2 for size in shape]) / np.array(shape) * extent
    most = np.array(host.hu.shape) - 1 - (extent - before)
    return np.asarray(np.round(np.maximum(np.minimum(around, most), before)))


def _unknown(host: Host, piece: Piece) -> npt.NDArray[np.int32]:
    """Boxes of the piece around what looks like a nodule and has no truth."""
    half = np.ceil(UNKNOWN_MM / piece.spacing_mm)
    boxes = []
    for place in LOOKS_LIKE_A_NODULE.get(host.name, ()):
        centre = np.round(piece.index_of(place))
        low = np.clip(centre - half, 0, piece.hu.shape)
        high = np.clip(centre + half + 1, 0, piece.hu.shape)
        if (high > low).all():
            boxes.append([*low, *high])
    return np.array(boxes, dtype=np.int32).reshape(-1, 6)


def _flipped(random: np.random.Generator, patch: Patch, shape: Shape) -> Patch:
    """Rows or columns mirrored about the middle of a patch of odd size; then cut to its shape."""
    axes = tuple(axis for axis in (1, 2) if random.random() < 0.5)
    box = tuple(slice(size) for size in shape)
    mask = None if patch.mask is None else np.ascontiguousarray(np.flip(patch.mask, axes)[box])
    return replace(patch, hu=np.ascontiguousarray(np.flip(patch.hu, axes)[box]), mask=mask)
