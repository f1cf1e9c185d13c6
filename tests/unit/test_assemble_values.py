"""Stored values to Hounsfield units: rescale, signedness, unused bits, padding, limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from pulmo_models.types import Volume
from pulmo_node.assemble import RejectionCode, assemble_ct, describe
from pulmo_node.errors import Rejected
from tests.assembling import traced
from tests.ct_factory import ct_datasets, enhanced_from, ramp_hu, set_pixels, write_datasets, write_part10

SHAPE = (10, 8, 8)


def assembled(datasets: list[Dataset], folder: Path) -> Volume:
    paths = write_datasets(datasets, folder, seed=3)
    return assemble_ct(paths, describe(paths))


def rejected(datasets: list[Dataset], folder: Path) -> Rejected:
    with pytest.raises(Rejected) as caught:
        assembled(datasets, folder)
    return caught.value


class TestRescale:
    @pytest.mark.parametrize("signed", [True, False])
    @pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (2, -1000), (0.5, -1024)])
    def test_slope_and_intercept(self, slope: float, intercept: float, signed: bool, tmp_path: Path) -> None:
        hu = 2 * ramp_hu(SHAPE) + 1000
        datasets = ct_datasets(hu, slope=slope, intercept=intercept, signed=signed)
        volume = assembled(datasets, tmp_path)
        assert volume.hu.dtype == np.float32
        assert np.array_equal(volume.hu, hu)

    def test_each_slice_has_its_own_rescale_and_signedness(self, tmp_path: Path) -> None:
        hu = 4 * ramp_hu(SHAPE) + 3000
        datasets = ct_datasets(hu)
        for k, ds in enumerate(datasets):
            ds.RescaleSlope, ds.RescaleIntercept = (1, 2, 4, 0.25)[k % 4], (-1024, -2000, -1000, -1024)[k % 4]
            ds.PixelRepresentation = k % 2
            ds.BitsStored, ds.HighBit = 16, 15
            set_pixels(ds, (hu[k] - ds.RescaleIntercept) / ds.RescaleSlope)
        assert np.array_equal(assembled(datasets, tmp_path).hu, hu)

    def test_fractional_slope_keeps_its_precision(self, tmp_path: Path) -> None:
        stored = np.arange(np.prod(SHAPE)).reshape(SHAPE)
        hu = stored * 2.0002442 - 1000.25
        datasets = ct_datasets(hu, slope=2.0002442, intercept=-1000.25)
        assert np.abs(assembled(datasets, tmp_path).hu - hu).max() < 1e-3

    def test_nothing_wraps_at_the_ends_of_sixteen_bits(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu(SHAPE))
        for ds in datasets:
            ds.RescaleSlope, ds.RescaleIntercept = 4, 30000
            set_pixels(ds, np.full(SHAPE[1:], 65535))
        assert (assembled(datasets, tmp_path).hu == 65535 * 4 + 30000).all()

    def test_metal_is_kept_and_below_air_is_clipped(self, tmp_path: Path) -> None:
        hu = np.zeros(SHAPE)
        hu[:, 0, 0], hu[:, 0, 1] = 30000, -2000
        volume = assembled(ct_datasets(hu, signed=True), tmp_path)
        assert (volume.hu[:, 0, 0] == 30000).all()
        assert (volume.hu[:, 0, 1] == -1024).all()

    def test_monochrome1_does_not_turn_hu(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu(SHAPE))
        for ds in datasets:
            ds.PhotometricInterpretation = "MONOCHROME1"
        assert np.array_equal(assembled(datasets, tmp_path).hu, ramp_hu(SHAPE))

    @pytest.mark.parametrize("name", ["HU", "", None, "Houndsfield Unit"])
    def test_names_of_the_unit(self, name: str | None, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu(SHAPE))
        for ds in datasets:
            if name is None:
                del ds.RescaleType
            else:
                ds.RescaleType = name
        assert np.array_equal(assembled(datasets, tmp_path).hu, ramp_hu(SHAPE))

    @pytest.mark.parametrize("name", ["US", "HU_MOD", "Z_EFF", "OD"])
    def test_other_units_are_refused(self, name: str, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu(SHAPE))
        datasets[2].RescaleType = name
        error = rejected(datasets, tmp_path)
        assert error.code == RejectionCode.NOT_HU
        assert error.tag == "(0028,1054) RescaleType"

    def with_lut(self, kind: str, entries: np.ndarray) -> list[Dataset]:
        """Stored values 0 to 255 through a table of HU; slices 0 to 4 have no rescale, the others both."""
        stored = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 256
        datasets = ct_datasets(stored.astype(np.float64), intercept=0)
        for k, ds in enumerate(datasets):
            item = Dataset()
            item.add_new("LUTDescriptor", "US", [256, 0, 16])
            item.ModalityLUTType = kind
            item.add_new("LUTData", "OW", entries.astype("<i2").tobytes())
            ds.ModalityLUTSequence = [item]
            if k < 5:
                del ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType
        return datasets

    def test_a_modality_lut_of_hu_takes_the_place_of_the_rescale(self, tmp_path: Path) -> None:
        entries = np.linspace(-1000, 3000, 256).astype(int)
        stored = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 256
        assert np.array_equal(assembled(self.with_lut("HU", entries), tmp_path).hu, entries[stored])

    @pytest.mark.parametrize("kind", ["US", "OD", "HU_MOD"])
    def test_a_modality_lut_of_something_else_is_refused(self, kind: str, tmp_path: Path) -> None:
        error = rejected(self.with_lut(kind, np.arange(256)), tmp_path)
        assert error.code == RejectionCode.NOT_HU
        assert error.tag == "(0028,3004) ModalityLUTType"

    @pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
    def test_rescale_missing(self, keyword: str, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu(SHAPE))
        del datasets[5][keyword]
        assert rejected(datasets, tmp_path).code == RejectionCode.RESCALE_MISSING

    def test_slope_zero(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu(SHAPE))
        datasets[5].RescaleSlope = 0
        assert rejected(datasets, tmp_path).code == RejectionCode.RESCALE_MISSING


def test_memory_stays_near_one_volume(tmp_path: Path) -> None:
    paths = write_datasets(ct_datasets(np.zeros((60, 256, 256))), tmp_path)
    volume, peak = traced(paths)
    assert peak < 1.5 * volume.hu.nbytes


class TestBits:
    def test_eight_bits(self, tmp_path: Path) -> None:
        hu = (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 256) * 8.0 - 1000
        datasets = ct_datasets(hu, slope=8, intercept=-1000)
        for ds, image in zip(datasets, hu, strict=True):
            ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
            set_pixels(ds, (image + 1000) / 8)
        assert np.array_equal(assembled(datasets, tmp_path).hu, hu)

    @pytest.mark.parametrize("signed", [True, False])
    def test_overlay_bits_above_the_high_bit_are_cleared(self, signed: bool, tmp_path: Path) -> None:
        hu = ramp_hu(SHAPE)
        datasets = ct_datasets(hu, intercept=0 if signed else -1024, signed=signed, bits_stored=12)
        for ds in datasets:
            raw = np.frombuffer(ds.PixelData, dtype="<u2") & 0x0FFF
            overlay = (np.arange(raw.size, dtype=np.uint16) % 16) << 12
            ds.PixelData = (raw | overlay).tobytes()
        assert np.array_equal(assembled(datasets, tmp_path).hu, hu)

    def test_bits_that_do_not_start_at_zero_are_refused(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu(SHAPE))
        for ds in datasets:
            ds.BitsStored, ds.HighBit = 12, 15
        error = rejected(datasets, tmp_path)
        assert error.code == RejectionCode.UNSUPPORTED_PIXELS
        assert error.tag == "(0028,0102) HighBit"

    @pytest.mark.parametrize("transfer_syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
    @pytest.mark.parametrize("signed", [True, False])
    def test_compressed_pixels_are_the_same(self, signed: bool, transfer_syntax: str, tmp_path: Path) -> None:
        hu = ramp_hu((10, 32, 32)) % 3000 - 1000
        plain = ct_datasets(hu, signed=signed, intercept=0 if signed else -1024, bits_stored=13)
        folder = tmp_path / "compressed"
        folder.mkdir()
        paths = write_datasets(plain, tmp_path / "plain")
        for ds, path in zip(plain, paths, strict=True):
            ds.compress(transfer_syntax, generate_instance_uid=False)
            write_part10(ds, folder / path.name)
        volume = assemble_ct(sorted(folder.iterdir()), describe(paths))
        assert np.array_equal(volume.hu, hu)

    @pytest.mark.parametrize("transfer_syntax", [RLELossless, JPEGLSLossless])
    def test_frames_of_a_compressed_multi_frame_object(self, transfer_syntax: str, tmp_path: Path) -> None:
        """Several threads decode frames of one data set."""
        hu = ramp_hu((24, 32, 32)) % 3000 - 1000
        enhanced = enhanced_from(ct_datasets(hu))
        enhanced.file_meta = FileMetaDataset()
        enhanced.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        enhanced.compress(transfer_syntax, generate_instance_uid=False)
        write_part10(enhanced, tmp_path / "enhanced.dcm")
        volume = assemble_ct([tmp_path / "enhanced.dcm"], describe([tmp_path / "enhanced.dcm"]))
        assert np.array_equal(volume.hu, hu)
        assert [frame.frame_number for frame in volume.frames] == list(range(1, 25))


class TestPadding:
    def with_padding(self, value: int, limit: int | None, vr: str, signed: bool = True) -> list[Dataset]:
        """A slice of 40 HU whose first row is padding -2000 and whose second runs from -1990."""
        hu = np.full(SHAPE, 40.0)
        datasets = ct_datasets(hu, signed=signed, intercept=0)
        for ds in datasets:
            stored = np.full(SHAPE[1:], 40)
            stored[0], stored[1] = value, np.arange(value, value + SHAPE[2])
            set_pixels(ds, stored)
            ds.add_new("PixelPaddingValue", vr, value % 65536 if vr == "US" else value)
            if limit is not None:
                ds.add_new("PixelPaddingRangeLimit", vr, limit % 65536 if vr == "US" else limit)
        return datasets

    def test_padding_inside_the_range_of_tissue_becomes_air(self, tmp_path: Path) -> None:
        hu = assembled(self.with_padding(300, None, "SS"), tmp_path).hu
        assert (hu[:, 0] == -1024).all()
        assert (hu[:, 1, 0] == -1024).all()
        assert np.array_equal(hu[0, 1, 1:], np.arange(301, 308))
        assert (hu[:, 2:] == 40).all()

    @pytest.mark.parametrize("limit", [305, 295])
    def test_padding_range_in_either_direction(self, limit: int, tmp_path: Path) -> None:
        hu = assembled(self.with_padding(300, limit, "SS"), tmp_path).hu
        truth = [300 + k if (k > 5 or (limit < 300 and k > 0)) else -1024 for k in range(8)]
        assert hu[0, 1].tolist() == truth

    def test_negative_padding_written_as_unsigned(self, tmp_path: Path) -> None:
        datasets = self.with_padding(-500, None, "US")
        for ds in datasets:
            ds["PixelPaddingValue"].VR = "US"
        hu = assembled(datasets, tmp_path).hu
        assert (hu[:, 0] == -1024).all()
        assert hu[0, 1, 1] == -499

    def test_padding_is_compared_before_the_rescale(self, tmp_path: Path) -> None:
        datasets = self.with_padding(300, None, "SS")
        for ds in datasets:
            ds.RescaleSlope, ds.RescaleIntercept = 2, -100
        hu = assembled(datasets, tmp_path).hu
        assert (hu[:, 0] == -1024).all()
        assert (hu[:, 2:] == -20).all()

    def test_minus_2000_that_no_tag_declares_is_clipped(self, tmp_path: Path) -> None:
        hu = np.full(SHAPE, 40.0)
        hu[:, 0] = -2000
        assert (assembled(ct_datasets(hu, signed=True, intercept=0), tmp_path).hu[:, 0] == -1024).all()


class TestBrokenPixels:
    def test_truncated_file_names_file_and_reason(self, tmp_path: Path) -> None:
        paths = write_datasets(ct_datasets(ramp_hu(SHAPE)), tmp_path)
        paths[4].write_bytes(paths[4].read_bytes()[:-20])
        with pytest.raises(Rejected) as caught:
            assemble_ct(paths, describe(paths))
        assert caught.value.code == RejectionCode.DECODE_FAILED
        assert caught.value.file == paths[4].name
        assert "pixel data" in caught.value.sentence

    def test_truncated_header(self, tmp_path: Path) -> None:
        paths = write_datasets(ct_datasets(ramp_hu(SHAPE)), tmp_path)
        paths[4].write_bytes(paths[4].read_bytes()[:200])
        with pytest.raises(Rejected) as caught:
            assemble_ct(paths, describe(paths))
        assert caught.value.code == RejectionCode.UNREADABLE
        assert caught.value.file == paths[4].name

    def test_a_codestream_of_noise(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu(SHAPE))
        paths = write_datasets(datasets, tmp_path)
        broken = datasets[4]
        broken.file_meta.TransferSyntaxUID = JPEG2000Lossless
        broken.PixelData = encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
        broken["PixelData"].VR = "OB"
        broken["PixelData"].is_undefined_length = True
        write_part10(broken, paths[4])
        with pytest.raises(Rejected) as caught:
            assemble_ct(paths, describe(paths))
        assert caught.value.code == RejectionCode.DECODE_FAILED
        assert caught.value.file == paths[4].name

    def test_a_value_that_is_no_number(self, tmp_path: Path) -> None:
        paths = write_datasets(ct_datasets(ramp_hu(SHAPE)), tmp_path)
        data = paths[4].read_bytes()
        assert ExplicitVRLittleEndian.encode() in data
        paths[4].write_bytes(data.replace(b"0.7\\0.8 ", b"DOE^JANE"))
        with pytest.raises(Rejected) as caught:
            assemble_ct(paths, describe(paths))
        assert caught.value.code == RejectionCode.UNREADABLE
        assert "DOE" not in str(caught.value)
