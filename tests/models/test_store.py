"""The patch store: what goes in comes out, in another process too; an unfinished or foreign file is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from pulmo_models.training.store import Patch, PatchStore, StoreInvalid, StoreWriter, Window
from pulmo_models.types import CONCEPT_NAMES

WINDOW = (4, 6, 8)
PATCH = (3, 5, 5)


def write(path: Path) -> None:
    random = np.random.default_rng(1)
    with StoreWriter(path, window=WINDOW, patch=PATCH, provenance={"command": "test", "seed": 1}) as store:
        for number, split in enumerate(("train", "validation", "train")):
            store.add_window(
                Window(
                    hu=np.full(WINDOW, number - 1024, np.int16),
                    spacing_mm=(2.5, 0.7, 0.7),
                    nodules=np.array([[1, 2, 3, 8.5]] * number, np.float32).reshape(-1, 4),
                    unknown=np.array([[0, 0, 0, 2, 2, number]], np.int32),
                    patient=f"patient {number}",
                    split=split,
                    source="made",
                )
            )
        store.add_patch(
            Patch(
                hu=random.integers(-1024, 3000, PATCH).astype(np.int16),
                spacing_mm=(1, 0.5, 0.5),
                mask=np.eye(5, dtype=bool)[None].repeat(3, 0),
                detection=1,
                malignancy=3.25,
                ratings=np.arange(len(CONCEPT_NAMES), dtype=np.float32),
                readers=4,
                diameter_mm=9.0,
                inserted=True,
                patient="patient 1",
                split="test",
                source="nodule of one in the lung of another",
            )
        )
        store.add_patch(
            Patch(
                hu=np.zeros(PATCH, np.int16), spacing_mm=(1, 1, 1), detection=0, patient="p", split="train", source="v"
            )
        )
        store.drop("fewer than three readers", 5)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a.h5")
    store = pickle.loads(pickle.dumps(PatchStore(tmp_path / "a.h5")))  # noqa: S301
    assert store.provenance == {"command": "test", "seed": 1}
    assert store.dropped == {"fewer than three readers": 5}
    assert store.rows("stage1", "train").tolist() == [0, 2]
    assert store.rows("stage2", "test").tolist() == [0]
    window = store.window(2)
    assert window.hu.dtype == np.int16
    assert (window.hu == 1 - 1024 + 0).sum() == 0
    assert (window.hu == 2 - 1024).all()
    assert window.nodules.tolist() == [[1, 2, 3, 8.5]] * 2
    assert window.unknown.tolist() == [[0, 0, 0, 2, 2, 2]]
    assert (window.patient, window.split) == ("patient 2", "train")
    patch = store.patch(0)
    assert patch.mask is not None
    assert np.array_equal(patch.mask[1], np.eye(5, dtype=bool))
    assert patch.hu.tolist() == np.random.default_rng(1).integers(-1024, 3000, PATCH).tolist()
    assert patch.ratings.tolist() == list(range(8))
    assert (patch.malignancy, patch.readers, patch.diameter_mm, patch.inserted) == (3.25, 4, 9.0, True)
    assert store.patch(1).mask is None
    assert np.isnan(store.patch(1).ratings).all()


def test_a_sample_of_another_shape_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="the store holds"),
        StoreWriter(tmp_path / "a.h5", window=None, patch=PATCH, provenance={}) as store,
    ):
        store.add_patch(
            Patch(
                hu=np.zeros((1, 2, 3), np.int16),
                spacing_mm=(1, 1, 1),
                detection=0,
                patient="p",
                split="train",
                source="s",
            )
        )
    assert list(tmp_path.iterdir()) == []


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.h5").write_bytes(b"no HDF5")
    for name in ("b.h5", "missing.h5"):
        with pytest.raises(StoreInvalid, match=name):
            PatchStore(tmp_path / name)
