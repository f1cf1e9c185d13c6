"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("PULMO_TEST_DATA", ROOT.parent / "shared" / "data"))


def data_folder(relative: str) -> Path:
    """A file or folder of the test data; skips the calling test where it is missing."""
    found = DATA / relative
    if not found.exists():
        pytest.skip(f"test data {relative} not found (set PULMO_TEST_DATA)")
    return found
