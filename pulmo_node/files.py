"""Durable files: received instances.

Input: bytes from the receiver. Output: files below the storage directory that survive a power cut from the moment the
call returns. Errors: `Transient` where the disk refuses. Governed by DICOM PS3.10 (file format).

Layout below the storage directory::

    instances/<study>/<series>/<sop>.dcm                   as the peer sent it
    instances/<study>/<series>/<sop>.conflict-<sha256>.dcm  same SOP Instance UID, other bytes (start of the digest)
    outbox/<key>/                                          what one job yielded: `pulmo_node.outbox`
    incoming/                                              being written; what a crash leaves here is never read
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from itertools import count
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

from pulmo_node.durable import disk_refusal, fsync_folder, fsync_upwards
from pulmo_node.errors import Permanent, StorageFull, Transient
from pulmo_node.ports import WrittenInstance

log = logging.getLogger(__name__)

Buffer: TypeAlias = bytes | bytearray | memoryview

_UID = re.compile(r"[0-9.]{1,64}")
_GROUP_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"  # (0002,0000) UL, 4 bytes; it follows preamble and prefix (PS3.10, 7.1)
_GROUP_LENGTH_END = 128 + 4 + len(_GROUP_LENGTH) + 4
_CONFLICT_DIGITS = 32
_ABANDONED_AFTER_SECONDS = 3600.0
_REMEMBERED_FOLDERS = 4096
_SPACE_IS_ASKED_EVERY_BYTES = 16 * 1024**2


class FileInstanceStore:
    """Received Part 10 files (port `InstanceStore`)."""

    def __init__(self, storage: Path, *, min_free_bytes: int = 0) -> None:
        """With less than `min_free_bytes` free, nothing new is written: the rest is for results and the database."""
        self._storage = storage
        self._min_free_bytes = min_free_bytes
        self._is_full = False
        self._incoming = prepare_storage(storage, "instances")
        self._own = uuid4().hex
        self._parts = count()
        self._folders_lock = threading.Lock()
        self._durable_folders: set[Path] = set()

    def begin(
        self, *, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str, meta: bytes
    ) -> IncomingInstance:
        """Begin to write one instance, as `InstanceStore` has it.

        The first bytes under a SOP Instance UID keep the plain name; other bytes get a name of their own, once.

        Raises:
            StorageFull: it is new and too little space is left; what is there already can be sent again.
            Transient: the disk refuses.
            ValueError: `meta` is not preamble, prefix and a meta header that begins with its group length.
        """
        if _meta_length(meta) != len(meta):
            raise ValueError("meta is not a whole File Meta Information with its group length")
        folder = self._storage / "instances" / uid_name(study_instance_uid) / uid_name(series_instance_uid)
        with disk_refusal(f"writing instance {uid_name(sop_instance_uid)}"):
            self._make_folder(folder)
            return IncomingInstance(self, folder / f"{uid_name(sop_instance_uid)}.dcm", meta)

    def write(
        self, *, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str, meta: bytes, data_set: bytes
    ) -> WrittenInstance:
        """All of an instance at once: `begin`, `append` and `finish`, with their errors."""
        incoming = self.begin(
            study_instance_uid=study_instance_uid,
            series_instance_uid=series_instance_uid,
            sop_instance_uid=sop_instance_uid,
            meta=meta,
        )
        with incoming:
            incoming.append(data_set)
            return incoming.finish()

    def paths(self) -> Iterator[str]:
        """Every instance on disk, relative to storage, conflicts included; in no order. Raises `Transient`."""
        with disk_refusal("listing instances"):
            for study in _folders(self._storage / "instances"):
                for series in _folders(study):
                    prefix = f"instances/{study.name}/{series.name}/"
                    with os.scandir(series) as entries:
                        yield from (prefix + entry.name for entry in entries if entry.name.endswith(".dcm"))

    def read(self, path: str) -> tuple[bytes, bytes]:
        """Meta header with all before it, and data set, of a file that is durable on return.

        It may have been put there by a process that died before it synchronised the folder.

        Raises:
            Transient: the disk refuses.
            Permanent: it is no Part 10 file as `write` makes them.
        """
        absolute = self._storage / path
        with disk_refusal(f"reading {absolute.name}"):
            content = absolute.read_bytes()
            fsync_upwards(absolute.parent, self._storage)
        length = _meta_length(content[:_GROUP_LENGTH_END])
        if length is None or length > len(content):
            raise Permanent(f"{absolute.name} is no whole Part 10 file")
        return content[:length], content[length:]

    def path_of(self, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str) -> str:
        """Where the first bytes of that instance lie, relative to storage."""
        names = map(uid_name, (study_instance_uid, series_instance_uid, sop_instance_uid))
        return f"instances/{'/'.join(names)}.dcm"

    def digest(self, path: str) -> str | None:
        """sha256 of the data set in a file as it is now; None where there is no such file, or no whole one.

        Raises:
            Transient: it cannot be read.
        """
        with disk_refusal(f"reading {Path(path).name}"):
            try:
                return _data_set_digest(self._storage / path)
            except FileNotFoundError:
                return None

    def conflict_path(self, plain: str, sha256: str) -> str:
        """Where other bytes under the name of `path_of` lie."""
        return f"{plain.removesuffix('.dcm')}.conflict-{sha256[:_CONFLICT_DIGITS]}.dcm"

    def absolute(self, path: str) -> Path:
        """A path of `WrittenInstance` or `ResultObject` on this machine."""
        return self._storage / path

    def _make_folder(self, folder: Path) -> None:
        """Create the folder of a series, its name durable on return.

        Once in the life of the process also where it is there already: whoever created it may have died before it
        synchronised the parents. Not for every instance, since each call waits for the disk.
        """
        with self._folders_lock:
            if folder in self._durable_folders and folder.is_dir():
                return
            folder.mkdir(parents=True, exist_ok=True)
            fsync_upwards(folder.parent, self._storage)
            if len(self._durable_folders) >= _REMEMBERED_FOLDERS:
                self._durable_folders.clear()
            self._durable_folders.add(folder)

    def has_space(self, size_bytes: int = 0) -> bool:
        """For so much more; asked of the disk each time, so that the node goes on by itself once there is space."""
        free = shutil.disk_usage(self._storage).free
        full = free - size_bytes < self._min_free_bytes
        if full != self._is_full:
            self._is_full = full
            words = "nothing new is accepted" if full else "new instances are accepted again"
            log.log(logging.ERROR if full else logging.INFO, "%d MiB free in storage: %s", free // 1024**2, words)
        return not full

    def new_part(self) -> Path:
        """A name below storage that nobody else has."""
        return self._incoming / f"{self._own}-{next(self._parts)}.part"

    def relative(self, path: Path) -> str:
        """A path of a file as the database has it."""
        return path.relative_to(self._storage).as_posix()


class IncomingInstance:
    """A file that grows while its instance arrives (port `IncomingInstance`); a context manager that leaves no part.

    Memory is that of one fragment, whatever the size of the instance.
    """

    def __init__(self, store: FileInstanceStore, path: Path, meta: bytes) -> None:
        """`path` is the plain name; its folder is there and durable. Raises as `FileInstanceStore.begin`."""
        self._store = store
        self._path = path
        self._size_bytes = len(meta)
        self._digest = hashlib.sha256()
        self._ask_for_space_at = 0  # size in bytes
        self._part: Path | None = None
        self._file: FileIO | None = None
        if self._store.has_space(len(meta)):
            self._part = self._store.new_part()
            self._file = FileIO(self._part, "xb")
            try:
                self._write(meta)
            except OSError:
                self.discard()
                raise
        elif not path.exists():  # with the same bytes it needs no space: then only the digest is taken
            raise StorageFull("storage is almost full")

    def __enter__(self) -> IncomingInstance:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def append(self, data: Buffer) -> None:
        """Write the next bytes of the data set. Raises as `FileInstanceStore.begin`; then only `discard` is left."""
        with disk_refusal(f"writing instance {self._path.stem}"):
            self._digest.update(data)
            self._size_bytes += len(data)
            if self._size_bytes >= self._ask_for_space_at and self._file is not None:
                self._check_space(len(data))
            self._write(data)

    def finish(self) -> WrittenInstance:
        """The file is whole: on return it is durable, under the name that is told.

        Raises:
            StorageFull: it is new and too little space is left.
            Transient: the disk refuses.
        """
        digest = self._digest.hexdigest()
        with disk_refusal(f"writing instance {self._path.stem}"):
            path = self._path
            if not self._place(path, digest):
                path = path.with_name(self._store.conflict_path(path.name, digest))
                if not self._place(path, digest):
                    raise Transient(
                        f"instance {self._path.stem}: {path.name} on disk does not hold the bytes that it is named by"
                    )
            fsync_folder(path.parent)  # also for a file that was there: who named it may not have come to this
        return WrittenInstance(path=self._store.relative(path), sha256=digest, size_bytes=self._size_bytes)

    def discard(self) -> None:
        """Close it and remove what has no name yet; nothing where it is finished."""
        file, self._file = self._file, None
        part, self._part = self._part, None
        if file is not None:
            file.close()
        if part is not None:
            with suppress(OSError):  # it is removed after the next start
                part.unlink(missing_ok=True)

    def _write(self, data: Buffer) -> None:
        rest = memoryview(data)
        while self._file is not None and rest.nbytes:
            rest = rest[self._file.write(rest) :]

    def _check_space(self, size_bytes: int = 0) -> None:
        self._ask_for_space_at = self._size_bytes + _SPACE_IS_ASKED_EVERY_BYTES
        if not self._store.has_space(size_bytes):
            raise StorageFull("storage is almost full")

    def _place(self, path: Path, digest: str) -> bool:
        """Whether `path` now holds the data set: put there, or found there with the same bytes."""
        if not path.exists():
            if self._file is None or self._part is None:
                raise StorageFull("storage is almost full")
            self._check_space()
            os.fsync(self._file.fileno())
            with suppress(FileExistsError):
                os.link(self._part, path)  # unlike a rename it never replaces what another has just put there
                return True
        return _data_set_digest(path) == digest


def _folders(parent: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    with os.scandir(parent) as entries:
        return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]


def prepare_storage(storage: Path, folder: str) -> Path:
    """Create the folders; remove what a crash left; the folder for files that are being written."""
    incoming = storage / "incoming"
    with disk_refusal(f"preparing storage {storage}"):
        for needed in (storage / folder, incoming):
            needed.mkdir(parents=True, exist_ok=True)
        fsync_upwards(storage, storage.parent)
        remove_abandoned(storage)
    return incoming


def remove_abandoned(storage: Path) -> None:
    """Remove what processes that ended an hour ago and more left half written. Raises `OSError`."""
    incoming = storage / "incoming"
    for part in incoming.iterdir() if incoming.is_dir() else ():
        _remove_abandoned(part)


def _remove_abandoned(part: Path) -> None:
    """Remove a left-over of a crash. By age, since another process may be writing here at this moment."""
    try:
        abandoned = time.time() - part.stat().st_mtime > _ABANDONED_AFTER_SECONDS
    except FileNotFoundError:
        return
    if not abandoned:
        return
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)


def uid_name(uid: str) -> str:
    """A UID as a file name: itself where it is one, else a digest (it comes from the network)."""
    if _UID.fullmatch(uid) and uid.strip("."):
        return uid
    return f"sha256-{hashlib.sha256(uid.encode(errors='surrogatepass')).hexdigest()}"


def _meta_length(head: bytes) -> int | None:
    """Bytes of preamble, prefix and meta header; None where the file does not begin with them."""
    if head[128:132] != b"DICM" or head[132:140] != _GROUP_LENGTH or len(head) < _GROUP_LENGTH_END:
        return None
    length: int = struct.unpack_from("<I", head, _GROUP_LENGTH_END - 4)[0]
    return _GROUP_LENGTH_END + length


def _data_set_digest(path: Path) -> str | None:
    """sha256 of the data set in a Part 10 file, None where the file is not whole."""
    with path.open("rb") as file:
        start = _meta_length(file.read(_GROUP_LENGTH_END))
        if start is None:
            return None
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest()
