"""Runs `drive.mjs` and reads what it wrote."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.viewer import tools

_COLOURED = 12  # change of a canvas value, 0..255
_LIMIT_SECONDS = 1200  # below the limit of a test; a busy machine may need minutes


@dataclass(frozen=True, kw_only=True)
class Drive:
    """What OHIF showed of a study."""

    report: dict[str, Any]
    folder: Path  # of the pictures

    def canvas(self, view: dict[str, Any]) -> npt.NDArray[np.float64]:
        """The bare canvas of a view, RGB 0..255, ``(rows, columns, 3)``."""
        return np.asarray(Image.open(self.folder / view["canvas"]).convert("RGB"), dtype=np.float64)

    def overlay(self, view: dict[str, Any]) -> npt.NDArray[np.bool_]:
        """Where the segments of nodules colour the canvas of a row's view, ``(rows, columns)``."""
        change = np.abs(self.canvas(view) - self.canvas(view["without"])).max(axis=-1)
        return np.asarray(change > _COLOURED)


def patient_place(view: dict[str, Any], place: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """LPS mm of points of the canvas, ``(..., 2)`` as row and column, as OHIF maps them."""
    origin, right, below = (np.array(corner) for corner in view["corners"])
    across, down = (right - origin) / view["size"][0], (below - origin) / view["size"][1]
    return np.asarray(origin + np.asarray(place) @ np.array([down, across]))


def drive(url: str, folder: Path, only: Sequence[str] = ()) -> Drive:
    """Open the study at `url` in OHIF and do what a reader does; pictures and report.json go to `folder`.

    Of the results those of the modalities or series `only`, where it names any, else all.
    """
    if folder.exists():
        shutil.rmtree(folder)  # pictures of an earlier run would be taken for this one's
    command = [tools.node(), str(tools.HERE / "drive.mjs"), "--url", url, "--out", str(folder)]
    command += ["--chromium", tools.chromium(), "--modules", str(tools.node_modules())]
    command += ["--only", ",".join(only)] if only else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False)
    written = folder / "report.json"
    if done.returncode != 0 or not written.is_file():
        raise AssertionError(f"the browser could not be driven: {done.stderr[-2000:]}")
    return Drive(report=json.loads(written.read_text(encoding="utf-8")), folder=folder)
