"""Derived UIDs: stable, valid, and different as soon as anything they stand for differs."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.uid import UID

from pulmo_node.encode import result_uid
from pulmo_node.encode.uids import device_uid

BASE: dict[str, Any] = {
    "series_instance_uid": "1.2.3",
    "revision": 1,
    "pipeline": "ct-nodules",
    "code_version": "0.1.0",
    "weights_sha256": "aa",
    "settings_sha256": "bb",
    "kind": "sr",
}


def test_same_inputs_give_the_same_valid_uid() -> None:
    uid = result_uid(**BASE)
    assert uid == result_uid(**BASE)
    assert UID(uid).is_valid
    assert len(uid) <= 64


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("series_instance_uid", "1.2.4"),
        ("revision", 2),
        ("pipeline", "ct-retinanet"),
        ("code_version", "0.1.1"),
        ("weights_sha256", "ab"),
        ("settings_sha256", "bc"),
        ("kind", "seg"),
    ],
)
def test_each_input_changes_the_uid(field: str, value: object) -> None:
    assert result_uid(**(BASE | {field: value})) != result_uid(**BASE)


def test_neighbouring_inputs_do_not_run_into_each_other() -> None:
    one = result_uid(**(BASE | {"weights_sha256": "a", "settings_sha256": "ab"}))
    other = result_uid(**(BASE | {"weights_sha256": "aa", "settings_sha256": "b"}))
    assert one != other


def test_device_uid_changes_with_the_model() -> None:
    base = {"pipeline": "p", "name": "n", "version": "1", "weights_sha256": "aa"}
    assert device_uid(**base) == device_uid(**base)
    assert len({device_uid(**base), *(device_uid(**(base | {key: "x"})) for key in base)}) == 5
