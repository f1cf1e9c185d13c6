"""Radiographs whose truth is known: grey scale, views, spacing, what is set aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import DataElement, Dataset
from pydicom.uid import (
    DigitalXRayImageStorageForProcessing,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from pulmo_models.codes import CautionCode, RejectionCode
from pulmo_models.types import Radiograph, RadiographSeries
from pulmo_node.assemble import Rejected, assemble, describe
from tests.radiograph_factory import STORED, radiograph, write_series


def assembled(folder: Path, *datasets: Dataset) -> RadiographSeries:
    paths = write_series(folder, *datasets)
    found = assemble(paths, describe(paths))
    assert isinstance(found, RadiographSeries)
    return found


def one(folder: Path, **elements: Any) -> Radiograph:
    (image,) = assembled(folder, radiograph(**elements)).images
    return image


def lut(entries: list[int], first: int, bits: int, data_vr: str = "OW") -> list[Dataset]:
    item = Dataset()
    item.LUTDescriptor, item.LUTExplanation = [len(entries), first, bits], "test"
    item.add_new("LUTData", data_vr, np.array(entries, "<u2").tobytes() if data_vr == "OW" else entries)
    return [item]


def short_lut() -> list[Dataset]:
    (item,) = lut([1, 2], 0, 12)
    item.LUTDescriptor = [5, 0, 12]
    return [item]


class TestGreyScale:
    def test_without_anything_the_display_is_the_range_of_the_values(self, tmp_path: Path) -> None:
        image = one(tmp_path)
        assert np.array_equal(image.pixels, STORED)
        np.testing.assert_allclose(image.display, STORED / 2900, atol=1e-6)

    def test_monochrome1_is_inverted_after_the_window(self, tmp_path: Path) -> None:
        window = {"WindowCenter": 1000, "WindowWidth": 800, "VOILUTFunction": "LINEAR_EXACT"}
        right, inverted = (
            one(tmp_path / photometric, PhotometricInterpretation=photometric, **window)
            for photometric in ("MONOCHROME2", "MONOCHROME1")
        )
        assert np.array_equal(inverted.pixels, 2900.0 - STORED)
        np.testing.assert_allclose(right.display, np.clip((STORED - 600.0) / 800, 0, 1), atol=1e-6)
        np.testing.assert_allclose(inverted.display, 1 - right.display, atol=1e-6)

    @pytest.mark.parametrize(
        ("function", "at_centre", "at_1200"),
        [
            # PS3.3 C.11.2.1.2.1: ((x - (c - 0.5)) / (w - 1) + 0.5) and C.11.2.1.3.1 and .2
            (None, 0.5 / 799 + 0.5, 200.5 / 799 + 0.5),
            ("LINEAR", 0.5 / 799 + 0.5, 200.5 / 799 + 0.5),
            ("LINEAR_EXACT", 0.5, 0.75),
            ("SIGMOID", 0.5, 1 / (1 + np.exp(-1.0))),
        ],
    )
    def test_window_functions(self, function: str | None, at_centre: float, at_1200: float, tmp_path: Path) -> None:
        elements = {} if function is None else {"VOILUTFunction": function}
        image = one(tmp_path, WindowCenter=[1000, 5], WindowWidth=[800, 5], **elements)
        assert image.display.flat[10] == pytest.approx(at_centre, abs=1e-6)
        assert image.display.flat[12] == pytest.approx(at_1200, abs=1e-6)

    def test_a_window_of_width_one_is_a_step(self, tmp_path: Path) -> None:
        image = one(tmp_path, WindowCenter=1000.5, WindowWidth=1)
        assert np.array_equal(image.display, STORED > 1000)

    def test_the_rescale_goes_before_the_window(self, tmp_path: Path) -> None:
        image = one(
            tmp_path, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=1900, WindowWidth=1600,
            VOILUTFunction="LINEAR_EXACT",
        )  # fmt: skip
        assert np.array_equal(image.pixels, STORED * 2.0 - 100)
        np.testing.assert_allclose(image.display, np.clip((STORED - 600.0) / 800, 0, 1), atol=1e-6)

    @pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
    @pytest.mark.parametrize("data_vr", ["US", "OW"])
    def test_a_modality_lut_in_every_encoding(self, syntax: str, data_vr: str, tmp_path: Path) -> None:
        table = [60000 - 20 * value for value in range(2901)]
        ds = radiograph(ModalityLUTSequence=lut(table, 0, 16, data_vr))
        ds.ModalityLUTSequence[0].ModalityLUTType = "OD"
        paths = write_series(tmp_path, ds, transfer_syntax=syntax)
        series = assemble(paths, describe(paths))
        assert isinstance(series, RadiographSeries)
        assert np.array_equal(series.images[0].pixels, 60000 - 20.0 * STORED)

    @pytest.mark.parametrize(("bits", "in_bytes"), [(8, False), (8, True), (12, False)])
    def test_a_voi_lut_goes_before_the_window_and_clamps(self, bits: int, in_bytes: bool, tmp_path: Path) -> None:
        top = 2**bits - 1
        table = [round(top * (value / 1000) ** 2) for value in range(1001)]
        sequence = lut(table, 500, bits)
        if in_bytes:
            sequence[0].LUTData = bytes(table) + b"\0"
        image = one(tmp_path, VOILUTSequence=sequence, WindowCenter=1, WindowWidth=1)
        expected = np.rint(top * (np.clip(STORED.astype(float) - 500, 0, 1000) / 1000) ** 2) / top
        np.testing.assert_allclose(image.display, expected, atol=1e-6)
        assert np.array_equal(image.pixels, STORED)

    @pytest.mark.parametrize(
        ("descriptor", "syntax", "signed"),
        [
            ("SS", ExplicitVRLittleEndian, True),
            ("US", ExplicitVRLittleEndian, True),  # as many files have it, 64036 for -1500
            ("SS", ImplicitVRLittleEndian, True),
            ("SS", ImplicitVRLittleEndian, False),  # unsigned values, and a rescale below 0
        ],
    )
    def test_a_voi_lut_that_begins_below_zero(self, descriptor: str, syntax: str, signed: bool, tmp_path: Path) -> None:
        (item,) = lut(list(range(2901)), 0, 12)
        first = -1500 if descriptor == "SS" else 65536 - 1500
        item["LUTDescriptor"] = DataElement("LUTDescriptor", descriptor, [2901, first, 12])
        ds = radiograph(VOILUTSequence=[item], PixelRepresentation=int(signed))
        if signed:
            ds.PixelData = ((STORED.astype(np.int16) - 1500) & 0x0FFF).astype("<u2").tobytes()
        else:
            ds.RescaleSlope, ds.RescaleIntercept = 1, -1500
        paths = write_series(tmp_path, ds, transfer_syntax=syntax)
        series = assemble(paths, describe(paths))
        assert isinstance(series, RadiographSeries)
        assert np.array_equal(series.images[0].pixels, STORED.astype(np.float32) - 1500)
        np.testing.assert_allclose(series.images[0].display, STORED / 4095, atol=1e-6)

    @pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
    def test_padding_is_dark_and_widens_no_range(self, photometric: str, tmp_path: Path) -> None:
        stored = STORED.copy()
        stored[0] = 4095
        image = one(tmp_path, stored=stored, PixelPaddingValue=4095, PhotometricInterpretation=photometric)
        assert (image.display[0] == 0).all()
        assert image.pixels[0].max() == image.pixels[1:].min()
        assert image.display[1:].max() == 1

    def test_signed_values(self, tmp_path: Path) -> None:
        stored = STORED.astype(np.int16) - 1500
        ds = radiograph(PixelRepresentation=1)
        ds.PixelData = (stored & 0x0FFF).astype("<u2").tobytes()  # 12 bits, the sign bit is bit 11
        assert np.array_equal(assembled(tmp_path, ds).images[0].pixels, stored)

    def test_a_flat_image_is_black(self, tmp_path: Path) -> None:
        assert not one(tmp_path, stored=np.full((6, 5), 7, dtype=np.uint16)).display.any()

    @pytest.mark.parametrize(
        ("photometric", "shape", "doubtful"),
        [
            ("MONOCHROME2", "IDENTITY", False),
            ("MONOCHROME1", "INVERSE", False),
            ("MONOCHROME2", "INVERSE", True),
            ("MONOCHROME1", "IDENTITY", True),
        ],
    )
    def test_a_file_that_contradicts_itself(self, photometric: str, shape: str, doubtful: bool, tmp_path: Path) -> None:
        image = one(tmp_path, PhotometricInterpretation=photometric, PresentationLUTShape=shape)
        assert [caution.code for caution in image.cautions] == [CautionCode.LOOKS_INVERTED] * doubtful


class TestSpacing:
    @pytest.mark.parametrize(
        ("elements", "spacing_mm", "plane"),
        [
            ({}, (0.2, 0.2), "detector"),
            ({"PixelSpacing": [0, 0]}, (0.2, 0.2), "detector"),
            ({"PixelSpacing": None}, (0.2, 0.2), "detector"),
            ({"PixelSpacing": [0.2, 0.2]}, (0.2, 0.2), "detector"),
            ({"PixelSpacing": [0.18, 0.18]}, (0.18, 0.18), "patient"),
            ({"PixelSpacing": [0.2, 0.2], "PixelSpacingCalibrationType": "GEOMETRY"}, (0.2, 0.2), "patient"),
            ({"PixelSpacing": [0.17, 0.17], "ImagerPixelSpacing": None}, (0.17, 0.17), "detector"),
            ({"ImagerPixelSpacing": None}, None, None),
            ({"ImagerPixelSpacing": [0, 0]}, None, None),
            ({"ImagerPixelSpacing": None, "NominalScannedPixelSpacing": [0.4, 0.4]}, (0.4, 0.4), "detector"),
        ],
    )
    def test_where_it_holds(
        self, elements: dict[str, Any], spacing_mm: tuple[float, float] | None, plane: str | None, tmp_path: Path
    ) -> None:
        ds = radiograph()
        for keyword, value in elements.items():
            if value is None:
                ds.pop(keyword, None)
            else:
                setattr(ds, keyword, value)
        image = assembled(tmp_path, ds).images[0]
        assert (image.spacing_mm, image.spacing_plane) == (spacing_mm, plane)

    def test_aspect(self, tmp_path: Path) -> None:
        assert one(tmp_path / "a", ImagerPixelSpacing=[0.4, 0.2]).pixel_aspect == 2.0
        assert one(tmp_path / "b", ImagerPixelSpacing=None, PixelAspectRatio=[3, 2]).pixel_aspect == 1.5
        assert one(tmp_path / "c", ImagerPixelSpacing=None).pixel_aspect == 1.0


class TestView:
    @pytest.mark.parametrize(
        ("position", "view"),
        [
            ("PA", "PA"),
            ("AP", "AP"),
            ("LL", "lateral"),
            ("RL", "lateral"),
            ("LATERAL", "lateral"),
            ("LLD", "other"),
            ("RAO", "other"),
            ("SWIMMERS", "other"),
            ("", "unknown"),
        ],
    )
    def test_view_position(self, position: str, view: str, tmp_path: Path) -> None:
        assert one(tmp_path, ViewPosition=position).view == view

    @pytest.mark.parametrize(
        ("code", "scheme", "view"),
        [
            ("272479007", "SCT", "PA"),
            ("399348003", "SCT", "AP"),
            ("399033003", "SCT", "frontal"),
            ("399173006", "SCT", "lateral"),
            ("R-10232", "SRT", "lateral"),
            ("R-10206", "SNM3", "AP"),
            ("R-10202", "SNM3", "frontal"),
            ("399135007", "SCT", "other"),  # left anterior oblique
        ],
    )
    def test_the_code_goes_first(self, code: str, scheme: str, view: str, tmp_path: Path) -> None:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, scheme, "a view"
        position = "" if view == "other" else "RL"
        assert one(tmp_path, ViewCodeSequence=[item], ViewPosition=position).view == view

    @pytest.mark.parametrize(
        ("orientation", "position", "view"),
        [
            (["A", "F"], "", "lateral"),
            (["P", "F"], "", "lateral"),
            (["L", "F"], "", "unknown"),
            (["P", "F"], "AP", "AP"),
            (["P", "L"], "", "unknown"),  # from above or below
            ("PA", "", "unknown"),
            ("", "", "unknown"),
        ],
    )
    def test_where_nothing_else_does_the_orientation_tells_a_lateral_one(
        self, orientation: list[str] | str, position: str, view: str, tmp_path: Path
    ) -> None:
        assert one(tmp_path, PatientOrientation=orientation, ViewPosition=position).view == view


class TestSeries:
    def test_one_radiograph_for_each_image_in_the_order_of_their_numbers(self, tmp_path: Path) -> None:
        later, earlier = radiograph(InstanceNumber=2, ViewPosition="LL"), radiograph(InstanceNumber=1)
        series = assembled(tmp_path, later, earlier)
        assert [image.view for image in series.images] == ["PA", "lateral"]
        assert [image.source.sop_instance_uid for image in series.images] == [
            earlier.SOPInstanceUID,
            later.SOPInstanceUID,
        ]
        assert series.cautions == ()

    def test_what_is_no_radiograph_is_set_aside_and_named(self, tmp_path: Path) -> None:
        colour = radiograph(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
        frames = radiograph(NumberOfFrames=2)
        frames.PixelData = frames.PixelData * 2
        processing = radiograph(SOPClassUID=DigitalXRayImageStorageForProcessing)
        series = assembled(tmp_path, colour, frames, processing, radiograph())
        assert len(series.images) == 1
        (caution,) = series.cautions
        assert caution.code == CautionCode.SET_ASIDE
        for number, words in enumerate(("no greyscale image", "2 frames", "made for processing"), start=1):
            assert f"film-{number}.dcm" in caution.sentence
            assert words in caution.sentence

    @pytest.mark.parametrize(
        ("elements", "code"),
        [
            ({"PresentationIntentType": "FOR PROCESSING"}, RejectionCode.NOT_FOR_PRESENTATION),
            ({"SOPClassUID": DigitalXRayImageStorageForProcessing}, RejectionCode.NOT_FOR_PRESENTATION),
            ({"PhotometricInterpretation": "PALETTE COLOR"}, RejectionCode.UNSUPPORTED_PIXELS),
            ({"HighBit": 15}, RejectionCode.UNSUPPORTED_PIXELS),
            ({"WindowCenter": 1, "WindowWidth": 0}, RejectionCode.UNREADABLE),
            ({"PixelData": b"\0\0"}, RejectionCode.DECODE_FAILED),
            ({"VOILUTSequence": short_lut()}, RejectionCode.UNREADABLE),
        ],
    )
    def test_why_there_is_none(self, elements: dict[str, Any], code: RejectionCode, tmp_path: Path) -> None:
        with pytest.raises(Rejected) as caught:
            assembled(tmp_path, radiograph(**elements))
        assert caught.value.code == code
        assert "film-1.dcm" in caught.value.reason

    def test_no_pixels(self, tmp_path: Path) -> None:
        with pytest.raises(Rejected) as caught:
            assembled(tmp_path, radiograph(PixelData=None))
        assert caught.value.code == RejectionCode.NO_IMAGES

    def test_the_source_is_named(self, tmp_path: Path) -> None:
        uid = generate_uid()
        image = one(tmp_path, SOPInstanceUID=uid)
        assert image.source.sop_instance_uid == uid
        assert image.source.path == str(tmp_path / "film-1.dcm")
