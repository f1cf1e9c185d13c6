"""Which objects make the volume: what is set aside, what repeats, what must not be mixed; folders and descriptions."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import (
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    MediaStorageDirectoryStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from pulmo_models.codes import CautionCode
from pulmo_models.types import Acquisition, Caution, Radiograph, SeriesDescription, Volume
from pulmo_node.assemble import RejectionCode, assemble, assemble_ct, describe, find_series, plan_ct
from pulmo_node.assemble.kernels import kernel_use
from pulmo_node.assemble.slices import SliceReader
from pulmo_node.errors import Rejected
from tests.conftest import ROOT
from tests.ct_factory import ct_datasets, enhanced_from, ramp_hu, set_pixels, true_affine, write_datasets, write_part10


def assembled(datasets: list[Dataset], folder: Path) -> Volume:
    paths = write_datasets(datasets, folder)
    return assemble_ct(paths, describe(paths))


def rejected(datasets: list[Dataset], folder: Path) -> Rejected:
    with pytest.raises(Rejected) as caught:
        assembled(datasets, folder)
    return caught.value


def copy_of(ds: Dataset) -> Dataset:
    copied = deepcopy(ds)
    copied.SOPInstanceUID = generate_uid()
    return copied


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


def second_of(datasets: list[Dataset], hu_offset: float = 100.0, **changes: object) -> list[Dataset]:
    """The same images again with other pixels, other UIDs and these elements changed."""
    copies = [copy_of(ds) for ds in datasets]
    for ds in copies:
        ds.RescaleIntercept = float(ds.RescaleIntercept) + hu_offset
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
    return copies


def other_volumes(volume: Volume) -> str:
    (caution,) = (caution for caution in volume.cautions if caution.code == CautionCode.OTHER_VOLUMES)
    return caution.sentence


class TestSplits:
    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"AcquisitionNumber": 2}, "its acquisition is a later one"),
            ({"ConvolutionKernel": "B70f"}, "its kernel is sharper"),
            ({"ConvolutionKernel": "BONE"}, "its kernel is for bone or edges"),
            ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]}, "its images are derived"),
            ({"TemporalPositionIdentifier": 2}, "it was taken later"),
            ({"TriggerTime": 450}, "it was taken later"),
            ({"NominalPercentageOfCardiacPhase": 75}, "it was taken later"),
        ],
    )
    def test_two_stacks_of_the_same_positions(self, changes: dict[str, object], why: str, tmp_path: Path) -> None:
        first = ct_datasets(ramp_hu())
        for ds in first:
            ds.TemporalPositionIdentifier, ds.TriggerTime, ds.NominalPercentageOfCardiacPhase = 1, 20, 30
            ds.ConvolutionKernel = "B30f"
        second = second_of(first, **changes)
        volume = assembled([ds for pair in zip(second, first, strict=True) for ds in pair], tmp_path)
        assert [frame.sop_instance_uid for frame in volume.frames] == [ds.SOPInstanceUID for ds in first]
        assert np.array_equal(volume.hu, ramp_hu())
        assert "10 images from" in other_volumes(volume)
        assert why in other_volumes(volume)

    @pytest.mark.parametrize("repeat", [2, 3])
    def test_images_that_instance_numbers_tell_apart(self, repeat: int, tmp_path: Path) -> None:
        sets = [ct_datasets(ramp_hu())]
        for number in range(1, repeat):
            sets.append(second_of(sets[0], 100.0 * number))
            for k, ds in enumerate(sets[-1]):
                ds.InstanceNumber = 10 * number + k + 1
        volume = assembled([ds for group in zip(*sets, strict=True) for ds in group], tmp_path)
        assert np.array_equal(volume.hu, ramp_hu())
        assert other_volumes(volume).count("10 images") == repeat - 1

    def test_images_that_alternate_in_their_numbers(self, tmp_path: Path) -> None:
        first = ct_datasets(ramp_hu())
        second = second_of(first)
        for k, (one, other) in enumerate(zip(first, second, strict=True)):
            one.InstanceNumber, other.InstanceNumber = 2 * k + 1, 2 * k + 2
        assert np.array_equal(assembled([*second, *first], tmp_path).hu, ramp_hu())

    def test_images_that_the_time_tells_apart(self, tmp_path: Path) -> None:
        first = ct_datasets(ramp_hu())
        second = second_of(first)
        for k, (one, other) in enumerate(zip(first, second, strict=True)):
            one.InstanceNumber = other.InstanceNumber = 1
            one.AcquisitionDate = other.AcquisitionDate = "20260101"
            one.AcquisitionTime, other.AcquisitionTime = f"1200{k:02d}", f"1201{k:02d}"
        assert np.array_equal(assembled([*second, *first], tmp_path).hu, ramp_hu())

    def test_two_fields_of_view(self, tmp_path: Path) -> None:
        first = ct_datasets(ramp_hu())
        second = second_of(first)
        for one, other in zip(first, second, strict=True):
            one.InstanceNumber = other.InstanceNumber = 1
            x, y, z = one.ImagePositionPatient
            other.ImagePositionPatient = [x + 50, y, z]
        volume = assembled([*second, *first], tmp_path)
        (x,) = {round(frame.origin_lps_mm[0]) for frame in volume.frames}
        assert x in (-120, -70)
        assert np.array_equal(volume.hu, ramp_hu() + (100 if x == -70 else 0))
        assert "10 images" in other_volumes(volume)

    def test_nothing_tells_them_apart(self, tmp_path: Path) -> None:
        first = ct_datasets(ramp_hu())
        for ds in first:
            ds.InstanceNumber = 1
        error = rejected([*first, *second_of(first)], tmp_path)
        assert error.code == RejectionCode.DUPLICATE_POSITION

    def test_numbers_that_cross_tell_nothing(self, tmp_path: Path) -> None:
        first = ct_datasets(ramp_hu())
        second = second_of(first)
        numbers = np.random.default_rng(3).permutation(20)
        for ds, number in zip([*first, *second], numbers, strict=True):
            ds.InstanceNumber = int(number)
        assert rejected([*first, *second], tmp_path).code == RejectionCode.DUPLICATE_POSITION

    def test_interleaved_acquisitions_are_two_volumes(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu((20, 4, 4)))
        for ds in datasets[1::2]:
            ds.AcquisitionNumber = 2
        volume = assembled(datasets, tmp_path)
        assert np.array_equal(volume.hu, ramp_hu((20, 4, 4))[::2])
        assert volume.spacing_mm[0] == pytest.approx(5)

    def test_step_and_shoot_acquisitions_join_end_to_end(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        for k, ds in enumerate(datasets):
            ds.AcquisitionNumber = 1 + k // 4
        volume = assembled(datasets, tmp_path)
        assert np.array_equal(volume.hu, ramp_hu())
        assert volume.cautions == (
            Caution(
                code=CautionCode.JOINED_ACQUISITIONS,
                sentence="The volume joins 3 acquisitions that follow one another.",
            ),
        )

    def test_two_phases_of_step_and_shoot(self, tmp_path: Path) -> None:
        first = ct_datasets(ramp_hu((24, 4, 4)))
        second = second_of(first)
        for k, (one, other) in enumerate(zip(first, second, strict=True)):
            one.AcquisitionNumber, other.AcquisitionNumber = 1 + k // 8, 12 - k // 8
        volume = assembled([*second, *first], tmp_path)
        assert np.array_equal(volume.hu, ramp_hu((24, 4, 4)))
        assert "24 images" in other_volumes(volume)

    def test_a_reformat_in_the_series(self, tmp_path: Path) -> None:
        axial = ct_datasets(ramp_hu())
        coronal = second_of(axial, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
        volume = assembled([*coronal, *axial], tmp_path)
        assert np.array_equal(volume.hu, ramp_hu())
        assert "10 images from IM0000.dcm" in other_volumes(volume)
        assert "NOT_AXIAL: the image plane is 90 degrees from axial" in other_volumes(volume)

    def test_a_tilted_stack_in_the_series(self, tmp_path: Path) -> None:
        axial = ct_datasets(ramp_hu((20, 4, 4)))
        turned = second_of(axial[:9], ImageOrientationPatient=[1, 0, 0, 0, 0.98480775, 0.17364818])
        volume = assembled([*turned, *axial], tmp_path)
        assert np.array_equal(volume.hu, ramp_hu((20, 4, 4)))
        assert "9 images" in other_volumes(volume)

    @pytest.mark.parametrize(("keyword", "value"), [("PixelSpacing", [0.7, 0.9]), ("Rows", 11), ("PixelSpacing", None)])
    def test_one_odd_image_leaves_a_gap(self, keyword: str, value: object, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        setattr(datasets[4], keyword, value)
        volume = assembled(datasets, tmp_path)
        assert volume.interpolated == (4,)
        assert "1 image from IM0004.dcm" in other_volumes(volume)

    def test_spectral_maps_beside_the_hu_images(self, tmp_path: Path) -> None:
        hu = ct_datasets(ramp_hu())
        maps = second_of(hu, RescaleType="Z_EFF", ImageType=["DERIVED", "PRIMARY", "AXIAL", "EFF_ATOMIC_NUM"])
        volume = assembled([*maps, *hu], tmp_path)
        assert np.array_equal(volume.hu, ramp_hu())
        assert "NOT_HU" in other_volumes(volume)


class TestChoice:
    def stack(self, count: int, spacing_mm: float, start_mm: float = 0.0, **changes: object) -> list[Dataset]:
        hu = np.tile(ramp_hu((1, 4, 4)), (count, 1, 1)) + spacing_mm
        datasets = ct_datasets(hu, (spacing_mm, 0.7, 0.7), (0, 0, start_mm), slope=0.25)
        for ds in datasets:
            for keyword, value in changes.items():
                setattr(ds, keyword, value)
        return datasets

    def chosen(self, stacks: list[list[Dataset]], folder: Path) -> int:
        """Which of the stacks became the volume."""
        everything = [ds for stack in stacks for ds in stack]
        first = everything[0]
        for ds in everything:
            ds.StudyInstanceUID, ds.SeriesInstanceUID = first.StudyInstanceUID, first.SeriesInstanceUID
            ds.FrameOfReferenceUID = first.FrameOfReferenceUID
        volume = assembled(everything, folder)
        uids = {frame.sop_instance_uid for frame in volume.frames}
        (number,) = (k for k, stack in enumerate(stacks) if {ds.SOPInstanceUID for ds in stack} == uids)
        return number

    def test_the_thinnest_slices_win(self, tmp_path: Path) -> None:
        stacks = [self.stack(12, 5.0, ConvolutionKernel="B30f"), self.stack(45, 1.25, ConvolutionKernel="B70f")]
        assert self.chosen(stacks, tmp_path) == 1

    def test_a_thin_slab_is_no_complete_volume(self, tmp_path: Path) -> None:
        stacks = [self.stack(40, 1.0, AcquisitionNumber=1), self.stack(12, 5.0, AcquisitionNumber=2)]
        assert self.chosen(stacks, tmp_path) == 1

    def test_ninety_percent_is_complete(self, tmp_path: Path) -> None:
        stacks = [self.stack(51, 1.0, AcquisitionNumber=1), self.stack(12, 5.0, AcquisitionNumber=2)]
        assert self.chosen(stacks, tmp_path) == 0

    def test_a_bone_kernel_loses_to_thicker_slices(self, tmp_path: Path) -> None:
        stacks = [self.stack(45, 1.25, ConvolutionKernel="BONEPLUS"), self.stack(12, 5.0, ConvolutionKernel="STANDARD")]
        assert self.chosen(stacks, tmp_path) == 1

    def test_a_soft_kernel_wins_over_a_lung_kernel(self, tmp_path: Path) -> None:
        stacks = [self.stack(12, 2.5, ConvolutionKernel="LUNG"), self.stack(12, 2.5, ConvolutionKernel="STANDARD")]
        assert self.chosen(stacks, tmp_path) == 1

    def test_what_needs_no_repair_wins(self, tmp_path: Path) -> None:
        broken = self.stack(20, 2.5, AcquisitionNumber=1)
        del broken[9]
        assert self.chosen([broken, self.stack(20, 2.5, AcquisitionNumber=2)], tmp_path) == 1

    def test_more_images_win(self, tmp_path: Path) -> None:
        stacks = [self.stack(19, 2.5, AcquisitionNumber=1), self.stack(20, 2.5, AcquisitionNumber=2)]
        assert self.chosen(stacks, tmp_path) == 1

    def test_acquisition_numbers_count_as_numbers(self, tmp_path: Path) -> None:
        stacks = [self.stack(20, 2.5, AcquisitionNumber=10), self.stack(20, 2.5, AcquisitionNumber=9)]
        assert self.chosen(stacks, tmp_path) == 1

    def test_a_slab_is_not_taken_for_a_scan_that_cannot_be_assembled(self, tmp_path: Path) -> None:
        scan = self.stack(60, 2.5, ConvolutionKernel="B30f")
        del scan[10:14]
        slab = self.stack(12, 2.5, ConvolutionKernel="B70f")
        with pytest.raises(Rejected) as caught:
            self.chosen([slab, scan], tmp_path)
        assert caught.value.code == RejectionCode.MISSING_SLICE
        assert "another stack of the series can be assembled, but it covers only 28 of 148 mm" in caught.value.sentence

    def test_the_refusal_of_the_largest_axial_stack_is_told(self, tmp_path: Path) -> None:
        axial = self.stack(20, 2.5, ConvolutionKernel="B30f")
        del axial[5:7]
        coronal = self.stack(40, 2.5, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
        few = self.stack(3, 2.5, ConvolutionKernel="B70f")
        with pytest.raises(Rejected) as caught:
            self.chosen([few, coronal, axial], tmp_path)
        assert caught.value.code == RejectionCode.MISSING_SLICE

    def test_stray_images_far_away_do_not_count(self, tmp_path: Path) -> None:
        stray = [self.stack(1, 1.0, 2000.0, ConvolutionKernel="T")[0], self.stack(1, 1.0, ConvolutionKernel="T")[0]]
        assert self.chosen([stray, self.stack(12, 2.5)], tmp_path) == 1


class TestPlan:
    def test_every_stack_is_listed_with_its_geometry_and_the_reason(self, tmp_path: Path) -> None:
        first = ct_datasets(ramp_hu())
        for ds in first:
            ds.ConvolutionKernel, ds.ContrastBolusAgent, ds.ReconstructionDiameter = "B30f", "Ultravist", 320
            ds.PatientPosition = "FFS"
        localizer = copy_of(first[0])
        localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        coronal = second_of(first, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
        sharp = second_of(first, ConvolutionKernel="B70f")
        plan = plan_ct(write_datasets([localizer, *coronal, *sharp, *first], tmp_path))
        assert [item.reason for item in plan.set_aside] == ["a localizer"]
        assert plan.rejection is None
        assert plan.chosen is plan.volumes[0]
        chosen, other, refused = plan.volumes
        assert [volume.chosen for volume in plan.volumes] == [True, False, False]
        assert chosen.spacing_mm == pytest.approx((2.5, 0.7, 0.8))
        assert chosen.extent_mm == pytest.approx(22.5)
        assert chosen.reason == "preferred among 2 volumes"
        assert chosen.acquisition == Acquisition(
            kernel="B30f",
            contrast_agent="Ultravist",
            slice_thickness_mm=99,
            reconstruction_diameter_mm=320,
            patient_position="FFS",
            image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
            number="1",
        )
        assert (other.acquisition.kernel, other.reason) == ("B70f", "its kernel is sharper")
        assert refused.grid is None
        assert refused.spacing_mm is None
        assert refused.rejection is not None
        assert refused.rejection.code == RejectionCode.NOT_AXIAL

    def test_a_refusal_is_part_of_the_plan(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu())
        del datasets[3:5]
        plan = plan_ct(write_datasets(datasets, tmp_path))
        assert plan.chosen is None
        assert plan.rejection is not None
        assert plan.rejection.code == plan.volumes[0].rejection.code == RejectionCode.MISSING_SLICE  # type: ignore[union-attr]

    def test_no_pixels_are_read_but_of_images_at_one_position(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        datasets = ct_datasets(ramp_hu())
        paths = write_datasets([*datasets, copy_of(datasets[3])], tmp_path)
        read: list[str] = []
        hu = SliceReader.hu
        monkeypatch.setattr(SliceReader, "hu", lambda self, frame: read.append(frame.label) or hu(self, frame))
        plan_ct(paths)
        assert sorted(read) == ["IM0003.dcm", "IM0010.dcm"]


class TestKernels:
    @pytest.mark.parametrize(
        ("name", "use"),
        [
            ("B30f", "SOFT"),
            ("Br40d\\3", "SOFT"),
            ("I70f", "LUNG"),
            ("B80f", "SHARP"),
            ("STANDARD", "SOFT"),
            ("Lung", "LUNG"),
            ("BONEPLUS", "SHARP"),
            ("FC08", "SOFT"),
            ("FC51", "LUNG"),
            ("FC30", "SHARP"),
            ("FC64", "UNKNOWN"),
            ("", "UNKNOWN"),
            ("something", "UNKNOWN"),
        ],
    )
    def test_names(self, name: str, use: str) -> None:
        assert kernel_use(name).name == use


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


class TestRadiograph:
    @pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
    def test_larger_is_brighter(self, photometric: str, tmp_path: Path) -> None:
        ds = ct_datasets(ramp_hu((1, 6, 5)))[0]
        ds.Modality, ds.PhotometricInterpretation, ds.ViewPosition = "DX", photometric, "PA"
        del ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType
        path = tmp_path / "dx.dcm"
        write_part10(ds, path)
        image = assemble([path], describe([path]))
        assert isinstance(image, Radiograph)
        stored = ramp_hu((1, 6, 5))[0] + 1024
        truth = stored if photometric == "MONOCHROME2" else stored.max() + stored.min() - stored
        assert np.array_equal(image.pixels, truth)
        assert image.spacing_mm == (0.7, 0.8)
        assert image.view_position == "PA"
        assert image.source.sop_instance_uid == ds.SOPInstanceUID

    def test_two_images_in_one_series(self, tmp_path: Path) -> None:
        datasets = ct_datasets(ramp_hu((2, 6, 5)))
        for ds in datasets:
            ds.Modality = "CR"
        paths = write_datasets(datasets, tmp_path)
        with pytest.raises(Rejected) as caught:
            assemble(paths, describe(paths))
        assert caught.value.code == RejectionCode.SEVERAL_IMAGES

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
