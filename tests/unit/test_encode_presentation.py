"""Presentation states: what they draw is what the report measures and the segmentation holds, on the same image."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage

from pulmo_models.types import Volume
from pulmo_node.encode import EncodedObject, ResultOptions, encode_findings
from pulmo_node.encode.presentation import outlines
from tests.ct_factory import enhanced_from, write_part10
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

STATES = ResultOptions(key_images=False, presentation_states=True)
CENTRES = [(3, 10, 12), (8, 28, 33), (0, 0, 0), (11, 39, 47)]


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return write_volume(chest_datasets(), tmp_path_factory.mktemp("ct"))


def _objects(volume: Volume, centres: list[tuple[int, int, int]]) -> tuple[EncodedObject, ...]:
    findings = make_findings(volume, [make_nodule(volume, centre, seed=n) for n, centre in enumerate(centres)])
    return encode_findings(findings, volume, make_context(volume, options=STATES))


def _filled(borders: list[npt.NDArray[np.float64]], shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The pixels whose centres lie inside: those with an odd number of vertical edges to their left."""
    crossings = np.zeros(shape, dtype=int)
    for border in borders:
        assert (border[0] == border[-1]).all()
        for (column, start), (other_column, end) in pairwise(border):
            assert (column == other_column) != (start == end), "edges run along rows or columns"
            if column == other_column:
                crossings[int(min(start, end)) : int(max(start, end)), int(column) :] += 1
    return crossings % 2 == 1


def _lines(state: Dataset) -> list[npt.NDArray[np.float64]]:
    (annotation,) = state.GraphicAnnotationSequence
    return [np.array(item.GraphicData).reshape(-1, 2) for item in annotation.GraphicObjectSequence]


@pytest.mark.parametrize("seed", range(10))
def test_outlines_of_any_mask_hold_just_its_pixels(seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = random.random((random.integers(1, 12), random.integers(1, 12))) < 0.6
    mask[0, 0] = True
    np.testing.assert_array_equal(_filled(outlines(mask), mask.shape), mask)


def test_a_ring_has_two_borders_of_four_corners() -> None:
    ring = np.ones((5, 6), dtype=bool)
    ring[2, 2:4] = False
    assert sorted(len(border) for border in outlines(ring)) == [5, 5]


@pytest.mark.parametrize("repair", ["none", "gap", "uneven", "tilt"])
def test_states_show_what_report_and_segmentation_say(tmp_path: Path, repair: str) -> None:
    """Also where the analysed volume is not the acquired one: with a slice filled in, resampled or resheared."""
    datasets = chest_datasets((16, 40, 48))
    for k, dataset in enumerate(datasets):
        x, y, z = (float(value) for value in dataset.ImagePositionPatient)
        if repair == "uneven" and k > 7:
            dataset.ImagePositionPatient = [x, y, z + (k - 7) * 0.75]
        if repair == "tilt":
            dataset.ImagePositionPatient = [x, y + k * 0.6, z]
    if repair == "gap":
        del datasets[4]
    volume = write_volume(datasets, tmp_path)
    assert volume.native == (repair == "none")
    objects = _objects(volume, CENTRES if volume.native else [(4, 12, 14), (9, 24, 30)])
    sr, seg, *states = (read_object(encoded) for encoded in objects)
    assert [state.Modality for state in states] == ["PR"] * len(measurement_groups(sr))
    frames = seg.pixel_array
    for number, (state, group) in enumerate(zip(states, measurement_groups(sr), strict=True), start=1):
        assert state.SOPClassUID == GrayscaleSoftcopyPresentationStateStorage
        assert (state.SeriesNumber, state.InstanceNumber, state.ContentLabel) == (9004, number, f"NODULE_{number}")
        (series,) = state.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == volume.series.series_instance_uid
        shown_on = series.ReferencedImageSequence[0].ReferencedSOPInstanceUID
        *borders, long_axis, short_axis = _lines(state)
        for name, line in (("Long Axis", long_axis), ("Short Axis", short_axis)):
            (axis,) = items_named(group, name)
            coordinates = axis.ContentSequence[0]
            assert coordinates.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == shown_on
            np.testing.assert_allclose(line, np.array(coordinates.GraphicData).reshape(-1, 2), atol=1e-4)
        drawn = [
            frame
            for frame, item in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True)
            if item.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number
            and item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID == shown_on
        ]
        np.testing.assert_array_equal(_filled(borders, frames.shape[1:]), drawn[0].astype(bool))
        for item in state.GraphicAnnotationSequence[0].GraphicObjectSequence:
            assert (item.TrackingID, item.TrackingUID) == (
                seg.SegmentSequence[number - 1].TrackingID,
                seg.SegmentSequence[number - 1].TrackingUID,
            )
        (text,) = state.GraphicAnnotationSequence[0].TextObjectSequence
        assert text.UnformattedTextValue == items_named(group, "Comment")[0].TextValue


def test_how_the_image_is_shown(volume: Volume) -> None:
    state = read_object(_objects(volume, [(3, 10, 12)])[2])
    (window,) = state.SoftcopyVOILUTSequence
    assert (float(window.WindowCenter), float(window.WindowWidth)) == (-600, 1500)
    assert window.WindowCenterWidthExplanation == "LUNG"
    (area,) = state.DisplayedAreaSelectionSequence
    assert list(area.DisplayedAreaBottomRightHandCorner) == [48, 40]
    assert [float(value) for value in area.PresentationPixelSpacing] == [0.8, 0.7]
    assert (float(state.RescaleSlope), state.RescaleType) == (1, "HU")


def test_slopes_that_differ_between_images(tmp_path: Path) -> None:
    datasets = chest_datasets()
    for k, dataset in enumerate(datasets):
        dataset.RescaleSlope = 1 + k / 8
    states = [read_object(encoded) for encoded in _objects(write_volume(datasets, tmp_path), CENTRES[:2])[2:]]
    assert [float(state.RescaleSlope) for state in states] == [1 + 3 / 8, 2]


def test_a_frame_of_a_multi_frame_source(tmp_path: Path) -> None:
    write_part10(enhanced_from(chest_datasets()), tmp_path / "enhanced.dcm")
    volume = read_volume([tmp_path / "enhanced.dcm"])
    state = read_object(_objects(volume, [(3, 10, 12)])[2])
    expected = volume.frames[3].frame_number
    for item in (state.ReferencedSeriesSequence[0], state.GraphicAnnotationSequence[0]):
        assert item.ReferencedImageSequence[0].ReferencedFrameNumber == expected
    assert float(state.RescaleSlope) == 1


def test_no_nodules_no_states(volume: Volume) -> None:
    (report,) = encode_findings(make_findings(volume), volume, make_context(volume, options=STATES))
    assert report.kind == "sr"


def test_equal_findings_give_equal_bytes(volume: Volume) -> None:
    assert _objects(volume, CENTRES) == _objects(volume, CENTRES)
