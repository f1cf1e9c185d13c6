"""Samples of both stages from whole volumes of LIDC-IDRI, whichever way they came: LUNA16 or DICOM.

The recipe is the published one (`SampleSettings` has its constants), with its flaws put right: places are drawn in the
lungs and not anywhere in the volume, hard candidates at random and not the first of the file, nothing blank is kept,
and what only some readers took for a nodule is neither an example of one nor of none.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from pulmo_models import __version__
from pulmo_models.ct.lungs import segment_lungs
from pulmo_models.geometry import crop
from pulmo_models.training.lidc.database import Nodule
from pulmo_models.training.splits import Split
from pulmo_models.training.store import Patch, StoreWriter, Window
from pulmo_models.types import Mask

AIR_HU = -1000.0
"""Outside of the volume, as the published recipe pads."""

_HU_RANGE = (-1024, 3071)
_DENSE_HU = -500.0  # vessels, pleura and airway walls among the voxels of the lungs

Index3 = tuple[int, int, int]
FloatPoints = npt.NDArray[np.float64]
_Job = TypeVar("_Job")


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """The constants of the recipe; sizes are (slices, rows, columns) in voxels of the volume's own spacing."""

    window: Index3 = (64, 128, 128)
    jittered: int = 2  # further windows of each training nodule
    jitter: Index3 = (8, 24, 24)  # at most, to either side
    window_negatives: int = 10  # for each nodule
    hard_share: float = 0.6  # of the negatives, where there are candidates
    patch: Index3 = (68, 72, 72)  # 64 and a margin for jitter
    training_patch_negatives: int = 7  # for each scan: 5,000 of 710
    held_out_patch_negatives: int = 11  # for each scan: 1,000 of 88 and of 90
    least_readers: int = 3
    match_mm: float = 10.0  # from a position of LUNA16 to the readers' nodule
    cluster_mm: float = 10.0  # between positions of one nodule
    clearance_mm: float = 5.0  # from the rim of what may be a nodule to a patch without one
    seed: int = 42


@dataclass(frozen=True, kw_only=True, eq=False)
class TrueNodule:
    """A nodule by enough readers, on the grid of its volume."""

    place_index: FloatPoints  # (3,): where the patch is cut
    centre_index: FloatPoints  # (3,): where the detector's heat map has its peak
    diameter_mm: float
    mask: Mask | None = None
    nodule: Nodule | None = None  # None: the series is not in the database of the readers


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledScan:
    """A volume and what is known of it. Indices are (slice, row, column)."""

    name: str  # Series Instance UID
    patient: str
    split: Split
    hu: npt.NDArray[np.float32]
    spacing_mm: FloatPoints
    nodules: tuple[TrueNodule, ...]
    uncertain: FloatPoints  # (n, 4): index and diameter in mm of what may be a nodule
    candidates: npt.NDArray[np.int64]  # (n, 3): what a detector took for a nodule, and is none


def write_store(
    out: Path,
    jobs: Iterable[_Job],
    label: Callable[[_Job, StoreWriter], LabelledScan | None],
    settings: SampleSettings,
    provenance: dict[str, Any],
) -> dict[str, int]:
    """Write the samples of every scan that `label` makes of a job; how many samples and drops there are.

    `label` counts with ``StoreWriter.drop`` what it leaves out, a whole scan among it. Shows a progress bar.
    """
    known = {**provenance, "version": __version__, "settings": asdict(settings)}
    counted = {"scans": 0, "windows": 0, "patches": 0}
    with StoreWriter(out, window=settings.window, patch=settings.patch, provenance=known) as writer:
        for job in track(list(jobs), description="Scans", console=Console(stderr=True)):
            scan = label(job, writer)
            if scan is None:
                continue
            counted["scans"] += 1
            random = np.random.default_rng([settings.seed, zlib.crc32(scan.name.encode())])
            lungs = np.argwhere(segment_lungs(scan.hu, _triple(scan.spacing_mm)))
            if not len(lungs):
                writer.drop("random places: no lungs found in the scan")
            for window in _windows(scan, settings, random, lungs):
                writer.add_window(window)
                counted["windows"] += 1
            for patch in _patches(scan, settings, random, lungs, writer):
                writer.add_patch(patch)
                counted["patches"] += 1
    return counted


def count_drops(writer: StoreWriter, reason: str, count: int) -> None:
    """Count what was left out, where there was any."""
    if count:
        writer.drop(reason, count)


def _windows(
    scan: LabelledScan, settings: SampleSettings, random: np.random.Generator, lungs: npt.NDArray[np.int64]
) -> Iterator[Window]:
    """Windows of a scan that has nodules: around each, moved from it, and elsewhere."""
    jittered = settings.jittered if scan.split == "train" else 0
    for number, nodule in enumerate(scan.nodules):
        middle = np.rint(nodule.centre_index).astype(int)
        yield _window(scan, middle, settings.window, f"nodule {number}")
        for _ in range(jittered):
            moved = middle + random.integers(-np.array(settings.jitter), np.array(settings.jitter) + 1)
            yield _window(scan, moved, settings.window, f"nodule {number}, moved")
    wanted = settings.window_negatives * len(scan.nodules)
    hard = random.permutation(scan.candidates)[: round(settings.hard_share * wanted)]
    for place in hard:
        yield _window(scan, place, settings.window, "hard candidate")
    if len(lungs):
        for place in lungs[random.integers(len(lungs), size=wanted - len(hard))]:
            yield _window(scan, place, settings.window, "place in the lungs")


