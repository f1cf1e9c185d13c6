"""Ports for servers that are started a moment later, in this process and in others."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pulmo_node import orthanc
from pulmo_node.errors import Permanent
from tests.conftest import ROOT

PORTS = range(32_000, 32_400)  # beside those of tests that run at the same time; few enough that 80 would meet


def test_no_port_is_given_away_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orthanc, "_PORTS", PORTS)
    monkeypatch.setattr(orthanc, "_TAKEN", taken := [])
    try:
        given = [orthanc.free_port() for _ in range(60)]
        program = (
            "from pulmo_node import orthanc\n"
            f"orthanc._PORTS = {PORTS!r}\n"
            "print(*[orthanc.free_port() for _ in range(20)])\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True, timeout=300
        )
        others = [int(port) for port in done.stdout.split()]
    finally:
        for each in taken:
            each.close()
    assert len({*given, *others}) == 80


def test_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orthanc, "_PORTS", range(0))
    with pytest.raises(Permanent, match="no free TCP port"):
        orthanc.free_port()
