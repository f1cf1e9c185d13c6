"""Fixtures that every test may use."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
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


# What the tests write at most, twice over, and the node's own watermark: below it every node of a test refuses images.
NEEDED_BYTES = 4 * 1024**3


def pytest_sessionstart() -> None:
    """Says so where the disk is too full, rather than that 0xA700 came instead of 0x0000."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < NEEDED_BYTES:
        wanted = f"{NEEDED_BYTES / 1024**3:.0f} GiB (TMPDIR says where)"
        pytest.exit(f"{free / 1024**3:.1f} GiB free in {tempfile.gettempdir()}, the tests need {wanted}", returncode=1)


# Files that take minutes. Tests run in several processes, a file in one: the longest begin first, or one process would
# be left alone with one of them at the end.
LONGEST_FIRST = (
    "viewer/test_viewer.py",
    "acceptance/test_orthanc.py",
    "faults/test_faults.py",
    "integration/test_assemble_properties.py",
    "integration/test_crash.py",
    "models/test_training_whole.py",
    "viewer/test_demo_viewer.py",
    "integration/test_node.py",
    "integration/test_gaps.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of the longest files first; the others as they come."""

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(ROOT / "tests").as_posix()
        return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=place)


@pytest.fixture(autouse=True)
def _no_log_of_the_command_line() -> Iterator[None]:
    """A command that ran within a test logs to the standard error of that test, which is closed behind it."""
    yield
    root = logging.getLogger()
    for handler in [each for each in root.handlers if type(each) is logging.StreamHandler]:
        root.removeHandler(handler)
