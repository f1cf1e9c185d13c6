"""Reports read back from their bytes: the numbers, sentences and references that were written, and what is shown."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid
from rich.console import Console

from pulmo_models.types import Findings, Volume
from pulmo_node import reading
from pulmo_node.encode import EncodedObject, codes, encode_findings, encode_rejection, findings_to_json
from pulmo_node.encode.identity import Predecessor, ResultOptions
from pulmo_node.errors import Permanent
from tests.encode_factory import (
    INFO,
    chest_datasets,
    make_context,
    make_findings,
    make_nodule,
    measurement_groups,
    read_object,
    write_volume,
)

EARLIER = Predecessor(
    sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34", sop_instance_uid="1.2.3.4", series_instance_uid="1.2.3"
)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return write_volume(chest_datasets(), tmp_path_factory.mktemp("ct"))


@pytest.fixture(scope="module")
def findings(volume: Volume) -> Findings:
    nodules = [
        replace(make_nodule(volume, (3, 10, 12)), laterality="right", pleura_distance_mm=4.25),
        make_nodule(volume, (8, 28, 33), radius_mm=7.0, malignancy=0.123456, value=7.2, seed=2),
    ]
    return make_findings(volume, nodules, ("The slices are thick.",))


def _write(objects: Sequence[EncodedObject], folder: Path) -> Path:
    """The objects as files; the report's path."""
    for number, encoded in enumerate(objects):
        (folder / f"{number}.dcm").write_bytes(encoded.content)
    return folder / "0.dcm"


def _saved(dataset: Dataset, folder: Path) -> Path:
    dataset.save_as(folder / "changed.dcm")
    return folder / "changed.dcm"


def _shown(blocks: Sequence[reading.Block]) -> str:
    text = StringIO()
    reading.print_blocks(Console(file=text, width=200), blocks)
    return text.getvalue()


def test_numbers_ratings_and_references_are_those_of_findings_json(
    volume: Volume, findings: Findings, tmp_path: Path
) -> None:
    context = make_context(volume)
    plain = findings_to_json(findings, volume, context)
    report = reading.read_report(_write(encode_findings(findings, volume, context), tmp_path))
    assert report.title == codes.IMAGING_MEASUREMENT_REPORT
    assert report.template == "1500"
    assert len(report.groups) == 2
    for group, nodule, written in zip(report.groups, findings.nodules, plain["nodules"], strict=True):
        expected = {
            codes.LONG_AXIS: written["long_axis_mm"],
            codes.SHORT_AXIS: written["short_axis_mm"],
            codes.VOLUME: written["volume_mm3"],
            codes.PROBABILITY_OF_CANCER: round(100 * written["malignancy_probability"], 2),
            codes.DETECTION_PROBABILITY: round(100 * written["detection_probability"], 2),
            codes.CANDIDATE_SCORE: written["candidate_score"],
            codes.MALIGNANCY_BIAS: plain["malignancy_bias"],
        }
        for name, concept in written["concepts"].items():
            expected[codes.CONCEPTS[name]] = concept["value"]
            expected[codes.CONTRIBUTIONS[name]] = concept["contribution"]
        for code, value in expected.items():
            number = group.number(code)
            assert number is not None
            assert number.value == value
        for derivation, key in ((codes.MEAN, "mean_hu"), (codes.MINIMUM, "min_hu"), (codes.MAXIMUM, "max_hu")):
            attenuation = group.number(codes.ATTENUATION, derivation)
            assert attenuation is not None
            assert (attenuation.value, attenuation.unit) == (written[key], codes.HOUNSFIELD_UNIT)
        assert group.tracking_uid == written["tracking_uid"]
        assert group.segment is not None
        assert group.segment.number == written["segment_number"]
        rated = {evaluation.name.value: evaluation.value for evaluation in group.evaluations}
        for concept_found in nodule.concepts:
            name = concept_found.name
            assert rated[codes.CONCEPTS[name].value] == codes.RATINGS[name][concept_found.rating]
    right, unknown = report.groups
    assert [str(site) for site in right.sites] == ["Lung, Right"]
    assert [str(site) for site in unknown.sites] == ["Lung"]
    distance = right.number(codes.DISTANCE_TO_PLEURA)
    assert distance is not None
    assert distance.value == 4.25
    assert unknown.number(codes.DISTANCE_TO_PLEURA) is None


