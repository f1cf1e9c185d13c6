"""Levels of the 8-bit stacks, and what is read of the cut-outs: ratings, masks, splits."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pulmo_models.training.material import levels
from pulmo_models.training.material.drawn import drawn_nodules
from pulmo_models.training.material.nodules import load_nodules, noise_of
from pulmo_models.training.material.patches import own_patch, write_patches
from pulmo_models.training.series import read_ct
from pulmo_models.training.splits import split_of
from pulmo_models.training.store import PatchStore
from pulmo_models.types import CONCEPT_NAMES
from tests.conftest import data_folder
from tests.models.made_nodules import chest, lidc_patches, real_nodule, stretched

SPICULATION = CONCEPT_NAMES.index("spiculation")


def test_patients_are_split_by_their_number() -> None:
    assert {number: split_of(number) for number in (5, 12, 6, 63, 3, 10, 1, 7)} == {
        5: "test", 12: "test", 6: "validation", 63: "validation", 3: "unused", 10: "unused", 1: "train", 7: "train",
    }  # fmt: skip


def test_a_shared_slice_gives_line_and_offset() -> None:
    squares = chest(1)
    stack, ((slope, offset),) = stretched(squares)
    hu = np.rint(squares[0][30:101, 27:98]).astype(np.int16)
    correlation, line, shift = levels.shared_slice(stack[0], hu)
    assert correlation > 0.999
    assert shift == (2, -1)
    assert line.slope == pytest.approx(slope, rel=1e-3)
    assert line.offset == pytest.approx(offset, abs=1.0)
    assert line.error_hu < slope / 3


def test_another_slice_is_no_shared_slice() -> None:
    stack, _ = stretched(chest(1))
    assert levels.shared_slice(stack[0], np.rint(chest(1, seed=9)[0][28:99, 28:99]).astype(np.int16))[0] < 0.999


def test_neighbours_with_other_slopes_are_mapped_back() -> None:
    squares = chest(5)
    stack, lines = stretched(squares)
    assert lines[4][0] / lines[0][0] > 1.15  # a mapping with the known slice's line would be far off
    known = levels.Line(slope=lines[2][0], offset=lines[2][1], error_hu=2.0)
    for index, line in enumerate(levels.stack_lines(stack, {2: known})):
        steps = abs(index - 2)
        assert line.slope == pytest.approx(lines[index][0], rel=0.02 * max(1, steps))
        assert np.abs(line.hu(stack[index]) - squares[index][28:100, 28:100]).mean() < 8 + 8 * steps
        assert (line.error_hu > 2.0) == (steps > 0)


def test_a_slice_between_two_known_ones_follows_the_surer_one() -> None:
    stack, lines = stretched(chest(4))
    good = levels.Line(slope=lines[3][0], offset=lines[3][1], error_hu=2.0)
    bad = levels.Line(slope=lines[0][0] * 1.3, offset=lines[0][1], error_hu=50.0)
    mapped = levels.stack_lines(stack, {0: bad, 3: good})
    assert mapped[1].slope == pytest.approx(lines[1][0], rel=0.05)
    assert mapped[0] is bad


def test_a_whole_series_tells_how_good_the_levels_are() -> None:
    """LIDC-IDRI-0063 is there both as cut-outs and as a whole series."""
    series = read_ct(data_folder("ct_lidc_idri_0063") / "dicom").hu
    nodules = load_nodules(data_folder("lidc_patches"), lambda patient: patient == 63)
    corners = {"nodule-0": (271, 85), "nodule-1": (296, 151), "nodule-2": (265, 182), "nodule-3": (245, 96)}
    errors = []
    for nodule in nodules:
        row, column = corners[nodule.name]
        region = series[:, row : row + 72, column : column + 72]
        for hu in nodule.hu:
            errors.append(min(float(np.abs(plane - hu).mean()) for plane in region))
    assert len(nodules) == 4
    assert sorted(errors)[:4] == pytest.approx([0.1] * 4, abs=0.1)  # in true HU; one row or column of 72 is not
    assert np.mean(sorted(errors)[4:]) < 20


def test_ratings_are_the_mean_of_all_readers_and_the_mask_is_what_half_of_them_include(tmp_path: Path) -> None:
    database = lidc_patches(tmp_path, {"LIDC-IDRI-0001": 4, "LIDC-IDRI-0002": 3, "LIDC-IDRI-0005": 1})
    dropped: Counter[str] = Counter()
    nodules = load_nodules(tmp_path, lambda patient: split_of(patient) == "train", database, dropped)
    assert [nodule.patient for nodule in nodules] == ["LIDC-IDRI-0001", "LIDC-IDRI-0002"]
    assert not dropped
    four, three = nodules
    assert four.malignancy == four.ratings[SPICULATION] == 2.5
    assert three.malignancy == 2.0
    assert four.spacing_mm == (2.0, 0.7, 0.7)
    assert four.mask[2].sum() == pytest.approx(np.pi * 81, rel=0.05)  # the rim of one reader is not in it
    assert four.reach[2].sum() == pytest.approx(np.pi * 100, rel=0.05)
    truth = chest(5)[:, 28:100, 28:100]
    assert np.abs(four.hu[2][1:, :71] - truth[2][1:, :71]).max() <= 0.5 + 1e-6  # the true pixels themselves
    assert np.abs(four.hu - truth).mean() < 15
    assert four.lung_hu == pytest.approx(-860, abs=15)


def test_without_agreement_of_the_readers_the_ratings_are_those_of_the_other_set(tmp_path: Path) -> None:
    database = lidc_patches(tmp_path, {"LIDC-IDRI-0001": 4})
    path = tmp_path / "nodules_stacks_72.csv"
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerow(rows[0] | {"reader_match": 0})
    (nodule,) = load_nodules(tmp_path, lambda _: True, database)
    assert nodule.malignancy == 3.0
    assert nodule.ratings[SPICULATION] == 3.0
    assert np.isnan(nodule.ratings[CONCEPT_NAMES.index("internalStructure")])


def test_what_cannot_be_mapped_is_dropped_and_counted(tmp_path: Path) -> None:
    database = lidc_patches(tmp_path, {"LIDC-IDRI-0001": 4, "LIDC-IDRI-0002": 2})
    planes = np.load(tmp_path / "nodules_maxslice_71_hu.npz")["hu"]
    planes[1] = planes[1].T
    np.savez(tmp_path / "nodules_maxslice_71_hu.npz", hu=planes)
    dropped: Counter[str] = Counter()
    assert len(load_nodules(tmp_path, lambda _: True, database, dropped)) == 1
    assert dropped == {"no slice with true HU": 1}


def test_noise_is_that_of_plain_lung() -> None:
    random = np.random.default_rng(0)
    hu = np.where(np.arange(72) > 50, 40.0, -870.0) + random.normal(0, 1, (72, 72)) * 20
    level, noise = noise_of(hu, np.zeros(hu.shape, bool))
    assert level == pytest.approx(-870, abs=3)
    assert noise == pytest.approx(20 * np.sqrt(1 - 1 / 9), rel=0.06)  # what the mean of 3 x 3 takes is not seen
    assert np.isnan(noise_of(np.full((72, 72), 40.0), np.zeros((72, 72), bool))[1])


def test_a_patch_of_its_own_is_never_padded_along_the_slices() -> None:
    hu = np.full((9, 72, 72), -850, np.int16)
    mask = np.zeros(hu.shape, bool)
    mask[2:7, 30:40, 20:30] = True
    hu[mask] = 30
    nodule = real_nodule(hu=hu, mask=mask, reach=mask, patient="LIDC-IDRI-0005")
    patch = own_patch(nodule, (7, 72, 72))
    assert patch is not None
    assert patch.split == "test"
    assert not patch.inserted
    assert patch.mask is not None
    assert (patch.hu[patch.mask] == 30).all()
    assert np.argwhere(patch.mask).mean(axis=0) == pytest.approx([3, 36, 36], abs=0.5)
    assert (patch.hu[:, :, 0] == -1000).all()  # beyond the cut-out there is air
    assert (patch.hu[:, 36, 36] > -1000).all()
    assert own_patch(nodule, (10, 72, 72)) is None
    eccentric = replace(nodule, mask=np.roll(mask, -2, 0), reach=np.roll(mask, -2, 0))
    assert own_patch(eccentric, (7, 72, 72)) is not None
    assert own_patch(eccentric, (9, 72, 72)) is None


def test_the_store_of_cut_outs_counts_what_is_too_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = lidc_patches(tmp_path / "in", {"LIDC-IDRI-0001": 4, "LIDC-IDRI-0003": 2, "LIDC-IDRI-0006": 1})
    monkeypatch.setattr("pulmo_models.training.material.nodules.LidcDatabase", lambda: database)
    store = PatchStore(write_patches(tmp_path / "in", tmp_path / "own.h5", (5, 64, 64)))
    assert [len(store.rows("stage2", split)) for split in ("train", "validation", "test")] == [1, 1, 0]
    assert store.patch(0).readers == 4
    short = PatchStore(write_patches(tmp_path / "in", tmp_path / "short.h5", (7, 64, 64)))
    assert short.dropped == {"fewer than 7 slices around its middle": 2}


def test_drawn_nodules_follow_their_ratings() -> None:
    nodules = drawn_nodules(lambda patient: patient in (1, 2, 11, 14, 16, 42, 43, 44), 3)
    kinds = {
        kind: [n for n in nodules if n.name.endswith(kind)] for kind in ("ground glass", "calcified", "spiculated")
    }
    again = drawn_nodules(lambda patient: patient in (1, 2, 11, 14, 16, 42, 43, 44), 3)
    assert all(np.array_equal(one.hu, other.hu) for one, other in zip(nodules, again, strict=True))
    assert all(nodule.drawn and nodule.mask.any() for nodule in nodules)
    assert kinds["calcified"]
    assert kinds["ground glass"]
    for nodule in kinds["calcified"]:
        assert nodule.ratings[CONCEPT_NAMES.index("calcification")] <= 5
        assert np.quantile(nodule.hu[nodule.mask], 0.95) > 90
    glass = [n for n in kinds["ground glass"] if n.ratings[CONCEPT_NAMES.index("texture")] <= 1.5]
    for nodule in glass:
        assert -800 < np.median(nodule.hu[nodule.mask]) < -300
