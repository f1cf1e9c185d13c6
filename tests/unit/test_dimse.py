"""Statuses, Error Comment, and which transfer syntaxes an installation decodes."""

from __future__ import annotations

import pydicom
import pytest
from pydicom import uid
from pydicom.uid import UID

from pulmo_node.assemble.pixels import read_pixel_module, stored_values
from pulmo_node.dimse import (
    COMPRESSED,
    IMAGE_SOP_CLASSES,
    UNCOMPRESSED,
    DimseStatus,
    StatusKind,
    decodable_transfer_syntaxes,
    decoder_gaps,
    error_comment,
    has_decoder,
    status_in_words,
    status_kind,
)
from tests.conftest import data_folder

SYNTAXES = "ct_edge_cases/ct_chest_one_slice_all_syntaxes"


class TestStatusKind:
    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (0x0000, StatusKind.SUCCESS),
            (0x0001, StatusKind.WARNING),
            (0x0107, StatusKind.WARNING),
            (0x0111, StatusKind.WARNING),
            (0x0116, StatusKind.WARNING),
            (0xB000, StatusKind.WARNING),
            (0xB006, StatusKind.WARNING),
            (0xB007, StatusKind.WARNING),
            (0xBFFF, StatusKind.WARNING),
            (0xA700, StatusKind.BUSY),
            (0xA7FF, StatusKind.BUSY),
            (0x0213, StatusKind.BUSY),
            (0xA800, StatusKind.REFUSED),
            (0xA900, StatusKind.REFUSED),
            (0xC000, StatusKind.REFUSED),
            (0xCFFF, StatusKind.REFUSED),
            (0x0110, StatusKind.REFUSED),
            (0x0122, StatusKind.REFUSED),
            (0x0124, StatusKind.REFUSED),
            (0xFE00, StatusKind.REFUSED),
        ],
    )
    def test_by_range(self, status: int, kind: StatusKind) -> None:
        assert status_kind(status) is kind

    def test_every_named_status_is_known_by_a_kind(self) -> None:
        kinds = {status: status_kind(status) for status in DimseStatus}
        assert [status for status, kind in kinds.items() if kind is StatusKind.SUCCESS] == [DimseStatus.SUCCESS]


class TestWords:
    @pytest.mark.parametrize(
        ("status", "words"),
        [
            (0x0000, "0x0000: success"),
            (0xA900, "0xA900: data set does not match SOP class"),
            (0xA9FF, "0xA9FF: data set does not match SOP class"),
            (0xA701, "0xA701: out of resources"),
            (0xC123, "0xC123: cannot understand"),
            (0x0122, "0x0122: SOP class not supported"),
            (0xB123, "0xB123: warning"),
            (0x0999, "0x0999: failure"),
        ],
    )
    def test_named_by_range(self, status: int, words: str) -> None:
        assert status_in_words(status) == words

    def test_comment_of_the_peer_is_quoted(self) -> None:
        assert status_in_words(0xA700, "disk full") == "0xA700: out of resources, 'disk full'"


class TestErrorComment:
    def test_64_characters_fit(self) -> None:
        assert error_comment("x" * 64) == "x" * 64

    def test_longer_ones_are_cut(self) -> None:
        assert error_comment("x" * 65) == "x" * 61 + "..."

    def test_only_printable_ascii_without_backslash(self) -> None:
        assert error_comment("a\\b\nc\x00dé") == "a?b?c?d?"


class TestDecoders:
    def test_no_gap_in_this_installation(self) -> None:
        assert decoder_gaps() == ()

    def test_a_missing_plugin_is_a_gap_and_no_longer_accepted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        decoder = pydicom.pixels.get_decoder(uid.HTJ2KLosslessRPCL)
        monkeypatch.setattr(decoder, "_available", {})
        assert decoder_gaps() == (uid.HTJ2KLosslessRPCL.name,)
        assert uid.HTJ2KLosslessRPCL not in decodable_transfer_syntaxes()

    def test_everything_known_is_accepted(self) -> None:
        assert set(decodable_transfer_syntaxes()) == {*UNCOMPRESSED, *COMPRESSED}

    def test_jpeg_extended_only_with_gdcm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        decoder = pydicom.pixels.get_decoder(uid.JPEGExtended12Bit)
        monkeypatch.setattr(decoder, "_available", {"pillow": None})
        assert not has_decoder(uid.JPEGExtended12Bit)

    def test_uncompressed_are_preferred(self) -> None:
        assert decodable_transfer_syntaxes()[0] == uid.ExplicitVRLittleEndian

    def test_real_slices_are_decoded_in_every_accepted_syntax(self) -> None:
        """What is promised at negotiation is kept: the lossless files of one slice give equal pixels."""
        lossy = {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEG2000, uid.JPEGLSNearLossless}
        decoded = {}
        for path in data_folder(SYNTAXES).glob("*.dcm"):
            data_set = read_pixel_module(path)
            decoded[path.stem.rsplit("_", 1)[1]] = stored_values(path, data_set)
        reference = decoded[uid.ImplicitVRLittleEndian]
        assert set(decoded) <= set(decodable_transfer_syntaxes())
        assert len(decoded) == 12
        for syntax, pixels in decoded.items():
            assert pixels.shape == reference.shape
            if syntax not in lossy:
                assert (pixels == reference).all(), UID(syntax).name

    def test_htj2k_slice_equals_its_twin(self) -> None:
        folder = data_folder("ct_edge_cases/htj2k")
        twin = pydicom.dcmread(folder / "CT1_J2KR_reference.dcm").pixel_array
        assert (pydicom.dcmread(folder / "CT1_JPH.dcm").pixel_array == twin).all()


def test_image_sop_classes_are_the_five_of_the_node() -> None:
    assert [sop_class.name for sop_class in IMAGE_SOP_CLASSES] == [
        "CT Image Storage",
        "Enhanced CT Image Storage",
        "Legacy Converted Enhanced CT Image Storage",
        "Computed Radiography Image Storage",
        "Digital X-Ray Image Storage - For Presentation",
    ]
