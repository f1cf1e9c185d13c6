"""The patch store: training samples of both stages in one HDF5 file, whatever they were made from.

Every ``pulmo-train data`` command writes one, and every training and evaluation reads one or several. A sample says
which patient it is of, which split that patient belongs to, and where it came from. The file says with which command
and seed it was made, and what was left out and why.

Layout: a group for each stage (``stage1``, ``stage2``) with one row a sample in each data set; nodules and unknown
boxes of stage 1 are tables whose first column is the row of their window. Images are int16 HU, compressed by LZF.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

import h5py
import numpy as np
import numpy.typing as npt

from pulmo_models.errors import ModelError
from pulmo_models.training.splits import SPLITS, Split
from pulmo_models.types import CONCEPT_NAMES

Stage = Literal["stage1", "stage2"]
STAGES: tuple[Stage, ...] = get_args(Stage)

FORMAT = "pulmo patch store 1"


class StoreInvalid(ModelError):
    """The file is no patch store, or was not finished. The message names file and reason."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """A sample of stage 1."""

    hu: npt.NDArray[np.int16]  # (slices, rows, columns)
    spacing_mm: Sequence[float]  # slice, row, column
    nodules: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    """(n, 4): index of the centre (slice, row, column) in the window, and diameter in mm."""
    unknown: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 6), np.int32))
    """(n, 6): boxes [slice, row, column from; slice, row, column to) where the truth is not known: no loss there."""
    patient: str
    split: Split
    source: str  # what it was made of, for the reader of a report: series, nodule, kind of negative


@dataclass(frozen=True, kw_only=True, eq=False)
class Patch:
    """A sample of stage 2: what lies around a candidate, larger than the network's 64 x 64 by a margin for jitter."""

    hu: npt.NDArray[np.int16]  # (slices, rows, columns); the candidate is at index size // 2 on each axis
    spacing_mm: Sequence[float]
    mask: npt.NDArray[np.bool_] | None = None  # the nodule, by half of its readers; None: not known, or no nodule
    detection: int  # 1 nodule, 0 none, -1 not known (the mask alone is taught)
    malignancy: float = float("nan")  # mean rating of the readers, 1..5
    ratings: npt.NDArray[np.float32] = field(default_factory=lambda: np.full(len(CONCEPT_NAMES), np.nan, np.float32))
    """(8,): mean ratings on the LIDC scale in the order of CONCEPT_NAMES; NaN where nobody rated."""
    readers: int = 0
    diameter_mm: float = float("nan")
    inserted: bool = False  # the nodule was placed into another patient's lung
    patient: str
    split: Split
    source: str


class StoreWriter:
    """Writes a patch store; a context manager. The file gets its name only when everything is in it."""

    def __init__(
        self, path: Path, *, window: Sequence[int] | None, patch: Sequence[int] | None, provenance: Mapping[str, Any]
    ) -> None:
        """`window` and `patch` are the shapes of the samples of each stage; None where a stage has none.

        `provenance` is anything that JSON holds: command, seed, versions, sources.
        """
        self._path = path
        self._partial = path.with_name(path.name + ".part")
        self._dropped: Counter[str] = Counter()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = h5py.File(self._partial, "w")
        self._file.attrs["provenance"] = json.dumps(dict(provenance))
        text = h5py.string_dtype()
        for stage, shape in (("stage1", window), ("stage2", patch)):
            if shape is None:
                continue
            group = self._file.create_group(stage)
            _growing(group, "hu", tuple(shape), np.int16, compressed=True)
            _growing(group, "spacing_mm", (3,), np.float32)
            _growing(group, "split", (), np.uint8)
            for name in ("patient", "source"):
                _growing(group, name, (), text)
        if window is not None:
            _growing(self._file["stage1"], "nodules", (5,), np.float32)
            _growing(self._file["stage1"], "unknown", (7,), np.int32)
        if patch is not None:
            group = self._file["stage2"]
            _growing(group, "mask", tuple(patch), np.uint8, compressed=True)
            _growing(group, "ratings", (len(CONCEPT_NAMES),), np.float32)
            for name, kind in _PATCH_COLUMNS.items():
                _growing(group, name, (), kind)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None:
            self._file.close()
            self._partial.unlink()
            return
        self._file.attrs["dropped"] = json.dumps(self._dropped)
        self._file.attrs["format"] = FORMAT
        self._file.close()
        self._partial.replace(self._path)

    def drop(self, reason: str, count: int = 1) -> None:
        """Count something that was left out."""
        self._dropped[reason] += count

    def add_window(self, window: Window) -> None:
        """Append a sample of stage 1."""
        group = self._file["stage1"]
        row = self._add(group, window)
        for name, values in (("nodules", window.nodules), ("unknown", window.unknown)):
            for line in values:
                _append(group[name], np.array([row, *line], dtype=group[name].dtype))

    def add_patch(self, patch: Patch) -> None:
        """Append a sample of stage 2."""
        group = self._file["stage2"]
        self._add(group, patch)
        _append(group["mask"], np.zeros(patch.hu.shape, np.uint8) if patch.mask is None else patch.mask)
        _append(group["ratings"], patch.ratings)
        for name in _PATCH_COLUMNS:
            _append(group[name], patch.mask is not None if name == "outlined" else getattr(patch, name))

    def _add(self, group: h5py.Group, sample: Window | Patch) -> int:
        if sample.hu.shape != group["hu"].shape[1:]:
            raise ValueError(f"{sample.source}: a sample of {sample.hu.shape}, the store holds {group['hu'].shape[1:]}")
        row = len(group["hu"])
        _append(group["hu"], sample.hu)
        _append(group["spacing_mm"], np.array(sample.spacing_mm, dtype=np.float32))
        _append(group["split"], SPLITS.index(sample.split))
        _append(group["patient"], sample.patient)
        _append(group["source"], sample.source)
        return row


