"""Samples of both stages, made on the fly. Sample n of a seed is always the same, whoever asks for it and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pulmo_models.training import insertion
from pulmo_models.training.heatmap import draw_peak
from pulmo_models.training.hosts import Host, KnownNodule
from pulmo_models.training.insertion import Insert, Piece, Shape
from pulmo_models.training.nodules import RealNodule
from pulmo_models.types import CONCEPT_NAMES

_PHANTOM_SHARE = 0.2
_MADE_SHARE = 0.2
_HARD_SHARE = 0.4  # of the samples without a nodule, where a detector's false candidates are known
_UNRATED = -1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """What samples are made of."""

    hosts: Sequence[Host]
    phantoms: Sequence[Host]
    nodules: Sequence[RealNodule]
    seed: int
    hard_negatives: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)  # host -> indices (n, 3)

    def weights(self) -> npt.NDArray[np.float64]:
        """Larger nodules are rarer, and drawn more often than their number."""
        raw = np.clip([nodule.diameter_mm for nodule in self.nodules], 4, 20) ** 0.7
        return np.asarray(raw / raw.sum(), dtype=np.float64)


def _grid(random: np.random.Generator, host: Host) -> npt.NDArray[np.float64]:
    """A spacing that this host can give: inference is at native spacing, whatever that is."""
    native = host.spacing_mm[0]
    low, high = max(1.0, native * 0.8), max(3.5, native * 1.4)
    thickness = float(np.exp(random.uniform(np.log(low), np.log(high))))
    pixel = float(random.uniform(0.55, 0.9))
    return np.array([thickness, pixel, pixel])


def _insert(
    random: np.random.Generator, material: Material, weights: npt.NDArray[np.float64], piece: Piece
) -> Insert | None:
    if random.random() < _MADE_SHARE:
        return insertion.made_insert(random, piece.spacing_mm)
    nodule = material.nodules[int(random.choice(len(material.nodules), p=weights))]
    return insertion.real_insert(random, nodule, piece.spacing_mm, (0.8, 1.3))


class Stage1Samples(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Windows with their heat maps: (image, target, weight), each float32 (1, slices, rows, columns)."""

    def __init__(self, material: Material, shape: Shape, length: int) -> None:
        self._material = material
        self._weights = material.weights() if material.nodules else np.zeros(0)
        self._shape = shape
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        random = np.random.default_rng([self._material.seed, 1, number])
        synthetic = bool(self._material.phantoms) and random.random() < _PHANTOM_SHARE
        hosts = self._material.phantoms if synthetic else self._material.hosts
        host = hosts[int(random.integers(len(hosts)))]
        around = host.places[int(random.integers(len(host.places)))].astype(float)
        if synthetic and host.nodules and random.random() < 0.7:
            around = np.array(host.nodules[int(random.integers(len(host.nodules)))].centre_index)
        spread = np.array(self._shape) * 0.3
        piece = insertion.cut(host, self._shape, _grid(random, host), around + random.uniform(-spread, spread))
        target, weight = torch.zeros(self._shape), torch.ones(self._shape)
        for nodule in piece.known:
            if synthetic:
                draw_peak(target, nodule.centre_index, nodule.diameter_mm, piece.spacing_mm)
            else:
                _ignore(weight, nodule)  # a tumour whose outline nobody drew
        if not synthetic:
            self._add_nodules(random, piece, target)
        image = insertion.normalised(insertion.scanner(random, piece.hu))
        axes = [axis for axis in range(3) if random.random() < 0.5]
        image, target, weight = (values.flip(axes)[None].contiguous() for values in (image, target, weight))
        return image, target, weight

    def _add_nodules(self, random: np.random.Generator, piece: Piece, target: Tensor) -> None:
        places = torch.nonzero(piece.lung)
        if len(places) < 50:
            return
        taken: list[npt.NDArray[np.float64]] = []
        for _ in range(int(random.choice(4, p=[0.12, 0.4, 0.3, 0.18]))):
            insert = _insert(random, self._material, self._weights, piece)
            centre = places[int(random.integers(len(places)))].float()
            if insert is None or any(
                np.linalg.norm((centre.numpy() - other) * piece.spacing_mm) < 15 + insert.diameter_mm for other in taken
            ):
                continue
            placed = insertion.place(piece, insert, centre)
            if placed is not None:
                taken.append(placed[0])
                draw_peak(target, placed[0].tolist(), insert.diameter_mm, piece.spacing_mm)


