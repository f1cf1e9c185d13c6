"""What OHIF shows of the results, in headless Chromium, for a study of known truth.

Four patient positions with what the node writes by default, and one study with every object that it can write.
`drive.mjs` does what a reader does, once a study; each test reads one promise out of its report and pictures,
which stay in `viewer-out/` for a person to look at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import highdicom as hd
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset

from tests.conftest import ROOT
from tests.encode_factory import items_named, measurement_groups
from tests.viewer.driver import Drive, drive, patient_place
from tests.viewer.stand import ViewerStand, missing
from tests.viewer.study import ORIENTATIONS, SHAPE, SPACING_MM, STUDIES, KnownNodule, KnownStudy, make_study

pytestmark = [pytest.mark.viewer, pytest.mark.timeout(1800)]

PICTURES = ROOT / "viewer-out"
VOXEL_MM = max(SPACING_MM[1:])
NODULE_GREY = 161  # a value of -400 HU, half way from lung to nodule, in the phantom's window (-600, 1500)
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A study and what OHIF showed of it."""

    study: KnownStudy
    drive: Drive

    @property
    def segmentation(self) -> dict[str, Any]:
        (found,) = self.drive.report["segmentations"]
        return dict(found)

    @property
    def structured_report(self) -> dict[str, Any]:
        (found,) = self.drive.report["reports"]
        return dict(found)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ViewerStand]:
    lacking = missing()
    if lacking is not None:
        pytest.skip(lacking)
    with ViewerStand(tmp_path_factory.mktemp("stand")) as running:
        yield running


