"""Reading ahead: what it saves, what it holds, and that no volume ever depends on it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless

from pulmo_models.types import Volume
from pulmo_node.assemble import ReadAhead, SeriesFiles, ahead, assemble, describe, headers, pixels
from tests.ct_factory import ct_datasets, ramp_hu, write_datasets

MOST = 1 << 30
LONG = 60.0


def compressed(datasets: Sequence[Dataset]) -> list[Dataset]:
    for dataset in datasets:
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.compress(JPEGLSLossless, generate_instance_uid=False)
    return list(datasets)


def volume_of(paths: Sequence[Path], files: SeriesFiles | None = None) -> Volume:
    volume = assemble(paths, describe(paths, files=files), files)
    assert isinstance(volume, Volume)
    return volume


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return write_datasets(compressed(ct_datasets(ramp_hu((10, 64, 64)))), tmp_path / "ct", seed=3)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every frame that is decoded."""
    frames: list[int] = []
    decode = pixels.decode

    def counted(encoded: bytes, layout: object) -> object:
        frames.append(len(encoded))
        return decode(encoded, layout)  # type: ignore[arg-type]

    monkeypatch.setattr(pixels, "decode", counted)
    return frames


def test_the_volume_is_the_same_and_nothing_is_read_or_decoded_twice(
    paths: list[Path], decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = volume_of(paths)
    decoded.clear()
    reading = ReadAhead(MOST)
    assert not reading.read(paths[:6], LONG)  # as they arrive
    assert not reading.read(paths, LONG)
    assert len(decoded) == len(paths)
    assert reading.held_bytes > 10 * 64 * 64 * 2
    monkeypatch.setattr(headers, "read_whole_header", None)
    found = volume_of(paths, reading.take(paths))
    assert len(decoded) == len(paths)
    assert np.array_equal(found.hu, expected.hu)
    assert np.array_equal(found.affine, expected.affine)
    assert found.frames == expected.frames
    assert reading.held_bytes == 0


def test_what_was_not_read_is_read_in_the_end(paths: list[Path], decoded: list[int]) -> None:
    reading = ReadAhead(MOST)
    reading.read(paths[3:5], LONG)
    found = volume_of(paths, reading.take(paths))
    assert len(decoded) == len(paths)
    assert np.array_equal(found.hu, volume_of(paths).hu)


def test_a_file_that_was_replaced_counts_as_it_is_now(paths: list[Path], tmp_path: Path) -> None:
    reading = ReadAhead(MOST)
    reading.read(paths, LONG)
    changed = dcmread(paths[4])
    changed.decompress(generate_instance_uid=False)
    changed.PixelData = bytes(len(changed.PixelData))
    changed.save_as(tmp_path / "new.dcm")
    (tmp_path / "new.dcm").replace(paths[4])
    found = volume_of(paths, reading.take(paths))
    assert np.array_equal(found.hu, volume_of(paths).hu)
    assert sum((image == -1024).all() for image in found.hu) == 1


def test_a_late_file_under_the_name_of_one_that_went_away(paths: list[Path]) -> None:
    reading = ReadAhead(MOST)
    reading.read(paths, LONG)
    content = paths[0].read_bytes()
    paths[0].unlink()
    assert len(volume_of(paths[1:], reading.take(paths[1:])).hu) == 9
    paths[0].write_bytes(content)
    os.utime(paths[0], ns=(1, 1))
    assert len(volume_of(paths, reading.take(paths)).hu) == 10


def test_it_holds_no_more_than_it_may(paths: list[Path], tmp_path: Path) -> None:
    each = 64 * 64 * 2 + ahead._HEADER_BYTES
    reading = ReadAhead(4 * each)
    assert not reading.read(paths, LONG)  # no room: nothing is left to do
    assert 0 < reading.held_bytes <= 4 * each
    others = write_datasets(compressed(ct_datasets(ramp_hu((3, 64, 64)))), tmp_path / "others", seed=4)
    reading.read(others, LONG)  # takes the room of what is no longer asked for
    assert reading.held_bytes <= 4 * each
    files = reading.take(others)
    assert all(files.take_stored(path) is not None for path in others)


def test_there_is_more_to_read_when_the_moment_is_over(paths: list[Path]) -> None:
    reading = ReadAhead(MOST)
    calls = 0
    while reading.read(paths, 0.0):
        calls += 1
    assert calls >= 3
    files = reading.take(paths)
    assert all(files.take_stored(path) is not None for path in paths)


def test_what_cannot_be_read_is_left_to_assembly(paths: list[Path]) -> None:
    paths[2].write_bytes(b"no DICOM")
    reading = ReadAhead(MOST)
    assert not reading.read([*paths, paths[0].with_name("gone.dcm")], LONG)
    rest = [path for path in paths if path != paths[2]]
    files = reading.take(paths)
    assert files.take_stored(paths[2]) is None
    assert all(files.take_stored(path) is not None for path in rest)


def test_uncompressed_images_are_not_kept(tmp_path: Path) -> None:
    plain = write_datasets(ct_datasets(ramp_hu((10, 64, 64))), tmp_path / "ct", seed=3)
    reading = ReadAhead(MOST)
    reading.read(plain, LONG)
    files = reading.take(plain)
    assert all(files.take_stored(path) is None for path in plain)
    assert np.array_equal(volume_of(plain, files).hu, ramp_hu((10, 64, 64)))
