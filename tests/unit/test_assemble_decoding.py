"""Compressed frames: what is refused before it is decoded, and what a decoder that goes astray costs."""

from __future__ import annotations

import os
import signal
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from pulmo_node.assemble import RejectionCode, decoding
from pulmo_node.assemble.codestream import check_codestream
from pulmo_node.assemble.decoding import DecodingError, FrameLayout, decode
from pulmo_node.assemble.files import MOST_INFLATED_BYTES, read_elements, read_header
from pulmo_node.errors import Rejected
from tests.ct_factory import ct_datasets, write_part10

SIDE = 64
SOF_SIZE = slice(5, 9)  # rows and columns, from the marker on
SIZ_FIELDS = 8  # of the codestream: Xsiz, Ysiz, XOsiz, YOsiz, XTsiz, YTsiz, XTOsiz, YTOsiz, Csiz


def noise(side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 3000, (1, side, side)).astype(np.float64) - 1000


def encoded_frame(syntax: str, side: int = SIDE) -> tuple[bytes, FrameLayout]:
    (dataset,) = ct_datasets(noise(side))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.compress(syntax, generate_instance_uid=False)
    layout = FrameLayout(
        transfer_syntax=syntax,
        rows=side,
        columns=side,
        bits_allocated=16,
        bits_stored=16,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
    )
    return get_frame(dataset.PixelData, 0, number_of_frames=1), layout


def with_siz(encoded: bytes, **changes: int) -> bytes:
    names = ("x1", "y1", "x0", "y0", "tile_width", "tile_height", "tile_x0", "tile_y0", "components")
    values = dict(zip(names, struct.unpack_from(">8IH", encoded, SIZ_FIELDS), strict=True)) | changes
    changed = bytearray(encoded)
    struct.pack_into(">8IH", changed, SIZ_FIELDS, *values.values())
    return bytes(changed)


def with_sof(encoded: bytes, rows: int, columns: int, marker: int = 0xF7) -> bytes:
    at = encoded.index(bytes([0xFF, marker]))
    changed = bytearray(encoded)
    changed[at + 5 : at + 9] = struct.pack(">HH", rows, columns)
    return bytes(changed)


def check(encoded: bytes, syntax: str) -> None:
    check_codestream(encoded, UID(syntax), SIDE, SIDE)