@pytest.fixture(scope="module", params=STUDIES)
def shown(request: pytest.FixtureRequest, stand: ViewerStand, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    study = make_study(tmp_path_factory.mktemp(request.param), request.param)
    stand.store(study.files)
    only = ("SEG", "SR") if study.name in ORIENTATIONS else ()  # pictures lie nowhere in the patient
    driven = drive(stand.ohif.study_url(study.study_instance_uid), PICTURES / study.name, only)
    assert driven.report["failures"] == []
    return Shown(study=study, drive=driven)


def test_the_viewer_has_no_error(shown: Shown) -> None:
    assert all(view["settled"] for view in _views(shown.drive.report))
    assert shown.drive.report["page"] == {"errors": [], "exceptions": [], "refused": [], "left": []}


def test_the_study_opens_with_every_series(shown: Shown) -> None:
    series = {found["series"]: found for found in shown.drive.report["sets"]}
    assert series.keys() == {
        str(dcmread(path, stop_before_pixels=True).SeriesInstanceUID) for path in shown.study.files
    }
    # OHIF lists a presentation state with a warning sign, and shows none.
    assert {found["modality"] for found in series.values() if found["unsupported"]} <= {"PR"}
    (ct,) = (found for found in series.values() if found["modality"] == "CT")
    assert ct["images"] == len(shown.study.images)
    first = shown.drive.report["ct"]
    assert first["sopInstanceUid"] in {
        str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in shown.study.images
    }
    assert shown.drive.canvas(first).max() > 250, "no bone on the first image"


def test_the_segments_have_their_names_and_colours(shown: Shown) -> None:
    (content,) = shown.segmentation["content"]
    segments = dcmread(shown.study.result("SEG")).SegmentSequence
    assert content["label"] == dcmread(shown.study.result("SEG")).SeriesDescription
    assert [found["label"] for found in content["segments"]] == [segment.SegmentLabel for segment in segments]
    for row, segment, number in zip(shown.segmentation["rows"], segments, range(1, len(segments) + 1), strict=True):
        assert row["text"] == f"{number} {segment.SegmentLabel}"
    for found, segment in zip(content["segments"], segments, strict=True):
        colour = hd.color.CIELabColor(*_lab(segment)).to_rgb()
        assert np.abs(np.subtract(found["colour"][:3], colour)).max() <= 3, segment.SegmentLabel


def test_every_voxel_of_the_segments_lies_on_its_image(shown: Shown) -> None:
    (content,) = shown.segmentation["content"]
    for nodule, found in zip(shown.study.nodules, content["segments"], strict=False):
        assert found["index"] == nodule.number
        assert found["slices"] == nodule.voxels
        assert np.abs(np.subtract(found["centreLps"], nodule.centre_lps_mm)).max() <= VOXEL_MM / 2
    sides = content["segments"][len(shown.study.nodules) :]
    assert [found["voxels"] for found in sides] == list(shown.study.lung_voxels.values())
    for side, found in zip(shown.study.lung_voxels, sides, strict=True):
        assert (side == "left") == (found["centreLps"][0] > 0)


def test_the_overlay_lies_on_the_nodule(shown: Shown) -> None:
    """In pixels: what the segment colours is the planted nodule, and no segment of a nodule colours anything else."""
    for nodule in shown.study.nodules:
        view = shown.segmentation["rows"][nodule.number - 1]
        coloured, bare = shown.drive.canvas(view), shown.drive.canvas(view["without"])
        overlay = shown.drive.overlay(view)
        assert overlay.any(), f"nodule {nodule.number} is not coloured"
        middle = np.argwhere(overlay).mean(axis=0)
        expected, scale = _canvas_place(shown.study, nodule, overlay.shape)
        assert np.linalg.norm(middle - expected) <= scale, f"nodule {nodule.number}: {middle}, expected {expected}"
        assert np.abs(patient_place(view, middle) - nodule.centre_lps_mm).max() <= VOXEL_MM
        radius = nodule.diameter_mm / 2 / VOXEL_MM * scale
        assert _distance(overlay.shape, expected)[overlay].max() <= radius + 2 * scale, "coloured beside the nodule"
        bright = bare.mean(axis=-1) > NODULE_GREY
        assert bright[overlay].mean() > 0.95, "coloured where there is no nodule"
        nodule_area = bright & (_distance(overlay.shape, expected) < 1.3 * radius)
        assert overlay[nodule_area].mean() > 0.6, "the nodule is not coloured"
        assert _hue(coloured[overlay].mean(axis=0) - bare[overlay].mean(axis=0), shown, nodule) > 0.95


def test_the_report_opens_and_is_taken_over(shown: Shown) -> None:
    groups = measurement_groups(dcmread(shown.study.result("SR")))
    assert shown.structured_report["outcome"] == "asked"
    assert "continue tracking measurements" in shown.structured_report["question"]
    assert len(shown.structured_report["measurements"]) == len(groups) == len(shown.study.nodules)


def test_every_nodule_stands_in_the_panel(shown: Shown) -> None:
    groups = measurement_groups(dcmread(shown.study.result("SR")))
    panel = shown.structured_report["panel"]
    for nodule, group, found in _nodules(shown, groups):
        (comment,) = items_named(group, "Comment")
        (site,) = items_named(group, "Finding Site")
        site_meaning = site.ConceptCodeSequence[0].CodeMeaning
        assert found["label"] == comment.TextValue
        assert found["label"].startswith(f"Nodule {nodule.number}")
        assert found["sites"] == [site_meaning]
        shown_mm = {
            name: float(value) for name, value in re.findall(r"([LW]): ([\d.]+) mm", "\n".join(found["primary"]))
        }
        assert shown_mm == {
            "L": pytest.approx(nodule.long_axis_mm, abs=0.06),
            "W": pytest.approx(nodule.short_axis_mm, abs=0.06),
        }
        for words in (found["label"], *found["primary"], site_meaning):
            assert words in panel


def test_the_axes_lie_where_they_were_measured(shown: Shown) -> None:
    for nodule, _, found in _nodules(shown, measurement_groups(dcmread(shown.study.result("SR")))):
        points = np.array(found["points"])
        assert found["tool"] == "Bidirectional"
        assert np.abs(points[:2].mean(axis=0) - nodule.centre_lps_mm)[:2].max() < 0.1
        assert np.abs(points[0] - points[1])[0] == pytest.approx(nodule.long_axis_mm, abs=0.1)
        assert np.abs(points[2] - points[3])[1] == pytest.approx(nodule.short_axis_mm, abs=0.1)


def test_a_click_on_a_row_jumps_to_the_slice(shown: Shown) -> None:
    for opened in (shown.segmentation, shown.structured_report):
        for nodule in shown.study.nodules:
            view = opened["rows"][nodule.number - 1]
            assert view["moved"], view["text"]
            assert view["sopInstanceUid"] == nodule.key_slice_uid, view["text"]


@pytest.mark.parametrize("shown", ["every-object"], indirect=True)
def test_the_pictures_are_shown_as_they_are(shown: Shown) -> None:
    pictures = {str(image.SOPInstanceUID): image for image in map(dcmread, shown.study.of("OT"))}
    views = [view for found in shown.drive.report["pictures"] for view in found["views"]]
    assert {view["sopInstanceUid"] for view in views} == pictures.keys()
    for view in views:
        canvas = shown.drive.canvas(view)
        pixels = Image.fromarray(pictures[view["sopInstanceUid"]].pixel_array)
        scale = min(canvas.shape[0] / pixels.height, canvas.shape[1] / pixels.width)
        drawn = pixels.resize((round(pixels.width * scale), round(pixels.height * scale)), Image.Resampling.BILINEAR)
        top, left = (canvas.shape[0] - drawn.height) // 2, (canvas.shape[1] - drawn.width) // 2
        seen = canvas[top : top + drawn.height, left : left + drawn.width]
        assert np.abs(seen - np.asarray(drawn, dtype=float)).mean() < 6, view["name"]


@pytest.mark.parametrize("shown", ["every-object"], indirect=True)
def test_the_document_is_handed_to_the_browser_whole(shown: Shown) -> None:
    (document,) = shown.drive.report["documents"]
    stored = dcmread(shown.study.result("DOC")).EncapsulatedDocument
    assert (shown.drive.folder / document["document"]).read_bytes() == stored


def test_the_lines_are_drawn_with_their_text(shown: Shown) -> None:
    drawn, last = shown.structured_report["drawn"], shown.structured_report["measurements"][-1]
    assert drawn["lines"] >= 2
    assert any(last["label"] in text for text in drawn["texts"])


def _views(found: Any) -> Iterator[dict[str, Any]]:
    """Every view in a report, wherever it stands."""
    if isinstance(found, dict) and "settled" in found:
        yield found
    for inner in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        yield from _views(inner)


def _nodules(shown: Shown, groups: list[Dataset]) -> Iterator[tuple[KnownNodule, Dataset, dict[str, Any]]]:
    return zip(shown.study.nodules, groups, shown.structured_report["measurements"], strict=True)


def _lab(segment: Dataset) -> tuple[float, float, float]:
    """CIELab of a segment, from the scale that DICOM stores it in (PS3.3 C.10.7.1.1)."""
    lightness, a, b = segment.RecommendedDisplayCIELabValue
    return lightness * 100 / 65535, a * 255 / 65535 - 128, b * 255 / 65535 - 128


def _canvas_place(study: KnownStudy, nodule: KnownNodule, shape: tuple[int, ...]) -> tuple[npt.NDArray[Any], float]:
    """Where the nodule's centre must be on the canvas, (row, column), and canvas pixels per image pixel.

    From the file alone: the image fills the canvas, centred, as large as it can be.
    """
    image = next(
        header
        for header in (dcmread(path, stop_before_pixels=True) for path in study.images)
        if header.SOPInstanceUID == nodule.key_slice_uid
    )
    offset_mm = np.subtract(nodule.centre_lps_mm, np.array(image.ImagePositionPatient, dtype=float))
    cosines = np.array(image.ImageOrientationPatient, dtype=float)
    index = np.array([offset_mm @ cosines[3:], offset_mm @ cosines[:3]]) / VOXEL_MM
    size = np.array([image.Rows, image.Columns])
    scale = float((np.array(shape) / size).min())
    return np.array(shape) / 2 + (index + 0.5 - size / 2) * scale, scale


def _distance(shape: tuple[int, ...], place: npt.NDArray[Any]) -> npt.NDArray[Any]:
    rows, columns = np.indices(shape)
    return np.hypot(rows - place[0], columns - place[1])


def _hue(change: npt.NDArray[Any], shown: Shown, nodule: KnownNodule) -> float:
    """How well a change of colour points to the colour of the nodule's segment: 1 is the same hue."""
    (content,) = shown.segmentation["content"]
    wanted = np.array(content["segments"][nodule.number - 1]["colour"][:3], dtype=float)
    change, wanted = change - change.mean(), wanted - wanted.mean()
    return float(change @ wanted / np.linalg.norm(change) / np.linalg.norm(wanted))


assert SHAPE[1] != SHAPE[2]  # a transposition would go unseen otherwise
