"""The nodules of a findings.json as the values that the store keeps."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

import pytest

from pulmo_node.domain.findings import Finding, findings_of
from pulmo_node.encode.report import NoduleRecord
from tests.integration.store_scene import findings_json, nodule


def test_every_number_is_that_of_findings_json() -> None:
    first, second = findings_of(findings_json(nodule(1), nodule(2, laterality=None, pleura_distance_mm=None)))
    given = nodule(1)
    x, y, z = given.pop("centre_lps_mm")
    assert asdict(first) == given | {"centre_x_mm": x, "centre_y_mm": y, "centre_z_mm": z, "malignancy_bias": -1.2346}
    assert (second.segment_number, second.laterality, second.pleura_distance_mm) == (2, None, None)


def test_no_field_of_a_report_is_forgotten() -> None:
    reported = {field.name for field in fields(NoduleRecord)}
    assert {field.name for field in fields(Finding)} == (reported - {"centre_lps_mm"}) | {
        "centre_x_mm",
        "centre_y_mm",
        "centre_z_mm",
        "malignancy_bias",
    }
    assert set(nodule(1)) == reported


def test_what_earlier_versions_do_not_have_is_none() -> None:
    old = nodule(1)
    for key in ("min_hu", "max_hu", "laterality", "pleura_distance_mm"):
        del old[key]
    (found,) = findings_of(findings_json(old))
    assert (found.min_hu, found.max_hu, found.laterality, found.pleura_distance_mm) == (None, None, None, None)


def test_no_nodules_are_no_findings() -> None:
    assert findings_of(findings_json()) == ()


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in nodule(1).items() if name != key}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "DOE^JANE",
        "[]",
        json.dumps({"nodules": [nodule(1)]}),
        json.dumps({"malignancy_bias": 0.0, "nodules": [without("volume_mm3")]}),
        json.dumps({"malignancy_bias": 0.0, "nodules": [nodule(1) | {"centre_lps_mm": [1.0, 2.0]}]}),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the text is of no matter, but for a name
        findings_of(text)
    assert "DOE" not in str(refused.value)
