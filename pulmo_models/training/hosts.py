"""Host volumes: lungs of real series, and phantoms, that nodules are placed into and negatives are cut from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from pulmo_models.ct.lungs import segment_lungs
from pulmo_models.training.phantoms import make_phantom
from pulmo_models.training.series import read_ct

TRAINING_HOSTS = ("ct_qin_lsc_0055", "ct_lungdx_a0001", "ct_lungfcp_0001_slab", "ct_lungdx_a0002_thick8mm")
"""Series that may be used for training. CPTAC C3N-00247 could be too, and is kept back as the test."""

VALIDATION_HOSTS = ("ct_lidc_idri_0063",)
TEST_HOSTS = ("ct_cptac_c3n-00247",)

LOOKS_LIKE_A_NODULE: Mapping[str, Sequence[tuple[int, int, int]]] = {
    "ct_qin_lsc_0055": ((69, 161, 89), (61, 139, 391), (91, 161, 376), (90, 134, 160)),
    "ct_lungdx_a0001": ((27, 240, 105),),
}
"""Indices (slice, row, column), in the cropped host, of what nobody annotated and looks like a nodule or mass.

Seen by eye, without a reader, among the candidates of an early detector: never taken for an example of no nodule.
"""

_MARGIN = (8, 40, 40)  # voxels around the lungs that are kept, for windows at their border


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownNodule:
    """A nodule that a host has of its own."""

    centre_index: tuple[float, float, float]
    diameter_mm: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Host:
    """A volume cropped around its lungs."""

    name: str
    hu: npt.NDArray[np.int16]  # (slices, rows, columns)
    lung: npt.NDArray[np.bool_]
    spacing_mm: npt.NDArray[np.float64]
    places: npt.NDArray[np.int16]  # indices of the lung voxels
    nodules: tuple[KnownNodule, ...] = ()

    def may_be_nodule(self, index: npt.ArrayLike, clearance_mm: float = 20.0) -> bool:
        """Whether an index is near what is known, or was seen, to look like a nodule: no example of the contrary."""
        near = [(np.array(known.centre_index), clearance_mm + known.diameter_mm) for known in self.nodules]
        near += [(np.array(place), clearance_mm) for place in LOOKS_LIKE_A_NODULE.get(self.name, ())]
        return any(float(np.linalg.norm((index - centre) * self.spacing_mm)) < reach for centre, reach in near)


def load_hosts(data: Path, names: Sequence[str], work: Path) -> list[Host]:
    """Read series of the data folder; the lungs are segmented once and kept in the work folder."""
    hosts = []
    for name in names:
        cached = work / f"host-{name}.npz"
        if not cached.exists():
            volume = read_ct(data / name / "dicom")
            lung = segment_lungs(volume.hu, volume.spacing_mm)
            boxes = _tumour(data / name / "annotation", [source.sop_instance_uid for source in volume.sources])
            _save(cached, volume.hu, lung, volume.spacing_mm, boxes)
        hosts.append(_load(cached, name))
    return hosts


def load_phantoms(seeds: Sequence[int], work: Path) -> list[Host]:
    """Make phantoms, each once, with different grids."""
    hosts = []
    for seed in seeds:
        cached = work / f"phantom-{seed}.npz"
        if not cached.exists():
            random = np.random.default_rng([7, seed])
            thickness, pixel = float(random.choice([1.25, 2.5, 3.0])), float(random.uniform(0.62, 0.86))
            shape = (round(200 / thickness), round(310 / pixel), round(310 / pixel))
            phantom = make_phantom(seed, shape=shape, spacing_mm=(thickness, pixel, pixel))
            known = np.array([(*n.centre_index, n.diameter_mm) for n in phantom.nodules]).reshape(-1, 4)
            _save(cached, phantom.hu, segment_lungs(phantom.hu, phantom.spacing_mm), phantom.spacing_mm, known)
        hosts.append(_load(cached, f"phantom {seed}"))
    return hosts


def _save(
    path: Path,
    hu: npt.NDArray[np.float32],
    lung: npt.NDArray[np.bool_],
    spacing_mm: Sequence[float],
    nodules: npt.NDArray[np.float64],
) -> None:
    places = np.argwhere(lung)
    low = np.maximum(places.min(axis=0) - _MARGIN, 0)
    high = np.minimum(places.max(axis=0) + 1 + np.array(_MARGIN), hu.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    known = nodules.reshape(-1, 4) - np.array([*low, 0.0])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, hu=np.rint(hu[box]).astype(np.int16), lung=lung[box], spacing=np.array(spacing_mm), nodules=known)


def _load(path: Path, name: str) -> Host:
    stored = np.load(path)
    lung = stored["lung"]
    return Host(
        name=name,
        hu=stored["hu"],
        lung=lung,
        spacing_mm=stored["spacing"],
        places=np.argwhere(lung).astype(np.int16),
        nodules=tuple(
            KnownNodule(centre_index=(float(row[0]), float(row[1]), float(row[2])), diameter_mm=float(row[3]))
            for row in stored["nodules"]
        ),
    )


def read_boxes(folder: Path, sop_instance_uids: Sequence[str]) -> list[tuple[int, float, float, float, float]]:
    """Annotated boxes (slice, left, top, right, bottom) in pixels from ``<SOP Instance UID>.xml`` (Pascal VOC)."""
    found = []
    for path in sorted(folder.glob("*.xml")) if folder.is_dir() else ():
        if path.stem not in sop_instance_uids:
            continue
        for box in ElementTree.parse(path).getroot().iter("bndbox"):  # noqa: S314
            left, top, right, bottom = (float(box.findtext(k, "nan")) for k in ("xmin", "ymin", "xmax", "ymax"))
            found.append((sop_instance_uids.index(path.stem), left, top, right, bottom))
    return found


def _tumour(folder: Path, sop_instance_uids: Sequence[str]) -> npt.NDArray[np.float64]:
    """The annotated tumour as one row (slice, row, column, diameter in pixels); no rows where there is none."""
    boxes = read_boxes(folder, sop_instance_uids)
    if not boxes:
        return np.zeros((0, 4))
    places = np.array(
        [
            (k, (top + bottom) / 2, (left + right) / 2, max(right - left, bottom - top))
            for k, left, top, right, bottom in boxes
        ]
    )
    return np.array([[*places[:, :3].mean(axis=0), places[:, 3].max()]])