_PATCH_COLUMNS: Mapping[str, Any] = {
    "detection": np.int8,
    "malignancy": np.float32,
    "readers": np.uint8,
    "diameter_mm": np.float32,
    "inserted": np.bool_,
    "outlined": np.bool_,
}


class PatchStore:
    """Reads a patch store. It opens the file anew in each process that uses it, so a data loader may copy it."""

    def __init__(self, path: Path) -> None:
        """Open and check.

        Raises:
            StoreInvalid: no such file, no patch store, or one that was not finished.
        """
        self.path = path
        self._opened: h5py.File | None = None
        try:
            with h5py.File(path, "r") as file:
                if file.attrs.get("format") != FORMAT:
                    raise StoreInvalid(f"{path}: not a finished patch store (format {file.attrs.get('format')!r})")
                self.provenance: dict[str, Any] = json.loads(file.attrs["provenance"])
                self.dropped: dict[str, int] = json.loads(file.attrs["dropped"])
                self._tables = {stage: _tables(file[stage]) for stage in STAGES if stage in file}
        except FileNotFoundError as exc:
            raise StoreInvalid(f"{path}: not there") from exc
        except OSError as exc:
            raise StoreInvalid(f"{path}: cannot be read as a patch store: {exc}") from exc

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def rows(self, stage: Stage, split: Split) -> npt.NDArray[np.int64]:
        """The rows of a stage that belong to a split; none where the store has no such stage."""
        if stage not in self._tables:
            return np.zeros(0, np.int64)
        return np.flatnonzero(self._tables[stage]["split"] == SPLITS.index(split))

    def column(self, stage: Stage, name: str) -> npt.NDArray[Any]:
        """Everything of one column, except images: ``patient``, ``diameter_mm``, ``malignancy``, ``ratings``..."""
        return self._tables[stage][name]

    def window(self, row: int) -> Window:
        """A sample of stage 1."""
        table = self._tables["stage1"]
        return Window(
            hu=self._file["stage1/hu"][row],
            nodules=table["nodules"][table["nodules"][:, 0] == row, 1:],
            unknown=table["unknown"][table["unknown"][:, 0] == row, 1:],
            **_common(table, row),
        )

    def patch(self, row: int) -> Patch:
        """A sample of stage 2."""
        table = self._tables["stage2"]
        outlined = bool(table["outlined"][row])
        return Patch(
            hu=self._file["stage2/hu"][row],
            mask=self._file["stage2/mask"][row].astype(bool) if outlined else None,
            detection=int(table["detection"][row]),
            malignancy=float(table["malignancy"][row]),
            ratings=table["ratings"][row],
            readers=int(table["readers"][row]),
            diameter_mm=float(table["diameter_mm"][row]),
            inserted=bool(table["inserted"][row]),
            **_common(table, row),
        )

    @property
    def _file(self) -> h5py.File:
        if self._opened is None:
            self._opened = h5py.File(self.path, "r")
        return self._opened


def _tables(group: h5py.Group) -> dict[str, npt.NDArray[Any]]:
    names = [name for name in group if name not in ("hu", "mask")]
    return {
        name: group[name].asstr()[:].astype(object) if h5py.check_string_dtype(group[name].dtype) else group[name][:]
        for name in names
    }


def _common(table: Mapping[str, npt.NDArray[Any]], row: int) -> dict[str, Any]:
    return {
        "spacing_mm": tuple(float(step) for step in table["spacing_mm"][row]),
        "patient": str(table["patient"][row]),
        "split": SPLITS[int(table["split"][row])],
        "source": str(table["source"][row]),
    }


def _growing(group: h5py.Group, name: str, shape: tuple[int, ...], kind: Any, compressed: bool = False) -> None:
    options = {"chunks": (1, *shape), "compression": "lzf", "shuffle": True} if compressed else {"chunks": True}
    group.create_dataset(name, shape=(0, *shape), maxshape=(None, *shape), dtype=kind, **options)


def _append(data: h5py.Dataset, value: Any) -> None:
    data.resize(len(data) + 1, axis=0)
    data[-1] = value
