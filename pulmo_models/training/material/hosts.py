"""Host volumes: lungs of real series, and phantoms, that nodules are placed into and negatives are cut from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pulmo_models.ct.lungs import segment_lungs
from pulmo_models.mapping import frame_to_index
from pulmo_models.training.material.phantoms import make_phantom
from pulmo_models.training.series import read_ct
from pulmo_models.training.splits import Split
from pulmo_models.types import Volume

TRAINING_HOSTS = ("ct_qin_lsc_0055", "ct_lungdx_a0001", "ct_lungfcp_0001_slab", "ct_lungdx_a0002_thick8mm")
"""Series that may be used for training. CPTAC C3N-00247 could be too, and is kept back as the test."""

VALIDATION_HOSTS = ("ct_lidc_idri_0063",)
TEST_HOSTS = ("ct_cptac_c3n-00247",)
SPLIT_HOSTS: Mapping[Split, Sequence[str]] = {
    "train": TRAINING_HOSTS,
    "validation": VALIDATION_HOSTS,
    "test": TEST_HOSTS,
}

LOOKS_LIKE_A_NODULE: Mapping[str, Sequence[tuple[int, int, int]]] = {
    "ct_qin_lsc_0055": ((69, 161, 89), (61, 139, 391), (91, 161, 376), (90, 134, 160)),
    "ct_lungdx_a0001": ((27, 240, 105),),
    "ct_lungfcp_0001_slab": ((61, 195, 122), (67, 203, 138)),
    "ct_cptac_c3n-00247": ((31, 257, 442), (44, 266, 51), (83, 262, 100), (42, 86, 166)),
}
"""Indices (slice, row, column), in the cropped host, of what nobody annotated and looks like a nodule or mass.

