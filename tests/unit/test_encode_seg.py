"""The segmentation, read again from its bytes: masks voxel by voxel at the right source images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage, SegmentationStorage

from pulmo_models.types import Laterality, Mask, Nodule, Volume
from pulmo_node.encode import EncodedObject, encode_findings
from pulmo_node.encode.identity import ResultOptions
from pulmo_node.errors import Permanent
from tests.ct_factory import enhanced_from, write_datasets, write_part10
from tests.encode_factory import (
    chest_datasets,
    items_named,
    make_context,
    make_findings,
    make_nodule,
    measurement_groups,
    read_object,
    read_volume,
    write_volume,
)

LabelMapSegmentationStorage = UID("1.2.840.10008.5.1.4.1.1.66.7")


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return write_volume(chest_datasets(), tmp_path_factory.mktemp("ct"))


def _encode(
    volume: Volume, nodules: list[Nodule], lungs: Mapping[Laterality, Mask] | None = None, **options: Any
) -> tuple[EncodedObject, EncodedObject]:
    findings = replace(make_findings(volume, nodules), lungs=lungs or {})
    context = make_context(volume, options=ResultOptions(**{"key_images": False, **options}))
    sr, seg = encode_findings(findings, volume, context)
    return sr, seg


def _decoded_masks(seg: Dataset, volume: Volume) -> dict[int, npt.NDArray[np.bool_]]:
    """Segment number -> mask on the grid of the volume, by the source image that each frame refers to."""
    slice_of = {(s.sop_instance_uid, s.frame_number): k for k, s in enumerate(volume.frames)}
    frames = seg.pixel_array.reshape(seg.NumberOfFrames, seg.Rows, seg.Columns)
    masks: dict[int, npt.NDArray[np.bool_]] = {}
    for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        k = slice_of[source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber")]
        expected = (volume.affine @ [k, 0, 0, 1])[:3]
        np.testing.assert_allclose(group.PlanePositionSequence[0].ImagePositionPatient, expected, atol=1e-3)
        for number, pixels in _segments_of_frame(seg, frame, group).items():
            masks.setdefault(number, np.zeros(volume.hu.shape, dtype=bool))[k] |= pixels
    return masks


def _segments_of_frame(seg: Dataset, frame: npt.NDArray[np.uint8], group: Dataset) -> dict[int, npt.NDArray[np.bool_]]:
    """Segment number -> pixels: all segments of a label map, else the one that the frame is of."""
    if seg.SegmentationType == "LABELMAP":
        return {int(number): frame == number for number in np.unique(frame) if number > 0}
    identification = group.get("SegmentIdentificationSequence") or (
        seg.SharedFunctionalGroupsSequence[0].SegmentIdentificationSequence
    )
    return {identification[0].ReferencedSegmentNumber: frame.astype(bool)}


def _assert_masks_survive(volume: Volume, nodules: list[Nodule], **options: Any) -> Dataset:
    seg = read_object(_encode(volume, nodules, **options)[1])
    decoded = _decoded_masks(seg, volume)
    assert sorted(decoded) == list(range(1, len(nodules) + 1))
    for number, nodule in enumerate(nodules, start=1):
        np.testing.assert_array_equal(decoded[number], nodule.mask.to_volume(volume.hu.shape))
    slices = [np.flatnonzero(nodule.mask.to_volume(volume.hu.shape).any(axis=(1, 2))) for nodule in nodules]
    if seg.SegmentationType == "LABELMAP":
        assert seg.NumberOfFrames == len(np.unique(np.concatenate(slices)))
    else:
        assert seg.NumberOfFrames == sum(map(len, slices))
    frames = seg.pixel_array.reshape(seg.NumberOfFrames, -1)
    assert frames.any(axis=1).all(), "an empty frame"
    return seg


def test_masks_survive_voxel_by_voxel(volume: Volume) -> None:
    nodules = [make_nodule(volume, (3, 10, 12)), make_nodule(volume, (8, 28, 33), radius_mm=6.0)]
    seg = _assert_masks_survive(volume, nodules)
    assert (seg.SOPClassUID, seg.SegmentationType) == (SegmentationStorage, "BINARY")
    assert seg.FrameOfReferenceUID == volume.frame_of_reference_uid
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert [float(v) for v in measures.PixelSpacing] == [0.8, 0.7]
    assert float(measures.SpacingBetweenSlices) == 2.5
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == volume.series.series_instance_uid
    assert len(series.ReferencedInstanceSequence) == len(seg.SourceImageSequence) < len(volume.frames)


def test_one_nodule_on_one_slice(volume: Volume) -> None:
    seg = _assert_masks_survive(volume, [make_nodule(volume, (5, 15, 20), radius_mm=1.5)])
    assert seg.NumberOfFrames == 1


def test_a_mask_with_an_empty_slice_inside(volume: Volume) -> None:
    nodule = make_nodule(volume, (5, 15, 20), radius_mm=6.0)
    voxels = nodule.mask.voxels.copy()
    voxels[2] = False
    _assert_masks_survive(volume, [replace(nodule, mask=Mask(origin=nodule.mask.origin, voxels=voxels))])


def test_overlapping_masks_both_survive(volume: Volume) -> None:
    nodules = [make_nodule(volume, (5, 15, 20), radius_mm=5.0), make_nodule(volume, (6, 17, 23), radius_mm=5.0)]
    overlap = nodules[0].mask.to_volume(volume.hu.shape) & nodules[1].mask.to_volume(volume.hu.shape)
    assert overlap.any()
    seg = _assert_masks_survive(volume, nodules)
    assert seg.SegmentsOverlap == "YES"


@pytest.mark.parametrize("empty_frames", [False, True])
def test_overlapping_masks_where_frames_do_not_end_with_a_byte(tmp_path: Path, empty_frames: bool) -> None:
    volume = write_volume(chest_datasets((11, 41, 47)), tmp_path)
    nodules = [make_nodule(volume, (k, 14 + k, 20), radius_mm=5.0) for k in (3, 4, 8)]
    seg = read_object(_encode(volume, nodules, LUNGS, lung_segments=True, empty_frames=empty_frames)[1])
    assert seg.SegmentsOverlap == "YES"
    assert seg.NumberOfFrames * 41 * 47 % 8
    assert len(seg.PixelData) == -(-seg.NumberOfFrames * 41 * 47 // 16) * 2
    decoded = _decoded_masks(seg, volume)
    inside = [nodule.mask.to_volume(volume.hu.shape) for nodule in nodules]
    lungs = [LUNGS[side].to_volume(volume.hu.shape) & ~np.logical_or.reduce(inside) for side in ("left", "right")]
    for number, mask in enumerate([*inside, *lungs], start=1):
        np.testing.assert_array_equal(decoded[number], mask)


def test_a_nodule_at_the_corner_of_the_volume(volume: Volume) -> None:
    _assert_masks_survive(volume, [make_nodule(volume, (0, 0, 0)), make_nodule(volume, (11, 39, 47))])


@pytest.mark.parametrize("seed", [0, 1])
def test_many_random_masks(volume: Volume, seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = volume.hu.shape
    nodules = [
        make_nodule(volume, tuple(int(random.integers(0, n)) for n in shape), radius_mm=float(random.uniform(1, 9)))
        for _ in range(12)
    ]
    _assert_masks_survive(volume, nodules)


def test_a_label_map_by_the_options(volume: Volume) -> None:
    nodules = [make_nodule(volume, (3, 10, 12)), make_nodule(volume, (4, 28, 33)), make_nodule(volume, (8, 10, 33))]
    sr, seg = (read_object(encoded) for encoded in _encode(volume, nodules, segmentation="labelmap"))
    _assert_masks_survive(volume, nodules, segmentation="labelmap")
    assert (seg.SOPClassUID, seg.SegmentationType) == (LabelMapSegmentationStorage, "LABELMAP")
    assert [segment.SegmentNumber for segment in seg.SegmentSequence] == [1, 2, 3]  # no item for the background
    assert all("RecommendedDisplayCIELabValue" in segment for segment in seg.SegmentSequence)
    for number, group in enumerate(measurement_groups(sr), start=1):
        (segment,) = items_named(group, "Referenced Segment")
        reference = segment.ReferencedSOPSequence[0]
        assert (reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID) == (
            LabelMapSegmentationStorage,
            seg.SOPInstanceUID,
        )
        assert reference.ReferencedSegmentNumber == number


def test_overlapping_masks_are_never_a_label_map(volume: Volume) -> None:
    """It would have to cut one of them."""
    nodules = [make_nodule(volume, (5, 15, 20), radius_mm=5.0), make_nodule(volume, (6, 17, 23), radius_mm=5.0)]
    seg = _assert_masks_survive(volume, nodules, segmentation="labelmap")
    assert (seg.SOPClassUID, seg.SegmentationType) == (SegmentationStorage, "BINARY")


@pytest.mark.parametrize(("segmentation", "frames"), [("binary", 24), ("labelmap", 12)])
def test_empty_frames_by_the_options(volume: Volume, segmentation: str, frames: int) -> None:
    nodules = [make_nodule(volume, (3, 10, 12)), make_nodule(volume, (8, 28, 33))]
    seg = read_object(_encode(volume, nodules, segmentation=segmentation, empty_frames=True)[1])
    assert seg.NumberOfFrames == frames
    assert len(seg.SourceImageSequence) == len(volume.frames)
    for number, mask in _decoded_masks(seg, volume).items():
        np.testing.assert_array_equal(mask, nodules[number - 1].mask.to_volume(volume.hu.shape))


LUNGS: dict[Laterality, Mask] = {
    "right": Mask(origin=(1, 4, 4), voxels=np.ones((10, 30, 18), dtype=bool)),
    "left": Mask(origin=(2, 4, 26), voxels=np.ones((9, 30, 18), dtype=bool)),
}


@pytest.mark.parametrize("segmentation", ["binary", "labelmap"])
@pytest.mark.parametrize("overlap", [False, True])
def test_lungs_lie_behind_the_nodules(volume: Volume, segmentation: str, overlap: bool) -> None:
    nodules = [make_nodule(volume, (3, 10, 12)), make_nodule(volume, (5, 14, 26) if overlap else (8, 28, 33))]
    if overlap:
        nodules.append(make_nodule(volume, (5, 16, 27)))
    seg = read_object(_encode(volume, nodules, LUNGS, segmentation=segmentation, lung_segments=True)[1])
    decoded = _decoded_masks(seg, volume)
    inside = [nodule.mask.to_volume(volume.hu.shape) for nodule in nodules]
    for number, mask in enumerate(inside, start=1):
        np.testing.assert_array_equal(decoded[number], mask)
    left, right = seg.SegmentSequence[len(nodules) :]
    for segment, side in ((left, "left"), (right, "right")):
        expected = LUNGS[side].to_volume(volume.hu.shape) & ~np.logical_or.reduce(inside)
        np.testing.assert_array_equal(decoded[segment.SegmentNumber], expected)
        assert segment.SegmentLabel == f"{side.capitalize()} lung"
        (kind,) = segment.SegmentedPropertyTypeCodeSequence
        assert (kind.CodeValue, kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning) == (
            "39607008",
            side.capitalize(),
        )
        assert "TrackingUID" not in segment
    assert seg.SegmentsOverlap == ("YES" if overlap else "NO")


def test_lungs_only_by_the_options(volume: Volume) -> None:
    seg = read_object(_encode(volume, [make_nodule(volume, (3, 10, 12))], LUNGS)[1])
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["Nodule 1"]


@pytest.mark.parametrize("side", ["left", "right", None])
def test_the_side_of_a_nodule(volume: Volume, side: Laterality | None) -> None:
    nodule = replace(make_nodule(volume, (3, 10, 12)), laterality=side)
    (segment,) = read_object(_encode(volume, [nodule])[1]).SegmentSequence
    (region,) = segment.AnatomicRegionSequence
    modifiers = [item.CodeMeaning.lower() for item in region.get("AnatomicRegionModifierSequence", [])]
    assert modifiers == ([] if side is None else [side])


def test_tilted_and_shuffled_source(tmp_path: Path) -> None:
    """Slices stored head first, the patient prone (HFP): rows run to the left and to anterior reversed."""
    datasets = chest_datasets(orientation=(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    volume = write_volume(list(reversed(datasets)), tmp_path)
    _assert_masks_survive(volume, [make_nodule(volume, (2, 8, 40)), make_nodule(volume, (9, 30, 7))])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_multi_frame_source(tmp_path: Path, reverse: bool, legacy: bool) -> None:
    datasets = chest_datasets()
    enhanced = enhanced_from(list(reversed(datasets)) if reverse else datasets)
    if legacy:
        enhanced.SOPClassUID = LegacyConvertedEnhancedCTImageStorage
        shared = enhanced.SharedFunctionalGroupsSequence[0]
        for keyword in ("PixelMeasuresSequence", "PlaneOrientationSequence"):  # repeated in each frame instead
            for group in enhanced.PerFrameFunctionalGroupsSequence:
                group[keyword] = shared[keyword]
            del shared[keyword]
    write_part10(enhanced, tmp_path / "enhanced.dcm")
    volume = read_volume([tmp_path / "enhanced.dcm"])
    seg = _assert_masks_survive(volume, [make_nodule(volume, (2, 8, 40)), make_nodule(volume, (9, 30, 7))])
    assert float(seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices) == 2.5


def test_frames_of_several_multi_frame_objects(tmp_path: Path) -> None:
    """The first half of the volume in one object, the second in another, and a nodule across the border."""
    datasets = chest_datasets()
    paths = []
    for part in (datasets[:6], datasets[6:]):
        paths.append(tmp_path / f"{len(paths)}.dcm")
        write_part10(enhanced_from(part), paths[-1])
    volume = read_volume(paths)
    assert len({frame.sop_instance_uid for frame in volume.frames}) == 2
    seg = _assert_masks_survive(
        volume, [make_nodule(volume, (5, 15, 20), radius_mm=6.0), make_nodule(volume, (9, 30, 7))]
    )
    assert {item.ReferencedSOPClassUID for item in seg.SourceImageSequence} == {EnhancedCTImageStorage}
    (series,) = seg.ReferencedSeriesSequence
    assert len(seg.SourceImageSequence) == len(series.ReferencedInstanceSequence) == 2


def test_segments_are_described_and_tracked(volume: Volume) -> None:
    nodules = [make_nodule(volume, (3, 10, 12)), make_nodule(volume, (8, 28, 33))]
    sr, seg = (read_object(encoded) for encoded in _encode(volume, nodules))
    colours = set()
    for number, (segment, group) in enumerate(zip(seg.SegmentSequence, measurement_groups(sr), strict=True), start=1):
        assert (segment.SegmentNumber, segment.SegmentLabel) == (number, f"Nodule {number}")
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        assert segment.SegmentAlgorithmName == "Pulmo CT nodules"
        assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "27925004"
        identifier, uid = group.ContentSequence[0], group.ContentSequence[1]
        assert (segment.TrackingID, segment.TrackingUID) == (identifier.TextValue, uid.UID)
        colours.add(tuple(segment.RecommendedDisplayCIELabValue))
    assert len(colours) == 2


def test_random_uids_of_the_library_are_replaced(volume: Volume) -> None:
    seg = read_object(_encode(volume, [make_nodule(volume, (3, 10, 12))])[1])
    again = read_object(_encode(volume, [make_nodule(volume, (3, 10, 12))])[1])
    (organization,) = seg.DimensionOrganizationSequence
    assert organization.DimensionOrganizationUID == again.DimensionOrganizationSequence[0].DimensionOrganizationUID
    assert {item.DimensionOrganizationUID for item in seg.DimensionIndexSequence} == {
        organization.DimensionOrganizationUID
    }


def test_source_with_missing_and_wrong_attributes(tmp_path: Path) -> None:
    datasets = chest_datasets()
    for dataset in datasets:
        del dataset.SliceThickness
        dataset.SpacingBetweenSlices = 99
        dataset.LossyImageCompression = ""
    volume = write_volume(datasets, tmp_path)
    seg = _assert_masks_survive(volume, [make_nodule(volume, (3, 10, 12))])
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (float(measures.SliceThickness), float(measures.SpacingBetweenSlices)) == (2.5, 2.5)
    assert seg.LossyImageCompression == "00"  # type 1 here, type 3 in the source


def test_a_mask_outside_the_volume_is_refused(volume: Volume) -> None:
    nodule = make_nodule(volume, (3, 10, 12))
    outside = replace(nodule, mask=Mask(origin=(11, 0, 0), voxels=np.ones((2, 2, 2), dtype=bool)))
    with pytest.raises(Permanent, match="leaves the volume"):
        _encode(volume, [outside])


def test_a_source_that_vanished_is_named(tmp_path: Path) -> None:
    paths = write_datasets(chest_datasets(), tmp_path)
    volume = read_volume(paths)
    paths[3].unlink()
    with pytest.raises(Permanent, match=r"IM0003\.dcm cannot be read"):
        _encode(volume, [make_nodule(volume, (3, 10, 12))])


def test_a_source_that_is_another_instance_now_is_refused(tmp_path: Path) -> None:
    paths = write_datasets(chest_datasets(), tmp_path)
    volume = read_volume(paths)
    paths[3].write_bytes(paths[4].read_bytes())
    with pytest.raises(Permanent, match="holds instance"):
        _encode(volume, [make_nodule(volume, (3, 10, 12))])
