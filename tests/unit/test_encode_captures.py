"""Key images: secondary captures of the right slices, in one series, that say no more than the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from pulmo_models.codes import CautionCode
from pulmo_models.types import Caution, Concept, Volume
from pulmo_node.encode import EncodedObject, ResultOptions, encode_findings
from pulmo_node.encode.keyimage import OUTLINE_RGB
from pulmo_node.encode.pictures import (
    AGAINST_RGB,
    FOR_RGB,
    VIEW_PIXELS,
    nodule_pictures,
    numbers,
    page_notes,
    summary_page,
)
from pulmo_node.encode.planes import render_planes
from pulmo_node.encode.report import nodule_records
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

PICTURES = ResultOptions(key_images=True)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return write_volume(chest_datasets(), tmp_path_factory.mktemp("ct"))


def _numbered(volume: Volume, first: int | None) -> Volume:
    """The images numbered from the last one on, as many scanners do; None: without numbers."""
    last = len(volume.frames) - 1
    frames = (replace(f, instance_number=first and first + last - k) for k, f in enumerate(volume.frames))
    return replace(volume, frames=tuple(frames))


def _objects(volume: Volume, centres: list[tuple[int, int, int]]) -> tuple[EncodedObject, ...]:
    findings = make_findings(volume, [make_nodule(volume, centre, seed=n) for n, centre in enumerate(centres)])
    return encode_findings(findings, volume, make_context(volume, options=PICTURES))


def _pixels(picture: Image.Image, colour: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = (np.asarray(picture) == colour).all(axis=-1)
    return found


def _decoded(capture: Dataset) -> Image.Image:
    return Image.fromarray(capture.pixel_array)


def test_a_page_and_a_picture_of_each_nodule(volume: Volume) -> None:
    centres = [(3, 10, 12), (8, 28, 33)]
    objects = _objects(volume, centres)
    assert [encoded.kind for encoded in objects] == ["sr", "seg", "key-image", "key-image", "key-image"]
    captures = [read_object(encoded) for encoded in objects[2:]]
    assert {capture.SOPClassUID for capture in captures} == {SecondaryCaptureImageStorage}
    assert {capture.file_meta.TransferSyntaxUID for capture in captures} == {ExplicitVRLittleEndian}
    assert {(capture.SeriesNumber, capture.SeriesInstanceUID) for capture in captures} == {
        (9003, objects[2].series_instance_uid)
    }
    assert len({encoded.sop_instance_uid for encoded in objects}) == 5
    assert [capture.InstanceNumber for capture in captures] == [1, 2, 3]
    page, *pictures = captures
    assert page.ImageComments == "2 lung nodules found"
    assert [picture.ImageComments.split(",")[0] for picture in pictures] == [
        "Nodule 1: malignancy 55 %",
        "Nodule 2: malignancy 55 %",
    ]
    for capture in captures:
        assert _pixels(_decoded(capture), OUTLINE_RGB).any()
        assert (capture.BurnedInAnnotation, capture.PatientID) == ("NO", "PHANTOM-1")


def test_a_picture_refers_to_the_image_that_the_report_measures_on(volume: Volume) -> None:
    sr, _, _, *pictures = (read_object(encoded) for encoded in _objects(volume, [(3, 10, 12), (8, 28, 33)]))
    for group, picture, k in zip(measurement_groups(sr), pictures, (3, 8), strict=True):
        (axis,) = items_named(group, "Long Axis")
        measured_on = axis.ContentSequence[0].ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        (source,) = picture.SourceImageSequence
        assert source.ReferencedSOPInstanceUID == measured_on == volume.frames[k].sop_instance_uid


def test_a_frame_of_a_multi_frame_source_is_named(tmp_path: Path) -> None:
    write_part10(enhanced_from(chest_datasets()), tmp_path / "enhanced.dcm")
    volume = read_volume([tmp_path / "enhanced.dcm"])
    picture = read_object(_objects(volume, [(3, 10, 12)])[3])
    (source,) = picture.SourceImageSequence
    assert source.ReferencedFrameNumber == volume.frames[3].frame_number


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [((1, 0, 0, 0, 1, 0), ["L", "P"]), ((-1, 0, 0, 0, -1, 0), ["R", "A"]), ((0, 1, 0, -1, 0, 0), ["P", "R"])],
)
def test_the_orientation_is_that_of_the_slice(
    tmp_path: Path, orientation: tuple[float, ...], expected: list[str]
) -> None:
    volume = write_volume(chest_datasets(orientation=orientation), tmp_path)
    _, _, page, picture = (read_object(encoded) for encoded in _objects(volume, [(3, 10, 12)]))
    assert list(picture.PatientOrientation) == expected
    assert not page.PatientOrientation


def test_without_nodules_the_page_says_so(volume: Volume) -> None:
    sr, page = encode_findings(make_findings(volume), volume, make_context(volume, options=PICTURES))
    assert (sr.kind, page.kind) == ("sr", "key-image")
    assert read_object(page).ImageComments == "No lung nodules were found."
    assert not _pixels(_decoded(read_object(page)), OUTLINE_RGB).any()


def test_no_pictures_by_the_options(volume: Volume) -> None:
    findings = make_findings(volume, [make_nodule(volume, (3, 10, 12))])
    options = ResultOptions(key_images=False)
    assert [each.kind for each in encode_findings(findings, volume, make_context(volume, options=options))] == [
        "sr",
        "seg",
    ]


def test_equal_findings_give_equal_bytes(volume: Volume) -> None:
    assert _objects(volume, [(3, 10, 12)]) == _objects(volume, [(3, 10, 12)])


def test_a_lossy_source_stays_lossy(tmp_path: Path) -> None:
    datasets = chest_datasets()
    for dataset in datasets:
        dataset.LossyImageCompression, dataset.LossyImageCompressionRatio = "01", 10
    capture = read_object(_objects(write_volume(datasets, tmp_path), [(3, 10, 12)])[3])
    assert (capture.LossyImageCompression, float(capture.LossyImageCompressionRatio)) == ("01", 10.0)


class TestBars:
    BAR_TOP = VIEW_PIXELS + 8 + 5 * 20

    def _picture(self, volume: Volume, contributions: list[float]) -> Image.Image:
        nodule = make_nodule(volume, (3, 10, 12))
        concepts = tuple(
            Concept(name=concept.name, value=concept.value, contribution=contribution)
            for concept, contribution in zip(nodule.concepts, contributions, strict=True)
        )
        findings = make_findings(volume, [replace(nodule, concepts=concepts)])
        (picture,) = nodule_pictures(findings, nodule_records(findings, make_context(volume)), volume)
        return picture

    def _lengths(self, picture: Image.Image, colour: tuple[int, int, int]) -> list[int]:
        """Length of the bar of each concept; the figures to the right of them are no bars."""
        bars = picture.crop((0, self.BAR_TOP, 870, self.BAR_TOP + 8 * 20))
        rows = _pixels(bars, colour).reshape(8, 20, -1).any(axis=1)
        return [int(row.sum()) for row in rows]

    def test_bars_are_as_long_as_the_contributions(self, volume: Volume) -> None:
        picture = self._picture(volume, [2.0, -1.0, 0.5, -0.25, 0.0, 1.0, -2.0, 0.02])
        speaks_for, against = (self._lengths(picture, colour) for colour in (FOR_RGB, AGAINST_RGB))
        longest = max(speaks_for)
        assert speaks_for == pytest.approx([longest, 0, longest / 4, 0, 0, longest / 2, 0, longest / 100], abs=2)
        assert against == pytest.approx([0, longest / 2, 0, longest / 8, 0, 0, longest, 0], abs=2)

    def test_small_contributions_stay_small(self, volume: Volume) -> None:
        full = max(self._lengths(self._picture(volume, [2.0] * 8), FOR_RGB))
        assert max(self._lengths(self._picture(volume, [0.05] * 8), FOR_RGB)) == pytest.approx(full / 10, abs=2)

    def test_all_nodules_have_one_scale(self, volume: Volume) -> None:
        strong, weak = make_nodule(volume, (3, 10, 12)), make_nodule(volume, (8, 28, 33))
        weak = replace(
            weak, concepts=tuple(replace(concept, contribution=concept.contribution / 4) for concept in weak.concepts)
        )
        findings = make_findings(volume, [strong, weak])
        first, second = nodule_pictures(findings, nodule_records(findings, make_context(volume)), volume)
        for colour in (FOR_RGB, AGAINST_RGB):
            assert np.array(self._lengths(second, colour)) * 4 == pytest.approx(self._lengths(first, colour), abs=8)


class TestWords:
    def test_the_numbers_are_those_of_the_record(self, volume: Volume) -> None:
        nodule = replace(
            make_nodule(volume, (3, 10, 12)),
            laterality="left",
            pleura_distance_mm=3.24,
            volume_mm3=812.4,
            mean_hu=-123.4,
            min_hu=-900.0,
            max_hu=40.0,
        )
        findings = make_findings(volume, [nodule])
        (record,) = nodule_records(findings, make_context(volume))
        said = numbers(nodule, record, _numbered(volume, 101))
        assert said["place"] == "left lung\nimage 109\n3.2 mm from the pleura"
        assert said["size"] == f"{nodule.long_axis.length_mm:.1f} x {nodule.short_axis.length_mm:.1f} mm\n812 mm3"
        assert said["attenuation"] == "mean -123 HU\n-900 to 40 HU"
        assert said["malignancy"] == "55 %"

    def test_a_nodule_at_the_pleura(self, volume: Volume) -> None:
        findings = make_findings(volume, [replace(make_nodule(volume, (3, 10, 12)), pleura_distance_mm=0.0)])
        (record,) = nodule_records(findings, make_context(volume))
        said = numbers(findings.nodules[0], record, _numbered(volume, None))
        assert said["place"] == "slice 4 of 12\ntouches the pleura"

    def test_what_is_not_known_is_not_said(self, volume: Volume) -> None:
        findings = make_findings(volume, [make_nodule(volume, (3, 10, 12))])
        (record,) = nodule_records(findings, make_context(volume))
        assert numbers(findings.nodules[0], record, _numbered(volume, None))["place"] == "slice 4 of 12"

    def test_cautions_and_maker_are_on_the_page(self, volume: Volume) -> None:
        caution = Caution(code=CautionCode.TOUCHES_INTERPOLATED, sentence="It lies on a slice that was filled in.")
        nodule = replace(make_nodule(volume, (3, 10, 12)), cautions=(caution,))
        findings = make_findings(volume, [nodule], ("Slices ≥ 3 mm.",))
        notes = page_notes(findings, volume, make_context(volume))
        assert notes[0] == "Caution: Slices >= 3 mm. [THICK_SLICES]"
        assert notes[1] == "Caution on nodule 1: It lies on a slice that was filled in. [TOUCHES_INTERPOLATED]"
        assert notes[-2] == "Pulmo Node, Pulmo CT nodules 0.1.0, weights first (abababababab), 2026-03-04 05:06 UTC."
        assert notes[-1] == "For research use only. Not for diagnosis."

    def test_the_page_grows_with_what_it_holds(self, volume: Volume) -> None:
        few = make_findings(volume, [make_nodule(volume, (3, 10, 12))])
        many = make_findings(volume, [make_nodule(volume, (3, 10, 12))] * 30, ("A caution " * 60,))
        context = make_context(volume)
        heights = [summary_page(f, nodule_records(f, context), volume, context).height for f in (few, many)]
        assert heights[1] - heights[0] > 29 * 88


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, -1, 0), (0, 1, 0, -1, 0, 0)])
def test_marks_lie_where_things_are(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    """Three bright rods cross at a place; the middle plane across each of them shows the rod inside of the mark."""
    datasets = chest_datasets((21, 61, 61), orientation=orientation, spacing_mm=(3.0, 1.0, 1.0))
    volume = write_volume(datasets, tmp_path)
    volume.hu[:] = -1350
    volume.hu[5, 19:22, :] = volume.hu[5, :, 41:44] = volume.hu[:, 19:22, 41:44] = 400
    x, y, z = (volume.affine @ [5, 20, 42, 1])[:3].tolist()
    size = 300
    picture = render_planes(volume, "", size, {"1": (x, y, z)})
    for n in range(3):
        view = picture.crop((n * size + 25, 25, (n + 1) * size - 25, size - 25))  # without the letters
        rows, columns = _pixels(view, OUTLINE_RGB).nonzero()
        circle = columns < columns.min() + 15  # its name stands beside it
        middles = [
            [(at.min() + at.max()) / 2 for at in places]
            for places in ((rows[circle], columns[circle]), (np.asarray(view).min(axis=-1) > 240).nonzero())
        ]
        assert middles[0] == pytest.approx(middles[1], abs=2.5)
        assert np.hypot(*(np.array(middles[0]) - (size / 2 - 25))) > 20
