"""Several volumes in one series: how they are split, which of them is chosen, and what the plan tells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

from pulmo_models.codes import CautionCode, RejectionCode
from pulmo_models.types import Acquisition, Caution
from pulmo_node.assemble import plan_ct
from pulmo_node.assemble.kernels import kernel_use
from pulmo_node.assemble.slices import SliceReader
from pulmo_node.errors import Rejected
from tests.assembling import assembled, copy_of, other_volumes, rejected, second_of
from tests.ct_factory import (
    ct_datasets,
    ramp_hu,
    write_datasets,
)


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

    def test_a_copy_is_told_with_the_volume_that_it_repeats(self, tmp_path: Path) -> None:
        """The second stack in the plane is the first in number, and is taken."""
        first = ct_datasets(ramp_hu())
        shifted = second_of(first, 100.0)
        for k, ds in enumerate(shifted):
            x, y, z = ds.ImagePositionPatient
            ds.ImagePositionPatient = [x, y + 40, z]
            first[k].InstanceNumber, ds.InstanceNumber = 10 + k, 1 + k
        again = copy_of(shifted[4])
        volume = assembled([*first, *shifted, again], tmp_path)
        taken = {frame.sop_instance_uid for frame in volume.frames}
        assert {ds.SOPInstanceUID for ds in shifted} ^ taken <= {again.SOPInstanceUID, shifted[4].SOPInstanceUID}
        assert CautionCode.REPEATED_IMAGES in [caution.code for caution in volume.cautions]

        volume = assembled([*first, *shifted, copy_of(first[4])], tmp_path / "other")
        assert CautionCode.REPEATED_IMAGES not in [caution.code for caution in volume.cautions]

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
