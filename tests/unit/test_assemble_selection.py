"""Which objects take part: what is set aside, what repeats, whose they are; multi-frame objects, folders, codes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import (
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    MediaStorageDirectoryStorage,
    SecondaryCaptureImageStorage,
)

from pulmo_models.codes import CautionCode, RejectionCode
from pulmo_models.types import SeriesDescription
from pulmo_node.assemble import assemble, assemble_ct, describe, find_series
from pulmo_node.errors import Rejected
from tests.assembling import assembled, copy_of, other_volumes, rejected, second_of
from tests.conftest import ROOT
from tests.ct_factory import (
    ct_datasets,
    enhanced_from,
    ramp_hu,
    set_pixels,
    true_affine,
    write_datasets,
    write_part10,
)


class TestSetAside:
    def test_localizer_no_pixels_no_position_and_foreign_class_are_left_out_by_name(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        localizer, no_pixels, no_position, capture = (copy_of(datasets[0]) for _ in range(4))
        localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        localizer.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        del no_pixels.PixelData
        del no_position.ImagePositionPatient
        capture.SOPClassUID = SecondaryCaptureImageStorage
        volume = assembled([localizer, *datasets, no_pixels, no_position, capture], tmp_path)
        assert np.array_equal(volume.hu, ramp_hu())
        (sentence,) = (caution.sentence for caution in volume.cautions)
        assert "IM0000.dcm: a localizer" in sentence
        assert "IM0011.dcm: no pixel data" in sentence
        assert "IM0012.dcm: no position" in sentence
        assert "IM0013.dcm: not a CT image but Secondary Capture" in sentence

    def test_a_gap_where_something_was_left_out_says_so(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        del datasets[4].PixelData, datasets[6].PixelData
        error = rejected(datasets, tmp_path)
        assert error.code == RejectionCode.MISSING_SLICE
        assert "left out before: IM0004.dcm: no pixel data; IM0006.dcm: no pixel data" in error.sentence

    @pytest.mark.parametrize(
        ("image_type", "reason"),
        [
            (["DERIVED", "SECONDARY", "MIP"], "a projection through a slab (image type MIP)"),
            (["DERIVED", "SECONDARY", "AXIAL", "MINIP"], "a projection through a slab (image type MINIP)"),
            (["DERIVED", "SECONDARY", "SCREEN SAVE"], "a picture of a screen (image type SCREEN SAVE)"),
            (["DERIVED", "SECONDARY", "DOSE_INFO"], "a picture of a screen (image type DOSE_INFO)"),
        ],
    )
    def test_image_types_that_are_no_slices(self, image_type: list[str], reason: str, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        other = copy_of(datasets[2])
        other.ImageType = image_type
        volume = assembled([*datasets, other], tmp_path)
        assert np.array_equal(volume.hu, ramp_hu())
        (caution,) = volume.cautions
        assert caution.code == CautionCode.SET_ASIDE
        assert f"IM0010.dcm: {reason}" in caution.sentence

    def test_nothing_is_left(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        for ds in datasets:
            ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        error = rejected(datasets, tmp_path)
        assert error.code == RejectionCode.NO_IMAGES
        assert "localizer" in error.sentence


class TestDuplicates:
    def test_equal_pixels_are_taken_once(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        volume = assembled([*datasets, copy_of(datasets[3])], tmp_path)
        assert np.array_equal(volume.hu, ramp_hu())
        (sentence,) = (caution.sentence for caution in volume.cautions)
        assert "repetitions (1)" in sentence

    def test_the_same_file_twice(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        assert np.array_equal(assembled([*datasets, datasets[3]], tmp_path).hu, ramp_hu())

    def test_different_pixels_are_refused(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        other = copy_of(datasets[3])
        set_pixels(other, ramp_hu()[4] + 1024)
        error = rejected([*datasets, other], tmp_path)
        assert error.code == RejectionCode.DUPLICATE_POSITION
        assert "IM0003.dcm" in error.sentence
        assert "IM0010.dcm" in error.sentence

    def test_equal_stored_values_with_another_rescale_differ(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        other = copy_of(datasets[3])
        other.RescaleIntercept = -1000
        assert rejected([*datasets, other], tmp_path).code == RejectionCode.DUPLICATE_POSITION

    def test_one_uid_for_two_slices(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        datasets[6].SOPInstanceUID = datasets[2].SOPInstanceUID
        assert rejected(datasets, tmp_path).code == RejectionCode.DUPLICATE_UID


class TestSubject:
    def test_a_patient_id_of_an_object_that_is_set_aside_counts(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        localizer = copy_of(datasets[0])
        localizer.ImageType, localizer.PatientID = ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SECRET-2"
        error = rejected([*datasets, localizer], tmp_path)
        assert error.code == RejectionCode.PATIENT_CONFLICT
        assert "SECRET" not in str(error)

    def test_two_patients_and_neither_is_named(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        datasets[8].PatientID, datasets[8].PatientName = "SECRET-2", "Doe^Jane"
        error = rejected(datasets, tmp_path)
        assert error.code == RejectionCode.PATIENT_CONFLICT
        assert error.file == "IM0008.dcm"
        for secret in ("SECRET-2", "PHANTOM-1", "Doe", "Phantom^Peter"):
            assert secret not in str(error)
            assert secret not in repr(error)


class TestMultiFrame:
    @pytest.mark.parametrize("sop_class", [EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage])
    def test_frames_in_any_order_make_the_same_volume(self, sop_class: str, tmp_path: Path) -> None:
        hu = 2 * ramp_hu() + 1000
        datasets = ct_datasets(hu, slope=2)
        order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
        path = tmp_path / "enhanced.dcm"
        write_part10(enhanced_from([datasets[k] for k in order], sop_class), path)
        volume = assemble_ct([path], describe([path]))
        assert np.array_equal(volume.hu, hu)
        assert np.abs(volume.affine - true_affine((2.5, 0.7, 0.8), (-120, -110, -300))).max() < 1e-6
        assert [source.frame_number for source in volume.frames] == [order.index(k) + 1 for k in range(10)]
        assert {source.sop_class_uid for source in volume.frames} == {sop_class}

    def test_rescale_of_each_frame(self, tmp_path: Path) -> None:
        hu = ramp_hu()
        datasets = ct_datasets(hu)
        for k, ds in enumerate(datasets):
            ds.RescaleIntercept = -1024 - k
            set_pixels(ds, hu[k] + 1024 + k)
        path = tmp_path / "enhanced.dcm"
        write_part10(enhanced_from(datasets), path)
        assert np.array_equal(assemble_ct([path], describe([path])).hu, hu)

    def test_two_objects_make_one_volume(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        paths = [tmp_path / "a.dcm", tmp_path / "b.dcm"]
        write_part10(enhanced_from(datasets[::2]), paths[0])
        write_part10(enhanced_from(datasets[1::2]), paths[1])
        assert np.array_equal(assemble_ct(paths, describe(paths)).hu, ramp_hu())

    @pytest.mark.parametrize(("keyword", "values"), [("StackID", ("1", "2")), ("TemporalPositionIndex", (1, 2))])
    def test_stacks_and_phases_of_one_object(self, keyword: str, values: tuple[object, object], tmp_path: Path) -> None:
        first = ct_datasets(ramp_hu())
        second = second_of(first)
        ds = enhanced_from([*first, *second])
        for k, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
            setattr(group.FrameContentSequence[0], keyword, values[k // 10])
        path = tmp_path / "enhanced.dcm"
        write_part10(ds, path)
        volume = assemble_ct([path], describe([path]))
        assert np.array_equal(volume.hu, ramp_hu())
        assert [frame.frame_number for frame in volume.frames] == list(range(1, 11))
        assert "10 images from enhanced.dcm frame 11" in other_volumes(volume)

    def test_the_kernel_of_a_legacy_converted_object(self, tmp_path: Path) -> None:
        ds = enhanced_from(ct_datasets(ramp_hu()), LegacyConvertedEnhancedCTImageStorage)
        shared = ds.SharedFunctionalGroupsSequence[0]
        del shared.CTReconstructionSequence
        item = Dataset()
        item.ConvolutionKernel, item.ContrastBolusAgent = "LUNG", "Iomeron"
        shared.UnassignedSharedConvertedAttributesSequence = [item]
        path = tmp_path / "legacy.dcm"
        write_part10(ds, path)
        acquisition = assemble_ct([path], describe([path])).acquisition
        assert (acquisition.kernel, acquisition.contrast_agent) == ("LUNG", "Iomeron")

    def test_too_few_functional_groups(self, tmp_path: Path) -> None:
        ds = enhanced_from(ct_datasets(ramp_hu()))
        del ds.PerFrameFunctionalGroupsSequence[3]
        path = tmp_path / "enhanced.dcm"
        write_part10(ds, path)
        with pytest.raises(Rejected, match="9 per-frame functional groups for 10 frames") as caught:
            assemble_ct([path], describe([path]))
        assert caught.value.code == RejectionCode.UNREADABLE


class TestModality:
    def test_other_modalities_are_refused(self) -> None:
        series = SeriesDescription(study_instance_uid="1.2", series_instance_uid="1.3", modality="MR")
        with pytest.raises(Rejected) as caught:
            assemble([], series)
        assert caught.value.code == RejectionCode.UNSUPPORTED_MODALITY


class TestDescribe:
    def test_what_a_rule_may_ask(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        datasets[0].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        paths = write_datasets(datasets, tmp_path)
        assert describe(paths, "SCANNER") == SeriesDescription(
            study_instance_uid=datasets[0].StudyInstanceUID,
            series_instance_uid=datasets[0].SeriesInstanceUID,
            modality="CT",
            sop_class_uids=(datasets[0].SOPClassUID,),
            calling_ae_title="SCANNER",
            body_part_examined="CHEST",
            series_description="phantom",
            image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
            number_of_instances=10,
        )

    def test_two_series(self, tmp_path: Path) -> None:
        paths = write_datasets([*ct_datasets(ramp_hu()), *ct_datasets(ramp_hu())], tmp_path)
        with pytest.raises(Rejected) as caught:
            describe(paths)
        assert caught.value.code == RejectionCode.SEVERAL_SERIES

    def test_no_file_can_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(Rejected) as caught:
            describe([tmp_path / "missing.dcm"])
        assert caught.value.code == RejectionCode.UNREADABLE
        assert str(tmp_path) not in str(caught.value)


class TestFindSeries:
    def test_series_are_grouped_and_every_other_file_is_named(self, tmp_path: Path) -> None:
        first, second = ct_datasets(ramp_hu()), ct_datasets(ramp_hu((9, 4, 4)))
        write_datasets(first, tmp_path / "a", seed=1)
        write_datasets(second[:5], tmp_path / "a" / "deep")
        write_datasets(second[5:], tmp_path / "b")
        (tmp_path / "README.txt").write_text("no image")
        (tmp_path / "empty").touch()
        directory = copy_of(first[0])
        directory.SOPClassUID = MediaStorageDirectoryStorage
        write_part10(directory, tmp_path / "DICOMDIR")
        found = find_series(tmp_path)
        by_uid = {item.description.series_instance_uid: item for item in found.series}
        assert set(by_uid) == {first[0].SeriesInstanceUID, second[0].SeriesInstanceUID}
        assert len(by_uid[first[0].SeriesInstanceUID].paths) == 10
        other = by_uid[second[0].SeriesInstanceUID]
        assert other.description.number_of_instances == 9
        assert np.array_equal(assemble_ct(other.paths, other.description).hu, ramp_hu((9, 4, 4)))
        reasons = {item.file: item.reason for item in found.set_aside}
        assert set(reasons) == {"README.txt", "empty", "DICOMDIR"}
        assert "DICM" in reasons["README.txt"]
        assert "DICOMDIR" in reasons["DICOMDIR"]

    def test_a_folder_that_cannot_be_listed_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A part of a series may lie in it."""
        datasets = ct_datasets(ramp_hu())
        write_datasets(datasets[:5], tmp_path / "a")
        write_datasets(datasets[5:], tmp_path / "closed")
        scandir = os.scandir

        def refusing(path: str | Path) -> object:
            if Path(path).name == "closed":
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refusing)
        found = find_series(tmp_path)
        assert [len(series.paths) for series in found.series] == [5]
        (aside,) = found.set_aside
        assert aside.file == "closed"
        assert aside.reason == "a folder that cannot be listed: Permission denied"
        with pytest.raises(Rejected) as caught:
            find_series(tmp_path / "closed")
        assert caught.value.code == RejectionCode.UNREADABLE

    def test_a_folder_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(Rejected) as caught:
            find_series(tmp_path / "missing")
        assert caught.value.code == RejectionCode.UNREADABLE


@pytest.mark.parametrize("code", [*RejectionCode, *CautionCode])
def test_every_code_is_documented_with_meaning_and_cure(code: str) -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(f"| `{code}` |"))
    _, _, meaning, cure, _ = (part.strip() for part in line.split("|"))
    assert meaning
    assert cure