@pytest.mark.parametrize("segmentation", ["binary", "labelmap"])
def test_the_segmentation_beside_a_report_is_counted(
    volume: Volume, findings: Findings, tmp_path: Path, segmentation: str
) -> None:
    options = ResultOptions(segmentation=segmentation)
    result = reading.read_result(
        _write(encode_findings(findings, volume, make_context(volume, options=options)), tmp_path)
    )
    (found,) = result.segmentations.values()
    assert found.kind == segmentation.upper()
    for group, nodule, segment in zip(result.report.groups, findings.nodules, found.segments, strict=True):
        assert group.segment is not None
        assert group.segment.sop_instance_uid == found.sop_instance_uid
        assert segment.tracking_uid == group.tracking_uid
        assert segment.voxels == np.count_nonzero(nodule.mask.voxels)
        assert segment.images == nodule.mask.voxels.any(axis=(1, 2)).sum()
        assert segment.volume_mm3 == pytest.approx(nodule.volume_mm3, rel=1e-5)
    shown = _shown(reading.lay_out(result))
    assert f"{found.segments[0].voxels} voxels on {found.segments[0].images} images" in shown
    assert "ANOTHER" not in shown
    alone = reading.read_result(tmp_path / "0.dcm", others=[])
    assert "which is not beside the report" in _shown(reading.lay_out(alone))


def test_pictures_of_another_series_are_left_out(volume: Volume, findings: Findings, tmp_path: Path) -> None:
    """Two reconstructions of one study, analysed by one program, their results in one folder."""
    datasets, series_uid = chest_datasets(), generate_uid()
    for dataset in datasets:
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = volume.series.study_instance_uid, series_uid
    other = write_volume(datasets, tmp_path / "ct")
    options = ResultOptions(key_images=True)
    results = {
        one.series.series_instance_uid: encode_findings(made, one, make_context(one, options=options))
        for one, made in ((volume, findings), (other, make_findings(other, [make_nodule(other, (3, 10, 12))])))
    }
    for number, objects in enumerate(results.values()):
        for encoded in objects:
            (tmp_path / f"{number}-{encoded.sop_instance_uid}.dcm").write_bytes(encoded.content)
    for number, objects in enumerate(results.values()):
        found = reading.read_result(tmp_path / f"{number}-{objects[0].sop_instance_uid}.dcm")
        expected = [each.sop_instance_uid for each in objects if each.kind == "key-image"]
        assert [str(dcmread(picture.path).SOPInstanceUID) for picture in found.pictures] == expected


def test_what_is_shown_tells_results_before_provenance(volume: Volume, findings: Findings, tmp_path: Path) -> None:
    context = make_context(volume, predecessors=(EARLIER,))
    blocks = reading.lay_out(reading.read_result(_write(encode_findings(findings, volume, context), tmp_path)))
    headings = [block.heading for block in blocks]
    assert headings[:3] == ["Imaging Measurement Report", "Nodule 1", "Nodule 2"]
    assert headings[-1] == "Provenance"
    shown = _shown(blocks)
    for said in (
        "Nodule 2: malignancy 12 %, 15 mm, 1.5 cm3",
        "The slices are thick. [THICK_SLICES]",
        "5 out of 5 (Marked spiculation)",
        "stage1_peak_threshold=0.3",
        f"12 x CT Image Storage, series {volume.series.series_instance_uid}",
        "For research use only. Not for diagnosis.",
        "Replaces",
        EARLIER.sop_instance_uid,
    ):
        assert said in shown, said
    assert shown.count("stage1_peak_threshold=0.3") == 1  # one algorithm made both groups


def test_how_the_malignancy_comes_about_is_said(volume: Volume, findings: Findings, tmp_path: Path) -> None:
    concepts = tuple(replace(concept, contribution=0.25) for concept in findings.nodules[0].concepts)
    changed = replace(findings, nodules=(replace(findings.nodules[0], concepts=concepts),), malignancy_bias=-1.0)
    path = _write(encode_findings(changed, volume, make_context(volume)), tmp_path)
    shown = _shown(reading.lay_out(reading.read_result(path)))
    assert "bias -1.0000, concepts +2.0000, together +1.0000: sigmoid 73.1 %" in shown


