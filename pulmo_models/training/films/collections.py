"""Collections of chest radiographs as samples: CheXpert folders and NIH ChestX-ray14, five labels of each film.

CheXpert (Irvin et al., AAAI 2019): ``train.csv`` and ``valid.csv`` beside the folders; a blank label is 0, -1 is
uncertain. NIH ChestX-ray14 (Wang et al., CVPR 2017): ``labels.csv`` of the pack, or ``Data_Entry_2017.csv``; its
Effusion is the Pleural Effusion here. A patient, with all films, is in one split.

Errors: :class:`FilmsInvalid`, naming the file and the reason.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from pulmo_models.cxr.settings import LABELS
from pulmo_models.errors import ModelError
from pulmo_models.training.splits import Split

Uncertain = Literal["ones", "zeros"]
Views = Literal["frontal", "all"]
SubsetMode = Literal["patient", "image"]

_CHEXPERT = "CheXpert-v1.0"  # what the paths in its tables begin with, -small or not
_NIH_NAMES = {"Pleural Effusion": "Effusion"}
_NIH_TABLES = ("labels.csv", "Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
_TWENTIETHS: tuple[Split, ...] = ("train",) * 12 + ("validation",) * 4 + ("test",) * 4


class FilmsInvalid(ModelError):
    """A collection cannot be read."""


@dataclass(frozen=True, kw_only=True)
class FilmSample:
    """A film and what is known of it."""

    path: Path
    patient: str
    targets: tuple[float, ...]  # 0 or 1, in the order of LABELS
    split: Split


@dataclass(frozen=True, kw_only=True)
class FilmOptions:
    """How labels are read and films are chosen."""

    uncertain: Uncertain = "ones"
    views: Views = "frontal"
    published: bool = False  # CheXpert: valid.csv chooses the network and judges it, as published


def read_films(folder: Path, options: FilmOptions) -> tuple[FilmSample, ...]:
    """The samples of a CheXpert or NIH folder, in the order of its tables.

    Raises:
        FilmsInvalid: no table of either collection is there, or it cannot be understood, or a film is missing.
    """
    for root in (folder, *sorted(folder.glob(f"{_CHEXPERT}*"))):
        if (root / "train.csv").is_file():
            samples = _chexpert(root, options)
            break
    else:
        table = next((folder / name for name in _NIH_TABLES if (folder / name).is_file()), None)
        if table is None:
            names = ", ".join(("train.csv", *_NIH_TABLES))
            raise FilmsInvalid(f"{folder} is no collection of radiographs: there is none of {names}")
        samples = _nih(table, options)
    missing = [sample.path for sample in samples if not sample.path.is_file()]
    if missing:
        raise FilmsInvalid(f"{len(missing)} of {len(samples)} films are not there, the first is {missing[0]}")
    check_patients(samples)
    return samples


def check_patients(samples: Iterable[FilmSample]) -> None:
    """Raises `FilmsInvalid` where a patient is in two splits."""
    found: dict[str, Split] = {}
    for sample in samples:
        if found.setdefault(sample.patient, sample.split) != sample.split:
            raise FilmsInvalid(f"a patient is in {found[sample.patient]} and in {sample.split}: {sample.path.name}")


def subset(samples: Sequence[FilmSample], share: float, mode: SubsetMode, seed: int) -> tuple[FilmSample, ...]:
    """A share of the training split, drawn by patient or by image; the other splits stay whole."""
    if share >= 1:
        return tuple(samples)
    random = np.random.default_rng(seed)
    train = [sample for sample in samples if sample.split == "train"]
    if mode == "patient":
        patients = np.unique([sample.patient for sample in train])
        kept = set(random.choice(patients, int(len(patients) * share), replace=False).tolist())
        chosen = [sample for sample in train if sample.patient in kept]
    else:
        numbers = random.choice(len(train), int(len(train) * share), replace=False)
        chosen = [train[number] for number in sorted(numbers.tolist())]
    return (*chosen, *(sample for sample in samples if sample.split != "train"))


def split_of(patient: str) -> Split:
    """Twelve twentieths of all patients train, four choose, four judge; by their name, so the same in every run."""
    return _TWENTIETHS[int(hashlib.sha256(patient.encode()).hexdigest(), 16) % len(_TWENTIETHS)]


def _chexpert(root: Path, options: FilmOptions) -> tuple[FilmSample, ...]:
    judged = _chexpert_table(root / "valid.csv", options)
    samples = [replace(sample, split="test") for sample in judged]
    train = _chexpert_table(root / "train.csv", options)
    if options.published:  # the films of valid.csv stand twice: to choose and to judge
        samples += [replace(sample, split="train") for sample in train]
        return tuple(samples)
    for sample in train:
        split = split_of(sample.patient)
        samples.append(replace(sample, split="train" if split == "test" else split))
    return tuple(samples)


def _chexpert_table(path: Path, options: FilmOptions) -> list[FilmSample]:
    rows = _rows(path, LABELS)
    samples = []
    for row in rows:
        name = row.get("Path") or next(iter(row.values()))
        if options.views == "frontal" and row.get("Frontal/Lateral", "Frontal") != "Frontal":
            continue
        parts = PurePosixPath(name).parts
        inside = parts[1:] if parts and parts[0].startswith(_CHEXPERT) else parts
        patient = next((part for part in parts if part.startswith("patient")), "")
        if not patient:
            raise FilmsInvalid(f"{path}: {name} names no patient")
        samples.append(
            FilmSample(
                path=path.parent.joinpath(*inside),
                patient=patient,
                targets=tuple(_chexpert_target(row[label], options.uncertain, path) for label in LABELS),
                split="train",
            )
        )
    return samples


def _chexpert_target(text: str, uncertain: Uncertain, path: Path) -> float:
    try:
        value = float(text) if text.strip() else 0.0
    except ValueError as exc:
        raise FilmsInvalid(f"{path}: {text!r} is no label") from exc
    if value == -1:
        return 1.0 if uncertain == "ones" else 0.0
    return min(max(value, 0.0), 1.0)


def _nih(table: Path, options: FilmOptions) -> tuple[FilmSample, ...]:
    places = {path.name: path for path in sorted(table.parent.rglob("*.png"))}
    samples = []
    for row in _rows(table, ()):
        name = row.get("image_id") or row.get("Image Index") or ""
        patient = row.get("patient_id") or row.get("Patient ID") or ""
        view = row.get("view") or row.get("View Position") or ""
        found = {
            text.strip().replace("_", " ")
            for text in (row.get("finding_labels") or row.get("Finding Labels") or "").split("|")
        }
        if not name or not patient or not found - {""}:
            raise FilmsInvalid(f"{table}: a row names no image, no patient or no finding")
        if options.views == "frontal" and view not in ("PA", "AP"):
            continue
        samples.append(
            FilmSample(
                path=places.get(name, table.parent / name),
                patient=patient,
                targets=tuple(float(_NIH_NAMES.get(label, label) in found) for label in LABELS),
                split=split_of(patient),
            )
        )
    return tuple(samples)


def _rows(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = [{key: value or "" for key, value in row.items() if key is not None} for row in reader]
            names = reader.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise FilmsInvalid(f"{path} cannot be read: {exc}") from exc
    if lacking := [label for label in needed if label not in names]:
        raise FilmsInvalid(f"{path}: there is no column {lacking[0]}")
    if not rows:
        raise FilmsInvalid(f"{path}: there are no rows")
    return rows
