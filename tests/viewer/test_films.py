"""Radiographs in OHIF: points where the heat maps have their peaks, the numbers beside them, heat maps as pictures.

OHIF takes over the measurements of one report of a study at a time, so each pipeline has a study of its own here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread

from pulmo_models.cxr.settings import LABELS
from tests.conftest import ROOT
from tests.encode_factory import items_named, measurement_groups
from tests.film_results import encoded, film_findings, read_films, risk_findings
from tests.radiograph_factory import film, radiograph, write_series
from tests.viewer.driver import Drive, drive
from tests.viewer.stand import ViewerStand, missing

pytestmark = [pytest.mark.viewer, pytest.mark.timeout(1800)]

ROWS, COLUMNS, SPACING_MM = 640, 560, 0.2
MAKERS = {"findings": film_findings, "lung-risk": risk_findings}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A radiograph with the results of one pipeline, and what OHIF showed of them."""

    name: str
    results: tuple[Dataset, ...]  # SR first
    drive: Drive

    @property
    def groups(self) -> list[Dataset]:
        return measurement_groups(self.results[0])

    @property
    def report(self) -> dict[str, Any]:
        (found,) = self.drive.report["reports"]
        return dict(found)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ViewerStand]:
    lacking = missing()
    if lacking is not None:
        pytest.skip(lacking)
    with ViewerStand(tmp_path_factory.mktemp("stand")) as running:
        yield running


@pytest.fixture(scope="module", params=MAKERS)
def shown(request: pytest.FixtureRequest, stand: ViewerStand, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    folder: Path = tmp_path_factory.mktemp(request.param)
    images = write_series(folder / "dx", radiograph(film(ROWS, COLUMNS)))
    series = read_films(images)
    objects = encoded(MAKERS[request.param](series), series)
    results = [folder / f"{number}-{each.kind}.dcm" for number, each in enumerate(objects)]
    for path, each in zip(results, objects, strict=True):
        path.write_bytes(each.content)
    stand.store([*images, *results])
    url = stand.ohif.study_url(series.series.study_instance_uid)
    driven = drive(url, ROOT / "viewer-out" / f"films-{request.param}")
    assert driven.report["failures"] == []
    return Shown(name=request.param, results=tuple(dcmread(BytesIO(each.content)) for each in objects), drive=driven)


def test_the_viewer_has_no_error(shown: Shown) -> None:
    assert shown.drive.report["page"] == {"errors": [], "exceptions": [], "refused": [], "left": []}


def test_the_study_opens_with_every_series(shown: Shown) -> None:
    sets = {found["series"]: found for found in shown.drive.report["sets"]}
    assert sets.keys() == {str(each.SeriesInstanceUID) for each in shown.results} | {
        found["series"] for found in sets.values() if found["modality"] == "DX"
    }
    assert not any(found["unsupported"] for found in sets.values())
    assert len({found["description"] for found in sets.values()}) == len(sets)


def test_the_report_is_taken_over_whole(shown: Shown) -> None:
    assert shown.report["outcome"] == "asked"
    found = shown.report["measurements"]
    assert len(found) == len(shown.groups) == (len(LABELS) if shown.name == "findings" else 1)
    for group, measurement in zip(shown.groups, found, strict=True):
        (comment,) = items_named(group, "Comment")
        assert measurement["tool"] == "Probe"
        assert measurement["label"] == comment.TextValue
        assert measurement["label"] in shown.report["panel"]
        (site,) = items_named(group, "Finding Site")
        assert measurement["sites"] == [site.ConceptCodeSequence[0].CodeMeaning]


def test_the_points_lie_where_the_report_says(shown: Shown) -> None:
    """The plane that OHIF lays a radiograph in: x along the rows and y down the columns, from the first pixel."""
    for group, measurement in zip(shown.groups, shown.report["measurements"], strict=True):
        (number,) = (item for item in group.ContentSequence if item.ValueType == "NUM")
        column, row = np.array(number.ContentSequence[-1].GraphicData) - 0.5
        (point,) = measurement["points"]
        assert point[:2] == pytest.approx((column * SPACING_MM, row * SPACING_MM), abs=SPACING_MM)


@pytest.mark.parametrize("shown", ["findings"], indirect=True)
def test_the_points_lie_on_the_peaks_of_the_heat_maps(shown: Shown) -> None:
    """Of the pictures: the reddest place of each is where the point of its finding is drawn."""
    pictures = [each for each in shown.results if each.Modality == "OT"]
    assert len(pictures) == len(LABELS)
    for picture, measurement in zip(pictures, shown.report["measurements"], strict=True):
        pixels = picture.pixel_array.astype(float)
        redness = pixels[..., 0] - pixels[..., 2]
        places = np.argwhere(redness > 0.9 * redness.max())
        middle = places.mean(axis=0) * ROWS / picture.Rows
        (point,) = measurement["points"]
        assert middle[::-1] * SPACING_MM == pytest.approx(point[:2], abs=8 * SPACING_MM)


@pytest.mark.parametrize("shown", ["findings"], indirect=True)
def test_the_heat_maps_are_shown_as_they_are(shown: Shown) -> None:
    pictures = {str(each.SOPInstanceUID): each for each in shown.results if each.Modality == "OT"}
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
