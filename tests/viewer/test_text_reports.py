"""Reports without a nodule: OHIF shows what they say, where a measurement report without coordinates breaks it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from pulmo_node.encode import encode_findings, encode_rejection
from tests.conftest import ROOT
from tests.ct_factory import write_datasets
from tests.encode_factory import chest_datasets, make_context, make_findings, read_object, read_volume
from tests.viewer.driver import drive
from tests.viewer.stand import ViewerStand, missing

pytestmark = [pytest.mark.viewer, pytest.mark.timeout(1800)]


def test_what_a_report_without_nodules_says_is_shown(tmp_path: Path) -> None:
    lacking = missing()
    if lacking is not None:
        pytest.skip(lacking)
    images = write_datasets(chest_datasets(), tmp_path / "ct")
    volume = read_volume(images)
    context = make_context(volume)
    encoded = [
        *encode_findings(make_findings(volume), volume, context),
        encode_rejection(images, "NO_LUNGS", "There are no lungs in it.", context),
    ]
    results = [tmp_path / f"{number}.dcm" for number in range(len(encoded))]
    for path, result in zip(results, encoded, strict=True):
        path.write_bytes(result.content)
    with ViewerStand(tmp_path / "stand") as stand:
        stand.store([*images, *results])
        driven = drive(stand.ohif.study_url(volume.series.study_instance_uid), ROOT / "viewer-out" / "text-reports")
    assert driven.report["failures"] == []
    assert driven.report["page"] == {"errors": [], "exceptions": [], "refused": [], "left": []}
    shown = {found["series"]: found for found in driven.report["reports"]}
    assert len(shown) == len(results) == 2
    for path, result in zip(results, encoded, strict=True):
        found = shown[str(dcmread(path).SeriesInstanceUID)]
        assert found["outcome"] == "text"
        for text in _texts(read_object(result)):
            assert text in found["text"]


def _texts(item: Dataset) -> list[str]:
    """Every text of a report."""
    found = [str(item.TextValue)] if item.get("ValueType") == "TEXT" else []
    return found + [text for child in item.get("ContentSequence", []) for text in _texts(child)]