def _window(scan: LabelledScan, middle: npt.NDArray[np.int64], shape: Index3, what: str) -> Window:
    origin = middle - np.array(shape) // 2
    inside = [
        (*(nodule.centre_index - origin), nodule.diameter_mm)
        for nodule in scan.nodules
        if _within(np.rint(nodule.centre_index) - origin, shape)
    ]
    reach = scan.uncertain[:, 3:] / 2 / scan.spacing_mm + 1
    low = np.clip(np.floor(scan.uncertain[:, :3] - reach) - origin, 0, shape)
    high = np.clip(np.ceil(scan.uncertain[:, :3] + reach) + 1 - origin, 0, shape)
    boxes = np.column_stack([low, high])[(low < high).all(axis=1)]
    return Window(
        hu=_cut(scan.hu, origin, shape),
        spacing_mm=_triple(scan.spacing_mm),
        nodules=np.array(inside, dtype=np.float32).reshape(-1, 4),
        unknown=boxes.astype(np.int32).reshape(-1, 6),
        patient=scan.patient,
        split=scan.split,
        source=f"{scan.name}: {what}",
    )


def _patches(
    scan: LabelledScan,
    settings: SampleSettings,
    random: np.random.Generator,
    lungs: npt.NDArray[np.int64],
    writer: StoreWriter,
) -> Iterator[Patch]:
    """Patches of every nodule, and of places that are none: candidates first, then places in the lungs."""
    for number, nodule in enumerate(scan.nodules):
        yield _nodule_patch(scan, nodule, settings.patch, f"{scan.name}: nodule {number}")
    wanted = settings.training_patch_negatives if scan.split == "train" else settings.held_out_patch_negatives
    clear = _clear(scan, scan.candidates, settings.clearance_mm)
    count_drops(writer, "candidate: too near to what may be a nodule", int((~clear).sum()))
    places = [(place, "hard candidate") for place in random.permutation(scan.candidates[clear])[:wanted]]
    places += [(place, "place in the lungs") for place in _lung_places(scan, random, lungs, settings)]
    for place, what in places:
        if not wanted:
            return
        hu = _cut(scan.hu, place - np.array(settings.patch) // 2, settings.patch)
        if hu.min() == hu.max():
            writer.drop("patch: blank")
            continue
        wanted -= 1
        yield Patch(
            hu=hu,
            spacing_mm=_triple(scan.spacing_mm),
            detection=0,
            patient=scan.patient,
            split=scan.split,
            source=f"{scan.name}: {what}",
        )


def _nodule_patch(scan: LabelledScan, true: TrueNodule, shape: Index3, source: str) -> Patch:
    origin = np.rint(true.place_index).astype(int) - np.array(shape) // 2
    mask = None
    if true.mask is not None:
        inside = crop(true.mask.voxels.astype(np.float32), _triple_int(origin - true.mask.origin), shape, 0.0) > 0.5
        mask = inside if inside.any() else None
    rated: dict[str, Any] = {}
    if true.nodule is not None:
        rated = {
            "malignancy": true.nodule.malignancy,
            "ratings": true.nodule.ratings,
            "readers": true.nodule.readers,
        }
    return Patch(
        hu=_cut(scan.hu, origin, shape),
        spacing_mm=_triple(scan.spacing_mm),
        mask=mask,
        detection=1,
        diameter_mm=true.diameter_mm,
        patient=scan.patient,
        split=scan.split,
        source=source,
        **rated,
    )


def _lung_places(
    scan: LabelledScan, random: np.random.Generator, lungs: npt.NDArray[np.int64], settings: SampleSettings
) -> npt.NDArray[np.int64]:
    """Places clear of what may be a nodule, by turns a dense one (vessel, pleura, airway wall) and any other."""
    if not len(lungs):
        return lungs
    some = lungs[random.integers(len(lungs), size=2000)]
    some = some[_clear(scan, some, settings.clearance_mm)]
    dense = scan.hu[tuple(some.T)] > _DENSE_HU
    turns = np.argsort(np.concatenate([2 * np.arange(dense.sum()), 2 * np.arange((~dense).sum()) + 1]), kind="stable")
    return np.concatenate([some[dense], some[~dense]])[turns]


def _clear(scan: LabelledScan, places: npt.NDArray[np.int64], clearance_mm: float) -> npt.NDArray[np.bool_]:
    """Which places are farther than the clearance from the rim of every nodule, certain or not."""
    known = [(*nodule.centre_index, nodule.diameter_mm) for nodule in scan.nodules]
    balls = np.concatenate([np.array(known).reshape(-1, 4), scan.uncertain])
    clear = np.ones(len(places), dtype=bool)
    for ball in balls:
        distance = np.linalg.norm((places - ball[:3]) * scan.spacing_mm, axis=1)
        clear &= distance > ball[3] / 2 + clearance_mm
    return clear


def _cut(hu: npt.NDArray[np.float32], origin: npt.NDArray[np.int64], shape: Index3) -> npt.NDArray[np.int16]:
    return np.rint(np.clip(crop(hu, _triple_int(origin), shape, AIR_HU), *_HU_RANGE)).astype(np.int16)


def _within(index: FloatPoints, shape: Index3) -> bool:
    return bool(((index >= 0) & (index < shape)).all())


def _triple(values: FloatPoints) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _triple_int(values: npt.NDArray[np.int64]) -> Index3:
    return int(values[0]), int(values[1]), int(values[2])
