"""The demo, with a pipeline that needs no network: both PACS, what it prints, what it writes, when it fails."""

from __future__ import annotations

import io
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from rich.console import Console

from pulmo_node import demo, orthanc
from pulmo_node.encode import encode_findings
from pulmo_node.errors import Permanent
from tests.ct_factory import enhanced_from, write_datasets
from tests.encode_factory import chest_datasets, make_context, make_findings, make_nodule, write_volume
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
    modalities = sorted(dcmread(path).Modality for path in (tmp_path / "out").glob("*.dcm"))
    assert modalities == ["OT", "OT", "SEG", "SR"]  # a summary page, and a picture of the nodule
    assert Image.open(tmp_path / "out" / "nodule-1.png").width > 100
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "nodule-1.png" in page
    assert str(datasets[0].SeriesInstanceUID) in page
    text = said(console)
    for word in ("Nodules", "malignancy", "encoded", "delivered", "DONE", "sent 12 images", "1 files are no images"):
        assert word in text, word


def without_one(datasets: list[Dataset]) -> list[Dataset]:
    """A gap in the middle of the nodule of the made pipeline."""
    return datasets[:5] + datasets[6:]


@pytest.mark.parametrize("change", [lambda datasets: [enhanced_from(datasets)], without_one], ids=["enhanced", "gap"])
def test_masks_come_back_to_the_grid_of_the_volume(
    change: Callable[[list[Dataset]], list[Dataset]], tmp_path: Path
) -> None:
    volume = write_volume(change(chest_datasets()), tmp_path)
    nodules = [make_nodule(volume, (5, 10, 12)), make_nodule(volume, (6, 28, 33), radius_mm=6.0)]
    _, seg = encode_findings(make_findings(volume, nodules), volume, make_context(volume))
    segmentation = hd.seg.segread(BytesIO(seg.content))
    for number, nodule in enumerate(nodules, start=1):
        back = demo._mask(segmentation, number, volume).to_volume(volume.hu.shape)
        acquired = [k for k in range(len(volume.hu)) if k not in volume.interpolated]
        np.testing.assert_array_equal(back[acquired], nodule.mask.to_volume(volume.hu.shape)[acquired])
        assert back[list(volume.interpolated)].any(axis=(1, 2)).all()


def test_a_repaired_series_is_shown_with_its_cautions(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orthanc, "available", lambda: "Orthanc is not installed")
    write_datasets(without_one(chest_datasets()), tmp_path / "ct")
    assert demo.run_demo(tmp_path / "ct", tmp_path / "out", console)
    assert Image.open(tmp_path / "out" / "nodule-1.png").width > 100
    assert "caution: GAP_FILLED: " in said(console)


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
