"""What people read of a result: cautions with their codes, of the series and of single nodules."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from pulmo_node.console import print_nodules

CAUTION = {"code": "OTHER_VOLUMES", "sentence": "Other images were not analysed: 60 images [B80f], acquisition 2."}


def nodule(**changes: Any) -> dict[str, Any]:
    return {
        "segment_number": 1,
        "centre_lps_mm": [1.0, 2.0, 3.0],
        "long_axis_mm": 8.04,
        "volume_mm3": 211.0,
        "detection_probability": 0.9,
        "malignancy_probability": 0.5,
        "concepts": {"margin": {"value": 3.0, "contribution": 0.2}},
        **changes,
    }


def said(findings: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=300)
    print_nodules(console, findings)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_other_volumes_and_cautions_are_named_with_their_codes() -> None:
    own = {"code": "TOUCHES_INTERPOLATED", "sentence": "One slice was interpolated."}
    text = said({"nodules": [nodule(), nodule(segment_number=2, cautions=[own])], "cautions": [CAUTION]})
    assert "caution: OTHER_VOLUMES: Other images were not analysed: 60 images [B80f], acquisition 2." in text
    assert "caution on nodule 2: TOUCHES_INTERPOLATED: One slice was interpolated." in text
    assert "caution on nodule 1" not in text


def test_the_lung_is_told_where_it_is_known() -> None:
    nodules = [nodule(laterality="left"), nodule(laterality=None)]
    rows = [line for line in said({"nodules": nodules, "cautions": []}).splitlines() if "1.0, 2.0, 3.0" in line]
    assert [[cell.strip() for cell in row.split("│")][3] for row in rows] == ["left", ""]


def test_a_pipeline_that_looks_for_no_nodules_says_what_it_found() -> None:
    text = said({"nodules": [], "conclusions": ["Left lung: 2100 ml.", "Nodules were not looked for."], "cautions": []})
    assert text == "Left lung: 2100 ml. Nodules were not looked for. Research use only.\n"
    assert "No nodules were found." in said({"nodules": [], "conclusions": [], "cautions": []})


@pytest.mark.parametrize("nodules", [[], [nodule()]])
def test_results_of_an_earlier_version_are_still_shown(nodules: list[dict[str, Any]]) -> None:
    """Schema version 1: cautions are sentences, nodules have none."""
    assert "caution: The slices are 5.0 mm apart." in said(
        {"nodules": nodules, "cautions": ["The slices are 5.0 mm apart."]}
    )
