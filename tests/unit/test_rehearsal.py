"""The rehearsal of a report at the start of the node: whole, and without a trace."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from pulmo_node import encode, rehearsal
from pulmo_node.encode import EncodedObject
from pulmo_node.errors import Transient


def test_every_kind_of_object_that_is_on_by_default_is_encoded_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found: list[EncodedObject] = []

    def encoded(*arguments: Any) -> tuple[EncodedObject, ...]:
        assert len(list(tmp_path.rglob("*.dcm"))) == 16, "the series is read from files, as a real one"
        objects = real(*arguments)
        found.extend(objects)
        return objects

    real = encode.encode_findings
    monkeypatch.setattr(encode, "encode_findings", encoded)
    rehearsal.rehearse()
    assert [each.kind for each in found] == ["sr", "seg", "key-image", "key-image"]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(Transient, match="rehearsing a report"):
        rehearsal.rehearse()
