"""`make demo VIEWER=1`: the demo's study stays open in OHIF, with SEG and SR, until it is told to stop."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pulmo_node import demo
from tests.conftest import ROOT
from tests.ct_factory import write_datasets
from tests.encode_factory import chest_datasets
from tests.fake_pipeline import fake_pipeline
from tests.viewer import tools
from tests.viewer.driver import Drive, drive
from tests.viewer.stand import missing

__all__ = ["fake_pipeline"]

pytestmark = pytest.mark.viewer

PICTURES = ROOT / "viewer-out"


@pytest.fixture(autouse=True)
def _tools() -> None:
    lacking = missing()
    if lacking is not None:
        pytest.skip(lacking)


def _address(text: str) -> str:
    found = re.search(r"open in a browser: (http://127\.0\.0\.1:\d+/viewer\?StudyInstanceUIDs=[\d.]+)\s", text)
    assert found is not None, text
    return found[1]


def _all_is_shown(driven: Drive, nodules: int) -> None:
    assert driven.report["failures"] == []
    assert driven.report["page"] == {"errors": [], "exceptions": [], "refused": [], "left": []}
    ((segmentation,), (report,), (pictures,)) = (driven.report[n] for n in ("segmentations", "reports", "pictures"))
    assert [found["voxels"] > 0 for found in segmentation["content"][0]["segments"]] == [True] * nodules
    assert len(report["measurements"]) == nodules
    for opened in (segmentation, report):
        assert [view["moved"] for view in opened["rows"]] == [True] * nodules
    assert len({driven.canvas(view).tobytes() for view in pictures["views"]}) == nodules + 1  # the summary too


@pytest.mark.usefixtures("fake_pipeline")
def test_the_study_of_the_demo_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a pipeline that needs no network; the browser looks while the demo waits for Ctrl-C."""
    console = Console(file=io.StringIO(), width=60)
    looked: list[Drive] = []

    def look() -> None:
        assert isinstance(console.file, io.StringIO)
        looked.append(drive(_address(console.file.getvalue()), PICTURES / "demo"))

    monkeypatch.setattr(demo, "wait_for_ctrl_c", look)
    write_datasets(chest_datasets(), tmp_path / "ct")
    assert demo.run_demo(tmp_path / "ct", tmp_path / "out", console, ohif=tools.ohif())
    (driven,) = looked
    _all_is_shown(driven, nodules=1)


@pytest.mark.slow
def test_the_command_shows_the_phantom_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    """The real command with the shipped weights: phantom, networks, SR, SEG, viewer."""
    command = [sys.executable, "-m", "pulmo_node", "demo", "--out", str(tmp_path), "--viewer", str(tools.ohif())]
    said = ""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            said += line
            if "Ctrl-C" in line:
                break
        try:
            driven = drive(_address(said), PICTURES / "demo-phantom")
        finally:
            running.send_signal(signal.SIGINT)
    assert running.returncode == 0, said
    nodules = len(driven.report["reports"][0]["measurements"])
    assert nodules >= 3
    _all_is_shown(driven, nodules)