def _ignore(weight: Tensor, nodule: KnownNodule) -> None:
    """No loss near a nodule whose truth is only a box (its diameter is in pixels)."""
    _, y, x = (round(value) for value in nodule.centre_index)
    reach = round(nodule.diameter_mm / 2) + 4
    weight[:, max(0, y - reach) : y + reach, max(0, x - reach) : x + reach] = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Patch:
    """One sample of stage 2; labels that are not known are -1."""

    image: Tensor  # (7, 64, 64)
    mask: Tensor  # (1, 64, 64) of the central slice
    detection: int
    malignancy: int
    concepts: Tensor  # (8,) on the unit scale, (rating - 1) / 4
    diameter_mm: float = -1.0


_REACH = (4, 34, 34)  # half of what is cut around a place, so that the jittered crop stays inside


class Stage2Samples(Dataset[dict[str, Tensor]]):
    """Half nodules, half what is none, as dictionaries of tensors.

    A share `beyond` of the nodules is seen on a slice away from their centre, up to past their ends: the pipeline walks
    there to build its masks. Such a sample teaches the mask alone; its detection label is -1.
    """

    def __init__(self, material: Material, length: int, beyond: float = 0.0) -> None:
        self._material = material
        self._weights = material.weights()
        self._length = length
        self._beyond = beyond

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        random = np.random.default_rng([self._material.seed, 2, number])
        patch = None
        while patch is None:
            patch = self._nodule(random) if number % 2 == 0 else self._no_nodule(random)
        axes = [axis for axis in range(3) if random.random() < 0.5]
        turns = int(random.integers(4))
        image, mask = (torch.rot90(values.flip(axes), turns, (1, 2)) for values in (patch.image, patch.mask))
        return {
            "image": image.contiguous(),
            "mask": mask.contiguous(),
            "detection": torch.tensor(patch.detection),
            "malignancy": torch.tensor(patch.malignancy),
            "concepts": patch.concepts,
            "diameter_mm": torch.tensor(patch.diameter_mm),
        }

    def _host(self, random: np.random.Generator) -> tuple[Host, bool]:
        synthetic = bool(self._material.phantoms) and random.random() < _PHANTOM_SHARE
        hosts = self._material.phantoms if synthetic else self._material.hosts
        return hosts[int(random.integers(len(hosts)))], synthetic

    def _nodule(self, random: np.random.Generator) -> Patch | None:
        host, synthetic = self._host(random)
        if synthetic and host.nodules and random.random() < 0.5:
            return _own_nodule(random, host)
        around = host.places[int(random.integers(len(host.places)))].astype(float)
        piece = _piece(random, host, around)
        middle = torch.tensor([float(reach) for reach in _REACH])
        made = random.random() < _MADE_SHARE / 2
        nodule = None if made else self._material.nodules[int(random.choice(len(self._weights), p=self._weights))]
        insert = (
            insertion.made_insert(random, piece.spacing_mm)
            if nodule is None
            else insertion.real_insert(random, nodule, piece.spacing_mm, (0.95, 1.05))
        )
        if insert is None:
            return None
        beyond = self._beyond > 0 and random.random() < self._beyond
        if beyond:
            reach = insert.diameter_mm / 2 / float(piece.spacing_mm[0]) + 2
            middle[0] += float(np.round(random.uniform(-reach, reach)))
        placed = insertion.place(piece, insert, middle)
        if placed is None:
            return None
        image, mask = _crop(random, piece.hu, placed[1])
        rated = None if beyond else nodule
        return Patch(
            image=image,
            mask=mask,
            detection=-1 if beyond else 1,
            malignancy=-1 if rated is None else malignancy_label(rated),
            concepts=_no_concepts() if rated is None else unit_concepts(rated),
            diameter_mm=insert.diameter_mm,
        )

    def _no_nodule(self, random: np.random.Generator) -> Patch | None:
        host, _ = self._host(random)
        hard = self._material.hard_negatives.get(host.name)
        if hard is not None and len(hard) and random.random() < _HARD_SHARE:
            places = hard[random.integers(len(hard), size=1)]
        else:
            places = host.places[random.integers(len(host.places), size=64)]
            if random.random() < 0.85:  # what a detector would stumble over: vessels, pleura, hila, airway walls
                places = places[host.hu[tuple(places.T)] > -500]
        if not len(places):
            return None
        around = places[0].astype(float)
        if host.may_be_nodule(around):
            return None
        piece = _piece(random, host, around)
        image, mask = _crop(random, piece.hu, torch.zeros_like(piece.hu))
        return Patch(image=image, mask=mask, detection=0, malignancy=-1, concepts=_no_concepts())


