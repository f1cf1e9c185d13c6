"""The whole way by the command line: LUNA16 folder, store, detector, teacher, student, report, set of weights.

It is gone twice with one seed, the second time with trainings that are killed and run again: the weights are the same.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pulmo_models.training.store import PatchStore
from pulmo_models.weights import WeightSet, load_set
from tests.models.lidc_factory import DatabaseFactory
from tests.models.luna_factory import (
    DIAMETER_MM,
    FAINT,
    NODULE,
    SPACING_MM,
    ZS,
    add_nodule,
    chest,
    turned_position,
    write_mhd,
    write_table,
)
from tests.models.training_runs import changes, train, train_and_kill

PATIENTS = {
    "train": ("LIDC-IDRI-0001", "LIDC-IDRI-0002"),
    "validation": ("LIDC-IDRI-0006",),
    "test": ("LIDC-IDRI-0005",),
}
STAGE1 = "stage1.phases = [{window = [16, 32, 32], batch = 2, epochs = 2, samples_per_epoch = 4}]"
TEACHER = ("teacher.batch = 2", "teacher.shape = [16, 64, 64]")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients, each with a malignant nodule and a benign one that three readers agree on."""
    folder = tmp_path_factory.mktemp("luna")
    made = DatabaseFactory(folder / "readers.sqlite")
    candidates, annotations = [], []
    for number, patient in enumerate(patient for patients in PATIENTS.values() for patient in patients):
        series = f"1.{number + 1}"
        scan = made.scan(patient, series, ZS, thickness_mm=SPACING_MM[0], pixel_mm=SPACING_MM[1])
        add_nodule(made, scan, NODULE, (5, 4, 5))
        add_nodule(made, scan, FAINT, (1, 2, 2))
        write_mhd(folder / "luna" / f"{series}.mhd", chest(NODULE, FAINT))
        candidates += [(series, turned_position(place), 1) for place in (NODULE, FAINT)]
        candidates += [(series, turned_position((20, 48, 48 + 4 * k)), 0) for k in range(3)]
        annotations += [(series, turned_position(place), DIAMETER_MM) for place in (NODULE, FAINT)]
    write_table(folder / "luna" / "candidates.csv", "class", candidates)
    write_table(folder / "luna" / "annotations.csv", "diameter_mm", annotations)
    shapes = ("--window", "16,32,32", "--patch", "20,72,72")
    train("data", "luna16", folder / "luna", "--out", folder / "a.h5", "--database", made.path, *shapes)
    return folder / "a.h5"


def trainings(store: Path, work: Path) -> list[list[str | Path]]:
    common: list[str | Path] = ["--store", store, "--work", work, "--device", "cpu", "--seed", "4"]
    return [
        ["stage1", *common, *changes(STAGE1, "stage1.validation_samples = 1", "stage1.checkpoint_steps = 1")],
        ["teacher", *common, *changes(*TEACHER, "teacher.checkpoint_steps = 1"), "--max-steps", "2"],
        [
            "distill",
            *common,
            *changes("distill.batch = 2", "distill.teacher_slices = 16", "distill.checkpoint_steps = 1"),
            "--max-steps",
            "3",
        ],
    ]


def exported(work: Path) -> WeightSet:
    train("export", work / "set", "--name", "whole", "--work", work)
    return load_set(work / "set" / "whole.toml")


def test_every_split_has_both_kinds_of_nodules(store: Path) -> None:
    made = PatchStore(store)
    for split, patients in PATIENTS.items():
        rows = made.rows("stage2", split)  # type: ignore[arg-type]
        nodules = rows[made.column("stage2", "detection")[rows] == 1]
        assert set(made.column("stage2", "patient")[rows]) == set(patients)
        assert sorted(made.column("stage2", "malignancy")[nodules].round(2)) == sorted([1.67, 4.67] * len(patients))


def test_the_whole_way_ends_in_the_same_weights_with_and_without_a_kill(store: Path, tmp_path: Path) -> None:
    for call in trainings(store, tmp_path / "straight"):
        train(*call)
    for call in trainings(store, tmp_path / "killed"):
        train_and_kill(1, *call)
        train(*call)
    straight, killed = exported(tmp_path / "straight"), exported(tmp_path / "killed")
    assert straight.stage1.digest == killed.stage1.digest
    assert straight.stage2.digest == killed.stage2.digest

    report = tmp_path / "report"
    manifest = tmp_path / "straight" / "set" / "whole.toml"
    train("evaluate", manifest, "--store", store, "--parts", "stage2", "--out", report, "--resamples", "20")
    figures = json.loads((report / "report.json").read_text())
    assert straight.stage2.digest.removeprefix("sha256:") in json.dumps(figures)
    assert (report / "report.html").read_text().count("<html") == 1
    found = figures["stage2"]["detection"]["auc"]["value"]
    assert math.isfinite(found)
    assert 0 <= found <= 1
