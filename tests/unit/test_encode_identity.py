"""What identifies a result, the algorithms that made it, and texts that fit any character set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pulmo_node.encode.identity import (
    Equipment,
    Predecessor,
    ResultOptions,
    algorithm_parameters,
    ascii_text,
    library_errors,
)
from pulmo_node.errors import Permanent
from tests.encode_factory import INFO, WEIGHTS, context_of

BASE: dict[str, Any] = {"options": ResultOptions()}
CONTEXT = context_of("1.2.3", **BASE)


def test_the_program_and_each_network_are_algorithms_of_their_own() -> None:
    program = Equipment.of(INFO, CONTEXT)
    assert (program.model_name, program.software_version) == (INFO.name, INFO.version)
    assert [stage.model_name for stage in program.stages] == ["HeatmapUNet3D", "Student2p5D"]
    assert program.stages[0].parameters == (("weights_sha256", "cd" * 32), ("peak_threshold", "0.3"))
    items = program.contributing_items(CONTEXT)
    assert [item.ManufacturerModelName for item in items] == [INFO.name, "HeatmapUNet3D", "Student2p5D"]
    assert [item.ContributionDescription for item in items[1:]] == [
        "Stage 1 of Pulmo CT nodules",
        "Stage 2 of Pulmo CT nodules",
    ]
    assert [item.DeviceSerialNumber for item in items] == [digest * 8 for digest in ("ab", "cd", "ef")]


@pytest.mark.parametrize("number", [0, 1])
def test_new_weights_make_a_new_device_of_their_network_alone(number: int) -> None:
    stages = list(INFO.stages)
    stages[number] = replace(stages[number], weights_sha256="77" * 32)
    one, other = Equipment.of(INFO, CONTEXT), Equipment.of(replace(INFO, stages=tuple(stages)), CONTEXT)
    changed = [a.device_uid != b.device_uid for a, b in zip(one.stages, other.stages, strict=True)]
    assert changed == [number == 0, number == 1]


def test_without_a_pipeline_the_node_itself_is_named() -> None:
    node = Equipment.of(None, CONTEXT)
    assert (node.model_name, node.software_version, node.stages) == ("ct-nodules", CONTEXT.code_version, ())
    assert node.serial_number == CONTEXT.code_version
    assert len(node.contributing_items(CONTEXT)) == 1


def test_parameters_hold_no_separators() -> None:
    stage = replace(INFO.stages[0], parameters={"views": "0,90", "a=b": "1"})
    found = dict(algorithm_parameters(replace(INFO, stages=(stage,))))
    assert found["stage1_views"] == "0;90"
    assert found["stage1_a:b"] == "1"
    assert found["weights_sha256"] == WEIGHTS


EARLIER = Predecessor(sop_class_uid="1.2", sop_instance_uid="1.2.3.4", series_instance_uid="1.2.3")


@pytest.mark.parametrize(
    "changes",
    [
        {"options": ResultOptions(negative_report="air")},
        {"options": ResultOptions(segmentation="labelmap")},
        {"options": ResultOptions(key_images=False)},
        {"predecessors": (EARLIER,)},
        {"predecessors": (replace(EARLIER, sop_instance_uid="1.2.3.5"),)},
        {"revision": 2},
        {"settings_sha256": "9" * 64},
    ],
    ids=str,
)
def test_whatever_decides_about_the_bytes_is_part_of_the_uid(changes: dict[str, Any]) -> None:
    uid = CONTEXT.uid("sr", WEIGHTS)
    assert uid == context_of("1.2.3", **BASE).uid("sr", WEIGHTS)
    assert context_of("1.2.3", **(BASE | changes)).uid("sr", WEIGHTS) != uid


def test_each_predecessor_counts() -> None:
    contexts = [context_of("1.2.3", **BASE, predecessors=(EARLIER,) * count) for count in range(3)]
    assert len({context.uid("sr", WEIGHTS) for context in contexts}) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("≥ 4 mm × 3 – 2 cm³", ">= 4 mm x 3 - 2 cm3"),
        ("Größe é", "Gro?e e"),
        ("王", "?"),
    ],
)
def test_own_texts_are_ascii(text: str, expected: str) -> None:
    assert ascii_text(text) == expected


def test_what_a_library_says_does_not_reach_the_message() -> None:
    with pytest.raises(Permanent) as caught, library_errors("SR", "1.2.3"):
        raise ValueError("bad name Blabbermouth^Betty")
    assert str(caught.value) == "SR of series 1.2.3 could not be encoded (ValueError from the library)"
