"""docs/add-a-pipeline.md does what it says: its files make a package that the node finds by its entry point."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from typer.testing import CliRunner

from pulmo_models import registry
from pulmo_models.errors import UnknownPipeline
from pulmo_node.cli import app
from tests.conftest import ROOT
from tests.encode_factory import items_named, measurement_groups
from tests.radiograph_factory import STORED, radiograph, write_series

PAGE = ROOT / "docs" / "add-a-pipeline.md"
FILES = {"pulmo_brightness/pipeline.py", "pulmo_brightness/entry.py", "pyproject.toml", "node.toml"}


def written_files(folder: Path) -> dict[str, str]:
    """The files of the page, each by the comment that its block begins with, written to a folder."""
    blocks = re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    for name, content in blocks:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return dict(blocks)


def install(folder: Path, files: dict[str, str], points: str = "") -> None:
    """What pip leaves of a package beside its modules: its metadata, with the entry points of its pyproject.toml."""
    project = tomllib.loads(files["pyproject.toml"])["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    lines = points or "\n".join(
        f"[{group}]\n" + "\n".join(f"{label} = {place}" for label, place in table.items())
        for group, table in project["entry-points"].items()
    )
    (info / "entry_points.txt").write_text(lines, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder on the path, with the registry as it was before afterwards."""
    before = dict(registry._ENTRIES)
    place = tmp_path / "package"
    place.mkdir()
    monkeypatch.syspath_prepend(str(place))
    registry._of_packages.cache_clear()
    yield place
    monkeypatch.undo()
    registry._of_packages.cache_clear()
    registry._ENTRIES.clear()
    registry._ENTRIES.update(before)


def test_the_page_from_an_empty_folder_to_a_report(folder: Path, tmp_path: Path) -> None:
    files = written_files(folder)
    assert set(files) == FILES
    install(folder, files)
    runner, config = CliRunner(), ["--config", str(folder / "node.toml")]
    listed = runner.invoke(app, ["pipelines", *config])
    assert "film-brightness" in listed.output
    assert runner.invoke(app, ["config", "check", *config]).exit_code == 0
    write_series(tmp_path / "dx", radiograph())
    done = runner.invoke(app, ["analyze", str(tmp_path / "dx"), "--out", str(tmp_path / "out"), *config])
    assert done.exit_code == 0, done.exception
    found = json.loads((tmp_path / "out" / "findings.json").read_text(encoding="utf-8"))
    (estimate,) = found["images"][0]["estimates"]
    assert estimate["value"] == pytest.approx(100 * np.mean(STORED / STORED.max()), abs=0.01)
    report = dcmread(tmp_path / "out" / "sr.dcm")
    assert report.SeriesDescription == "Pulmo brightness SR"
    (group,) = measurement_groups(report)
    (number,) = items_named(group, "Mean brightness")
    assert float(number.MeasuredValueSequence[0].NumericValue) == estimate["value"]
    assert number.ContentSequence[-1].GraphicType == "POINT"


def test_its_settings_are_checked_and_it_declines_what_it_is_not_for(folder: Path, tmp_path: Path) -> None:
    files = written_files(folder)
    install(folder, files)
    config = folder / "node.toml"
    write_series(tmp_path / "dx", radiograph(stored=np.zeros((6, 5), dtype=np.uint16)))
    words = ["analyze", str(tmp_path / "dx"), "--out", str(tmp_path / "out"), "--config", str(config)]
    assert "TOO_DARK" in CliRunner().invoke(app, words).output
    config.write_text(files["node.toml"].replace("darkest = 2.0", "brightest = 2.0"), encoding="utf-8")
    wrong = CliRunner().invoke(app, ["config", "check", "--config", str(config)])
    assert wrong.exit_code != 0
    assert "brightest" in f"{wrong.output} {wrong.exception}"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("pulmo_brightness.missing:ENTRY", "cannot be loaded"),
        ("pulmo_brightness.entry:OTHER", "cannot be loaded"),
        ("pulmo_brightness.pipeline:LABEL", "no PipelineEntry of that label"),
    ],
)
def test_a_broken_package_is_named_and_harms_no_other_pipeline(folder: Path, place: str, words: str) -> None:
    files = written_files(folder)
    install(folder, files, f"[pulmo_node.pipelines]\nfilm-brightness = {place}\n")
    with pytest.raises(UnknownPipeline, match=words):
        registry.entry("film-brightness")
    assert "ct-nodules" in {entry.label for entry in registry.entries()}
    assert "film-brightness" not in {entry.label for entry in registry.entries()}
