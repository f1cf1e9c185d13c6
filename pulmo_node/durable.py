"""What it takes for bytes and names to survive a power cut, and what a disk that refuses means to the node."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pulmo_node.errors import DiskFull, Transient


def write_durably(path: Path, *parts: bytes) -> None:
    """Write a new file; its bytes are durable on return, its name is not. Raises `OSError`."""
    with path.open("xb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_upwards(folder: Path, last: Path) -> None:
    """Make what `folder` holds, and the names on the way from `last` down to it, durable."""
    for each in (folder, *folder.parents):
        fsync_folder(each)
        if each == last:
            return


@contextmanager
def disk_refusal(action: str) -> Iterator[None]:
    """An `OSError` becomes `Transient`: a full or failing disk may be there again later."""
    try:
        yield
    except OSError as exc:
        kind = DiskFull if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else Transient
        raise kind(f"{action}: {exc.strerror or exc}") from exc