@pytest.mark.parametrize("form", ["viewer_safe", "air"])
def test_a_report_without_nodules_says_so(volume: Volume, tmp_path: Path, form: str) -> None:
    context = make_context(volume, options=ResultOptions(negative_report=form))
    paths = [Path(source.path) for source in volume.frames if source.path]
    reports = {
        "No lung nodules were found.": encode_findings(make_findings(volume), volume, context)[0],
        "There are no lungs in it. [NO_LUNGS]": encode_rejection(
            paths, "NO_LUNGS", "There are no lungs in it.", context, INFO
        ),
    }
    for sentence, encoded in reports.items():
        shown = _shown(reading.lay_out(reading.read_result(_write([encoded], tmp_path))))
        assert sentence in shown
        assert codes.NONE_SUCCEEDED.meaning in shown or codes.SUCCEEDED_WITHOUT_FINDINGS.meaning in shown


def test_the_patient_is_shown_only_where_it_is_asked_for(volume: Volume, findings: Findings, tmp_path: Path) -> None:
    result = reading.read_result(_write(encode_findings(findings, volume, make_context(volume)), tmp_path))
    for blocks in (reading.lay_out(result), reading.lay_out(result, patient=True)):
        asked = ("Patient", "Phantom^Peter") in blocks[0].facts
        for text in (_shown(blocks), reading.page(blocks)):
            assert [word in text for word in ("Phantom^Peter", "PHANTOM-1", "1960-01-01")] == [asked] * 3


class _Page(HTMLParser):
    """The elements of a page, opened and closed in order, and its texts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "rect", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_harmless(volume: Volume, findings: Findings, tmp_path: Path) -> None:
    """Every element is closed, nothing is fetched, and what a report says is text and never a tag."""
    report = read_object(encode_findings(findings, volume, make_context(volume))[0])
    evil = '<script>alert(1)</script> & "more"'
    report.Manufacturer = evil
    for item in measurement_groups(report)[0].ContentSequence:
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Comment":
            item.TextValue = evil
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Finding":
            item.ConceptCodeSequence[0].CodeMeaning = "<b>bold</b>"
    page = _Page()
    page.feed(reading.page(reading.lay_out(reading.read_result(_saved(report, tmp_path), others=[]))))
    assert page.open == []
    assert "script" not in page.seen
    assert "b" not in page.seen
    assert page.sources == []
    assert evil in page.text
    assert page.seen.count("svg") == 2 * len(findings.nodules[0].concepts)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of the value that is broken on purpose
def test_a_broken_neighbour_is_passed_over(volume: Volume, tmp_path: Path) -> None:
    options = ResultOptions(key_images=True)
    path = _write(encode_findings(make_findings(volume), volume, make_context(volume, options=options)), tmp_path)
    content = (tmp_path / "1.dcm").read_bytes()
    number = b"\x20\x00\x13\x00IS\x02\x001 "
    assert content.count(number) == 1
    (tmp_path / "1.dcm").write_bytes(content.replace(number, number[:-2] + b"no"))
    assert reading.read_result(path).pictures == ()


def test_a_grey_picture_of_sixteen_bits_is_not_cut_to_eight(volume: Volume, tmp_path: Path) -> None:
    """Another program's key image may be the slice itself."""
    sr, picture = encode_findings(
        make_findings(volume), volume, make_context(volume, options=ResultOptions(key_images=True))
    )
    grey = read_object(picture)
    grey.SamplesPerPixel, grey.PhotometricInterpretation = 1, "MONOCHROME2"
    del grey.PlanarConfiguration
    grey.Rows, grey.Columns = 1, 4
    grey.BitsAllocated, grey.BitsStored, grey.HighBit = 16, 12, 11
    grey.PixelData = np.array([0, 1000, 2000, 4000], "<u2").tobytes()
    (tmp_path / "sr.dcm").write_bytes(sr.content)
    grey.save_as(tmp_path / "grey.dcm")
    page = _Page()
    page.feed(reading.page(reading.lay_out(reading.read_result(tmp_path / "sr.dcm"))))
    (source,) = page.sources
    shown = np.asarray(Image.open(BytesIO(b64decode(source.partition(",")[2]))))
    assert shown.tolist() == [[0, 64, 128, 255]]