Seen by eye, without a reader, among the candidates of an early detector: never taken for an example of no nodule, and
no truth either.
"""
UNKNOWN_MM = 12.0  # half the edge of the box around such a place

KNOWN_NODULES: Mapping[str, Sequence[tuple[float, int, int, float]]] = {
    "ct_cptac_c3n-00247": ((-195.0, 168, 106, 20.0),),
    "ct_lidc_idri_0063": (
        (-202.0, 333, 187, 9.5),
        (-103.0, 282, 133, 7.5),
        (-142.0, 300, 219, 13.0),
        (-219.0, 308, 122, 5.0),
    ),
}
"""z in mm, row, column, diameter in mm: seen by eye (CPTAC), or by the readers of LIDC-IDRI."""

_MARGIN = (8, 40, 40)  # voxels around the lungs that are kept, for windows at their border
_SAME_TUMOUR_MM = 30.0  # between boxes of neighbouring slices
_COARSE = 2  # pixels: the depth below the pleura is kept for every second row and column


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownNodule:
    """A nodule that a host has of its own."""

    centre_index: tuple[float, float, float]
    diameter_mm: float
    extent_mm: tuple[float, float, float] | None = None  # along slices, rows, columns, where boxes were drawn


@dataclass(frozen=True, kw_only=True, eq=False)
class Host:
    """A volume cropped around its lungs."""

    name: str
    hu: npt.NDArray[np.int16]  # (slices, rows, columns)
    lung: npt.NDArray[np.bool_]
    spacing_mm: npt.NDArray[np.float64]
    places: npt.NDArray[np.int16]  # indices of the lung voxels
    depth_mm: npt.NDArray[np.float16]  # distance to the border of the lung, for every second row and column
    nodules: tuple[KnownNodule, ...] = ()
    synthetic: bool = False

    def may_be_nodule(self, index: npt.ArrayLike, clearance_mm: float = 20.0) -> bool:
        """Whether an index is near what is known, or was seen, to look like a nodule: no example of the contrary."""
        near = [(np.array(known.centre_index), clearance_mm + known.diameter_mm / 2) for known in self.nodules]
        near += [(np.array(place), clearance_mm) for place in LOOKS_LIKE_A_NODULE.get(self.name, ())]
        return any(float(np.linalg.norm((index - centre) * self.spacing_mm)) < reach for centre, reach in near)

    def depth_at(self, indices: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """Depth below the pleura (or mediastinum) in mm at indices (n, 3)."""
        return self.depth_mm[indices[:, 0], indices[:, 1] // _COARSE, indices[:, 2] // _COARSE].astype(np.float64)

    def outwards(self, index: npt.NDArray[np.integer]) -> float:
        """Angle (arctan2 of rows and columns) in which the border of the lung is nearest."""
        z, y, x = int(index[0]), int(index[1]) // _COARSE, int(index[2]) // _COARSE
        near = self.depth_mm[z, max(0, y - 4) : y + 5, max(0, x - 4) : x + 5].astype(np.float64)
        down, right = (float(np.diff(near, axis=axis).mean()) if near.shape[axis] > 1 else 0.0 for axis in (0, 1))
        return float(np.arctan2(-down, -right))


def make_host(
    name: str,
    hu: npt.NDArray[np.floating | np.integer],
    lung: npt.NDArray[np.bool_],
    spacing_mm: npt.ArrayLike,
    nodules: Sequence[KnownNodule] = (),
    synthetic: bool = False,
) -> Host:
    """A host of arrays as they are."""
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    coarse = lung[:, ::_COARSE, ::_COARSE]
    padded = np.pad(coarse, ((0, 0), (1, 1), (1, 1)))
    sampling = spacing * (1, _COARSE, _COARSE)
    depth = np.asarray(ndimage.distance_transform_edt(padded, sampling=sampling))[:, 1:-1, 1:-1]
    return Host(
        name=name,
        hu=np.rint(hu).astype(np.int16),
        lung=lung,
        spacing_mm=spacing,
        places=np.argwhere(lung).astype(np.int16),
        depth_mm=depth.astype(np.float16),
        nodules=tuple(nodules),
        synthetic=synthetic,
    )


def load_hosts(data: Path, names: Sequence[str], work: Path) -> list[Host]:
    """Read series of the data folder; the lungs are segmented once and kept in the work folder.

    Raises:
        FileNotFoundError: a series is not there.
    """
    hosts = []
    for name in names:
        cached = work / f"host-{name}.npz"
        if not cached.exists() or "extent" not in np.load(cached):
            volume = read_ct(data / name / "dicom")
            lung = segment_lungs(volume.hu, volume.spacing_mm)
            boxes = read_boxes(data / name / "annotation", volume)
            known = [*tumours(boxes, volume.spacing_mm), *listed(name, volume.affine)]
            _save(cached, volume.hu, lung, volume.spacing_mm, known)
        hosts.append(_load(cached, name))
    return hosts


def load_phantoms(seeds: Sequence[int], work: Path) -> list[Host]:
    """Make phantoms, each once, with different grids."""
    hosts = []
    for seed in seeds:
        cached = work / f"phantom-{seed}.npz"
        if not cached.exists() or "extent" not in np.load(cached):
            random = np.random.default_rng([7, seed])
            thickness, pixel = float(random.choice([1.25, 2.5, 3.0])), float(random.uniform(0.62, 0.86))
            shape = (round(200 / thickness), round(310 / pixel), round(310 / pixel))
            phantom = make_phantom(seed, shape=shape, spacing_mm=(thickness, pixel, pixel))
            known = [KnownNodule(centre_index=n.centre_index, diameter_mm=n.diameter_mm) for n in phantom.nodules]
            _save(cached, phantom.hu, segment_lungs(phantom.hu, phantom.spacing_mm), phantom.spacing_mm, known)
        hosts.append(_load(cached, f"phantom {seed}", synthetic=True))
    return hosts


def _save(
    path: Path,
    hu: npt.NDArray[np.float32],
    lung: npt.NDArray[np.bool_],
    spacing_mm: Sequence[float],
    nodules: Sequence[KnownNodule],
) -> None:
    places = np.argwhere(lung)
    low = np.maximum(places.min(axis=0) - _MARGIN, 0)
    high = np.minimum(places.max(axis=0) + 1 + np.array(_MARGIN), hu.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        hu=np.rint(hu[box]).astype(np.int16),
        lung=lung[box],
        spacing=np.array(spacing_mm),
        centre=np.array([n.centre_index for n in nodules]).reshape(-1, 3) - low,
        diameter=np.array([n.diameter_mm for n in nodules]),
        extent=np.array([n.extent_mm or (np.nan,) * 3 for n in nodules]).reshape(-1, 3),
    )


def _load(path: Path, name: str, synthetic: bool = False) -> Host:
    stored = np.load(path)
    nodules = [
        KnownNodule(
            centre_index=(float(centre[0]), float(centre[1]), float(centre[2])),
            diameter_mm=float(diameter),
            extent_mm=None if np.isnan(extent).any() else (float(extent[0]), float(extent[1]), float(extent[2])),
        )
        for centre, diameter, extent in zip(stored["centre"], stored["diameter"], stored["extent"], strict=True)
    ]
    return make_host(name, stored["hu"], stored["lung"], stored["spacing"], nodules, synthetic)


Box = tuple[int, float, float, float, float]  # slice, left, top, right, bottom


def read_boxes(folder: Path, volume: Volume) -> list[Box]:
    """Annotated boxes (slice, left, top, right, bottom) in voxels from ``<SOP Instance UID>.xml`` (Pascal VOC)."""
    frame_of = {frame.sop_instance_uid: number for number, frame in enumerate(volume.frames)}
    found = []
    for path in sorted(folder.glob("*.xml")) if folder.is_dir() else ():
        if path.stem not in frame_of:
            continue
        for box in ElementTree.parse(path).getroot().iter("bndbox"):  # noqa: S314
            left, top, right, bottom = (float(box.findtext(k, "nan")) for k in ("xmin", "ymin", "xmax", "ymax"))
            k, top, left = frame_to_index(volume, frame_of[path.stem], top, left)
            _, bottom, right = frame_to_index(volume, frame_of[path.stem], bottom, right)
            found.append((round(k), left, top, right, bottom))
    return found


def tumours(boxes: Sequence[Box], spacing_mm: Sequence[float]) -> list[KnownNodule]:
    """Tumours from the boxes drawn on their slices: those of slices up to two apart and up to 30 mm off are of one."""
    groups: list[list[Box]] = []
    for box in sorted(boxes):
        for group in groups:
            last = group[-1]
            off = [(box[1] + box[3] - last[1] - last[3]) / 2, (box[2] + box[4] - last[2] - last[4]) / 2]
            if 0 < box[0] - last[0] <= 2 and float(np.linalg.norm(off)) * spacing_mm[1] < _SAME_TUMOUR_MM:
                group.append(box)
                break
        else:
            groups.append([box])
    return [_tumour(group, spacing_mm) for group in groups]


def _tumour(group: Sequence[Box], spacing_mm: Sequence[float]) -> KnownNodule:
    table = np.array(group)
    wide, high = (table[:, 3] - table[:, 1]).max() * spacing_mm[2], (table[:, 4] - table[:, 2]).max() * spacing_mm[1]
    areas = (table[:, 3] - table[:, 1]) * (table[:, 4] - table[:, 2])
    rows, columns = (table[:, 2] + table[:, 4]) / 2, (table[:, 1] + table[:, 3]) / 2
    centre = [float(np.average(values, weights=areas)) for values in (table[:, 0], rows, columns)]
    return KnownNodule(
        centre_index=(centre[0], centre[1], centre[2]),
        diameter_mm=float(max(wide, high)),
        extent_mm=(float(np.ptp(table[:, 0]) + 1) * spacing_mm[0], float(high), float(wide)),
    )


def listed(name: str, affine: npt.NDArray[np.float64]) -> list[KnownNodule]:
    """The nodules of `KNOWN_NODULES` in one axial series, in the order of that table."""
    return [
        KnownNodule(centre_index=((z_mm - affine[2, 3]) / affine[2, 0], row, column), diameter_mm=diameter_mm)
        for z_mm, row, column, diameter_mm in KNOWN_NODULES.get(name, ())
    ]
