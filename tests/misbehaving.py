"""A pipeline that does to its process what a broken decoder, driver or network would, by the series description.

Every attempt leaves a line in the file that the variable PULMO_TEST_ATTEMPTS names, so that a test can count them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from pulmo_models import registry
from pulmo_models.errors import DeviceOutOfMemory
from pulmo_models.pipeline import ProgressCallback, no_progress
from pulmo_models.types import Findings, Radiograph, Volume
from tests.fake_pipeline import FakePipeline

SEGFAULT, KILLED, EXIT, HANGS, STOPPED = "segfault", "killed", "exit", "hangs", "stopped"
SLOW = "slow"
CUDA, DEVICE_MEMORY, MEMORY, BUG = "cuda", "device memory", "memory", "bug"
QUOTED = "DOE^JANE"


class Misbehaving(FakePipeline):
    def __call__(self, image: Volume | Radiograph, progress: ProgressCallback = no_progress) -> Findings:
        what = image.series.series_description
        if (journal := os.environ.get("PULMO_TEST_ATTEMPTS")) is not None:
            with open(journal, "a", encoding="utf-8") as file:
                file.write(f"{os.getpid()} {what}\n")
        if what == SEGFAULT:
            ctypes.string_at(0)
        elif what == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == STOPPED:
            os.kill(os.getpid(), signal.SIGSTOP)
        elif what == EXIT:
            os._exit(3)
        elif what == HANGS:
            threading.Event().wait()
        elif what == CUDA:
            raise RuntimeError("CUDA error: device-side assert triggered")
        elif what == DEVICE_MEMORY:
            raise DeviceOutOfMemory("the memory of the GPU was not enough")
        elif what == MEMORY:
            raise MemoryError
        elif what == BUG:
            raise ValueError(f"cannot handle {QUOTED}")
        elif what == SLOW:
            progress("stage1", 0.25)
            _wait_for_the_test()
        return super().__call__(image, progress)

    def warm_up(self) -> None:
        """Leaves its process id in the file that PULMO_TEST_WARMED names."""
        if (path := os.environ.get("PULMO_TEST_WARMED")) is not None:
            with open(path, "w", encoding="ascii") as file:
                file.write(str(os.getpid()))


def _wait_for_the_test() -> None:
    """Until the file that PULMO_TEST_GO_ON names is there; not for ever, should the test fail before."""
    path = os.environ["PULMO_TEST_GO_ON"]
    for _ in range(1200):
        if os.path.exists(path):
            return
        threading.Event().wait(0.1)


def build(settings: Mapping[str, Any], device: str) -> Misbehaving:
    """The factory that the registry calls."""
    return Misbehaving()


@pytest.fixture
def misbehaving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put it in the place of ct-nodules, for one test; the analysis process takes over the registry as it is."""
    entry = replace(registry.entry("ct-nodules"), factory="tests.misbehaving:build")
    monkeypatch.setitem(registry._ENTRIES, "ct-nodules", entry)
