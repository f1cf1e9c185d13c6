"""LUNA16's folds as the bundle's JSON gives them, and its scans on the network's grid.

The file has ``training`` and ``validation``: lists of ``{"image", "box", "label"}``, a box ``cx, cy, cz, w, h, d`` in
LPS mm. An image is found by its name without folder and ending, as ``.mhd`` or ``.nii.gz``, anywhere below a folder; or
it is a folder of that name with one CT series in DICOM files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pulmo_models.ct.retinanet import network_image
from pulmo_models.training.detection.crops import Boxes, Image
from pulmo_models.training.lidc.luna16 import CollectionInvalid, read_mhd
from pulmo_models.training.series import Rejected, read_ct, series_folder

ENDINGS = (".mhd", ".nii.gz", ".mha", ".nii")
FIT_SHARE = 0.95  # of "training"; the rest chooses the model, and "validation" judges


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldScan:
    """A scan of a fold."""

    name: str
    path: Path
    boxes_lps_mm: Boxes  # (n, 6): centre, size


@dataclass(frozen=True, kw_only=True, eq=False)
class GridScan:
    """A scan as the network sees it."""

    image: Image
    boxes: Boxes  # (n, 6): low and high corner on the grid
    to_lps: np.ndarray[Any, np.dtype[np.float64]]  # 4 x 4, index of the grid to LPS mm


def read_fold(path: Path, images: Path, seed: int = 0) -> dict[str, list[FoldScan]]:
    """The scans to ``fit``, to ``choose`` the model and to ``test``.

    Raises:
        CollectionInvalid: no such file of folds, or an image of it is not below the folder.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        listed = {key: [_listed(entry) for entry in table[key]] for key in ("training", "validation")}
    except FileNotFoundError as exc:
        raise CollectionInvalid(f"{path}: not there") from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CollectionInvalid(f"{path}: no fold of LUNA16 as MONAI's bundle has it ({exc})") from exc
    files = {_stem(file): file for file in sorted(images.rglob("*")) if file.name.endswith(ENDINGS)}
    files |= {each.name: series_folder(images, each.name) for each in images.glob("*/")}
    scans = {key: [_scan(name, boxes, files, path) for name, boxes in rows] for key, rows in listed.items()}
    order = np.random.default_rng(seed).permutation(len(scans["training"]))
    count = max(1, min(len(order) - 1, int(FIT_SHARE * len(order)))) if len(order) > 1 else 1
    shuffled = [scans["training"][n] for n in order]
    return {"fit": shuffled[:count], "choose": shuffled[count:] or shuffled[:count], "test": scans["validation"]}


def on_grid(scan: FoldScan) -> GridScan:
    """Read and prepare one scan; a few are kept."""
    return _on_grid(scan.path, tuple(map(tuple, scan.boxes_lps_mm.tolist())))


@lru_cache(maxsize=4)
def _on_grid(path: Path, boxes_lps_mm: tuple[tuple[float, ...], ...]) -> GridScan:
    hu, affine = _read_dicom(path) if path.is_dir() else read_mhd(path)
    prepared = network_image(hu, affine)
    to_lps = affine @ prepared.to_index
    boxes = np.asarray(boxes_lps_mm, dtype=np.float64).reshape(-1, 6)
    centre = (boxes[:, :3] - to_lps[:3, 3]) @ np.linalg.inv(to_lps[:3, :3]).T
    half = boxes[:, 3:] / np.linalg.norm(to_lps[:3, :3], axis=0) / 2
    return GridScan(image=prepared.values, boxes=np.concatenate((centre - half, centre + half), axis=1), to_lps=to_lps)


def _read_dicom(folder: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    try:
        volume = read_ct(folder)
    except Rejected as exc:
        raise CollectionInvalid(f"{folder}: {exc}") from exc
    return volume.hu, volume.affine


def _listed(entry: Mapping[str, Any]) -> tuple[str, Boxes]:
    boxes = np.asarray(entry["box"], dtype=np.float64).reshape(-1, 6)
    return _stem(Path(str(entry["image"]))), boxes


def _scan(name: str, boxes: Boxes, files: Mapping[str, Path], fold: Path) -> FoldScan:
    if name not in files:
        raise CollectionInvalid(f"{fold}: the image {name} is not below the folder of images")
    return FoldScan(name=name, path=files[name], boxes_lps_mm=boxes)


def _stem(path: Path) -> str:
    for ending in ENDINGS:
        if path.name.endswith(ending):
            return path.name.removesuffix(ending)
    return path.name
