"""Which jobs go first."""

from __future__ import annotations

from enum import IntEnum


class Priority(IntEnum):
    """Higher goes first; among equals the oldest. A job that is being analysed is never interrupted."""

    ROUTINE = 0
    STAT = 1
