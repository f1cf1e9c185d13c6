"""Plain pixels are read straight from the file: the same values as pydicom's, and no word where the file is unusual."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pulmo_node.assemble.headers import Header, read_whole_header
from pulmo_node.assemble.pixels import native_values, read_pixel_module, stored_values
from tests.ct_factory import ct_datasets, write_part10


def image(**options: object) -> Dataset:
    hu = np.random.default_rng(7).integers(-1000, 2000, (1, 12, 16)).astype(float)
    (dataset,) = ct_datasets(hu, **options)  # type: ignore[arg-type]
    return dataset


def header_of(dataset: Dataset, path: Path) -> Header:
    write_part10(dataset, path)
    return read_whole_header(path)


@pytest.mark.parametrize(
    "options", [{}, {"signed": True, "intercept": 0.0}, {"bits_stored": 12}, {"signed": True, "bits_stored": 13}]
)
def test_the_values_are_those_of_pydicom(options: dict[str, object], tmp_path: Path) -> None:
    dataset = image(**options)
    path = tmp_path / "a.dcm"
    found = native_values(header_of(dataset, path))
    assert found is not None
    expected = stored_values(path, read_pixel_module(path))
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    assert np.array_equal(expected, dcmread(path).pixel_array)


def test_implicit_value_representations_too(tmp_path: Path) -> None:
    dataset, path = image(), tmp_path / "a.dcm"
    write_part10(dataset, path)
    changed = dcmread(path)
    expected = changed.pixel_array
    changed.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    changed.save_as(path, enforce_file_format=True)
    found = native_values(read_whole_header(path))
    assert found is not None
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_the_high_bit_are_cleared(signed: bool, tmp_path: Path) -> None:
    dataset, path = image(signed=signed, bits_stored=12), tmp_path / "a.dcm"
    clean = np.frombuffer(dataset.PixelData, "<u2") & 0x0FFF
    dataset.PixelData = (clean | 0x1000).astype("<u2").tobytes()  # an overlay plane of old
    found = native_values(header_of(dataset, path))
    assert found is not None
    assert np.array_equal(found, stored_values(path, read_pixel_module(path)))
    assert np.array_equal(found.ravel().view("<u2") & 0x0FFF, clean)


def _cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def _longer(path: Path) -> None:
    content = path.read_bytes()
    length = 12 * 16 * 2
    at = content.rindex(struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, length))
    grown = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, 2 * length)
    path.write_bytes(content[:at] + grown + content[at + len(grown) :] + bytes(length))


@pytest.mark.parametrize("spoil", [_cut_off, _longer])
def test_pixels_that_are_not_what_the_header_says_are_left_to_pydicom(
    spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "a.dcm"
    write_part10(image(), path)
    spoil(path)
    assert native_values(read_whole_header(path)) is None


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("SamplesPerPixel", 3), ("PhotometricInterpretation", "PALETTE COLOR"), ("NumberOfFrames", 2)],
)
def test_unusual_headers_are_left_to_pydicom(keyword: str, value: object, tmp_path: Path) -> None:
    dataset = image()
    setattr(dataset, keyword, value)
    assert native_values(header_of(dataset, tmp_path / "a.dcm")) is None


def test_big_endian_is_left_to_pydicom(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    write_part10(image(), path)
    header = read_whole_header(path)
    assert header.dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    header.dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    assert native_values(header) is None


def test_a_file_that_was_written_again_is_not_taken_for_the_one_whose_header_was_read(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    header = header_of(image(), path)
    path.write_bytes(path.read_bytes() + b"\0\0")
    assert native_values(header) is None