def _own_nodule(random: np.random.Generator, host: Host) -> Patch | None:
    """A nodule that a phantom was made with; its outline is a ball of its diameter. None near the phantom's border."""
    nodule = host.nodules[int(random.integers(len(host.nodules)))]
    piece = _piece(random, host, np.array(nodule.centre_index))
    offset = [np.abs(np.subtract(known.centre_index, _REACH)).max() for known in piece.known]
    if not offset or min(offset) > 2:
        return None
    centre = piece.known[int(np.argmin(offset))].centre_index
    axes = [
        ((torch.arange(size) - place) * float(step)) ** 2
        for size, place, step in zip(piece.hu.shape, centre, piece.spacing_mm, strict=True)
    ]
    distance = (axes[0][:, None, None] + axes[1][None, :, None] + axes[2][None, None, :]).sqrt()
    image, mask = _crop(random, piece.hu, (distance <= nodule.diameter_mm / 2).float())
    return Patch(
        image=image,
        mask=mask,
        detection=1,
        malignancy=-1,
        concepts=_no_concepts(),
        diameter_mm=nodule.diameter_mm,
    )


def _no_concepts() -> Tensor:
    return torch.full((len(CONCEPT_NAMES),), _UNRATED)


def _piece(random: np.random.Generator, host: Host, around: npt.NDArray[np.float64]) -> Piece:
    """A piece around a place, on a grid near the host's own; the host is padded, so the place is its middle."""
    shape = (2 * _REACH[0] + 1, 2 * _REACH[1] + 1, 2 * _REACH[2] + 1)
    return insertion.cut(host, shape, _grid(random, host), around + 0.5)


def _crop(random: np.random.Generator, hu: Tensor, outline: Tensor) -> tuple[Tensor, Tensor]:
    """Seven slices of 64 x 64 near the middle (stage 1 is not exact either), as the network takes them."""
    z = _REACH[0] - 3 + int(random.integers(-1, 2))
    y, x = (reach - 32 + int(random.integers(-2, 3)) for reach in _REACH[1:])
    box = (slice(z, z + 7), slice(y, y + 64), slice(x, x + 64))
    image = insertion.normalised(insertion.scanner(random, hu)[box])
    return image, (outline[box][3:4] > 0.5).float()


def malignancy_label(nodule: RealNodule) -> int:
    """0 for a median rating up to 2.5, 1 from 3.5, -1 between or where fewer than two readers rated it."""
    if nodule.readers < 2 or 2.5 < nodule.malignancy < 3.5:
        return -1
    return int(nodule.malignancy >= 3.5)


def unit_concepts(nodule: RealNodule) -> Tensor:
    """Ratings as (rating - 1) / 4; internal structure is not in the patches and almost always 1, so it is 0."""
    ratings = [nodule.concepts.get(name, 1.0) for name in CONCEPT_NAMES]
    return torch.tensor([(rating - 1) / 4 for rating in ratings])