class TestWhatTheCodestreamDeclares:
    @pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
    def test_what_encoders_write_passes(self, syntax: str) -> None:
        encoded, _ = encoded_frame(syntax)
        check(encoded, syntax)

    @pytest.mark.parametrize("side", [60_000, 65, 63])
    def test_jpeg_2000_of_another_size(self, side: int) -> None:
        encoded, _ = encoded_frame(JPEG2000Lossless)
        with pytest.raises(ValueError, match=f"is 64 x {side} pixels, the data set says 64 x 64"):
            check(with_siz(encoded, x1=side, tile_width=side), JPEG2000Lossless)

    def test_an_image_offset_counts(self) -> None:
        encoded, _ = encoded_frame(JPEG2000Lossless)
        check(with_siz(encoded, x0=36, x1=100, tile_width=100), JPEG2000Lossless)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"tile_width": 1, "tile_height": 1}, "4096"),
            ({"tile_width": 0}, "impossible"),
            ({"x0": 128}, "impossible"),
            ({"tile_x0": 1}, "impossible"),
            ({"components": 16_384}, "16384 components"),
            ({"components": 3}, "3 components"),
        ],
    )
    def test_jpeg_2000_that_asks_for_too_much(self, changes: dict[str, int], reason: str) -> None:
        encoded, _ = encoded_frame(JPEG2000Lossless, 128)
        with pytest.raises(ValueError, match=reason):
            check_codestream(with_siz(encoded, **changes), UID(JPEG2000Lossless), 128, 128)

    def test_jpeg_2000_in_a_jp2_file(self) -> None:
        encoded, _ = encoded_frame(JPEG2000Lossless)
        signature = b"\0\0\0\x0cjP  \r\n\x87\n"
        check(signature + b"\0\0\0\x0aabcd\0\0" + b"\0\0\0\0jp2c" + encoded, JPEG2000Lossless)
        with pytest.raises(ValueError, match="60000"):
            check(signature + b"\0\0\0\0jp2c" + with_siz(encoded, x1=60_000, tile_width=60_000), JPEG2000Lossless)
        with pytest.raises(ValueError, match="holds no codestream"):  # pydicom would walk such boxes for ever
            check(signature + b"\0\0\0\0abcd" + encoded, JPEG2000Lossless)

    @pytest.mark.parametrize("size", [(65_500, 65_500), (64, 63), (0, 64)])
    def test_jpeg_ls_of_another_size(self, size: tuple[int, int]) -> None:
        encoded, _ = encoded_frame(JPEGLSLossless)
        with pytest.raises(ValueError, match=f"is {size[0]} x {size[1]} pixels"):
            check(with_sof(encoded, *size), JPEGLSLossless)

    def test_the_frame_header_of_jpeg_is_found_behind_other_segments(self) -> None:
        jpeg = b"\xff\xd8\xff\xe0\x00\x04\xff\xc3\xff\xff\xff\xc3\x00\x0b\x10" + struct.pack(">HHB", 64, 64, 1)
        check(jpeg + b"\x01\x11\x00\xff\xd9", JPEGLosslessSV1)
        with pytest.raises(ValueError, match="is 64 x 65 pixels"):
            check(with_sof(jpeg[8:], 64, 65, 0xC3).join((jpeg[:8], b"\xff\xd9")), JPEGLosslessSV1)

    @pytest.mark.parametrize("encoded", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00", b"\xff\xd8" + bytes(50)])
    def test_no_header_at_all(self, encoded: bytes) -> None:
        for syntax in (JPEGLSLossless, JPEGLosslessSV1, JPEG2000Lossless):
            with pytest.raises(ValueError, match="codestream"):
                check(encoded, syntax)

    @pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
    def test_a_cut_codestream(self, syntax: str) -> None:
        encoded, _ = encoded_frame(syntax)
        with pytest.raises(ValueError, match="cut off"):
            check(encoded[: len(encoded) // 2], syntax)
        check(encoded + b"\x80", syntax)  # padding to an even length, which need not be 0


class TestDecoderProcess:
    @pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
    def test_values(self, syntax: str) -> None:
        encoded, layout = encoded_frame(syntax)
        assert np.array_equal(decode(encoded, layout), noise()[0] + 1024)

    def test_a_frame_that_no_decoder_accepts_leaves_the_process_alive(self) -> None:
        encoded, layout = encoded_frame(JPEG2000Lossless)
        decode(encoded, layout)
        before = decoding._idle[-1]
        with pytest.raises(DecodingError, match="pylibjpeg"):
            decode(encoded[:200] + bytes(len(encoded) - 200), layout)
        assert decoding._idle[-1] is before
        assert np.array_equal(decode(encoded, layout), noise()[0] + 1024)

    def test_a_process_that_ended_while_idle_costs_no_frame(self) -> None:
        encoded, layout = encoded_frame(JPEGLSLossless)
        decode(encoded, layout)
        for decoder in decoding._idle:
            decoder._process.kill()
            decoder._process.wait()
        assert np.array_equal(decode(encoded, layout), noise()[0] + 1024)

    def test_a_crash_is_told_and_the_next_frame_decodes(self) -> None:
        encoded, layout = encoded_frame(JPEGLSLossless)
        decoder = decoding._Decoder()
        os.kill(decoder._process.pid, signal.SIGSTOP)  # so that it dies with the frame in its hands
        decoder._connection.send_bytes(b"{}")
        os.kill(decoder._process.pid, signal.SIGSEGV)
        os.kill(decoder._process.pid, signal.SIGCONT)
        with pytest.raises(DecodingError, match=r"crashed the decoder \(SIGSEGV\)"):
            decoder.decode(encoded, layout)
        assert not decoder.running
        assert np.array_equal(decode(encoded, layout), noise()[0] + 1024)

    def test_a_decoder_that_computes_for_ever_is_stopped(self) -> None:
        """A cut JPEG-LS frame, which `check_codestream` would not have let through."""
        encoded, layout = encoded_frame(JPEGLSLossless, 512)
        with pytest.raises(DecodingError):
            decode(encoded[: len(encoded) // 2], layout)
        assert np.array_equal(decode(encoded, layout), noise(512)[0] + 1024)

    def test_a_frame_of_gigabytes_stays_within_memory(self) -> None:
        """A size that `check_codestream` would not have let through."""
        encoded, layout = encoded_frame(JPEG2000Lossless)
        side = 30_000
        with pytest.raises(DecodingError):
            decode(with_siz(encoded, x1=side, y1=side, tile_width=side, tile_height=side), layout)
        usage = [line for line in status_of_idle().splitlines() if line.startswith("VmHWM")]
        assert all(int(line.split()[1]) < 512 * 1024 for line in usage)

    def test_another_size_than_asked_for(self) -> None:
        encoded, layout = encoded_frame(JPEGLSLossless)
        with pytest.raises(DecodingError):
            decode(encoded, replace(layout, rows=32))


def status_of_idle() -> str:
    return "".join(Path(f"/proc/{decoder._process.pid}/status").read_text() for decoder in decoding._idle)


class TestDeflated:
    def written(self, pixel_bytes: int, path: Path) -> Dataset:
        (dataset,) = ct_datasets(np.zeros((1, 8, 8)))
        dataset.PixelData = bytes(pixel_bytes)
        write_part10(dataset, path, DeflatedExplicitVRLittleEndian)
        return dataset

    def test_it_reads_as_explicit_little_endian(self, tmp_path: Path) -> None:
        dataset = self.written(128, tmp_path / "a.dcm")
        header, has_pixels = read_header(tmp_path / "a.dcm", ("SOPInstanceUID",))
        assert header.SOPInstanceUID == dataset.SOPInstanceUID
        assert has_pixels
        assert read_elements(tmp_path / "a.dcm", ("PixelData",)).PixelData == bytes(128)

    def test_without_pixels(self, tmp_path: Path) -> None:
        (dataset,) = ct_datasets(np.zeros((1, 8, 8)))
        del dataset.PixelData
        write_part10(dataset, tmp_path / "a.dcm", DeflatedExplicitVRLittleEndian)
        assert not read_header(tmp_path / "a.dcm", ("SOPInstanceUID",))[1]

    def test_a_bomb_is_refused(self, tmp_path: Path) -> None:
        self.written(MOST_INFLATED_BYTES, tmp_path / "bomb.dcm")
        assert (tmp_path / "bomb.dcm").stat().st_size < MOST_INFLATED_BYTES / 900
        for read in (read_header, read_elements):
            with pytest.raises(Rejected, match="inflates to more than 128 MiB") as caught:
                read(tmp_path / "bomb.dcm", ("SOPInstanceUID",))
            assert caught.value.code == RejectionCode.UNREADABLE

    def test_a_cut_one(self, tmp_path: Path) -> None:
        self.written(128, tmp_path / "a.dcm")
        (tmp_path / "a.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[:-20])
        with pytest.raises(Rejected, match="cut off"):
            read_header(tmp_path / "a.dcm", ("SOPInstanceUID",))

    def test_noise_instead_of_a_stream(self, tmp_path: Path) -> None:
        self.written(128, tmp_path / "a.dcm")
        content = (tmp_path / "a.dcm").read_bytes()
        at = len(content) - 200
        (tmp_path / "a.dcm").write_bytes(content[:at] + zlib.compress(b"no raw stream") * 5)
        with pytest.raises(Rejected) as caught:
            read_header(tmp_path / "a.dcm", ("SOPInstanceUID",))
        assert caught.value.code == RejectionCode.UNREADABLE
