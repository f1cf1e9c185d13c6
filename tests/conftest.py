"""Fixtures that every test may use."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
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


@pytest.fixture(autouse=True)
def _no_log_of_the_command_line() -> Iterator[None]:
    """A command that ran within a test logs to the standard error of that test, which is closed behind it."""
    yield
    root = logging.getLogger()
    for handler in [each for each in root.handlers if type(each) is logging.StreamHandler]:
        root.removeHandler(handler)
