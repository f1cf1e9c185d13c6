"""Errors of the node.

`domain/retry.py` decides on the type alone; a library's exceptions are translated at its adapter.
"""

from __future__ import annotations

from collections.abc import Sequence


class PulmoError(Exception):
    """Base of every error that the node raises on purpose."""


class ConfigError(PulmoError):
    """A configuration that cannot be used; ``problems`` holds one line per key."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("configuration:\n" + "\n".join(f"  {problem}" for problem in problems))
        self.problems = tuple(problems)


class Rejected(PulmoError):
    """A series that is not analysed, for a stated reason. Not a failure: trying again changes nothing.

    ``code`` is stable and machine-readable, ``sentence`` is for people, ``file`` and ``tag`` say where.
    """

    def __init__(self, code: str, sentence: str, *, file: str | None = None, tag: str | None = None) -> None:
        where = ", ".join(part for part in (file, tag) if part)
        super().__init__(f"{code}: {sentence}" + (f" [{where}]" if where else ""))
        self.code = code
        self.sentence = sentence
        self.file = file
        self.tag = tag

    @property
    def reason(self) -> str:
        """The sentence with the file and tag it speaks of."""
        return str(self).removeprefix(f"{self.code}: ")


class Transient(PulmoError):
    """It may work later: peer unreachable or busy (0xA7xx), device out of memory, disk full."""


class DiskFull(Transient):
    """No space on the disk: that is no fault of what was being done, so it costs no attempt."""


class AnalysisLost(Transient):
    """The process that analysed a series ended, or was ended, before it answered."""


class Stopped(PulmoError):
    """The node stops; what was running is given back as it was."""


class StorageFull(Transient):
    """There is too little space left to take anything new."""


class Permanent(PulmoError):
    """It will not work by trying again: peer refused (0xA9xx, 0xCxxx), encoding failed, weights missing."""


class LeftOut(Permanent):
    """The destination is not to have that kind of object: no failure, it is just not sent."""


class StaleJob(PulmoError):
    """The row is no longer in the state that the caller saw; the late result is thrown away."""


class InvalidTransition(PulmoError):
    """An event that the table of states does not allow."""
