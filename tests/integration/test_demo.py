"""The demo, with a pipeline that needs no network: both PACS, what it prints, what it writes, when it fails."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from pydicom import dcmread
from rich.console import Console

from pulmo_node import demo, orthanc
from pulmo_node.errors import Permanent
from tests.ct_factory import write_datasets
from tests.encode_factory import chest_datasets
from tests.fake_pipeline import REJECTED_DESCRIPTION, fake_pipeline

pytestmark = pytest.mark.usefixtures("fake_pipeline")
__all__ = ["fake_pipeline"]


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(params=["Orthanc", "small PACS"])
def either_pacs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "small PACS":
        monkeypatch.setattr(orthanc, "available", lambda: "Orthanc is not installed")
    elif (missing := orthanc.available()) is not None:
        pytest.skip(missing)
    return str(request.param)


def test_everything_comes_back_and_is_shown(either_pacs: str, tmp_path: Path, console: Console) -> None:
    datasets = chest_datasets()
    write_datasets(datasets, tmp_path / "ct")
    (tmp_path / "ct" / "readme.txt").write_text("no DICOM")
    assert demo.run_demo(tmp_path / "ct", tmp_path / "out", console)
    assert sorted(dcmread(path).Modality for path in (tmp_path / "out").glob("*.dcm")) == ["SEG", "SR"]
    assert Image.open(tmp_path / "out" / "nodule-1.png").width > 100
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "nodule-1.png" in page
    assert str(datasets[0].SeriesInstanceUID) in page
    text = said(console)
    for word in ("Nodules", "malignancy", "encoded", "delivered", "DONE", "sent 12 images", "1 files are no images"):
        assert word in text, word


def test_a_planted_nodule_that_is_not_found_fails_the_demo(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plant(folder: Path) -> list[demo.Position]:
        write_datasets(chest_datasets(), folder)
        return [(1000.0, 0.0, 0.0)]

    monkeypatch.setattr(orthanc, "available", lambda: "Orthanc is not installed")
    monkeypatch.setattr(demo, "_write_phantom", plant)
    assert not demo.run_demo(None, tmp_path / "out", console)
    assert "not found" in said(console)


def test_a_rejected_series_fails_the_demo_and_says_why(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orthanc, "available", lambda: "Orthanc is not installed")
    datasets = chest_datasets()
    for dataset in datasets:
        dataset.SeriesDescription = REJECTED_DESCRIPTION
    write_datasets(datasets, tmp_path / "ct")
    assert not demo.run_demo(tmp_path / "ct", tmp_path / "out", console)
    assert "there are no lungs" in said(console)


def test_a_folder_without_images_is_one_clear_error(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orthanc, "available", lambda: "Orthanc is not installed")
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "readme.txt").write_text("no DICOM")
    with pytest.raises(Permanent, match="no CT image"):
        demo.run_demo(tmp_path / "ct", tmp_path / "out", console)
