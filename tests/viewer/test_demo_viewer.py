"""`make demo VIEWER=1`: the demo's study stays open in OHIF, with SEG and SR, until it is told to stop."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pulmo_models.training.material.phantoms import DEMO_NODULES, NoduleSpec
from pulmo_node import demo
from tests.conftest import ROOT
from tests.ct_factory import write_datasets
from tests.encode_factory import chest_datasets
from tests.fake_pipeline import fake_pipeline
from tests.viewer import tools
from tests.viewer.driver import Drive, drive, patient_place
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
    ((segmentation,), (report,)) = driven.report["segmentations"], driven.report["reports"]
    assert [found["voxels"] > 0 for found in segmentation["content"][0]["segments"]] == [True] * nodules
    assert len(report["measurements"]) == nodules
    for opened in (segmentation, report):
        assert [view["moved"] for view in opened["rows"]] == [True] * nodules


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
    (pictures,) = driven.report["pictures"]
    assert len({driven.canvas(view).tobytes() for view in pictures["views"]}) == 2  # the nodule and the summary


@pytest.mark.slow
@pytest.mark.timeout(1800)
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
            driven = drive(_address(said), PICTURES / "demo-phantom", only=("SEG", "SR"))
        finally:
            running.send_signal(signal.SIGINT)
    assert running.returncode == 0, said
    nodules = len(driven.report["reports"][0]["measurements"])
    _all_is_shown(driven, nodules)
    for planted in DEMO_NODULES:
        _lies_on_the_overlay(driven, planted)


def _lies_on_the_overlay(driven: Drive, planted: NoduleSpec) -> None:
    """A click on the row of a segment leads to the planted nodule, and there the image is coloured."""
    (segmentation,) = driven.report["segmentations"]
    centres = [found["centreLps"] for found in segmentation["content"][0]["segments"]]
    distances_mm = np.linalg.norm(np.subtract(centres, planted.place), axis=1)
    assert distances_mm.min() < 2
    view = segmentation["rows"][int(distances_mm.argmin())]
    overlay = driven.overlay(view)
    off_mm = patient_place(view, np.argwhere(overlay) + 0.5) - planted.place
    assert np.abs(off_mm[:, 2]).max() < planted.diameter_mm / 2
    radius_mm = planted.diameter_mm / 2
    pixel_mm2 = np.prod(np.abs(patient_place(view, [1, 1]) - patient_place(view, [0, 0]))[:2])
    inside_mm2 = (np.linalg.norm(off_mm[:, :2], axis=1) < radius_mm).sum() * pixel_mm2
    assert inside_mm2 > 0.6 * np.pi * radius_mm**2