def _legacy(group: Dataset) -> None:
    """SRT codes, as reports had them before SNOMED CT's own."""
    for item in group.ContentSequence:
        name = item.ConceptNameCodeSequence[0]
        if name.CodeMeaning == "Finding Site":
            name.CodeValue, name.CodingSchemeDesignator = "G-C0E3", "SRT"
        if name.CodeMeaning == "Volume":
            name.CodeValue, name.CodingSchemeDesignator = "G-D705", "SRT"


def _nothing_known(group: Dataset) -> None:
    for item in group.ContentSequence:
        if item.ValueType != "CONTAINER":
            del item.ConceptNameCodeSequence


def _no_values(group: Dataset) -> None:
    for item in group.ContentSequence:
        for keyword in ("MeasuredValueSequence", "ConceptCodeSequence", "ReferencedSOPSequence"):
            if keyword in item:
                setattr(item, keyword, [])


def _empty(group: Dataset) -> None:
    group.ContentSequence = []


@pytest.mark.parametrize("change", [_legacy, _nothing_known, _no_values, _empty])
def test_an_odd_group_spoils_nothing(
    volume: Volume, findings: Findings, tmp_path: Path, change: Callable[[Dataset], None]
) -> None:
    report = read_object(encode_findings(findings, volume, make_context(volume))[0])
    change(measurement_groups(report)[0])
    result = reading.read_result(_saved(report, tmp_path), others=[])
    assert len(result.report.groups) == 2
    volume_found = result.report.groups[1].number(codes.VOLUME)
    assert volume_found is not None
    shown = _shown(reading.lay_out(result))
    assert "Nodule 2" in shown
    assert reading.page(reading.lay_out(result))
    odd = result.report.groups[0]
    if change is _legacy:
        legacy_volume = odd.number(codes.VOLUME)
        assert legacy_volume is not None
        assert [str(site) for site in odd.sites] == ["Lung, Right"]
    if change is _no_values:
        assert {number.value for number in odd.numbers} == {None}
        assert odd.segment is None
    if change in (_empty, _nothing_known):
        assert odd.numbers == odd.evaluations == ()
        assert "Group 1" in shown


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of values that are broken on purpose
def test_a_spoiled_report_is_read_or_refused(volume: Volume, findings: Findings, tmp_path: Path) -> None:
    """Bytes changed, removed and put in: what comes of it is a report or a `Permanent`, never another error."""
    whole = encode_findings(findings, volume, make_context(volume))[0].content
    path, refused = tmp_path / "spoiled.dcm", []
    for seed in range(60):
        random = np.random.default_rng(seed)
        spoiled = bytearray(whole)
        for _ in range(random.choice((1, 3, 20))):
            place, removed, added = (int(random.integers(high)) for high in (len(spoiled) - 132, 5, 5))
            spoiled[132 + place : 132 + place + removed] = random.bytes(added)
        path.write_bytes(spoiled)
        try:
            reading.page(reading.lay_out(reading.read_result(path, others=[]), patient=True))
        except Permanent as refusal:
            refused.append(str(refusal))
    assert 0 < len(refused) < 60
    assert all(str(path) in sentence for sentence in refused)


def test_what_cannot_be_read_is_named(volume: Volume, findings: Findings, tmp_path: Path) -> None:
    sr, seg = encode_findings(findings, volume, make_context(volume))[:2]
    cases = {
        "text.dcm": (b"no report", "is no DICOM file"),
        "seg.dcm": (seg.content, "is no structured report"),
        "cut.dcm": (sr.content[: len(sr.content) // 2], r"is cut off: it ends within element \(0040,A730\)"),
    }
    for name, (content, said) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Permanent, match=f"{name} {said}"):
            reading.read_report(tmp_path / name)
    with pytest.raises(Permanent, match=r"none\.dcm cannot be read: No such file"):
        reading.read_report(tmp_path / "none.dcm")
    (tmp_path / "sr.dcm").write_bytes(sr.content)
    with pytest.raises(Permanent, match="is no segmentation"):
        reading.read_segmentation(tmp_path / "sr.dcm")
    broken = dcmread(tmp_path / "seg.dcm")
    broken.PixelData = broken.PixelData[:40]
    with pytest.raises(Permanent, match="holds a segmentation that cannot be read"):
        reading.read_segmentation(_saved(broken, tmp_path))
