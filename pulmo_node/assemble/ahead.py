"""Reads the files of a series while others of it still arrive, so that its volume is soon assembled in the end.

Input: files, in any order and as often as one likes. Output: `SeriesFiles` with what was read of the files that a
series turns out to have. What is assembled never depends on this: an entry stands for one file with one content, and is
used for that file only while it is the same (`FileIdentity`); which files make the volume is decided in the end, from
all of them. Of compressed images the stored values are kept, within a limit; uncompressed ones are read faster than
kept twice, so of them only the header.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from pulmo_node.assemble.decoding import PROCESSES
from pulmo_node.assemble.files import FileIdentity
from pulmo_node.assemble.frames import CT_CLASSES
from pulmo_node.assemble.headers import Header, SeriesFiles, read_whole_header
from pulmo_node.assemble.pixels import IntegerArray, read_pixel_module, stored_values
from pulmo_node.errors import Rejected

_HEADER_BYTES = 32 << 10  # about what the elements of a header take in memory
_FORGOTTEN_SECONDS = 900.0  # a series that nobody asked for until then has no pipeline


@dataclass(frozen=True, kw_only=True, eq=False)
class _Entry:
    identity: FileIdentity
    header: Header | None  # None where it cannot be read, which assembly will find out and tell
    stored: IntegerArray | None
    read_at: float  # monotonic seconds

    @property
    def size_bytes(self) -> int:
        return _HEADER_BYTES + (0 if self.stored is None else self.stored.nbytes)


class ReadAhead:
    """What was read before it was asked for. Threads may share it."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._entries: dict[Path, _Entry] = {}  # the oldest first
        self._lock = Lock()

    @property
    def held_bytes(self) -> int:
        """What is kept, at most `most_bytes`."""
        with self._lock:
            return sum(entry.size_bytes for entry in self._entries.values())

    def read(self, paths: Sequence[Path], seconds: float) -> bool:
        """Read those of the files that were not read yet, for so long; True where some are left and there is room.

        What was read of other files goes where room is needed.
        """
        until = time.monotonic() + seconds
        self._forget(until - seconds - _FORGOTTEN_SECONDS)
        with self._lock:
            waiting = [path for path in paths if path not in self._entries]
        wanted = frozenset(paths)
        with ThreadPoolExecutor(PROCESSES) as pool:
            for first in range(0, len(waiting), PROCESSES):
                for path, entry in zip(
                    waiting[first:], pool.map(_read, waiting[first : first + PROCESSES]), strict=False
                ):
                    if entry is not None and not self._keep(path, entry, wanted):
                        return False
                if time.monotonic() >= until:
                    return first + PROCESSES < len(waiting)
        return False

    def take(self, paths: Sequence[Path]) -> SeriesFiles:
        """What was read of these files and still holds; it is no longer kept here."""
        with self._lock:
            entries = {path: self._entries.pop(path) for path in paths if path in self._entries}
        files = SeriesFiles()
        for path, entry in entries.items():
            if entry.header is not None and _identity(path) == entry.identity:
                files.add(entry.header, entry.stored)
        return files

    def _keep(self, path: Path, entry: _Entry, wanted: frozenset[Path]) -> bool:
        with self._lock:
            held = sum(each.size_bytes for each in self._entries.values()) + entry.size_bytes
            for other in [each for each in self._entries if each not in wanted]:
                if held <= self._most_bytes:
                    break
                held -= self._entries.pop(other).size_bytes
            if held > self._most_bytes:
                return False
            self._entries[path] = entry
            return True

    def _forget(self, before: float) -> None:
        with self._lock:
            self._entries = {path: entry for path, entry in self._entries.items() if entry.read_at >= before}


def _read(path: Path) -> _Entry | None:
    """None where there is no such file."""
    identity = _identity(path)
    if identity is None:
        return None
    now = time.monotonic()
    try:
        header = read_whole_header(path)
        stored = _decoded(header) if _worth_decoding(header) else None
    except Rejected:
        return _Entry(identity=identity, header=None, stored=None, read_at=now)
    if header.identity != identity:
        return None
    return _Entry(identity=identity, header=header, stored=stored, read_at=now)


def _worth_decoding(header: Header) -> bool:
    """A compressed CT image of one frame."""
    dataset = header.dataset
    return bool(
        header.has_pixels
        and dataset.file_meta.TransferSyntaxUID.is_encapsulated
        and dataset.get("SOPClassUID") in CT_CLASSES
        and not dataset.get("NumberOfFrames")
    )


def _decoded(header: Header) -> IntegerArray | None:
    """None where it cannot be decoded: assembly tries again, where it belongs to the volume at all."""
    try:
        return stored_values(header.path, read_pixel_module(header.path))
    except Rejected:
        return None


def _identity(path: Path) -> FileIdentity | None:
    try:
        return FileIdentity.of(path.stat())
    except OSError:
        return None
