"""Memory of the GPUs of this machine, by the driver's own `nvidia-smi`; the analysis process need not be asked."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from dataclasses import dataclass

_QUERY = ("--query-gpu=index,memory.used,memory.total", "--format=csv,noheader,nounits")
_TIMEOUT_SECONDS = 5.0
_KEPT_SECONDS = 10.0
_MIB = 1024**2


@dataclass(frozen=True, kw_only=True)
class GpuMemory:
    """One GPU."""

    index: str
    used_bytes: int
    total_bytes: int


class Gpus:
    """Asks at most every ten seconds; nothing where there is no driver, or it does not answer."""

    def __init__(self, program: str = "nvidia-smi") -> None:
        self._program = program
        self._lock = threading.Lock()
        self._asked_at = -_KEPT_SECONDS
        self._known: tuple[GpuMemory, ...] = ()

    def memory(self) -> tuple[GpuMemory, ...]:
        """Of each GPU."""
        with self._lock:
            if time.monotonic() - self._asked_at >= _KEPT_SECONDS:
                self._known = self._ask()
                self._asked_at = time.monotonic()
            return self._known

    def _ask(self) -> tuple[GpuMemory, ...]:
        program = shutil.which(self._program)
        if program is None:
            return ()
        try:
            said = subprocess.run(
                [program, *_QUERY], capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return ()
        return tuple(_parsed(line) for line in said.stdout.splitlines() if _is_whole(line))


def _is_whole(line: str) -> bool:
    parts = [part.strip() for part in line.split(",")]
    return len(parts) == 3 and all(part.isdigit() for part in parts)


def _parsed(line: str) -> GpuMemory:
    index, used, total = (part.strip() for part in line.split(","))
    return GpuMemory(index=index, used_bytes=int(used) * _MIB, total_bytes=int(total) * _MIB)
